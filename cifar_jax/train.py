"""Training: what is checked before anything is written, the wiring, and the loop over epochs."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import time

import jax

from cifar_jax import allocator, budget, metrics, processes, stopping, workdir
from cifar_jax.checkpoint import Checkpoints, find_newest, list_steps, may_differ
from cifar_jax.config import check_config, differing_keys, to_json
from cifar_jax.data.augment import check_albumentations
from cifar_jax.data.dataset import fingerprint, split_training
from cifar_jax.data.sources import load_dataset
from cifar_jax.device import check_device
from cifar_jax.distill import make_teacher, read_teacher
from cifar_jax.epoch import Progress, check_finite
from cifar_jax.errors import InputError
from cifar_jax.initial import describe, read_initial, take_over
from cifar_jax.log import RunLog
from cifar_jax.mesh import AXIS, make_mesh, meet, place, split
from cifar_jax.models import choose_kernels, create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.pipeline import make_pipeline
from cifar_jax.state import create_state, final_variables
from cifar_jax.steps import make_eval_step, make_train_step
from cifar_jax.weights import load_weights, save_weights

_logger = logging.getLogger("cifar_jax")


def train(config, directory: str | os.PathLike) -> dict:
    """Trains `config` in the workdir `directory`, or resumes what it holds; returns what result.json holds.

    A finished run is returned as it is. Raises InputError before anything is written; RunError when a run breaks off. Of
    several processes (see processes.py) each calls it; the first alone needs the workdir, and all return the same.
    """
    path = pathlib.Path(directory)
    allocator.keep_freed_memory()  # for callers from Python
    check_config(config)
    budget.check_budget(config.model, config.budget)
    processes.join(config.parallel)
    with processes.ends_of_others():
        _check_same_config(config)
        if result := processes.from_first(functools.partial(_begin, path, config)):
            return result
        mesh, dataset, taught_by = processes.together(functools.partial(_load, config))
        kept, held_out = split_training(dataset, config)
        digests = {"data": fingerprint(dataset), "teacher": taught_by.sha256 if taught_by else ""}
        processes.check_same("data", digests["data"])
        processes.check_same("distill.weights", digests["teacher"])
        processes.check_same("model.kernels", workdir.describe_kernels(config))
        teacher = make_teacher(config, taught_by, dataset)
        meet(mesh)
        with _open_workdir(path, config, digests, keep_best=bool(len(held_out))) as (result, *opened):
            return result or _run(config, path, dataset, kept, held_out, *opened, mesh, teacher)


def _load(config):
    """(mesh, dataset, the teacher's weights or None): what a process brings to the run."""
    check_device()
    if config.augment.backend == "host":
        check_albumentations()
    mesh, teacher = make_mesh(config.parallel.devices, config.train.batch_size), read_teacher(config)
    with stopping.interruptible():
        return mesh, load_dataset(config.data.source, config.data.dir), teacher


@contextlib.contextmanager
def _open_workdir(path, config, digests, *, keep_best):
    """Gives (the result of a run that has finished meanwhile, the Checkpoints, the weights to begin from); None for what there is
    not, and the latter two in all processes but the first.
    """
    checkpoints = initial = None
    with contextlib.ExitStack() as opened:

        def open_first():
            nonlocal checkpoints, initial
            opened.enter_context(workdir.errors_of_writing(path))
            opened.enter_context(workdir.lock(path))
            if result := _finished(path, config):  # another run may have been there while the data was loaded
                return result
            newest = find_newest(path / "checkpoints")
            initial = read_initial(config) if newest is None else None
            workdir.create(path, config, **digests, initial=initial.sha256 if initial else "")
            files = Checkpoints(path / "checkpoints", keep_best=keep_best, resume_from=newest)
            checkpoints = opened.enter_context(files)
            return None

        yield processes.from_first(open_first), checkpoints, initial


def _check_same_config(config) -> None:
    """Raises InputError in all processes where one was started with another config than process 0."""
    first = processes.from_first(lambda: to_json(config))

    def compare():
        differing = {said.split()[0]: said for said in differing_keys(first, config)}
        if wrong := [said for key, said in differing.items() if not may_differ(key) or key == "parallel.devices"]:
            raise InputError(
                f"config: process {jax.process_index()} got another than process 0: {', '.join(wrong)}; start all with the same"
            )

    processes.together(compare)


def _begin(path, config) -> dict | None:
    """The result of a finished run, or None once the workdir is found fit for a run."""
    if result := _finished(path, config):
        _logger.info("%s holds this run, finished", path)
        return result
    workdir.check_writable(path)
    if not list_steps(path / "checkpoints"):
        read_initial(config)
    return None


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
        _logger.warning("%s: its weights are made again from the last checkpoint (%s)", path, error)
        return None
    return result


def _run(config, path, dataset, kept, held_out, checkpoints, initial, mesh, teacher) -> dict:
    """Makes or restores the state, trains the epochs that are left, writes the results.

    checkpoints: None in all processes but the first, which write nothing. initial: what _start takes.
    """
    steps_per_epoch = len(kept) // config.train.batch_size
    schedule = make_schedule(config.schedule, config.train.epochs * steps_per_epoch)
    axis_name = AXIS if mesh else None
    model, tx = create_model(config.model, axis_name=axis_name), make_optimizer(config.optim, schedule)
    options = {"label_smoothing": config.train.label_smoothing, "ema_decay": config.ema.decay}
    options |= {"axis_name": axis_name, "teacher": teacher}
    steps = split(make_train_step(model, tx, **options), mesh), split(make_eval_step(model, axis_name=axis_name), mesh)
    state = create_state(model, tx, config.seed, with_ema=config.ema.decay > 0)
    state, progress = _start(checkpoints, state, initial, dataset.classes)
    state, rows, start = place(state, mesh), progress.pop("rows"), Progress(**progress)
    split_name, watched = ("validation", held_out) if len(held_out) else ("test", dataset.test)
    folder = path if processes.is_first() else None
    log = RunLog(folder, config.log, num_epochs=config.train.epochs, steps_per_epoch=steps_per_epoch, rows=rows)
    log.say(_opening(config, path, dataset, initial, mesh, kept=len(kept), rows=rows, start=start))
    with make_pipeline(config, dataset, kept, *steps, mesh) as pipeline:
        count = pipeline.make_count(watched)
        state, counts = _train_epochs(
            config,
            functools.partial(pipeline.train_epoch, schedule=schedule, log=log),
            lambda state: (split_name, count(final_variables(state))),
            state,
            start,
            steps_per_epoch=steps_per_epoch,
            schedule=schedule,
            log=log,
            checkpoints=checkpoints,
        )
        if counts is None or len(held_out):  # None: every epoch was done before
            counts = pipeline.make_count(dataset.test)(final_variables(state))
    if checkpoints is None:
        return workdir.make_result(config, dataset, counts, log.rows)
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


def _start(checkpoints, state, initial, classes):
    """(the state, what a checkpoint says of its progress): of the newest checkpoint, or the initial ones.

    initial: the weights to begin from, in the first process; None where there are none, or a checkpoint.
    """
    restored = checkpoints.restore(state) if checkpoints else None
    progress = processes.from_first(lambda: restored[1] if restored else None)
    if progress is not None:
        return processes.state_from_first(restored[0] if restored else state), progress
    if processes.from_first(lambda: initial is not None):
        state = processes.state_from_first(take_over(state, initial, classes) if initial else state)
    return state, {"rows": []}


def _train_epochs(config, run_epoch, watch, state, start, *, steps_per_epoch, schedule, log, checkpoints):
    """Trains, evaluates and saves epoch after epoch, the first from `start` on. Returns (state, the last epoch's counts).

    run_epoch(state, epoch, start=, save=): see train_epoch. watch(state): the name and the counts of what is evaluated
    after each. A signal ends it after a step or an evaluation, once that is saved; one to any of several processes ends all
    of them, after some steps.
    """

    def save(state, step, progress):
        if checkpoints:
            checkpoints.save(step, state, {"rows": list(log.rows), **dataclasses.asdict(progress)})

    def save_amid(state, get_progress):
        nonlocal first
        if first:
            first, _ = False, jax.block_until_ready(state)
            log.say(f"First step after {time.perf_counter() - started:.1f} s, compilation included")
        signal = received_amid()
        if signal or (checkpoints and checkpoints.is_due(config.checkpoint.every_seconds)):
            progress = get_progress()
            save(state, int(state.step), progress)
            end(signal)

    def end(signal):
        """Stops the run, if a signal has come: all processes at once, since whoever left first would end the others."""
        if signal:
            if checkpoints:
                checkpoints.wait()
            processes.highest(0)
            stopping.stop(signal)

    # On the device this is asked once a program, which is many steps.
    received_amid = processes.make_agreement(stopping.received, 1 if config.augment.backend == "device" else 16)
    counts, first, started = None, True, time.perf_counter()
    for epoch in range(len(log.rows) + 1, config.train.epochs + 1):
        end(processes.highest(stopping.received()))
        state, progress = run_epoch(state, epoch, start=start, save=save_amid)
        began, start = time.perf_counter(), Progress()
        split, counts = watch(state)
        check_finite(counts["loss"], epoch * steps_per_epoch - 1, schedule)
        row = _make_row(epoch, steps_per_epoch, schedule, progress, counts, split)
        row["seconds"] = progress.seconds + time.perf_counter() - began
        log.write(row, _seconds_left(log.rows + [row], config.train.epochs))
        signal = processes.highest(stopping.received())
        if epoch % config.checkpoint.every_epochs == 0 or epoch == config.train.epochs or signal:
            save(state, row["step"], start)
    if checkpoints:
        checkpoints.wait()  # result.json, the mark of a finished run, comes after the last checkpoint
    return state, counts


def _make_row(epoch: int, steps_per_epoch: int, schedule, progress: Progress, counts: dict, eval_split: str) -> dict:
    """A row of metrics.jsonl but for its seconds; learning_rate is that of the epoch's last step."""
    last_step, sums = epoch * steps_per_epoch - 1, metrics.summarize(progress.sums)
    return {
        "epoch": epoch,
        "step": last_step + 1,
        "learning_rate": float(jax.jit(schedule)(last_step)),  # one program for ten operations
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


def _opening(config, path, dataset, initial, mesh, *, kept: int, rows, start: Progress) -> str:
    device = jax.devices()[0].platform
    if mesh:
        hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        device = f"{mesh.size} {device} devices{hosts}, {config.train.batch_size // mesh.size} images of a batch each,"
    kernels, reason = choose_kernels(config.model)
    kernels = f"without kernels of its own ({reason})" if reason else f"with {kernels} kernels"
    begun = describe(config.init.weights, initial, dataset.classes)
    begun += f", taught by {config.distill.weights}" if config.distill.weights else ""
    resumed = f"; resuming after epoch {len(rows)} and {start.batches} steps of the next" if rows or start.batches else ""
    return (
        f"Training {config.model.name}/{config.model.variant} on {kept} images from {dataset.source} for {config.train.epochs} "
        f"epochs on {device} {kernels}, in {path}{begun}{resumed}"
    )
