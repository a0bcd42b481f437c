"""The loader: the same batches whatever the workers, each image once, failures reported, nothing left behind."""

import glob
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import cifar_jax
from cifar_jax.data import workers as workers_module
from cifar_jax.data.augment import make_train_transform, normalize
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from cifar_jax.data.loader import Prefetch, eval_batches, make_train_loader
from cifar_jax.errors import InputError, RunError
from tests.data.test_augment import make_section

AUGMENT = make_section(
    **{f"{name}__p": 0.5 for name in ("horizontal_flip", "shift_scale_rotate", "coarse_dropout", "to_gray")},
    coarse_dropout__size=8,
)
NONE = {name: {**section, "p": 0.0} if name != "backend" else section for name, section in AUGMENT.items()}


def make_split(n, channels=3):
    """Random images that carry their index in the first pixel; the label is the index too."""
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, channels), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return Split(images, np.arange(n, dtype=np.int32))


def make_loader(split, workers, augment=AUGMENT, batch_size=8, seed=0):
    return make_train_loader(split, augment, CIFAR10_MEAN, CIFAR10_STD, batch_size=batch_size, seed=seed, workers=workers)


def assert_same(got, expected):
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.keys() == e.keys() == {"image", "label"}
        for key in g:
            assert g[key].dtype == e[key].dtype
            np.testing.assert_array_equal(g[key], e[key])


def wait_until_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    return not os.path.exists(f"/proc/{pid}")


@pytest.fixture(scope="module")
def split():
    return make_split(100)


@pytest.fixture(scope="module")
def loaders(split):
    """Loaders of the same batches with 0, 1 and 2 workers; 12 batches an epoch, 4 images dropped."""
    made = {workers: make_loader(split, workers, ConfigDict(AUGMENT)) for workers in (0, 1, 2)}
    yield made
    for loader in made.values():
        loader.close()


@pytest.fixture(scope="module")
def expected(loaders):
    return {epoch: list(loaders[0].epoch(epoch)) for epoch in (0, 1)}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(loaders, expected, workers):
    for epoch in (0, 1):
        assert_same(loaders[workers].epoch(epoch), expected[epoch])


def test_the_batches_are_as_promised(expected):
    batch = expected[0][0]
    assert batch["image"].shape == (8, 32, 32, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert not np.array_equal(batch["label"], expected[1][0]["label"])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [1, 7, 12])
def test_an_epoch_resumes_at_any_batch(loaders, expected, workers, start):
    assert_same(loaders[workers].epoch(1, start), expected[1][start:])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_left_early_does_not_touch_the_next(loaders, expected, workers):
    for taken in (0, 1, 3):
        left = loaders[workers].epoch(0)
        for _ in range(taken):
            next(left)
        assert_same(loaders[workers].epoch(1), expected[1])
        with pytest.raises(RuntimeError, match="epoch 0"):
            next(left)


def test_batches_already_given_stay_as_they_are(loaders, expected):
    given_out = list(loaders[2].epoch(0))  # more batches than slots
    assert_same(given_out, expected[0])


def test_another_seed_gives_other_batches(split, expected):
    with make_loader(split, 0, seed=1) as loader:
        assert not np.array_equal(next(loader.epoch(0))["label"], expected[0][0]["label"])


def test_ctrl_c_is_left_to_the_parent(loaders, expected):
    for peer in loaders[2]._workers._peers:
        os.kill(peer.pid, signal.SIGINT)
        os.kill(peer.pid, signal.SIGTERM)
    assert_same(loaders[2].epoch(0), expected[0])


@pytest.mark.parametrize(("n", "batch_size"), [(300, 64), (64, 64), (65, 64), (7, 1)])
def test_every_image_once_an_epoch_and_the_rest_dropped(n, batch_size):
    split = make_split(n)
    with make_loader(split, 0, NONE, batch_size) as loader:
        assert loader.steps_per_epoch == n // batch_size
        batches = list(loader.epoch(0))
    assert len(batches) == n // batch_size
    images = np.concatenate([b["image"] for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    pixels = np.rint((images[:, 0, 0] * CIFAR10_STD + CIFAR10_MEAN) * 255).astype(int)
    np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], labels)
    assert len(set(labels)) == len(labels) == n // batch_size * batch_size
    assert n < 60 or not np.array_equal(labels, np.sort(labels))


def test_the_workers_are_at_work_before_the_first_batch_is_asked_for(split):
    with make_loader(split, 0) as loader:
        loader.epoch(0)
        assert loader._workers._pipes[0].poll(10)


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"batch_size": 101}, "train.batch_size: got 101, expected 1 to 100"),
        ({"batch_size": 0}, "train.batch_size: got 0"),
        ({"workers": -1}, "data.workers: got -1"),
        ({"seed": -1}, "seed: got -1"),
        ({"augment": {**AUGMENT, "to_gray": {"p": 2}}}, "augment.to_gray.p: got 2"),
    ],
)
def test_bad_input_is_one_line(split, change, start):
    with pytest.raises(InputError) as error:
        make_loader(split, **{"workers": 0, **change})
    assert str(error.value).startswith(start) and "\n" not in str(error.value)


