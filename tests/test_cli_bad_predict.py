"""Bad input to `predict`: one line on stderr, exit code 2, nothing printed and nothing written."""

import types

import cv2
import numpy as np
import pytest
from test_cli_bad_paths import MADE, MISSING, ids

import cifar_jax

PNG = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("files", "named", "said"),
    [
        ({}, ["nosuch.png"], "IMAGE: got nosuch.png, which does not exist, expected image files (*.png|jpg|"),
        ({"a.png": PNG}, ["a.png", "nosuch"], "IMAGE: got nosuch, which does not exist"),
        ({"a.png": PNG, "b.png": b"text"}, ["a.png", "b.png"], "b.png: not an image (its header cannot be read)"),
        ({"a.png": PNG, "b.png": PNG[:-9]}, ["a.png", "b.png"], "b.png: not an image (a chunk reaches beyond its end)"),
        ({"a.png": PNG, "b.txt": b"text"}, ["a.png", "b.txt"], "b.txt: not an image (its name or kind is another)"),
        ({"a.png": PNG, "b.png": b""}, ["a.png", "b.png"], "b.png: not an image"),
        ({"d/b.txt": b"", "d/.a.png": PNG}, ["d"], "IMAGE: got d, a folder without images, expected some *.png|jpg|"),
        ({"d/a.png": b"text", "d/b.png": b"text"}, ["d"], "IMAGE: got no file that is an image"),
    ],
)
def test_files_that_are_no_images(refused, tmp_path, monkeypatch, files, named, said):
    monkeypatch.setattr(cifar_jax, "load", lambda name: types.SimpleNamespace(classes=("a", "b")))  # it comes to no prediction
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert f"error: {said}" in refused("predict", "--weights", "base", *named)


# What is on every machine and is no image; not "/", which is a folder with many.
@pytest.mark.parametrize("name", [*MADE, *MISSING, "/dev/null", "/proc/nosuch", "/proc/self/mem"], ids=ids)
def test_what_is_no_file_as_an_image(refused, tmp_path, name):
    if name in MADE:
        MADE[name](tmp_path / name)
    line = refused("predict", "--weights", "base", name)
    assert "expected" in line and ("; name " in line or "; remove or replace it" in line)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--weights", "base"], "got no IMAGE, expected it; see run.py predict --help"),
        (["a.png"], "got no --weights, expected it; see run.py predict --help"),
        (["--weights", "base", ""], "IMAGE: got an empty name, expected that of a file or folder; see run.py predict --help"),
        (["a.png", "--weights", "nosuch"], "weights: got nosuch, expected a file or a committed name (base, "),
        (["a.png", "--weights", "a.png"], "weights a.png: not a whole weights file of cifar_jax"),
        (["a.png", "--weights", "."], "weights: got ., expected a file"),
        (["a.png", "--weights", "base", "--top", "0"], "--top: got '0', expected a whole number, 1 or more"),
        (["a.png", "--weights", "base", "--top", "x"], "--top: got 'x', expected a whole number, 1 or more"),
        (["a.png", "--weights", "base", "--config.seed=1"], "--config.seed=1: the config of trained weights is a fact"),
        (["a.png", "--weights", "base", "b.png"], "b.png: unknown argument"),
    ],
)
def test_arguments(refused, tmp_path, argv, said):
    (tmp_path / "a.png").write_bytes(PNG)
    assert f"error: {said}" in refused("predict", *argv)
