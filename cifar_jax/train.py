"""Training: what is checked before anything is written, the wiring, and the loop over epochs."""

import math
import os
import pathlib
import time

import jax

from cifar_jax import allocator, budget, metrics, stopping, workdir
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.config import check_config, to_json
from cifar_jax.data.dataset import fingerprint, split_training
from cifar_jax.data.loader import Prefetch, make_train_loader
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import RunError
from cifar_jax.evaluate import evaluate
from cifar_jax.log import RunLog
from cifar_jax.models import create_model, why_not_native
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state, final_variables
from cifar_jax.steps import make_eval_step, make_train_step
from cifar_jax.weights import save_weights


def train(config, directory: str | os.PathLike) -> dict:
    """Trains `config` in the workdir `directory`, or resumes what it holds; returns what result.json holds.

    A finished run is returned as it is. Raises InputError before anything is written; RunError when a run breaks off.
    """
    path = pathlib.Path(directory)
    allocator.keep_freed_memory()
    check_config(config)
    budget.check_budget(config.model, config.budget)
    workdir.check(path, config)
    result = workdir.read_result(path)
    if result:
        return result
    workdir.check_device()
    dataset = load_dataset(config.data.source, config.data.dir)
    kept, held_out = split_training(dataset, config)
    with workdir.lock(path):
        workdir.create(path, config, fingerprint(dataset))
        with (
            make_train_loader(
                kept,
                config.augment,
                dataset.mean,
                dataset.std,
                batch_size=config.train.batch_size,
                seed=config.seed,
                workers=config.data.workers,
            ) as loader,
            Checkpoints(path / "checkpoints", keep_best=bool(len(held_out))) as checkpoints,
        ):
            return _run(config, path, dataset, held_out, loader, checkpoints)


def _run(config, path, dataset, held_out, loader, checkpoints) -> dict:
    """Makes or restores the state, trains the epochs that are left, writes the results."""
    num_steps = config.train.epochs * loader.steps_per_epoch
    schedule = make_schedule(config.schedule, num_steps)
    model, tx = create_model(config.model), make_optimizer(config.optim, schedule)
    train_step = jax.jit(
        make_train_step(model, tx, label_smoothing=config.train.label_smoothing, ema_decay=config.ema.decay),
        donate_argnums=0,
    )
    eval_step = jax.jit(make_eval_step(model))
    state = create_state(model, tx, config.seed, with_ema=config.ema.decay > 0)
    restored = checkpoints.restore(state)
    state, rows = (restored[0], restored[1]["rows"]) if restored else (state, [])
    eval_split = "validation" if len(held_out) else "test"
    watched = held_out if len(held_out) else dataset.test
    counts = None
    with RunLog(path, config.log, num_epochs=config.train.epochs, steps_per_epoch=loader.steps_per_epoch, rows=rows) as log:
        log.say(_opening(config, path, dataset, kept=len(dataset.train) - len(held_out), rows=rows))
        train_step = _announce_first(train_step, log)
        for epoch in range(len(rows) + 1, config.train.epochs + 1):
            began = time.perf_counter()
            state, sums, wait = train_epoch(train_step, state, loader, epoch, schedule, log)
            trained = time.perf_counter()
            counts = evaluate(eval_step, final_variables(state), watched, dataset.mean, dataset.std)
            _check_finite(counts["loss"], epoch * loader.steps_per_epoch - 1, schedule)
            row = _make_row(epoch, loader.steps_per_epoch, schedule, sums, counts, eval_split)
            row["seconds"] = time.perf_counter() - began
            row["images_per_second"] = sums["examples"] / (trained - began)
            row["input_wait_fraction"] = wait / (trained - began)
            log.write(row, _seconds_left(log.rows + [row], config.train.epochs))
            if epoch % config.checkpoint.every_epochs == 0 or epoch == config.train.epochs:
                checkpoints.save(row["step"], state, {"rows": log.rows}, row["eval_accuracy"])
        checkpoints.wait()  # result.json, the mark of a finished run, comes after the last checkpoint
        variables = final_variables(state)
        if eval_split != "test" or counts is None:  # None: every epoch was done before
            counts = evaluate(eval_step, variables, dataset.test, dataset.mean, dataset.std)
    save_weights(
        path / "weights.safetensors",
        variables,
        config=workdir.portable(to_json(config)),
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        train_seconds=sum(row["seconds"] for row in log.rows),
    )
    return workdir.write_result(path, config, dataset, counts, log.rows)


def _make_row(epoch: int, steps_per_epoch: int, schedule, sums: dict, counts: dict, eval_split: str) -> dict:
    """A row of metrics.jsonl but for its times; learning_rate is that of the epoch's last step."""
    last_step = epoch * steps_per_epoch - 1
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
    }


def train_epoch(train_step, state, loader, epoch: int, schedule, log: RunLog):
    """One pass over the training images. Returns (state, summary of the sums, seconds spent waiting for input).

    One step is always under way while the next batch is fetched; the loss of each is looked at one step late.
    Raises RunError at a loss that is not finite.
    """
    sums, pending = None, None
    batches = Prefetch(loader.epoch(epoch), jax.device_put)
    add = jax.jit(metrics.add)
    with log.epoch_bar(epoch) as bar:
        for step, batch in enumerate(batches, (epoch - 1) * loader.steps_per_epoch):
            stopping.check()
            state, batch_sums = train_step(state, batch)
            sums = batch_sums if sums is None else add(sums, batch_sums)
            if pending is not None:
                _check_finite(pending, step - 1, schedule)
            pending = batch_sums["loss"]
            if bar.n % 20 == 0 and not bar.disable:
                running = metrics.summarize(jax.device_get(sums))
                bar.set_postfix(loss=f"{running['loss']:.3f}", accuracy=f"{100 * running['accuracy']:.2f}%", refresh=False)
            bar.update()
    _check_finite(pending, step, schedule)
    return state, metrics.summarize(jax.device_get(sums)), batches.wait_seconds


def _announce_first(train_step, log: RunLog):
    """The same step, saying after its first call how long compiling it and computing it took."""
    first = True

    def announced(state, batch):
        nonlocal first
        if not first:
            return train_step(state, batch)
        first, began = False, time.perf_counter()
        output = jax.block_until_ready(train_step(state, batch))
        log.say(f"First step after {time.perf_counter() - began:.1f} s, compilation included")
        return output

    return announced


def _check_finite(loss, step: int, schedule) -> None:
    if not math.isfinite(float(loss)):
        raise RunError(
            f"the loss is {float(loss)} at step {step} (learning rate {float(schedule(step)):.4g}); checkpoints of "
            "earlier epochs are kept; lower schedule.learning_rate and start in a new workdir"
        )


def _seconds_left(rows, num_epochs: int) -> float:
    recent = [row["seconds"] for row in rows[-5:]]
    return sum(recent) / len(recent) * (num_epochs - len(rows))


def _opening(config, path, dataset, *, kept: int, rows) -> str:
    device = jax.devices()[0]
    reason = why_not_native(config.model)
    kernels = f"without native kernels ({reason})" if reason else "with native kernels"
    resumed = f"; resuming after epoch {len(rows)}" if rows else ""
    return (
        f"Training {config.model.name}/{config.model.variant} on {kept} images from {dataset.source} for {config.train.epochs} "
        f"epochs on {device.platform} {kernels}, in {path}{resumed}"
    )
