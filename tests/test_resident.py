"""The pipeline on the device: each image once an epoch, nothing over the bus amid one, the same bits after any resume."""

import contextlib
import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cifar_jax import stopping
from cifar_jax import train as train_module
from cifar_jax.config import read_config
from cifar_jax.data import shapes
from cifar_jax.data.augment import MIX, normalize
from cifar_jax.data.dataset import Split
from cifar_jax.device_augment import make_device_augment, make_epoch_key
from cifar_jax.epoch import Progress
from cifar_jax.errors import RunError
from cifar_jax.evaluate import evaluate, evaluate_files
from cifar_jax.log import RunLog
from cifar_jax.mixing import make_mix
from cifar_jax.models import c1c2c3c40, create_model
from cifar_jax.models.layers import conv, separable
from cifar_jax.pipeline import make_batches
from cifar_jax.resident import STEPS, Resident, make_count
from cifar_jax.state import final_variables
from cifar_jax.steps import make_eval_step
from cifar_jax.weights import load_weights

DATA = shapes.make_shapes(230, 45)


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path, ConfigDict({"progress": "off", "tensorboard": False}), num_epochs=3, steps_per_epoch=1)


def tracing_step(state, batch):
    """Stands for training: the state is what was seen, in order; the loss is the mean of the labels."""
    seen = jax.lax.dynamic_update_slice(state["seen"], batch["image"][:, 0, 0, 0].astype(jnp.int32), (state["at"],))
    count = len(batch["label"])
    sums = {"loss": batch["label"].sum().astype(jnp.float32), "correct": jnp.int32(count), "examples": jnp.int32(count)}
    return {"seen": seen, "at": state["at"] + count}, sums


def make_resident(batch_size=5, step=tracing_step, seed=0):
    """Images whose first pixel is their number; augmentation passes them on."""
    images = np.zeros((230, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(230)
    split = Split(images, np.arange(230, dtype=np.int32) % 10)

    def make_batch(images, labels, indices, seed, epoch, number):
        return {"image": images.astype(jnp.float32), "label": labels}

    resident = Resident(step, make_batch, split, batch_size=batch_size)
    resident.train_epoch = functools.partial(resident.train_epoch, seed=seed)
    return resident


def empty():
    return {"seen": jnp.full(230, -1, jnp.int32), "at": jnp.int32(0)}


def constant(step):
    return 0.1


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own(log):
    orders = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        state, progress = make_resident(seed=seed).train_epoch(empty(), epoch, constant, log)
        orders.append(np.asarray(state["seen"]).tolist())
        assert sorted(orders[-1]) == list(range(230))
        assert progress.batches == 46 and progress.sums == {"loss": 23 * 45.0, "correct": 230, "examples": 230}
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) == 3


def test_images_that_fill_no_batch_are_left_out(log):
    state, progress = make_resident(batch_size=32).train_epoch(empty(), 1, constant, log)
    assert int(state["at"]) == 224 == progress.sums["examples"] and len(set(np.asarray(state["seen"][:224]).tolist())) == 224


@pytest.mark.parametrize("start", [1, STEPS - 1, STEPS, STEPS + 1, 45])
def test_resumed_after_any_batch_it_goes_on_with_the_next(log, start):
    whole, end = make_resident().train_epoch(empty(), 1, constant, log)
    seen = np.asarray(whole["seen"])
    begun = {"seen": jnp.asarray(np.where(np.arange(230) < 5 * start, seen, -1)), "at": jnp.int32(5 * start)}
    first = seen[: 5 * start] % 10
    sums = {"loss": float(first.sum()), "correct": 5 * start, "examples": 5 * start}
    state, progress = make_resident().train_epoch(begun, 1, constant, log, start=Progress(start, sums, 7.0))
    np.testing.assert_array_equal(state["seen"], seen)
    assert (progress.batches, progress.sums) == (end.batches, end.sums) and progress.seconds > 7


def test_save_is_called_between_programs_with_what_is_done_by_then(log):
    saved = []

    def save(state, get_progress):
        progress = get_progress()
        saved.append(progress.batches)
        assert int(state["at"]) == 5 * progress.batches == progress.sums["examples"]

    make_resident().train_epoch(empty(), 1, constant, log, save=save)
    assert saved == [STEPS, 2 * STEPS]


def test_nothing_crosses_the_bus_amid_an_epoch(log):
    resident, state = make_resident(), empty()
    state, _ = resident.train_epoch(state, 1, constant, log)  # compiles
    with jax.transfer_guard("disallow"):  # what is not asked for by device_put and device_get
        _, progress = resident.train_epoch(empty_on_device(state), 2, constant, log)
    assert progress.batches == 46


def empty_on_device(state):
    with jax.transfer_guard("allow"):
        return jax.block_until_ready(jax.tree.map(jnp.copy, {"seen": state["seen"], "at": jnp.zeros_like(state["at"])}))


@pytest.fixture
def fetches(monkeypatch):
    """Counts jax.device_get, and makes other ways of a number to the host fail, but for numpy's reading of the buffer. On a CPU
    no transfer guard sees any of them."""
    counted, array, get = [], type(jnp.zeros(1)), jax.device_get

    def guard(name):
        method = getattr(array, name)

        def guarded(self, *args, **options):
            assert counted and counted[-1] == "under way", f"{name} of a {self.shape}"
            return method(self, *args, **options)

        monkeypatch.setattr(array, name, guarded)

    def device_get(tree):
        counted.append("under way")
        values = get(tree)
        counted[-1] = "done"
        return values

    for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
        guard(name)
    monkeypatch.setattr(jax, "device_get", device_get)
    return counted


@pytest.mark.parametrize("fetch", [float, int, bool, lambda x: x.item(), lambda x: x.tolist()])
def test_a_number_that_is_fetched_is_noticed(fetches, fetch):
    x = jnp.ones(())
    with pytest.raises(AssertionError, match=r"of a \(\)"):
        fetch(x)
    assert fetches == [] and jax.device_get(x) == 1 and fetches == ["done"]


def test_numbers_are_fetched_once_an_epoch(log, fetches):
    make_resident().train_epoch(empty(), 1, constant, log)
    assert fetches == ["done"]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (7, 3), (2**32 - 1, 2)])
