"""Layers without batch statistics: their formulas, and a network of them through the steps and a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import train as train_module
from cifar_jax.data import shapes
from cifar_jax.evaluate import evaluate_files
from cifar_jax.models import c1c2c3c40, create_model, gated, why_not_native
from cifar_jax.models.c1c2c3c40 import Network
from cifar_jax.models.layers import conv_ln, gate
from cifar_jax.state import create_state
from cifar_jax.steps import make_train_step
from cifar_jax.weights import load_weights
from tests.test_resident import make_config, signalled_once

DATA = shapes.make_shapes(230, 45)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 48, 82])
def test_channels_are_split_in_four_that_differ_by_one_at_most(channels):
    parts = gated.split_channels(channels)
    assert len(parts) == 4 and sum(parts) == channels and max(parts) - min(parts) <= 1


def test_channels_are_normalized_at_each_position():
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(3, 2, (2, 4, 4, 6)), rng.normal(size=6), rng.normal(size=6)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    with jax.enable_x64(True):
        np.testing.assert_allclose(gated.normalize_channels(x, scale, bias), expected, rtol=1e-12)
    half = gated.normalize_channels(jnp.asarray(x, jnp.bfloat16), jnp.float32(scale), jnp.float32(bias))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0, atol=0.05)  # 8 bits of numbers up to 4


def test_the_gated_product_and_its_gradient():
    value, weight = np.linspace(-8, 8, 81), np.linspace(-1, 2, 81)
    with jax.enable_x64(True):

        def formula(value, gate):
            return value * jnp.tanh(jnp.exp(value)) * gate

        expected, pull_back = jax.vjp(formula, value, weight)
        got, our_pull_back = jax.vjp(gated.gated_product, jnp.concatenate([value, weight]))
        np.testing.assert_allclose(got, expected, rtol=1e-13)
        np.testing.assert_allclose(our_pull_back(expected)[0], jnp.concatenate(pull_back(expected)), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_the_gated_product_of_large_numbers_is_finite(value):
    product, pull_back = jax.vjp(gated.gated_product, jnp.float32([value, 2.0]))
    assert product == max(2 * value, 0)
    np.testing.assert_array_equal(pull_back(jnp.ones(1))[0], [2.0, value] if value > 0 else [0.0, 0.0])


def test_there_are_no_native_kernels_for_it(model_config):
    reason = why_not_native(model_config(variant="gated"))
    assert reason == "they do not know the layers of gated" or jax.default_backend() != "cpu"
    assert not create_model(model_config(variant="gated")).native


def test_a_step_on_two_devices_is_that_of_one():
    """Each half of a batch by itself, under the name of an axis: gradients are averaged, and nothing else is shared."""
    tx, layers = optax.sgd(0.1), (conv_ln("c1_conv", 4), gate("t1", 5))
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((4, 8, 8, 3), np.float32), "label": np.int32([0, 1, 2, 1])}
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    state = create_state(Network(layers, 3), tx, 0, with_ema=True)
    assert state.batch_stats == {} and state.ema["batch_stats"] == {}
    whole = make_train_step(Network(layers, 3), tx, ema_decay=0.9)
    mapped = make_train_step(Network(layers, 3, axis_name="batch"), tx, ema_decay=0.9, axis_name="batch")
    mapped = jax.vmap(mapped, (None, 0), axis_name="batch")
    (one, sums), (two, shared) = jax.jit(lambda: (whole(state, batch), mapped(state, halves)))()
    for half in range(2):
        # Sums of other halves in float32, of numbers of order 1.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[half], rtol=1e-5, atol=1e-6), (one, sums), (two, shared))  # noqa: B023


def shallow(w1, w2, w3, w4):
    return (conv_ln("c1_conv", w1), gate("t1", w1))


def test_a_run_by_adamw_learns_is_stopped_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "gated", shallow)
    for name in ("cifar_jax.train", "cifar_jax.evaluate"):
        monkeypatch.setattr(f"{name}.load_dataset", lambda source, directory: DATA)
    recipe = ["model.variant=gated", "ema.decay=0.9", "augment.mixup.p=0.5", "augment.mixup.ramp=1"]
    recipe += ["optim.name=adamw", "optim.nesterov=false", "schedule.learning_rate=0.02", "schedule.final_fraction=0.1"]
    config = make_config(*recipe)
    whole = train_module.train(config, tmp_path / "whole")
    with signalled_once(monkeypatch), pytest.raises(train_module.stopping.Stopped):
        train_module.train(config, tmp_path / "run")
    result = train_module.train(config, tmp_path / "run")
    one, other = (load_weights(str(tmp_path / name / "weights.safetensors")).variables for name in ("whole", "run"))
    assert one.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (result["correct"], result["train_loss"]) == (whole["correct"], whole["train_loss"])
    assert evaluate_files(str(tmp_path / "run"), None, [])["correct"] == whole["correct"]
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(one))
