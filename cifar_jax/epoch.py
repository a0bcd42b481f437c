"""One pass over the training images: from its first batch or from any other, with the sums it had there."""

import dataclasses
import math
import time

import jax
import numpy as np

from cifar_jax import metrics
from cifar_jax.data.loader import Prefetch
from cifar_jax.errors import RunError
from cifar_jax.mesh import make_put, place

# step_sums as a checkpoint's JSON has them, and back: every float32 is a float, exactly.
_TYPES = {"loss": np.float32, "correct": np.int32, "examples": np.int32}


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an epoch is. sums: metrics.step_sums of the batches done, as numbers, or None; wait_seconds: for input."""

    batches: int = 0
    sums: dict | None = None
    seconds: float = 0.0
    wait_seconds: float = 0.0


BEGINNING = Progress()


def sums_from_numbers(numbers: dict | None) -> dict:
    """metrics.step_sums of a checkpoint's numbers, or zeros."""
    return {name: kind(numbers[name] if numbers else 0) for name, kind in _TYPES.items()}


def sums_to_numbers(sums: dict) -> dict:
    """The inverse, of sums that lie on the host."""
    return {name: value.item() for name, value in sums.items()}


def timed(start: Progress):
    """Returns progress(batches, sums, wait_seconds) -> Progress, with the seconds since this call, after those of `start`."""
    began = time.perf_counter()

    def progress(batches, sums, wait_seconds):
        return Progress(batches, sums, start.seconds + time.perf_counter() - began, start.wait_seconds + wait_seconds)

    return progress


def train_epoch(train_step, state, loader, epoch: int, schedule, log, *, mesh=None, start: Progress = BEGINNING, save=None):
    """Trains the batches that `start` leaves of an epoch. Returns (state, the Progress at its end).

    save(state, get_progress): called after every step but the last; get_progress() waits for the step and tells how
    far the epoch is. One step is always under way while the next batch is fetched; the loss of each is looked at one
    step late. Raises RunError at a loss that is not finite.
    """
    sums, clock = place(sums_from_numbers(start.sums), mesh), timed(start)
    batches = Prefetch(loader.epoch(epoch, start.batches), make_put(mesh))
    first_step, done, pending = (epoch - 1) * loader.steps_per_epoch, start.batches, None

    def get_progress():
        _check(pending)
        return clock(done, sums_to_numbers(jax.device_get(sums)), batches.wait_seconds)

    def _check(loss):
        if loss is not None:
            check_finite(loss, first_step + done - 1, schedule)

    with log.epoch_bar(epoch, start.batches) as bar:
        for batch in batches:
            state, batch_sums = train_step(state, batch)
            sums = metrics.add(sums, batch_sums)
            _check(pending)
            done, pending = done + 1, batch_sums["loss"]
            if bar.n % 20 == 0 and not bar.disable:
                running = metrics.summarize(jax.device_get(sums))
                bar.set_postfix(loss=f"{running['loss']:.3f}", accuracy=f"{100 * running['accuracy']:.2f}%", refresh=False)
            bar.update()
            if save is not None and done < loader.steps_per_epoch:
                save(state, get_progress)
    return state, get_progress()


def check_finite(loss, step: int, schedule) -> None:
    """Raises RunError unless the loss of a step is finite."""
    if not math.isfinite(float(loss)):
        raise RunError(
            f"the loss is {float(loss)} at step {step} (learning rate {float(schedule(step)):.4g}); checkpoints of "
            "earlier steps are kept; lower schedule.learning_rate and start in a new workdir"
        )