def test_a_killed_worker_is_reported_within_seconds_and_nothing_is_left(split):
    loader = make_loader(split, 2)
    iterator = loader.epoch(0)
    next(iterator)
    assert glob.glob(f"/dev/shm/*{os.getpid()}-*") == []
    peers = loader._workers._peers
    os.kill(peers[1].pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"data worker 1 \(process {peers[1].pid}\) was killed by SIGKILL"):
        for epoch in range(100):
            list(iterator if epoch == 0 else loader.epoch(epoch))
    assert time.monotonic() - began < 5
    loader.close()
    loader.close()
    assert not any(peer.is_alive() for peer in peers)


def test_a_worker_that_is_stopped_for_a_while_is_named_and_waited_for(loaders, expected, monkeypatch, caplog):
    monkeypatch.setattr(workers_module, "_WARN_SECONDS", 1)
    pid = loaders[1]._workers._peers[0].pid
    os.kill(pid, signal.SIGSTOP)
    batches = loaders[1].epoch(0)
    going_on = threading.Timer(2, os.kill, (pid, signal.SIGCONT))
    going_on.start()
    with caplog.at_level(logging.WARNING, "cifar_jax"):
        assert_same(batches, expected[0])
    (record,) = caplog.records
    assert f"data worker 0 (process {pid}, T (stopped)) has given no batch for 1 s" in record.getMessage()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_that_raises_is_reported_with_its_reason(workers):
    split = make_split(16, channels=2)
    always_gray = {**NONE, "to_gray": {"p": 1.0}}
    with pytest.raises(Exception) as reason:
        make_train_transform(always_gray, CIFAR10_MEAN, CIFAR10_STD)(image=split.images[0])
    with make_loader(split, workers, always_gray) as loader:
        loader.epoch(0)
        loader._workers._peers[0].join(30)  # even if it has long ended when it is next asked
        with pytest.raises(RunError) as error:
            list(loader.epoch(1))
    text = str(error.value)
    assert text.startswith(f"data worker 0 failed: {reason.type.__name__}: ") and "\n" not in text


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_their_parent_however_it_ends(tmp_path, ending):
    script = tmp_path / "script.py"
    script.write_text(f"""
import os
import numpy as np
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from cifar_jax.data.loader import make_train_loader

if __name__ == "__main__":
    split = Split(np.zeros((64, 32, 32, 3), np.uint8), np.zeros(64, np.int32))
    loader = make_train_loader(split, {AUGMENT!r}, CIFAR10_MEAN, CIFAR10_STD, batch_size=8, seed=0, workers=1)
    next(loader.epoch(0))
    print(os.getpid(), loader._workers._peers[0].pid, flush=True)
    {ending}
""")
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(cifar_jax.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stderr) == (0 if ending == "pass" else -9, "")
    parent, worker = done.stdout.split()
    assert wait_until_gone(worker)
    assert glob.glob(f"/dev/shm/*{parent}-*") == []


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 40), size=st.integers(1, 17))
def test_evaluation_counts_every_image_once_in_batches_of_one_shape(n, size):
    split = make_split(n)
    batches = list(eval_batches(split, CIFAR10_MEAN, CIFAR10_STD, size))
    assert len(batches) == -(-n // size)
    for batch in batches:
        assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
            "image": ((size, 32, 32, 3), np.float32),
            "label": ((size,), np.int32),
            "mask": ((size,), np.float32),
        }
    if not batches:
        return
    image, label, mask = (np.concatenate([b[key] for b in batches]) for key in ("image", "label", "mask"))
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
    np.testing.assert_array_equal(image[:n], normalize(split.images, CIFAR10_MEAN, CIFAR10_STD))
    np.testing.assert_array_equal(label[:n], split.labels)
    assert not image[n:].any() and not label[n:].any()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 20), share=st.integers(1, 5), hosts=st.integers(1, 4))
def test_the_rows_of_several_hosts_are_the_batches_of_one(n, share, hosts):
    whole = eval_batches(make_split(n), CIFAR10_MEAN, CIFAR10_STD, share * hosts)
    rows = (slice(k * share, (k + 1) * share) for k in range(hosts))
    parts = [list(eval_batches(make_split(n), CIFAR10_MEAN, CIFAR10_STD, share * hosts, part)) for part in rows]
    for i, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[i][key] for part in parts]), batch[key])
    assert {len(part) for part in parts} == {-(-n // (share * hosts))}


def test_the_rows_of_several_hosts_are_the_training_batches_of_one():
    options = {"batch_size": 6, "seed": 3, "workers": 0}
    batches = []
    for rows in (None, slice(0, 2), slice(2, 6)):
        with make_train_loader(make_split(20), AUGMENT, CIFAR10_MEAN, CIFAR10_STD, rows=rows, **options) as loader:
            batches.append(list(loader.epoch(2)))
    for whole, first, rest in zip(*batches, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([first[key], rest[key]]), whole[key])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetch_keeps_order_and_size_items_under_way(size):
    put = []
    source = Prefetch(range(10), lambda x: put.append(x) or -x, size)
    assert put == []
    for k, x in enumerate(source):
        assert x == -k and len(put) == min(10, k + size)
    assert k == 9 and next(source, None) is None


def test_prefetch_counts_the_time_spent_waiting():
    def slow():
        for i in range(3):
            time.sleep(0.05)
            yield i

    source = Prefetch(slow(), lambda x: x)
    for _ in source:
        time.sleep(0.02)
    assert 0.15 <= source.wait_seconds < 0.19 + 0.2
