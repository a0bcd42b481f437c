"""One config trained from several seeds: a run each, in a folder of its own, and what they came to together."""

import os
import pathlib
import re
import statistics

from cifar_jax import workdir
from cifar_jax.config import check_config
from cifar_jax.errors import InputError
from cifar_jax.jsonfile import write_json
from cifar_jax.log import format_duration
from cifar_jax.train import train

_KNOWN = re.compile(r"seed-\d+|sweep\.json(\.tmp)?")


def sweep(config, directory: str, seeds: list[int]) -> dict:
    """Trains `config` from each seed in DIR/seed-N, one after the other, or resumes; returns what DIR/sweep.json then holds.

    {"rows": [{"seed", "correct", "examples", "accuracy", "train_seconds"}], "mean", "std" (n - 1; None for one seed), "n"}.
    Runs that are finished are taken as they are, so a sweep can be resumed, and extended by more seeds. Raises InputError
    before anything is written where a folder holds something else; RunError when a run breaks off.
    """
    path = pathlib.Path(directory)
    runs = [(_with_seed(config, seed), path / f"seed-{seed}") for seed in seeds]
    _check_folder(path)
    for seeded, folder in runs:
        check_config(seeded)
        workdir.check(folder, seeded)
    summary = summarize([train(seeded, folder) for seeded, folder in runs])
    write_json(path / "sweep.json", summary)
    return summary


def _with_seed(config, seed):
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    return config.lock()


def _check_folder(path):
    found = sorted(file.name for file in path.iterdir() if not _KNOWN.fullmatch(file.name)) if os.path.isdir(path) else []
    if found:
        raise InputError(
            f"--workdir: got {path}, which holds {found[0]}, expected nothing but the runs of a sweep, seed-0 and so on; name a "
            "new or empty folder"
        )


def summarize(results: list[dict]) -> dict:
    """What sweep.json holds, from what train returned for each seed."""
    names = ("seed", "correct", "examples", "accuracy", "train_seconds")
    accuracies = [result["accuracy"] for result in results]
    return {
        "rows": [{name: result[name] for name in names} for result in results],
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "n": len(accuracies),
    }


def format_sweep(summary: dict) -> str:
    """A line a seed and one for all, for a terminal."""
    lines = [
        f"seed {row['seed']}: {100 * row['accuracy']:.2f}% ({row['correct']}/{row['examples']}) "
        f"in {format_duration(row['train_seconds'])}"
        for row in summary["rows"]
    ]
    spread = "" if summary["std"] is None else f" ± {100 * summary['std']:.2f}"
    return "\n".join([*lines, f"Test accuracy      {100 * summary['mean']:.2f}{spread}% (n = {summary['n']})"])