def test_each_image_comes_with_its_label_its_index_and_the_moment(log, seed, epoch):
    def make_batch(images, labels, indices, seed, epoch, number):
        when = jnp.stack([seed, epoch.astype(jnp.uint32), number.astype(jnp.uint32)])
        return {"image": images[:, 0, 0, 0].astype(jnp.int32), "label": labels, "index": indices, "when": jnp.tile(when, (5, 1))}

    def recording_step(state, batch):
        at = 5 * state["steps"]
        new = {name: jax.lax.dynamic_update_slice_in_dim(state[name], batch[name], at, 0) for name in batch}
        sums = {"loss": jnp.float32(0), "correct": jnp.int32(0), "examples": jnp.int32(5)}
        return new | {"steps": state["steps"] + 1}, sums

    images = np.zeros((230, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(230)
    resident = Resident(recording_step, make_batch, Split(images, np.arange(230) + 1000), batch_size=5)
    state = {name: jnp.zeros(230, jnp.int32) for name in ("image", "label", "index")}
    state |= {"when": jnp.zeros((230, 3), jnp.uint32), "steps": jnp.int32(0)}
    state, _ = resident.train_epoch(state, epoch, constant, log, seed=seed)
    assert sorted(state["image"].tolist()) == list(range(230))
    np.testing.assert_array_equal(state["label"], state["image"] + 1000)
    np.testing.assert_array_equal(state["index"], state["image"])
    np.testing.assert_array_equal(state["when"], [(seed, epoch, i // 5) for i in range(230)])


def test_a_batch_is_augmented_and_then_mixed_by_seed_epoch_and_number():
    ramp = "augment.mixup.ramp=1"  # of 2 epochs, one of which lies behind in the second
    config = make_config("augment.cutmix.p=0.5", "augment.mixup.p=0.5", ramp, "augment.translate.p=1")
    images, labels, indices = DATA.train.images[:6], jnp.asarray(DATA.train.labels[:6]), jnp.arange(6) + 20
    make_batch = jax.jit(make_batches(config, DATA.mean, DATA.std))
    augment, mix = make_device_augment(config.augment, DATA.mean, DATA.std), make_mix(config.augment, 10)
    seen = set()
    for when in ((3, 2, 3), (4, 2, 3), (3, 1, 3), (3, 2, 4)):
        batch = make_batch(images, labels, indices, *when)
        key = jax.random.fold_in(make_epoch_key(*when[:2], MIX), when[2])
        augmented = {"image": jax.jit(augment)(images, indices, *when[:2]), "label": labels}
        expected = jax.jit(mix)(augmented, key, (when[1] - 1) / 2)
        for name in ("image", "label", "target"):
            np.testing.assert_allclose(batch[name], expected[name], rtol=0, atol=2e-2)  # a level, over a deviation
        np.testing.assert_allclose(batch["target"], expected["target"], rtol=0, atol=1e-6)
        seen.add((np.asarray(batch["image"]).tobytes(), np.asarray(batch["target"]).tobytes()))
    assert len(seen) == 4


def test_one_program_serves_every_epoch(log):
    traces = []

    def counting_step(state, batch):
        traces.append(1)
        return tracing_step(state, batch)

    resident = make_resident(step=counting_step)
    for epoch in (1, 2, 3):
        resident.train_epoch(empty(), epoch, constant, log)
    resident.train_epoch(empty(), 1, constant, log, start=Progress(3, {"loss": 0.0, "correct": 0, "examples": 0}))
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_ends_it_at_its_step(log):
    def failing_step(state, batch):
        state, sums = tracing_step(state, batch)
        return state, sums | {"loss": jnp.where(state["at"] == 5 * 20, jnp.nan, sums["loss"])}

    with pytest.raises(RunError, match=r"the loss is nan at step 65 \(learning rate 0.1\)"):  # 46 of the epoch before, and 19
        make_resident(step=failing_step).train_epoch(empty(), 2, constant, log)


def shallow(w1, w2, w3, w4):
    """Three layers in place of twelve, which take less time to compile."""
    return (conv("c1_conv", w1), separable("t1", w2, stride=2), separable("t2", w4, stride=2, dilation=2))


@pytest.mark.parametrize("batch_size", [7, pytest.param(64, marks=pytest.mark.slow)])
def test_a_split_is_counted_as_the_host_counts_it(model_config, monkeypatch, batch_size):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
    model = create_model(model_config(kernels="xla"))
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()
    step = make_eval_step(model)
    sums = jax.device_get(make_count(step, DATA.test, DATA.mean, DATA.std, batch_size)(variables))
    counts = evaluate(jax.jit(step), variables, DATA.test, DATA.mean, DATA.std)
    assert (sums["correct"], sums["examples"]) == (counts["correct"], 45)
    assert sums["loss"] / 45 == pytest.approx(counts["loss"], rel=1e-5)


def test_images_are_normalized_to_the_hosts_bits():
    def seeing_step(variables, batch):
        return {"image": jnp.where(batch["mask"][:, None, None, None] > 0, batch["image"], 0)}

    sums = make_count(seeing_step, DATA.test, DATA.mean, DATA.std, 45)({})
    np.testing.assert_array_equal(sums["image"], normalize(DATA.test.images, DATA.mean, DATA.std))


TINY = [
    "model.widths=(8,8,8,16)",
    "budget.receptive_field=8",
    "train.batch_size=5",
    "train.epochs=2",
    "log.tensorboard=false",
    "log.progress=off",
]


def make_config(*overrides):
    return read_config("configs/smoke.py", [f"--config.{override}" for override in (*TINY, "augment.backend=device", *overrides)])


@contextlib.contextmanager
def signalled_once(monkeypatch):
    """Sends this process SIGTERM as soon as a run has been asked once whether to save."""
    due = train_module.Checkpoints.is_due
    handlers = {number: signal.getsignal(number) for number in stopping.NUMBERS}

    def is_due(self, seconds):
        os.kill(os.getpid(), signal.SIGTERM)
        return due(self, seconds)

    stopping.listen()
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Checkpoints, "is_due", is_due)
        yield
    stopping.listen()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_run_that_is_stopped_amid_an_epoch_ends_in_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: DATA)
    monkeypatch.setattr("cifar_jax.evaluate.load_dataset", lambda source, directory: DATA)
    whole = train_module.train(make_config(), tmp_path / "whole")
    with signalled_once(monkeypatch), pytest.raises(stopping.Stopped):
        train_module.train(make_config(), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    result = train_module.train(make_config(), tmp_path / "run")
    one, other = (load_weights(str(tmp_path / name / "weights.safetensors")).variables for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (result["correct"], result["train_loss"]) == (whole["correct"], whole["train_loss"])
    assert evaluate_files(str(tmp_path / "run"), None, [])["correct"] == whole["correct"]


def test_half_precision_trains_float32_weights_by_a_float32_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: DATA)
    kept = []
    monkeypatch.setattr(train_module, "final_variables", lambda state: kept.append(state) or final_variables(state))
    result = train_module.train(make_config("model.dtype=bfloat16", "ema.decay=0.9"), tmp_path / "run")
    state = kept[-1]
    floats = jax.tree.leaves(
        (state.params, state.batch_stats, state.ema, [x for x in jax.tree.leaves(state.opt_state) if x.ndim])
    )
    assert floats and {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    # A loss of bfloat16 would have eight bits: the sum over 230 images, each near 2.3, would stand still or be coarse.
    assert result["train_loss"] * 230 % 0.5 != 0 and 0 < result["train_loss"] < 4
