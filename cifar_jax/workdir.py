"""The folder of one run: what it may hold before training, and the files that training leaves there."""

import contextlib
import logging
import os
import pathlib
import platform
import tempfile

import filelock
import jax

from cifar_jax import budget
from cifar_jax.checkpoint import may_differ
from cifar_jax.config import ANYWHERE, differing_keys, flatten, from_json, to_json
from cifar_jax.duration import format_duration
from cifar_jax.errors import InputError, RunError
from cifar_jax.initial import check_same_weights
from cifar_jax.jsonfile import damaged, read_json, write_json
from cifar_jax.models import choose_kernels

LOCK = ".lock"
MOST_NAMED = 5  # keys that a refusal quotes
log = logging.getLogger("cifar_jax")


def _nearest_folder(path: pathlib.Path) -> pathlib.Path:
    """The workdir, or the folder that it would be made in; raises InputError where that is none."""
    parent = path
    try:
        while not parent.exists() and not parent.is_symlink():
            parent = parent.parent
        if parent.is_dir():
            return parent
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--workdir: got {path}, which cannot be a folder ({error.strerror}); name another") from error
    raise InputError(f"--workdir: got {path}, but {parent} is no folder that can be written; name another")


def check_writable(path: pathlib.Path) -> None:
    """Raises InputError where the workdir cannot be made or written. Leaves nothing there."""
    folder = _nearest_folder(path)
    try:
        with tempfile.TemporaryFile(dir=folder):  # a read-only mount answers yes to os.access for root
            pass
    except OSError as error:
        raise InputError(f"--workdir: got {path}, but {folder} cannot be written ({error.strerror}); name another") from error


def check(path: pathlib.Path, config) -> None:
    """Raises InputError where the workdir is no folder, or holds something else than a run of this config. Writes nothing."""
    _nearest_folder(path)
    stored = read_json(path / "config.json")
    if stored is None:
        # A run that was killed at its very start has left no more than these.
        if path.exists() and any(name not in (LOCK, "config.json.tmp") for name in list_folder(path)):
            raise InputError(f"--workdir: got {path}, which holds files but no run; name a new or empty folder")
        return
    if stored.get("framework", "jax") != "jax":
        raise InputError(f"--workdir: {path} holds a run of {stored['framework']}, expected one of this command; name another")
    checkpoints = path / "checkpoints"
    if checkpoints.exists() and not checkpoints.is_dir():
        raise InputError(f"{checkpoints}: got a file, expected a folder; move it away or choose another --workdir")
    differing = [key for key in differing_keys(read_config(path), config) if not may_differ(key.split()[0])]
    if differing:
        if (more := len(differing) - MOST_NAMED) > 0:
            differing[MOST_NAMED:] = [f"and {more} more"]
        raise InputError(
            f"--workdir: {path} holds a run made with another config: {', '.join(differing)}; "
            "use the same values or another --workdir"
        )
    check_same_weights(path, "init.weights", stored.get("init"), config.init.weights)
    check_same_weights(path, "distill.weights", stored.get("teacher"), config.distill.weights)


def list_folder(path: pathlib.Path) -> list[str]:
    """The names of what a folder holds, sorted; raises InputError where they may not be read."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"--workdir: got {path}, which cannot be read ({error.strerror}); name another") from error


def check_data(path: pathlib.Path, data: str | None) -> dict | None:
    """Returns what config.json holds, or None; raises InputError where that run is on other data than `data`, a
    dataset.fingerprint. Writes nothing.
    """
    stored = read_json(path / "config.json")
    if stored and stored.get("data", data) != data:
        raise InputError(
            f"--workdir: {path} holds a run on other data (got {str(data)[:8]}, expected {str(stored['data'])[:8]}, of its "
            "images, labels and classes); use the same data or another --workdir"
        )
    return stored


def read_config(path: pathlib.Path):
    """The config that a run was made with; raises InputError where config.json is missing or damaged."""
    try:
        config = from_json(read_json(path / "config.json")["config"])
        flatten(config)  # what is nested beyond that, nothing can read
        return config
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise damaged(path / "config.json", error) from error


def create(path: pathlib.Path, config, data: str, initial: str = "", teacher: str = "") -> None:
    """Makes the folder, with config.json in it; raises InputError where the folder holds a run on other data.

    Warns where the run was begun with other kernels: it goes on, but not to the bits that it would have ended in.

    data: dataset.fingerprint of the data to be trained on. initial: sha256 of the weights that it begins from; it is kept
    where the folder holds the run already. teacher: sha256 of the weights that teach it.
    """
    stored = check_data(path, data)
    kernels = describe_kernels(config)
    begun = stored.get("kernels", kernels) if stored else kernels
    if begun != kernels:
        log.warning(
            "%s was begun with %s kernels and goes on with %s ones: its numbers will differ by rounding", path, begun, kernels
        )
    initial = stored.get("init", "") if stored else initial
    path.mkdir(parents=True, exist_ok=True)
    digests = {"data": data, "init": initial, "teacher": teacher}
    write_json(path / "config.json", {"config": to_json(config), "kernels": begun, **digests})


def describe_kernels(config) -> str:
    """What computes the config's network on this machine: "native", "pallas" or "xla"."""
    return choose_kernels(config.model)[0]


