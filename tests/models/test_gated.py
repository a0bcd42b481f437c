"""Layers without batch statistics: formulas, steps, and weights in a file; tests/test_train.py trains a network of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.config import read_config, to_json
from cifar_jax.models import c1c2c3c40, choose_kernels, create_model, depthwise, gate_kernels, gated
from cifar_jax.models.c1c2c3c40 import Network
from cifar_jax.models.layers import conv_ln, gate
from cifar_jax.state import create_state, final_variables
from cifar_jax.steps import make_eval_step, make_train_step
from cifar_jax.weights import check_variables, load_weights, save_weights


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


class Gpu:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    "capability, changes, expected",
    [
        ("9.0", {}, ("pallas", "")),
        ("8.0", {"dtype": "bfloat16"}, ("pallas", "")),
        ("9.0", {"kernels": "xla"}, ("xla", "model.kernels is xla")),
        ("9.0", {"dtype": "float64"}, ("xla", "they do not know float64")),
        ("7.5", {}, ("xla", "they need CUDA and compute capability 8.0, this GPU has 7.5")),
        ("gfx942", {}, ("xla", "they need CUDA and compute capability 8.0, this GPU has gfx942")),
    ],
)
def test_a_gpu_takes_pallas_kernels_where_they_run(capability, changes, expected, model_config, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu(capability)])
    assert choose_kernels(model_config(variant="gated", **changes)) == expected


def test_without_triton_a_gpu_takes_xla(model_config, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(depthwise, "triton", None)
    assert choose_kernels(model_config(variant="strided")) == ("xla", "this JAX has no Triton")


def run_layer(layer, dtype, kernels, params, x, grad):
    """(output, gradient of the parameters, gradient of x) of a gated layer."""
    module = gated.Gated(layer, dtype, kernels)

    def run(params, x, grad):
        y, pull_back = jax.vjp(lambda params, x: module.apply(params, x, train=True), params, x)
        return y, *pull_back(grad)

    return jax.jit(run)(params, jnp.asarray(x, dtype), jnp.asarray(grad, dtype))


@pytest.mark.parametrize(
    "channels, features, dtype, tolerance",
    [
        pytest.param(28, 20, jnp.float32, 1e-5, id="a block that is not full"),  # 24 bits, and sums of up to 50 positions
        pytest.param(40, 40, jnp.bfloat16, 2e-2, id="8 bits, two blocks, shortcut"),
        pytest.param(20, 20, jnp.float32, 1e-5, id="two blocks, shortcut", marks=pytest.mark.slow),
        pytest.param(60, 60, jnp.bfloat16, 2e-2, id="8 bits, a block that is not full", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_of_a_gpu_make_the_same_layer(channels, features, dtype, tolerance, monkeypatch):
    """Interpreted; two turns of hidden values, the second not full, and positions that fill no block."""
    smaller = {"conv_near": (3, 1), "conv_wide": (3, 1), "conv_far": (3, 2)}  # 7 x 7 is interpreted for half a minute
    monkeypatch.setattr(gated, "WINDOWS", smaller)
    monkeypatch.setattr(gate_kernels, "POSITIONS", 16)
    assert gate_kernels.CHUNK[jnp.dtype(dtype).name] < features
    kernels = gate_kernels.gated_layer
    monkeypatch.setattr(gate_kernels, "gated_layer", lambda *args: kernels(*args, True))
    layer, rng = gate("c1_gated", features), np.random.default_rng(0)
    x, grad = (rng.standard_normal((2, 5, 5, size), np.float32) for size in (channels, features))
    params = jax.jit(lambda: gated.Gated(layer, jnp.float32).init(jax.random.key(0), x, train=False))()
    params = jax.tree.map(lambda p: p + np.float32(0.3) * rng.standard_normal(p.shape, np.float32), params)
    expected = run_layer(layer, jnp.float32, "xla", params, x, grad)
    got = run_layer(layer, dtype, "pallas", params, x, grad)
    assert got[0].dtype == dtype
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(np.float32(a) - b) <= tolerance * np.linalg.norm(b)


def test_a_step_on_two_devices_is_that_of_one():
    """Each half of a batch by itself, under the name of an axis: gradients are averaged, and nothing else is shared."""
    tx, layers = optax.sgd(0.1), (gate("t1", 5),)
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


def test_weights_without_statistics_are_written_read_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "gated", lambda *widths: (conv_ln("c1_conv", 4), gate("t3", 8)))
    config = read_config("configs/smoke.py", ["--config.model.variant=gated", "--config.model.widths=(4,4,8,8)"])
    model = create_model(config.model)
    state = create_state(model, optax.sgd(0.1), 0, with_ema=False)
    facts = {"config": to_json(config), "classes": tuple("abcdefghij"), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    save_weights(tmp_path / "w.safetensors", final_variables(state), **facts, train_seconds=1.0)
    variables = load_weights(str(tmp_path / "w.safetensors")).variables
    assert variables.keys() == {"params"}
    check_variables(variables, {"params": state.params}, "")
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((4, 32, 32, 3), np.float32), "label": np.arange(4), "mask": np.ones(4, np.float32)}
    eval_step = jax.jit(make_eval_step(model))
    sums = eval_step(variables, batch)
    assert sums["examples"] == 4
    jax.tree.map(np.testing.assert_array_equal, sums, eval_step(final_variables(state), batch))
