"""What finished runs left in their folders, and the log of the course whose assignment this is, as the report reads them."""

import csv
import json
import pathlib
from typing import Any, NamedTuple

from cifar_jax import workdir
from cifar_jax.errors import InputError
from cifar_jax.jsonfile import damaged, read_json

MOST_RUNS = 12  # of which curves in one figure can be told apart
LOG = pathlib.Path(__file__).with_name("course_log.csv")
# What the report shows of a row of metrics.jsonl, all of them numbers.
_NUMBERS = ("epoch", "learning_rate", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "seconds")
_RESULT = {"accuracy": float, "correct": int, "examples": int, "parameters": int, "epochs": int, "train_seconds": float}
_RESULT |= {"receptive_field": int, "loss": float, "seed": int, "device": str, "versions": dict, "config": dict}


class Run(NamedTuple):
    """A finished run. result: its result.json; rows: of metrics.jsonl, one an epoch; config, data: of config.json, data being
    the fingerprint of the images, None where a run has not noted it.
    """

    path: pathlib.Path
    result: dict
    rows: list[dict]
    config: Any
    data: str | None


def read_runs(directories: list[str]) -> list[Run]:
    """Reads finished runs; raises InputError where a folder holds none or a damaged one, or is named twice."""
    if len(directories) > MOST_RUNS:
        raise InputError(f"--workdir: got {len(directories)} folders, expected at most {MOST_RUNS}; name fewer")
    runs, seen = [], set()
    for directory in directories:
        result = workdir.read_finished(directory)
        path = pathlib.Path(directory)
        if (resolved := path.resolve()) in seen:
            raise InputError(f"--workdir: got {directory} twice, expected each run once; leave one out")
        seen.add(resolved)
        _check_result(result, path / "result.json")
        config = workdir.read_config(path)
        data = read_json(path / "config.json").get("data")
        runs.append(Run(path, result, _read_rows(path / "metrics.jsonl"), config, data))
    return runs


def _check_result(result: dict, path: pathlib.Path) -> None:
    for key, kind in _RESULT.items():
        if not isinstance(result.get(key), (int, float) if kind is float else kind):
            raise damaged(path, TypeError(f"{key} is {result.get(key)!r}"))


def _read_rows(path: pathlib.Path) -> list[dict]:
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise ValueError("no ordinary file")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if not rows:
            raise ValueError("no epoch in it")
        for row in rows:
            if row["eval_split"] not in ("test", "validation") or not all(isinstance(row[k], int | float) for k in _NUMBERS):
                raise ValueError(f"epoch {row['epoch']}")
        return rows
    except (OSError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def read_course_log() -> list[dict]:
    """Rows of the course log: {"epoch", "correct", "images"}.

    What the log calls its test accuracy is counted over 50,000 images: those it trained on, and no test result.
    """
    with LOG.open(newline="") as file:
        rows = csv.DictReader(file)
        return [
            {"epoch": int(row["epoch"]), "correct": int(row["training_images_correct"]), "images": int(row["training_images"])}
            for row in rows
        ]