@contextlib.contextmanager
def lock(path: pathlib.Path):
    """Makes the folder and holds it for this process, until it ends in whatever way; raises InputError where another does."""
    path.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(path / LOCK)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"--workdir: {path} is in use by another process, expected one run a folder; name another") from error
    try:
        yield
    finally:
        held.release()


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


def read_result(path: pathlib.Path) -> dict | None:
    """result.json of a finished run, or None; raises InputError where it does not hold what format_result shows."""
    result = read_json(path / "result.json")
    try:
        if result is not None:
            format_result(result, path)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise damaged(path / "result.json", error) from error
    return result


def read_finished(directory: str) -> dict:
    """result.json of a finished run's folder; raises InputError where that is none."""
    if not (os.path.isdir(directory) and (result := read_result(pathlib.Path(directory)))):
        raise InputError(
            f"--workdir: got {directory}, which holds no finished run, expected a folder with a result.json in it; finish the "
            "run with the command that began it, or name another"
        )
    return result


def portable(config: dict) -> dict:
    """The config without what depends on the machine: where files lie, how many processes read them, which ones train."""
    data = config["data"] | {"dir": "", "workers": 0}
    named = {key: config[key] | {"weights": os.path.basename(config[key]["weights"])} for key in ("init", "distill")}
    return config | {"data": data, "parallel": ANYWHERE, **named}


def describe_device() -> str:
    """Platform, count and kind of the devices in use, such as "cpu: 2 cores, Intel(R) Xeon(R) Processor @ 2.50GHz"."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{devices[0].platform}: {len(devices)} x {devices[0].device_kind}"
    kind = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu: {cores} cores, {kind}"


def versions() -> dict:
    """Versions of what the figures depend on."""
    from importlib.metadata import version

    packages = ("jax", "flax", "optax", "orbax-checkpoint", "albumentations", "opencv-python-headless", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def evaluation_result(config, classes, split: str, counts: dict, parameters: int, train_seconds: float | None) -> dict:
    """What `evaluate --json` prints and result.json begins with; counts: what evaluate.evaluate returned.

    train_seconds: of the run, or None where that is not known.
    """
    return {
        "config": to_json(config),
        "seed": config.seed,
        "split": split,
        "examples": counts["examples"],
        "correct": counts["correct"],
        "accuracy": counts["accuracy"],
        "loss": counts["loss"],
        "per_class_accuracy": dict(zip(classes, counts["class_accuracy"], strict=True)),
        "parameters": parameters,
        "epochs": config.train.epochs,
        "train_seconds": train_seconds,
        "device": describe_device(),
        "versions": versions(),
    }


def write_result(path: pathlib.Path, config, dataset, counts: dict, rows: list[dict]) -> dict:
    """Writes result.json, the mark of a finished run, and returns its content."""
    result = make_result(config, dataset, counts, rows)
    write_json(path / "result.json", result)
    return result


def make_result(config, dataset, counts: dict, rows: list[dict]) -> dict:
    """What result.json holds; rows: those of metrics.jsonl."""
    summary = budget.summarize(config.model)
    seconds = sum(row["seconds"] for row in rows)
    return evaluation_result(config, dataset.classes, "test", counts, summary.parameters, seconds) | {
        "receptive_field": summary.receptive_field,
        "train_loss": rows[-1]["train_loss"],
        "train_accuracy": rows[-1]["train_accuracy"],
        "data_source": dataset.source,
        "data_verified": dataset.verified,
        "kernels": describe_kernels(config),
    }


def format_result(result: dict, path: pathlib.Path | str) -> str:
    """The closing summary of a run for a terminal."""
    lines = [
        f"Total parameters   {result['parameters']:,}",
        f"Receptive field    {result['receptive_field']}",
        f"Epochs             {result['epochs']} in {format_duration(result['train_seconds'])} on {result['device']}",
        f"Training accuracy  {100 * result['train_accuracy']:.2f}% (running, augmented images, last epoch)",
        format_counts(result),
        f"Everything lies in {path}: {', '.join(sorted(p.name for p in pathlib.Path(path).glob('[!.]*')))}",
    ]
    return "\n".join(lines)


def format_counts(result: dict) -> str:
    """Accuracy in all and of each class, as lines."""
    rows = result["per_class_accuracy"]
    width = max(len(name) for name in rows)
    shown = {name: "no images" if value is None else f"{100 * value:6.2f}%" for name, value in rows.items()}
    counted = f"({result['correct']}/{result['examples']}), loss {result['loss']:.4f}"
    return "\n".join(
        [
            f"Test accuracy      {100 * result['accuracy']:.2f}% {counted}",
            *(f"  {name.ljust(width)}  {value}" for name, value in shown.items()),
        ]
    )
