"""One config trained from several seeds: a run each, in a folder of its own, and what they came to together."""

import os
import pathlib
import re
import statistics

from cifar_jax import processes, workdir
from cifar_jax.config import check_config, to_json
from cifar_jax.data.dataset import fingerprint
from cifar_jax.data.sources import load_dataset
from cifar_jax.duration import format_duration
from cifar_jax.errors import InputError
from cifar_jax.jsonfile import write_json
from cifar_jax.train import train

_RUN = re.compile(r"seed-(0|[1-9]\d*)")
SUMMARY = "sweep.json"


def sweep(config, directory: str, seeds: list[int]) -> dict:
    """Trains `config` from each seed in DIR/seed-N, one after the other, or resumes; returns what DIR/sweep.json then holds.

    {"config", "rows": [{"seed", "correct", "examples", "accuracy", "train_seconds"}], "mean", "std" (n - 1; None for one
    seed), "n"}, written after each seed, over all that are finished: those asked for and those that lay there before. So a
    sweep can be resumed and extended. Raises InputError before anything is written where the folder holds something else
    or runs of another config or on other data; RunError when a run breaks off.
    """
    if processes.are_several(config.parallel):
        raise InputError(
            "parallel: got several processes, expected one for a sweep; set parallel.num_processes=1 and give each its own seeds "
            "and --workdir"
        )
    path = pathlib.Path(directory)
    present = _check_folder(path)
    runs = {seed: (_with_seed(config, seed), path / f"seed-{seed}") for seed in [*seeds, *present]}
    for seeded, folder in runs.values():
        check_config(seeded)
        workdir.check(folder, seeded)
    data = fingerprint(load_dataset(config.data.source, config.data.dir)) if present else None
    for _, folder in runs.values():
        workdir.check_data(folder, data)
    results = {seed: workdir.read_result(folder) for seed, (_, folder) in runs.items()}
    for seed in seeds:
        results[seed] = train(*runs[seed])
        summary = summarize(config, [result for _, result in sorted(results.items()) if result])
        with workdir.errors_of_writing(path):
            write_json(path / SUMMARY, summary)
    return summary


def _with_seed(config, seed):
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    return config.lock()


def _check_folder(path) -> list[int]:
    """The seeds of which there is a run; raises InputError where the folder holds anything that no sweep leaves."""
    names = workdir.list_folder(path) if os.path.isdir(path) else []
    for name in names:
        file = path / name
        if not (_RUN.fullmatch(name) and file.is_dir() or name in (SUMMARY, f"{SUMMARY}.tmp") and file.is_file()):
            raise InputError(
                f"--workdir: got {path}, which holds {name}, expected nothing but the runs of a sweep, seed-0 and so on; name a "
                "new or empty folder"
            )
    return [int(found[1]) for name in names if (found := _RUN.fullmatch(name))]


def summarize(config, results: list[dict]) -> dict:
    """What sweep.json holds, from what train returned for each seed."""
    names = ("seed", "correct", "examples", "accuracy", "train_seconds")
    accuracies = [result["accuracy"] for result in results]
    return {
        "config": to_json(config),
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
