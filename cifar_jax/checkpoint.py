"""Checkpoints of a run, through Orbax: when they are whole, which are kept, and which config keys may differ on resume.

No other module imports Orbax. A checkpoint is one step of one manager: the TrainState and a JSON of progress; it counts
once its manifest is there. A thread of its own writes it, from a copy, while training goes on.
"""

import errno
import logging
import os
import pathlib
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_jax import manifest
from cifar_jax.errors import InputError, RunError
from cifar_jax.state import TrainState

# Keys (or whole sections, with a final dot) that change where or how a run is executed, not what it computes.
RESUMABLE_KEYS = ("data.dir", "data.workers", "parallel.", "log.", "checkpoint.")
log = logging.getLogger("cifar_jax")


def may_differ(key: str) -> bool:
    """Whether a run may be resumed with another value of this config key."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in RESUMABLE_KEYS)


def list_steps(directory: pathlib.Path) -> list[int]:
    """The steps that have a folder, whole or not, in order."""
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def find_newest(directory: pathlib.Path) -> int | None:
    """The step of the newest whole checkpoint; None where a run has yet to complete its first. Writes nothing.

    Warns of every newer one that is passed over, naming the file. Raises InputError where there are some and none is whole.
    """
    passed = []
    for step in reversed(steps := list_steps(directory)):
        folder = directory / str(step)
        complete = manifest.is_complete(folder)
        damage = manifest.find_damage(folder) if complete else f"{folder} is incomplete"
        if not damage:
            for line in passed:
                log.warning("checkpoint %s; the one before, of step %d, is used instead", line, step)
            return step
        passed.append(damage)
    if not steps:
        return None
    if len(steps) == 1 and not complete:  # killed while it wrote the first
        log.warning("checkpoint %s; there is none before it: training begins again", passed[0])
        return None
    raise InputError(
        f"--workdir: no checkpoint of {len(steps)} in {directory} is whole ({passed[0]}), expected at least one; restore the "
        "folder from a copy, or remove it to train from the beginning"
    )


class Checkpoints:
    """The checkpoints under a folder; a context manager, since saving goes on in the background until close()."""

    def __init__(self, directory: str | pathlib.Path, *, keep_best: bool, resume_from: int | None = None):
        """resume_from: what find_newest found; all that is newer or not complete is removed.

        Of those saved, the newest two are kept; with keep_best also the one whose row has the highest eval_accuracy.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._keep_best, self._resume_from = keep_best, resume_from
        for step in list_steps(self._directory):
            folder = self._directory / str(step)
            if resume_from is None or step > resume_from or not manifest.is_complete(folder):
                shutil.rmtree(folder)
        self._directory.mkdir(exist_ok=True)
        # Of several processes the first alone saves, a copy on the host, and restores onto one device of its own: so a
        # checkpoint knows nothing of devices and processes, and Orbax must not wait for the others.
        alone = ocp.options.MultiprocessingOptions(active_processes={0}) if jax.process_count() > 1 else None
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                enable_async_checkpointing=False,
                max_to_keep=None,
                cleanup_tmp_directories=True,
                create=False,
                **({"multiprocessing_options": alone} if alone else {}),
            ),
        )
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        self._saved_at = time.monotonic()

    def is_due(self, every_seconds: float) -> bool:
        """Whether the last save is that long ago and has ended; never for 0."""
        busy = self._saving is not None and not self._saving.done()
        return 0 < every_seconds <= time.monotonic() - self._saved_at and not busy

    def save(self, step: int, state: TrainState, progress: dict) -> None:
        """Copies the state and saves it in the background. progress: JSON values handed back by restore, among them `rows`.

        Raises RunError where the state is not finite or the save before this one failed.
        """
        self.wait()
        self._saved_at = time.monotonic()
        copy = jax.tree.map(np.array, state)  # the next step takes the arrays' memory
        for path, value in jax.tree_util.tree_leaves_with_path(copy):
            if not np.isfinite(value).all():
                name = jax.tree_util.keystr(path)
                raise RunError(
                    f"the state is not finite after step {step} ({name}); the checkpoints before are kept; lower "
                    "schedule.learning_rate and start in a new workdir"
                )
        self._saving = self._thread.submit(self._write, step, copy, progress)

    def _write(self, step, state, progress):
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items, force=True)
        manifest.write(self._directory / str(step))
        for old in set(list_steps(self._directory)) - self._kept(progress["rows"]):
            (self._directory / str(old) / manifest.NAME).unlink(missing_ok=True)  # never whole while it disappears
            self._manager.delete(old)

    def _kept(self, rows) -> set[int]:
        steps = list_steps(self._directory)
        saved = [row for row in rows if row["step"] in steps]
        best = max(saved, key=lambda row: row["eval_accuracy"])["step"] if self._keep_best and saved else steps[-1]
        return {*steps[-2:], best}

    def wait(self) -> None:
        """Waits for the last save; raises RunError, once, where it failed."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:  # Orbax raises nearly anything
            raise RunError(
                f"a checkpoint cannot be written to {self._directory} ({_reason(error)}); make room there, then start the same "
                "command again to resume from the one before"
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """Returns (state, progress) of `resume_from`, or None where that is None. like: a state of the same structure.

        Raises RunError where it cannot be read.
        """
        if self._resume_from is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(self._resume_from, args=items)
        except Exception as error:  # whole, yet not what this version reads: Orbax raises nearly anything
            raise RunError(
                f"the checkpoint {self._directory / str(self._resume_from)} is whole, but cannot be read ({_reason(error)}); "
                "use the version of cifar_jax that wrote it, or another --workdir"
            ) from error
        return restored["state"], restored["progress"]

    def close(self) -> None:
        """Waits for the last save; safe to call twice. Raises RunError where it failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _reason(error: Exception) -> str:
    """What an error of Orbax comes down to, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    full = os.strerror(errno.ENOSPC)
    return full if full in text else text[:200]
