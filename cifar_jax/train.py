"""Training: what is checked before anything is written, the wiring, and the loop over epochs."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import time

import jax

from cifar_jax import allocator, budget, metrics, stopping, workdir
from cifar_jax.checkpoint import Checkpoints, find_newest
from cifar_jax.config import check_config, to_json
from cifar_jax.data.dataset import fingerprint, split_training
from cifar_jax.data.sources import load_dataset
from cifar_jax.device import check_device
from cifar_jax.epoch import Progress, check_finite
from cifar_jax.errors import InputError, RunError
from cifar_jax.log import RunLog
from cifar_jax.models import create_model, why_not_native
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.pipeline import make_pipeline
from cifar_jax.state import create_state, final_variables
from cifar_jax.steps import make_eval_step, make_train_step
from cifar_jax.weights import load_weights, save_weights

_logger = logging.getLogger("cifar_jax")


def train(config, directory: str | os.PathLike) -> dict:
    """Trains `config` in the workdir `directory`, or resumes what it holds; returns what result.json holds.

    A finished run is returned as it is. Raises InputError before anything is written; RunError when a run breaks off.
    """
    path = pathlib.Path(directory)
    allocator.keep_freed_memory()
    check_config(config)
    budget.check_budget(config.model, config.budget)
    if result := _finished(path, config):
        return result
    workdir.check_writable(path)
    check_device()
    with stopping.interruptible():
        dataset = load_dataset(config.data.source, config.data.dir)
    kept, held_out = split_training(dataset, config)
    with errors_of_writing(path), workdir.lock(path):
        if result := _finished(path, config):  # another process may have been there while the data was loaded
            return result
        newest = find_newest(path / "checkpoints")
        workdir.create(path, config, fingerprint(dataset))
        with Checkpoints(path / "checkpoints", keep_best=bool(len(held_out)), resume_from=newest) as checkpoints:
            return _run(config, path, dataset, kept, held_out, checkpoints)


def _finished(path, config) -> dict | None:
    """The result of a finished run of this config; raises InputError where the workdir holds something else.

    Where its weights are damaged or gone, it is not finished: they are made again from the last checkpoint.
    """
    workdir.check(path, config)
    result = workdir.read_result(path)
    if result is None:
        return None
    try:
        load_weights(str(path / "weights.safetensors"))
    except InputError as error:
        _logger.warning("%s; made again from the last checkpoint", error)
        return None
    return result


@contextlib.contextmanager
def errors_of_writing(path):
    """Turns an OSError of what is written below `path` into a RunError."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output has left
        raise
    except OSError as error:
        raise RunError(
            f"{error.filename or path} cannot be written ({error.strerror}); make room there, then start the same command "
            "again to resume"
        ) from error


def _run(config, path, dataset, kept, held_out, checkpoints) -> dict:
    """Makes or restores the state, trains the epochs that are left, writes the results."""
    steps_per_epoch = len(kept) // config.train.batch_size
    schedule = make_schedule(config.schedule, config.train.epochs * steps_per_epoch)
    model, tx = create_model(config.model), make_optimizer(config.optim, schedule)
    train_step = make_train_step(model, tx, label_smoothing=config.train.label_smoothing, ema_decay=config.ema.decay)
    state = create_state(model, tx, config.seed, with_ema=config.ema.decay > 0)
    state, progress = checkpoints.restore(state) or (state, {"rows": []})
    rows, start = progress.pop("rows"), Progress(**progress)
    split, watched = ("validation", held_out) if len(held_out) else ("test", dataset.test)
    log = RunLog(path, config.log, num_epochs=config.train.epochs, steps_per_epoch=steps_per_epoch, rows=rows)
    log.say(_opening(config, path, dataset, kept=len(kept), rows=rows, start=start))
    with make_pipeline(config, dataset, kept, train_step, make_eval_step(model)) as pipeline:
        count = pipeline.make_count(watched)
        state, counts = _train_epochs(
            config,
            functools.partial(pipeline.train_epoch, schedule=schedule, log=log),
            lambda state: (split, count(final_variables(state))),
            state,
            start,
            steps_per_epoch=steps_per_epoch,
            schedule=schedule,
            log=log,
            checkpoints=checkpoints,
        )
        if counts is None or len(held_out):  # None: every epoch was done before
            counts = pipeline.make_count(dataset.test)(final_variables(state))
    save_weights(
        path / "weights.safetensors",
        final_variables(state),
        config=workdir.portable(to_json(config)),
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        train_seconds=sum(row["seconds"] for row in log.rows),
    )
    return workdir.write_result(path, config, dataset, counts, log.rows)


