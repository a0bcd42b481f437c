"""The cache gives back exactly what was put in, notices every kind of damage, and is filled once."""

import hashlib
import json
import logging
import os
import resource
import threading
import time

import numpy as np
import pytest

from cifar_jax.data import cache
from cifar_jax.data.cache import FOLDER, Arrays, cache_lock, read_cache, write_cache
from cifar_jax.files import default_cache_dir


@pytest.fixture
def filled(small, tmp_path):
    write_cache(str(tmp_path), small.arrays, "npm")
    return tmp_path


def test_what_is_written_is_read_back(small, filled):
    arrays = read_cache(str(filled), small.release)
    for name in Arrays._fields:
        np.testing.assert_array_equal(getattr(arrays, name), getattr(small.arrays, name))
    assert json.loads((filled / FOLDER / "meta.json").read_text())["source"] == "npm"
    assert os.listdir(filled) == [FOLDER]  # nothing left over
    np.testing.assert_array_equal(np.load(filled / FOLDER / "x_test.npy"), small.arrays.x_test)  # an ordinary .npy file


def test_no_cache_is_no_warning(small, tmp_path, caplog):
    assert read_cache(str(tmp_path), small.release) is None
    assert not caplog.records


@pytest.mark.parametrize("name", Arrays._fields)
@pytest.mark.parametrize("damage", ("flip the last bit", "flip a bit of the header", "truncate", "empty", "remove"))
def test_damage_is_reported_with_the_name_of_the_file(small, filled, caplog, name, damage):
    path = filled / FOLDER / f"{name}.npy"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= damage == "flip the last bit"
        content[20] ^= 4 * (damage == "flip a bit of the header")
        path.write_bytes({"truncate": content[:-5], "empty": b""}.get(damage, bytes(content)))
    with caplog.at_level(logging.WARNING, "cifar_jax"):
        assert read_cache(str(filled), small.release) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize("change", ("dtype", "shape"))
def test_the_same_bytes_in_another_form_are_not_the_release(small, filled, change):
    other = {"dtype": small.arrays.x_train.view(np.int8), "shape": small.arrays.x_train.reshape(-1, 3, 32, 32)}[change]
    assert cache.digest(other) == small.release.digests["x_train"]
    write_cache(str(filled), small.arrays._replace(x_train=other), "npm")
    assert read_cache(str(filled), small.release) is None


def test_a_pickle_in_the_cache_is_not_opened(small, filled):
    path = filled / FOLDER / "y_test.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    assert read_cache(str(filled), small.release) is None


def test_a_write_replaces_a_damaged_cache_and_clears_what_a_killed_one_left(small, filled):
    (filled / FOLDER / "x_test.npy").write_bytes(b"")
    (filled / f".{FOLDER}-killed").mkdir()
    write_cache(str(filled), small.arrays, "archive")
    assert read_cache(str(filled), small.release) is not None
    assert os.listdir(filled) == [FOLDER]


def test_a_failed_write_leaves_the_old_cache(small, filled, monkeypatch):
    monkeypatch.setattr(cache, "_save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_cache(str(filled), small.arrays, "archive")
    assert read_cache(str(filled), small.release) is not None
    assert os.listdir(filled) == [FOLDER]


def test_a_disk_without_room_for_the_last_bytes_leaves_the_old_cache(small, filled):
    size = (filled / FOLDER / "x_train.npy").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))  # Python ignores the signal: an error of writing
    try:
        with pytest.raises(OSError) as error:
            write_cache(str(filled), small.arrays, "archive")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.strerror
    assert read_cache(str(filled), small.release) is not None
    assert os.listdir(filled) == [FOLDER]


def test_digest_is_that_of_the_raw_bytes_in_c_order():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert cache.digest(array) == hashlib.sha256(bytes(range(24))).hexdigest()
    assert cache.digest(np.asfortranarray(array)) == cache.digest(array) != cache.digest(array.transpose())


def test_the_lock_is_held_by_one(tmp_path):
    inside = []

    def enter():
        with cache_lock(str(tmp_path)):
            inside.append("second")

    with cache_lock(str(tmp_path)):
        thread = threading.Thread(target=enter)
        thread.start()
        time.sleep(0.2)
        inside.append("first")
    thread.join(10)
    assert inside == ["first", "second"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    (
        ({"CIFAR_JAX_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"CIFAR_JAX_CACHE": "~/b", "HOME": "/h"}, "/h/b"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cifar_jax"),
        ({"CIFAR_JAX_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/cifar_jax"),
    ),
)
def test_the_default_folder_follows_the_environment(monkeypatch, environment, expected):
    for name in ("CIFAR_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == expected
