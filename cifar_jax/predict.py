"""Image files and folders through a trained network: found first, then read and computed in batches, a row an image.

What is held for all images is text, their paths and where asked for the JSON of their rows; decoded are at most two batches.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cifar_jax import stopping
from cifar_jax.classifier import BATCH_SIZES, Classifier
from cifar_jax.data.folder import SUFFIXES, check_file, read_image
from cifar_jax.data.loader import Prefetch
from cifar_jax.errors import InputError, escape

BATCH_SIZE = BATCH_SIZES[-1]
KINDS = "|".join(suffix.removeprefix(".") for suffix in SUFFIXES)
log = logging.getLogger("cifar_jax")


def find_images(names: list[str]) -> list[tuple[str, bool]]:
    """Returns (path, named) of each file named and of the image files in each folder named, sorted, hidden ones left out.

    InputError: what does not exist or is no file named as images are, a folder without images. Warns of other files in a
    folder.
    """
    found = []
    for name in names:
        if os.path.isdir(name):
            found += [(path, False) for path in _list_images(name)]
        elif os.path.exists(name):
            check_file(name)
            found.append((name, True))
        else:
            raise InputError(f"IMAGE: got {name}, which does not exist, expected image files (*.{KINDS}) or folders; name those")
    return found


def _list_images(folder: str) -> list[str]:
    images, others = [], []

    def refuse(error):
        if error.filename == folder:
            raise InputError(f"IMAGE: got {folder}, which cannot be read ({error.strerror}); name another") from error
        log.warning("passed over %s: it cannot be read (%s)", escape(error.filename), error.strerror)

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                (images if name.lower().endswith(SUFFIXES) else others).append(os.path.join(parent, name))
    if not images:
        raise InputError(f"IMAGE: got {folder}, a folder without images, expected some *.{KINDS} in it; name another")
    if others:
        log.warning(
            "passed over in %s: %d files not named *.%s, such as %s", escape(folder), len(others), KINDS, escape(min(others))
        )
    return sorted(images)


def predict_files(model: Classifier, found: list[tuple[str, bool]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, probabilities of the classes) of each image of find_images, in order.

    InputError: a file that was named and is no image, or no image at all. Warns of such files in a folder.
    """
    empty = True
    chunks = (found[i : i + BATCH_SIZE] for i in range(0, len(found), BATCH_SIZE))
    pool = ThreadPoolExecutor(os.cpu_count() or 1)  # the decoders let go of the interpreter lock
    try:
        for chunk in Prefetch(chunks, lambda chunk: [(*item, pool.submit(read_image, item[0])) for item in chunk]):
            if read := list(_drop_unreadable(chunk)):
                empty = False
                paths, images = zip(*read, strict=True)
                yield from zip(paths, model.predict(np.stack(images)), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
    if empty:
        raise InputError(f"IMAGE: got no file that is an image, expected at least one; name whole *.{KINDS} files")


def _drop_unreadable(chunk) -> Iterator[tuple[str, np.ndarray]]:
    for path, named, reading in chunk:
        stopping.check()
        try:
            yield path, reading.result()
        except InputError as error:
            if named:
                raise
            log.warning("passed over %s", error)


def top_classes(probabilities: np.ndarray, classes: tuple[str, ...], top: int) -> list[tuple[str, float]]:
    """The `top` most probable classes, or all where there are fewer, the most probable first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(classes[i], float(probabilities[i])) for i in order]


def format_rows(rows, model: Classifier, found, top: int) -> Iterator[str]:
    """Yields a line an image: its path, and its most probable classes with percentages, in columns."""
    width = max(len(escape(path)) for path, _ in found)
    name_width = max(len(escape(name)) for name in model.classes)
    for path, probabilities in rows:
        cells = [
            f"{escape(name).ljust(name_width)} {100 * value:5.1f} %"
            for name, value in top_classes(probabilities, model.classes, top)
        ]
        yield "  ".join([escape(path).ljust(width), *cells])


def to_json(rows, model: Classifier, weights: str, top: int) -> str:
    """One JSON object of all rows. images_per_second: decoding and computing, compilation included."""
    began = time.perf_counter()
    images = []  # as text, which takes less memory than what it says
    for path, probabilities in rows:
        best = [{"class": name, "probability": value} for name, value in top_classes(probabilities, model.classes, top)]
        images.append(json.dumps({"path": path, "top": best}))
    rate = len(images) / (time.perf_counter() - began)
    head = json.dumps({"weights": weights, "classes": model.classes, "images_per_second": rate})
    return f'{head[:-1]}, "images": [{", ".join(images)}]}}'
