"""Checkpoints of a run, through Orbax: which are kept, what they hold, and which config keys may differ on resume.

No other module imports Orbax. A checkpoint is one step of one manager: the TrainState and a JSON of progress.
"""

import contextlib
import operator
import pathlib

import jax
import orbax.checkpoint as ocp

from cifar_jax.errors import RunError
from cifar_jax.state import TrainState

# Keys (or whole sections, with a final dot) that change where or how a run is executed, not what it computes.
RESUMABLE_KEYS = ("data.dir", "data.workers", "parallel.", "log.", "checkpoint.")


def may_differ(key: str) -> bool:
    """Whether a run may be resumed with another value of this config key."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in RESUMABLE_KEYS)


class Checkpoints:
    """The checkpoints under a folder; a context manager, since saving goes on in the background until close()."""

    def __init__(self, directory: str | pathlib.Path, *, keep_best: bool):
        """keep_best: also keep the one with the highest eval_accuracy; without it only the newest two are kept."""
        policies = [ocp.checkpoint_managers.LatestN(2)]
        accuracy = None
        if keep_best:
            accuracy = operator.itemgetter("eval_accuracy")
            policies.append(ocp.checkpoint_managers.BestN(get_metric_fn=accuracy, reverse=False, n=1))
        # Restored onto one device by default placement; sharded restores come with the mesh that needs them.
        self._manager = ocp.CheckpointManager(
            pathlib.Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=accuracy,  # without it the metrics are not written, and a resumed run forgets which is best
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state: TrainState, progress: dict, eval_accuracy: float) -> None:
        """Saves in the background. progress: JSON values (epoch, times and the like) handed back by restore."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with self._errors_of_saving():
            self._manager.save(step, args=items, metrics={"eval_accuracy": eval_accuracy})

    def wait(self) -> None:
        """Waits for the last save; raises RunError where it failed."""
        with self._errors_of_saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _errors_of_saving(self):
        try:
            yield
        except Exception as error:  # Orbax raises nearly anything, and that of the background at the next call
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise RunError(
                f"a checkpoint cannot be written to {self._manager.directory} ({reason}); make room there, then start the "
                "same command again to resume from the one before"
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """Returns the newest (state, progress), or None where there is none. like: a state of the same structure.

        Raises RunError where it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # Orbax raises nearly anything at a damaged file
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise RunError(
                f"the checkpoint {self._manager.directory / str(step)} cannot be read ({reason}); remove that folder, then "
                "start the same command again to resume from the one before"
            ) from error
        return restored["state"], restored["progress"]

    def close(self) -> None:
        """Waits for the last save; safe to call twice. Raises RunError where it failed."""
        with self._errors_of_saving():
            self._manager.wait_until_finished()
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
