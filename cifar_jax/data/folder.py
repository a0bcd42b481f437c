"""Reads a data set of anyone's own: DIR/train/<class>/*.png|jpg|… and DIR/test/<class>/…, with any classes."""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from cifar_jax.data.dataset import Dataset, Split, channel_statistics
from cifar_jax.data.decode import MOST_BYTES, decode_image
from cifar_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LAYOUT = "expected train/<class>/*.png|jpg|… and test/<class>/… in it"


def read_image_folder(directory: str | os.PathLike) -> Dataset:
    """Returns the images below `directory`, resized to 32×32 RGB, with the sorted folder names as classes.

    Aspect ratios are not kept; for colours see decode.decode_image. Mean and std are those of the training images.
    InputError: no such folder, no images, a file that is not an image, test classes other than the training classes.
    """
    root = pathlib.Path(os.path.expanduser(directory))
    if not root.is_dir():
        raise InputError(f"data.dir: got {str(root)!r}, which is no folder, {LAYOUT}; name one with --config.data.dir=DIR")
    train_classes, test_classes = _class_names(root / "train"), _class_names(root / "test")
    if train_classes != test_classes:
        odd = sorted(set(train_classes) ^ set(test_classes))
        raise InputError(f"{root}: class {odd[0]!r} is in one of train and test, expected in both; add or remove it")
    train, test = _read_split(root / "train", train_classes), _read_split(root / "test", train_classes)
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, tuple(train_classes), mean, std, source="folder", path=str(root), verified=False)


def is_image_folder(path: pathlib.Path) -> bool:
    """Whether `path` has the layout of an image folder; its files are not looked at."""
    return (path / "train").is_dir() and any(entry.is_dir() for entry in (path / "train").iterdir())


def _class_names(split: pathlib.Path) -> list[str]:
    if not split.is_dir():
        raise InputError(f"{split}: no such folder, {LAYOUT.removesuffix(' in it')}; make it or name another data.dir")
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{split}: got no class folders, expected one a class; fill it or name another data.dir")
    return names


def _read_split(split: pathlib.Path, classes: list[str]) -> Split:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).iterdir() if not path.name.startswith("."))
        if not found:
            raise InputError(f"{split / name}: got no images, expected at least one; add some or remove the class")
        paths += found
        labels += [label] * len(found)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # cv2 lets go of the interpreter lock
        images = list(pool.map(read_image, paths))
    return Split(np.stack(images), np.array(labels, np.int32))


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Returns an image file as uint8 (32, 32, 3) RGB, upright as its EXIF says; InputError when it is not an image.

    A file of over 256 MB, or whose header claims over 64 million pixels, is none.
    """
    check_file(path)
    try:
        image = decode_image(pathlib.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise _no_image(path, error) from None
    if image.shape[:2] != (32, 32):
        shrinks = min(image.shape[:2]) >= 32
        image = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def check_file(path: str | os.PathLike) -> None:
    """Raises InputError unless it is an ordinary file of a bounded size, named as images are; its content is not looked at."""
    try:
        # isfile: a FIFO or a device would be read for ever
        if pathlib.Path(path).suffix.lower() not in SUFFIXES or not os.path.isfile(path):
            raise ValueError("its name or kind is another")
        if os.path.getsize(path) > MOST_BYTES:
            raise ValueError(f"it has {os.path.getsize(path)} bytes")
    except (OSError, ValueError) as error:
        raise _no_image(path, error) from None


def _no_image(path, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else error
    expected = f"a whole {', '.join(SUFFIXES)} file of at most 64 million pixels"
    return InputError(f"{path}: not an image ({reason}), expected {expected}; remove or replace it")
