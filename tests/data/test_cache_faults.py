"""The cache filled by several processes at once, by one that is killed amid it, and on a disk that is full or read-only."""

import hashlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import cifar_jax
from cifar_jax.data.cache import FOLDER, read_cache, write_cache
from cifar_jax.data.formats import BINARY
from cifar_jax.data.sources import fetch_archive, load_dataset
from cifar_jax.errors import InputError

LEFT = {FOLDER, f"{FOLDER}.lock"}
# argv: the folder, and how long a download and the writing of an array take.
CODE = textwrap.dedent(f"""
    import hashlib, logging, pathlib, sys, time
    sys.path[:0] = {[os.path.dirname(__file__), os.path.dirname(os.path.dirname(cifar_jax.__file__))]!r}
    from conftest import make_small
    from cifar_jax.data import cache
    from cifar_jax.data.sources import load_dataset

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    small, root, downloading, writing = make_small(), pathlib.Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])

    def fetch(release):
        with open(root / "calls", "a") as file:
            file.write("x")
        time.sleep(downloading)
        return small.arrays

    def save(path, array):
        good(path, array)
        time.sleep(writing)

    good, cache._save = cache._save, save
    print("ready", flush=True)
    sys.stdin.readline()
    data = load_dataset("auto", "", cache_dir=str(root / "cache"), release=small.release, routes={{"slow": fetch}})
    seen = b"".join(split.images.tobytes() + split.labels.astype("u1").tobytes() for split in (data.train, data.test))
    print(data.source, data.verified, hashlib.sha256(seen).hexdigest())
""")


def start(folder, downloading=0.0, writing=0.0):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", CODE, str(folder), str(downloading), str(writing)], **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def digest(arrays):
    order = (arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)
    return hashlib.sha256(b"".join(array.tobytes() for array in order)).hexdigest()


def test_several_processes_fill_an_empty_cache_once(small, tmp_path):
    count = 3
    processes = [start(tmp_path, 0.5, 0.1) for _ in range(count)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=60) for process in processes]
    whole = f"True {digest(small.arrays)}\n"
    assert sorted(out for out, _ in outputs) == [f"cache {whole}"] * (count - 1) + [f"slow {whole}"]
    assert (tmp_path / "calls").read_text() == "x"
    assert sum("waiting for another process" in err for _, err in outputs) == count - 1
    assert set(os.listdir(tmp_path / "cache")) == LEFT
    assert read_cache(str(tmp_path / "cache"), small.release) is not None


@pytest.mark.parametrize("moment", ["downloading", "writing"])
def test_where_the_one_that_fills_is_killed_the_next_takes_over(small, tmp_path, moment):
    killed = start(tmp_path, 60 if moment == "downloading" else 0, 60)
    waiting = start(tmp_path)
    go(killed)
    written = f".{FOLDER}-*/new/x_train.npy"
    wait_for((tmp_path / "calls").exists if moment == "downloading" else lambda: any((tmp_path / "cache").glob(written)))
    go(waiting)
    assert "trying" not in waiting.stderr.readline()  # it waits
    killed.send_signal(signal.SIGKILL)
    out, _ = waiting.communicate(timeout=30)
    killed.communicate()
    assert out == f"slow True {digest(small.arrays)}\n"
    assert set(os.listdir(tmp_path / "cache")) == LEFT
    assert (tmp_path / "calls").read_text() == "xx"


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of that size, or the folder of that name, read-only; skips where it may not."""
    mounted = []

    def mount(*arguments):
        if subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        mounted.append(arguments[-1])

    def make(size=None, read_only=None):
        path = read_only or tmp_path / "disk"
        path.mkdir(exist_ok=True)
        if read_only:
            mount("--bind", path, path)
            mount("-o", "remount,bind,ro", path)
        else:
            mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
        return path

    yield make
    for path in set(mounted):
        subprocess.run(["umount", "-l", path], check=True)


def load(small, cache_dir, routes=None):
    routes = {"npm": lambda release: small.arrays} if routes is None else routes
    return load_dataset("auto", "", cache_dir=str(cache_dir), release=small.release, routes=routes)


def assert_official(data, small):
    np.testing.assert_array_equal(data.train.images, small.arrays.x_train)
    np.testing.assert_array_equal(data.test.labels, small.arrays.y_test)
    assert data.verified


def test_a_disk_too_full_for_the_cache_costs_only_a_warning(small, disk, caplog):
    path = disk(size="200k")  # the arrays have 368,760 bytes
    with caplog.at_level(logging.WARNING, "cifar_jax"):
        data = load(small, path / "cache")
    assert_official(data, small)
    assert data.path == "" and data.source == "npm"
    said = f"cache: {path}/cache cannot be written (No space left on device); the data will be fetched each time"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert os.listdir(path / "cache") == [f"{FOLDER}.lock"]
    subprocess.run(["mount", "-o", "remount,size=2m", path], check=True)
    load(small, path / "cache")
    assert load(small, path / "cache", {}).source == "cache"


def test_a_full_disk_leaves_the_cache_that_is_there(small, disk, tmp_path, caplog):
    path = disk(size="600k")
    write_cache(str(path), small.arrays, "npm")
    (tmp_path / "data").mkdir()
    small.write_archive(BINARY, tmp_path / "data")
    with pytest.raises(OSError):
        write_cache(str(path), small.arrays, "archive")
    assert os.listdir(path) == [FOLDER] and read_cache(str(path), small.release) is not None


def test_a_read_only_cache_is_read(small, disk, tmp_path, caplog):
    write_cache(str(tmp_path), small.arrays, "npm")
    data = load(small, disk(read_only=tmp_path), {})
    assert_official(data, small)
    assert data.source == "cache" and not caplog.records


@pytest.mark.parametrize("damaged", [False, True])
def test_a_read_only_cache_that_is_empty_or_damaged_costs_only_a_warning(small, disk, tmp_path, caplog, damaged):
    if damaged:
        write_cache(str(tmp_path), small.arrays, "npm")
        (tmp_path / FOLDER / "x_test.npy").write_bytes(b"")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level(logging.WARNING, "cifar_jax"):
        data = load(small, disk(read_only=tmp_path))
    assert_official(data, small)
    assert caplog.records[-1].getMessage().startswith(f"cache: {tmp_path} cannot be written (Read-only file system)")
    assert len(caplog.records) == 1 + damaged
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_download_that_finds_no_room_is_said_as_that(small, disk, tmp_path, monkeypatch):
    import pooch

    def download(url, output, *_):
        pathlib.Path(output).write_bytes(bytes(10**6))

    path = disk(size="100k")
    monkeypatch.setattr("tempfile.tempdir", str(path))
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: download)
    with pytest.raises(InputError, match="No space left on device"):
        fetch_archive(small.release)
    assert os.listdir(path) == []
