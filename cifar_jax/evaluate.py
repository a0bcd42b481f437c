"""Counts a split exactly: loss and accuracy over all examples, and accuracy of each class."""

import pathlib
from typing import Any, NamedTuple

import jax

from cifar_jax import metrics, stopping, workdir
from cifar_jax.budget import summarize
from cifar_jax.classifier import check_stored, load_network
from cifar_jax.config import check_config, with_overrides
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.data.loader import Prefetch, eval_batches
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError
from cifar_jax.mesh import make_put, own_rows, round_up
from cifar_jax.steps import make_eval_step
from cifar_jax.weights import Weights

BATCH_SIZE = 500  # divides CIFAR-10's 10,000 and 5,000; the size changes no result, only speed


def evaluate(eval_step, variables, split: Split, mean, std, *, mesh=None, check=lambda: None) -> dict:
    """Returns loss, accuracy, correct, examples, and class_accuracy (a list of fractions, None for an absent class).

    eval_step: a compiled steps.make_eval_step, split over `mesh` where there is one; check: called before each batch. Every
    image counts exactly once.
    """
    sums, size = None, round_up(BATCH_SIZE, mesh)
    for batch in Prefetch(eval_batches(split, mean, std, size, own_rows(size)), make_put(mesh)):
        check()
        batch_sums = eval_step(variables, batch)
        sums = batch_sums if sums is None else metrics.add(sums, batch_sums)
    return to_counts(jax.device_get(sums))


def to_counts(sums: dict) -> dict:
    """What `evaluate` returns, of metrics.eval_sums over a whole split that lie on the host."""
    counts = zip(sums["class_correct"].tolist(), sums["class_examples"].tolist(), strict=True)
    class_accuracy = [correct / examples if examples else None for correct, examples in counts]
    return metrics.summarize(sums) | {"class_accuracy": class_accuracy}


class Trained(NamedTuple):
    """A trained network with its data. weights: weights.Weights; config: theirs, with where the data lies on this machine."""

    weights: Weights
    config: Any
    model: Any
    dataset: Dataset


def load_trained(directory: str | None, weights: str | None, overrides: list[str]) -> Trained:
    """Reads a finished run's folder, or a weights file, and the data that it knows.

    overrides: --config.data.dir=DIR and --config.data.source=NAME, to say where the data lies on this machine.
    Raises InputError where the file is missing, damaged, or for another network, or the data has other classes.
    """
    if directory:
        workdir.read_finished(directory)
    for override in overrides:
        if override.split("=")[0] not in ("--config.data.dir", "--config.data.source"):
            raise InputError(
                f"{override}: the config of trained weights is a fact, expected only --config.data.dir and --config.data.source; "
                "leave it out"
            )
    found, model = load_network(weights or str(pathlib.Path(directory, "weights.safetensors")))
    if directory:  # a run's folder knows where its data lay; a weights file, made to be shared, does not
        stored = workdir.read_config(pathlib.Path(directory))
        check_stored(stored, directory)
        overrides = [f"--config.data.dir={stored.data.dir}", *overrides]
    else:  # nor may a stranger's choose what is read here
        overrides = ["--config.data.dir=", *overrides]
    config = with_overrides(found.config, overrides)
    check_config(config)
    with stopping.interruptible():
        dataset = load_dataset(config.data.source, config.data.dir)
    if dataset.classes != found.classes:
        raise InputError(
            f"data: got the classes {', '.join(dataset.classes[:10])}, expected those of the weights: "
            f"{', '.join(found.classes[:10])}; name the data with --config.data.source and --config.data.dir"
        )
    return Trained(found, config, model, dataset)


def evaluate_files(directory: str | None, weights: str | None, overrides: list[str]) -> dict:
    """Counts the test set for a finished run's folder or a weights file; returns what `evaluate --json` prints.

    Raises InputError where neither or both are given, and as load_trained does; overrides: see there.
    """
    if bool(directory) == bool(weights):
        got = "both" if directory else "neither"
        raise InputError(f"evaluate: got {got}, expected one of --workdir DIR and --weights NAME|FILE; name one")
    found, config, model, dataset = load_trained(directory, weights, overrides)
    eval_step = jax.jit(make_eval_step(model))
    counts = evaluate(eval_step, found.variables, dataset.test, found.mean, found.std, check=stopping.check)
    return workdir.evaluation_result(
        config, found.classes, "test", counts, summarize(config.model).parameters, found.train_seconds
    )
