"""norm_relu equals the formula it stands for, alone and on two devices; NormRelu keeps its running averages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from cifar_jax.models.norm import EPSILON, NormRelu, norm_relu

SHAPE = (4, 3, 5, 6)


def formula(x, scale, bias, shortcut):
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    y = scale * (x - mean) / jnp.sqrt(var + EPSILON) + bias
    return nn.relu(y if shortcut is None else y + shortcut), mean, var


def draw_arrays(dtype, with_shortcut):
    """(x, scale, bias, shortcut) and a cotangent; each channel has its own mean and spread."""
    rng = np.random.default_rng(0)
    channels = SHAPE[-1:]
    x = rng.standard_normal(SHAPE) * rng.uniform(0.5, 3, channels) + rng.standard_normal(channels)
    scale, bias = rng.uniform(0.5, 2, channels), rng.standard_normal(channels)
    arrays = x, scale, bias, rng.standard_normal(SHAPE) if with_shortcut else None, rng.standard_normal(SHAPE)
    *inputs, cotangent = jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)
    return tuple(inputs), cotangent


def gradients(function, inputs, cotangent):
    def loss(inputs):
        return jnp.mean(function(*inputs)[0] * cotangent)

    return jax.jit(jax.grad(loss))(inputs)


def norm(*inputs, axis_name=None):
    return norm_relu(*inputs, axis_name)


# float64: the variance as E[x^2] - E[x]^2 loses a digit or two of 16. float32: likewise of 7.
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
SHORTCUTS = pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])


@PRECISIONS
@SHORTCUTS
def test_value_and_statistics_equal_the_formula(dtype, tolerance, with_shortcut):
    with jax.enable_x64(True):
        inputs, _ = draw_arrays(dtype, with_shortcut)
        expected = formula(*jax.tree.map(lambda a: a.astype(jnp.float64), inputs))
        chex.assert_trees_all_close(norm(*inputs), expected, rtol=tolerance, atol=tolerance)


@PRECISIONS
@SHORTCUTS
def test_gradients_equal_those_of_the_formula(dtype, tolerance, with_shortcut):
    with jax.enable_x64(True):
        inputs, cotangent = draw_arrays(dtype, with_shortcut)
        ours = gradients(norm, inputs, cotangent)
        exact = jax.tree.map(lambda a: a.astype(jnp.float64), (inputs, cotangent))
        chex.assert_trees_all_equal_dtypes(ours, inputs)
        chex.assert_trees_all_close(ours, gradients(formula, *exact), rtol=tolerance, atol=tolerance)


def test_no_gradient_flows_through_the_statistics():
    inputs, _ = draw_arrays("float32", False)
    grads = jax.jit(jax.grad(lambda inputs: sum(s.sum() for s in norm(*inputs)[1:])))(inputs)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, inputs))


@SHORTCUTS
def test_two_devices_equal_one_on_the_whole_batch(with_shortcut):
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices("cpu")[:2], axis_types=(jax.sharding.AxisType.Auto,))
    with jax.enable_x64(True):
        inputs, cotangent = draw_arrays("float64", with_shortcut)
        shared = functools.partial(norm, axis_name="batch")

        def on_each(inputs, cotangent):
            x, scale, bias, shortcut = gradients(shared, inputs, cotangent)
            # The loss is the mean over devices: parameters' gradients are averaged, an image's is half its own.
            x, shortcut = jax.tree.map(lambda g: g / 2, (x, shortcut))
            return shared(*inputs), (x, *jax.lax.pmean((scale, bias), "batch"), shortcut)

        images, channels = P("batch"), P()
        specs = (images, channels, channels, images)
        mapped = jax.shard_map(
            on_each,
            mesh=mesh,
            in_specs=(specs, images),
            out_specs=((images, channels, channels), specs),
            check_vma=False,
        )
        expected = norm(*inputs), gradients(norm, inputs, cotangent)
        # As above: the order of the sums differs, no more.
        chex.assert_trees_all_close(jax.jit(mapped)(inputs, cotangent), expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_input_keeps_float32_statistics():
    inputs, _ = draw_arrays("float32", True)
    x, scale, bias, shortcut = inputs
    x, shortcut = x.astype(jnp.bfloat16), shortcut.astype(jnp.bfloat16)
    y, mean, var = norm(x, scale, bias, shortcut)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    _, expected_mean, expected_var = formula(x.astype(jnp.float32), scale, bias, None)
    chex.assert_trees_all_close((mean, var), (expected_mean, expected_var), rtol=1e-5, atol=1e-6)  # float32's, as above


def test_bfloat16_input_keeps_float32_parameter_gradients():
    (x, scale, bias, _), cotangent = draw_arrays("float32", False)
    grads = gradients(norm, (x.astype(jnp.bfloat16), scale, bias, None), cotangent)
    assert [g.dtype for g in grads[:3]] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_training_equals_flax_batch_norm_and_relu():
    (x, scale, bias, _), _ = draw_arrays("float32", False)
    params, running = {"scale": scale, "bias": bias}, {"mean": bias, "var": scale}
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    expected, updated = flax.apply({"params": params, "batch_stats": running}, x, mutable=["batch_stats"])
    variables = {"params": params, "batch_stats": running}
    y, ours = NormRelu(SHAPE[-1]).apply(variables, x, train=True, mutable=["batch_stats"])
    # float32 sums in another order
    chex.assert_trees_all_close((y, ours), (nn.relu(expected), updated), rtol=1e-5, atol=1e-5)


def test_evaluation_uses_the_running_statistics():
    (x, scale, bias, shortcut), _ = draw_arrays("float32", True)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": bias, "var": scale}}
    y, updated = NormRelu(SHAPE[-1]).apply(variables, x, shortcut, train=False, mutable=["batch_stats"])
    expected = nn.relu(scale * (x - bias) / jnp.sqrt(scale + EPSILON) + bias + shortcut)
    chex.assert_trees_all_close(y, expected, rtol=1e-5, atol=1e-5)  # float32, written in another order
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])


def test_initializing_leaves_the_running_statistics_alone():
    (x, *_), _ = draw_arrays("float32", False)
    stats = NormRelu(SHAPE[-1], "batch").init(jax.random.key(0), x, train=True)["batch_stats"]
    chex.assert_trees_all_equal(stats, {"mean": jnp.zeros(SHAPE[-1]), "var": jnp.ones(SHAPE[-1])})


def test_a_constant_channel_stays_finite():
    x = jnp.full(SHAPE, 1000.0)  # where E[x^2] - E[x]^2 may come out below zero
    inputs = x, jnp.ones(SHAPE[-1]), jnp.ones(SHAPE[-1]), None
    chex.assert_tree_all_finite((norm(*inputs), gradients(norm, inputs, jnp.ones(SHAPE))))