def _train_epochs(config, run_epoch, watch, state, start, *, steps_per_epoch, schedule, log, checkpoints):
    """Trains, evaluates and saves epoch after epoch, the first from `start` on. Returns (state, the last epoch's counts).

    run_epoch(state, epoch, start=, save=): see train_epoch. watch(state): the name and the counts of what is evaluated
    after each. A signal ends it after a step or an evaluation, once that is saved.
    """

    def save(state, step, progress):
        checkpoints.save(step, state, {"rows": list(log.rows), **dataclasses.asdict(progress)})

    def save_amid(state, get_progress):
        nonlocal first
        if first:
            first, _ = False, jax.block_until_ready(state)
            log.say(f"First step after {time.perf_counter() - started:.1f} s, compilation included")
        if stopping.received() or checkpoints.is_due(config.checkpoint.every_seconds):
            progress = get_progress()
            save(state, int(state.step), progress)
            stopping.check()

    counts, first, started = None, True, time.perf_counter()
    for epoch in range(len(log.rows) + 1, config.train.epochs + 1):
        stopping.check()
        state, progress = run_epoch(state, epoch, start=start, save=save_amid)
        began, start = time.perf_counter(), Progress()
        split, counts = watch(state)
        check_finite(counts["loss"], epoch * steps_per_epoch - 1, schedule)
        row = _make_row(epoch, steps_per_epoch, schedule, progress, counts, split)
        row["seconds"] = progress.seconds + time.perf_counter() - began
        log.write(row, _seconds_left(log.rows + [row], config.train.epochs))
        if epoch % config.checkpoint.every_epochs == 0 or epoch == config.train.epochs or stopping.received():
            save(state, row["step"], start)
    checkpoints.wait()  # result.json, the mark of a finished run, comes after the last checkpoint
    return state, counts


def _make_row(epoch: int, steps_per_epoch: int, schedule, progress: Progress, counts: dict, eval_split: str) -> dict:
    """A row of metrics.jsonl but for its seconds; learning_rate is that of the epoch's last step."""
    last_step, sums = epoch * steps_per_epoch - 1, metrics.summarize(progress.sums)
    return {
        "epoch": epoch,
        "step": last_step + 1,
        "learning_rate": float(schedule(last_step)),
        "train_loss": sums["loss"],
        "train_accuracy": sums["accuracy"],
        "eval_split": eval_split,
        "eval_loss": counts["loss"],
        "eval_accuracy": counts["accuracy"],
        "eval_correct": counts["correct"],
        "eval_examples": counts["examples"],
        "seconds": None,  # known once the row is made
        "images_per_second": sums["examples"] / progress.seconds,
        "input_wait_fraction": progress.wait_seconds / progress.seconds,
    }


def _seconds_left(rows, num_epochs: int) -> float:
    recent = [row["seconds"] for row in rows[-5:]]
    return sum(recent) / len(recent) * (num_epochs - len(rows))


def _opening(config, path, dataset, *, kept: int, rows, start: Progress) -> str:
    device = jax.devices()[0]
    reason = why_not_native(config.model)
    kernels = f"without native kernels ({reason})" if reason else "with native kernels"
    resumed = f"; resuming after epoch {len(rows)} and {start.batches} steps of the next" if rows or start.batches else ""
    return (
        f"Training {config.model.name}/{config.model.variant} on {kept} images from {dataset.source} for {config.train.epochs} "
        f"epochs on {device.platform} {kernels}, in {path}{resumed}"
    )
