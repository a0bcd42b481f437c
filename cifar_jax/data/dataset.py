"""What every data source ends in: a Dataset of uint8 arrays in memory, and the fixed split held out of its training images."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from cifar_jax.errors import InputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The constants every CIFAR-10 recipe prints; fractions of the full range, one a channel (RGB).
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.247, 0.243, 0.261)


class Split(NamedTuple):
    """images: uint8, (n, 32, 32, 3), RGB; labels: int32, (n,), 0 <= label < number of classes."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test split with the class names and the channel statistics used to normalize (fractions of 255).

    `source` says where it came from (cache, folder, shapes, ...), `path` where it lies ("" when it was made in memory),
    `verified` whether its bytes matched the official digests.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    path: str
    verified: bool


def hold_out(train: Split, num_validation: int) -> tuple[Split, Split]:
    """Splits `train` into (kept, held out); the same images are held out whatever the seed of the run.

    Both keep the official order. num_validation: 0 <= n < len(train); 0 holds nothing out.
    """
    if not 0 <= num_validation < len(train):
        raise InputError(
            f"data.num_validation: got {num_validation}, expected 0 or more and fewer than the {len(train)} training images; "
            "hold out fewer"
        )
    held = np.zeros(len(train), bool)
    held[np.random.default_rng(0).permutation(len(train))[:num_validation]] = True
    return Split(train.images[~held], train.labels[~held]), Split(train.images[held], train.labels[held])


def split_training(dataset: Dataset, config) -> tuple[Split, Split]:
    """The images trained on and those held out, once they are found to fit the config; raises InputError otherwise."""
    if len(dataset.classes) != config.model.num_classes:
        raise InputError(
            f"model.num_classes: got {config.model.num_classes}, expected {len(dataset.classes)}, the classes of the data "
            f"({dataset.source}); set --config.model.num_classes={len(dataset.classes)}"
        )
    kept, held_out = hold_out(dataset.train, config.data.num_validation)
    if config.train.batch_size > len(kept):
        raise InputError(
            f"train.batch_size: got {config.train.batch_size}, expected at most the {len(kept)} training images; lower it"
        )
    return kept, held_out


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the images, labels and classes, in hexadecimal: equal for equal data, wherever it lies."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for array in (*dataset.train, *dataset.test):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns (mean, std) a channel of uint8 images (n, h, w, 3), as fractions of 255; std is 1/255 or more."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1000):  # counting levels is exact and needs no float copy of the set
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1000, ..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
