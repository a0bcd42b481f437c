"""CIFAR-10 by way of TensorFlow Datasets: a set it has prepared, or its download of the official archive.

TensorFlow itself is not needed: a prepared set in array_record files is read without it, and where it is missing the
archive that TFDS downloads is parsed here. tensorflow_datasets is imported only on use; it takes a second.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from cifar_jax.data.cache import CIFAR10, Arrays, Release
from cifar_jax.data.formats import BINARY, read_archive
from cifar_jax.errors import InputError

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
TIMEOUT = (5, 30)  # seconds: to connect, and between two packets
PREPARE = 'prepare it with tfds.builder("cifar10").download_and_prepare(file_format="array_record")'


def fetch_tfds(release: Release = CIFAR10, *, home: str = "", url: str = ARCHIVE_URL) -> Arrays:
    """Returns the set prepared below `home` (TFDS_DATA_DIR or ~/tensorflow_datasets), else has TFDS fetch the archive.

    InputError when neither works, with the reason; the digests are the caller's to check.
    """
    home = os.path.expanduser(home or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if prepared := find_prepared(home):
        return read_prepared(prepared, release)
    _probe(url)  # TFDS sets no time-out and tries eleven times
    with _reported(url, "use data.source=archive"):
        import tensorflow_datasets as tfds

        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        if importlib.util.find_spec("tensorflow") and url == ARCHIVE_URL:
            tfds.builder("cifar10", data_dir=home).download_and_prepare(file_format="array_record")
        else:
            return _download(tfds, url, release)
    return read_prepared(find_prepared(home) or home, release)


def find_prepared(directory: str | os.PathLike) -> pathlib.Path | None:
    """Returns the folder of a prepared set: `directory`, a version in it, or its newest cifar10/<version>, or None."""
    root = pathlib.Path(directory)
    folders = [root]
    for pattern in ("[0-9]*.*.*", "cifar10/[0-9]*.*.*"):
        folders += sorted(root.glob(pattern), reverse=True)
    needed = ("dataset_info.json", "features.json")
    return next((folder for folder in folders if all((folder / name).is_file() for name in needed)), None)


def read_prepared(path: str | os.PathLike, release: Release = CIFAR10) -> Arrays:
    """Returns the arrays of a prepared set in the official order, that of its ids; InputError if it is not whole."""
    with _reported(path, PREPARE):
        import tensorflow_datasets as tfds

        _check_features(pathlib.Path(path, "features.json"))
        builder = tfds.builder_from_directory(os.fspath(path))
        train = _read_split(builder, "train", 5 * release.images_per_file)
        test = _read_split(builder, "test", release.images_per_file)
    return Arrays(*train, *test)


def _check_features(path: pathlib.Path) -> None:
    """TFDS imports whatever module features.json names, by three spellings: only its own are allowed."""

    def visit(value):
        for key in ("pythonClassName", "python_class_name", "type") if isinstance(value, dict) else ():
            name = value.get(key, "tensorflow_datasets.")
            if not (isinstance(name, str) and name.startswith("tensorflow_datasets.")):
                raise InputError(f"{path}: names the class {name!r}, expected only those of tensorflow_datasets; {PREPARE}")
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            visit(inner)

    visit(json.loads(path.read_text()))


def _read_split(builder, split: str, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(split)
    if len(source) != num_images:
        raise InputError(f"{builder.data_dir}: got {len(source)} {split} images, expected {num_images}; {PREPARE}")
    images, labels = np.empty((num_images, 32, 32, 3), np.uint8), np.empty(num_images, np.uint8)
    seen = np.zeros(num_images, bool)
    for start in range(0, num_images, 1000):
        for example in source.__getitems__(range(start, min(start + 1000, num_images))):
            index = int(example["id"].decode().removeprefix(f"{split}_"))
            images[index], labels[index], seen[index] = example["image"], example["label"], True
    if not seen.all():
        raise InputError(f"{builder.data_dir}: id {split}_{int(seen.argmin()):05d} is missing; {PREPARE}")
    return images, labels


def _download(tfds, url: str, release: Release) -> Arrays:
    """Downloads the archive with TFDS, which checks the checksum registered for the official address, and parses it."""
    with tempfile.TemporaryDirectory(prefix="cifar_jax-") as scratch:
        manager = tfds.download.DownloadManager(download_dir=scratch, dataset_name="cifar10")
        return read_archive(BINARY, manager.download(url), release)


def _probe(url: str) -> None:
    """Asks for the first bytes of `url`, so that a closed network is noticed in seconds."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
    except requests.RequestException as error:
        raise InputError(f"{url}: no answer ({network_reason(error)})") from None


def network_reason(error: Exception) -> str:
    """Returns a few words for what a download failed of; `requests` itself repeats the address and its objects."""
    text = " ".join(str(error).split())
    known = {"NameResolution": "name not resolved", "timed out": "timed out", "refused": "connection refused"}
    return next((words for mark, words in known.items() if mark in text), f"{type(error).__name__}: {text[:120]}")


@contextlib.contextmanager
def _reported(what: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Turns whatever TFDS raises into an InputError that names `what`: its errors are of many kinds and many lines."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: tensorflow_datasets failed ({type(error).__name__}: {text}); {remedy}") from error
