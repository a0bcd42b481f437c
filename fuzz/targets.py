"""What reads bytes from strangers: for each, a function of the bytes of one file, and valid files to begin from.

A function may raise InputError and nothing else. Everything is small: two images a file.
"""

import functools
import io
import json
import pathlib
import tempfile

import cv2
import numpy as np
import PIL.Image

from cifar_jax.config import check_config, read_config, to_json
from cifar_jax.data import cache, formats
from cifar_jax.data.folder import read_image
from cifar_jax.jsonfile import write_json
from cifar_jax.weights import load_weights, save_weights
from cifar_jax.workdir import portable, read_result
from cifar_jax.workdir import read_config as read_run_config

ROOT = pathlib.Path(__file__).parent.parent
RELEASE = cache.Release(2, dict.fromkeys(cache.Arrays._fields, ""), {}, {})
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@functools.cache
def scratch() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="cifar_jax-fuzz-"))


def in_file(name: str, read):
    """A function of bytes: `read` of the path of a file that holds them."""

    def target(data: bytes):
        path = scratch() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        read(path)

    return target


def in_form(form: formats.Form, name: str, others: dict[str, bytes]):
    """A function of bytes: the form parsed with them as the file of that name."""
    return lambda data: formats._parse(form, name, {**others, name: data[: form.limits(RELEASE)[name]]}, RELEASE)


def encode(suffix: str) -> bytes:
    return cv2.imencode(suffix, IMAGES[0])[1].tobytes()


def encode_transparent(kind: str) -> bytes:
    """With an orientation, too: Pillow decodes it."""
    image, exif, out = PIL.Image.fromarray(np.dstack([IMAGES[0], IMAGES[1, ..., 0]])), PIL.Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(out, kind, exif=exif)
    return out.getvalue()


def npm_files() -> dict[str, bytes]:
    sheet = cv2.imencode(".png", IMAGES.reshape(2, 1024, 3))[1].tobytes()
    labels = {name: json.dumps([1] * count).encode() for name, count in zip(formats.LABELS, (10, 2), strict=True)}
    return {f"{name}.png": sheet for name in formats.BATCHES} | labels


def binary_files() -> dict[str, bytes]:
    return {f"{name}.bin": bytes(2 * 3073) for name in formats.BATCHES}


def read_weights(path: pathlib.Path) -> None:
    found = load_weights(str(path))
    check_config(found.config)


def read_run(path: pathlib.Path) -> None:
    read_run_config(path.parent)


def written(name: str, write) -> bytes:
    """What `write` leaves in a file of that name."""
    path = scratch() / "seed" / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    return path.read_bytes()


def make_targets() -> dict[str, tuple]:
    """{name: (function of bytes, seeds)}."""
    smoke = to_json(read_config(str(ROOT / "configs" / "smoke.py"), []))
    npm, binary = npm_files(), binary_files()
    content = {"config": portable(smoke), "classes": list("abcdefghij"), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    variables = {"params": {"head": {"bias": np.zeros(10, np.float32)}}}
    weights = written("w", lambda path: save_weights(path, variables, train_seconds=1.0, **content))
    old = weights.replace(b'"format_version":"2"', b'"format_version":"1"')  # read without its digest
    run = written("config.json", lambda path: write_json(path, {"config": smoke, "data": "d"}))
    result = {"parameters": 1, "receptive_field": 45, "epochs": 1, "train_seconds": 1.0, "device": "cpu", "train_accuracy": 0.5}
    result |= {"per_class_accuracy": {"a": 0.5, "b": None}, "correct": 1, "examples": 2, "loss": 0.5, "accuracy": 0.5}
    array = written("x.npy", lambda path: np.save(path, IMAGES))
    root = scratch() / "cache"
    (root / cache.FOLDER).mkdir(parents=True, exist_ok=True)
    for name in cache.Arrays._fields:
        np.save(root / cache.FOLDER / f"{name}.npy", IMAGES)

    def read_cache(_):
        cache.read_cache(str(root), RELEASE, warn=False)

    return {
        "image": (
            in_file("i.png", read_image),
            [*map(encode, (".png", ".jpg", ".webp", ".bmp")), *map(encode_transparent, ("PNG", "WEBP"))],
        ),
        "png": (in_form(formats.NPM, "data_batch_1.png", npm), [npm["data_batch_1.png"]]),
        "labels": (in_form(formats.NPM, formats.LABELS[1], npm), [npm[formats.LABELS[1]], b"[[1], 2]", b"[1e999, true]"]),
        "records": (in_form(formats.BINARY, "data_batch_1.bin", binary), [binary["data_batch_1.bin"]]),
        "array": (
            in_file(f"cache/{cache.FOLDER}/x_train.npy", lambda _: cache.read_cache(str(root), RELEASE, warn=False)),
            [array],
        ),
        "weights": (in_file("w.safetensors", read_weights), [weights, old]),
        "config": (in_file("run/config.json", read_run), [run, json.dumps({"format_version": 1, "config": smoke}).encode()]),
        "result": (
            in_file("done/result.json", lambda path: read_result(path.parent)),
            [json.dumps({"format_version": 1, **result}).encode()],
        ),
    }
