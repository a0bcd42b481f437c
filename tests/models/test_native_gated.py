"""The native kernels of a gated layer equal what XLA computes, in value and in every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_jax.models import choose_kernels, gated, native
from cifar_jax.models.layers import gate

if not native.find_compiler():
    pytest.skip("no C compiler", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def registered():
    assert native.register("float") == native.register("double") == native.register("bfloat16") == ""


def draw(channels, features, shape, dtype):
    """Parameters, x and the gradient of the result, none of them trivial."""
    rng = np.random.default_rng(0)
    x, grad = (jnp.asarray(rng.standard_normal((*shape, size)), dtype) for size in (channels, features))
    params = jax.jit(lambda: gated.Gated(gate("t", features), dtype).init(jax.random.key(0), x, train=False))()
    return jax.tree.map(lambda p: jnp.asarray(p + 0.3 * rng.standard_normal(p.shape), dtype), params), x, grad


def make_run(features, kernels):
    def run(params, x, grad):
        module = gated.Gated(gate("t", features), x.dtype, kernels)
        y, pull_back = jax.vjp(lambda params, x: module.apply(params, x, train=True), params, x)
        return y, *pull_back(grad)

    return jax.jit(run)


def check(channels, features, shape, dtype, tolerance):
    arguments = draw(channels, features, shape, dtype)
    got, expected = (make_run(features, kernels)(*arguments) for kernels in ("native", "xla"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@given(st.integers(4, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 17), st.sampled_from((1, 2, 35)), st.booleans())
@settings(max_examples=4)
def test_float64_equals_xla_whatever_the_shape(channels, features, rows, cols, batch, shortcut):
    """35 images are more than there are groups; up to 153 positions are more than a chunk."""
    with jax.enable_x64(True):
        check(channels, channels if shortcut else features, (batch, rows, cols), jnp.float64, 1e-11)


@pytest.mark.parametrize("channels, size", [(56, 32), (96, 16)])
def test_float32_equals_xla_in_the_layers_of_record(channels, size):
    check(channels, channels, (2, size, size), jnp.float32, 5e-6)  # 40 times float32's epsilon, for sums of up to 2,048


@pytest.mark.parametrize("channels, features, size", [(56, 56, 32), (13, 7, 7)])
def test_bfloat16_is_within_its_rounding_of_float64(channels, features, size):
    with jax.enable_x64(True):
        params, *images = draw(channels, features, (2, size, size), jnp.float32)
        arguments = params, *(a.astype(jnp.bfloat16) for a in images)
        y, params_grad, x_grad = got = make_run(features, "native")(*arguments)
        exact = make_run(features, "xla")(*jax.tree.map(lambda a: a.astype(jnp.float64), arguments))
        assert y.dtype == x_grad.dtype == jnp.bfloat16
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params_grad))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
            assert np.linalg.norm(a.astype(jnp.float64) - b) <= 1e-2 * np.linalg.norm(b)


def test_large_values_are_finite_and_nan_is_not_hidden():
    params, x, grad = draw(8, 8, (1, 4, 4), jnp.float32)
    for factor in (1e4, -1e4):  # of what goes through the gate
        scaled = jax.tree.map_with_path(lambda path, p, f=factor: p * f if "conv_in" in str(path) else p, params)
        for a, b in zip(*(jax.tree.leaves(make_run(8, kernels)(scaled, x, grad)) for kernels in ("native", "xla")), strict=True):
            assert np.isfinite(a).all() and np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
    assert np.isnan(make_run(8, "native")(params, x.at[0, 2, 2, 0].set(np.nan), grad)[0][0, 2, 2]).all()


def test_a_value_far_below_zero_closes_whatever_the_gate():
    params, x, _ = draw(8, 8, (1, 4, 4), jnp.float32)
    kernel, ones = params["params"]["conv_in"]["kernel"], jnp.ones(8)
    params["params"]["conv_in"] = {"kernel": 0 * kernel, "bias": jnp.concatenate([-100 * ones, 1e37 * ones])}
    y = gated.Gated(gate("t", 8), x.dtype, "native").apply(params, x, train=True)
    np.testing.assert_allclose(y, params["params"]["conv_out"]["bias"] + x * params["params"]["skip"], rtol=1e-5)


def test_no_images_have_no_gradient():
    params, x, grad = draw(8, 8, (1, 4, 4), jnp.float32)
    y, params_grad, x_grad = make_run(8, "native")(params, x[:0], grad[:0])
    assert y.shape == x_grad.shape == (0, 4, 4, 8)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(params_grad))


def test_the_same_call_gives_the_same_bits():
    arguments, run = draw(12, 12, (40, 8, 8), jnp.float32), make_run(12, "native")
    first = run(*arguments)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, run(*arguments), first)


def test_the_kernels_are_chosen_for_it_and_fewer_than_four_channels_go_by_xla(model_config):
    assert choose_kernels(model_config(variant="gated")) == ("native", "")
    with jax.enable_x64(True):
        check(3, 4, (2, 5, 5), jnp.float64, 1e-12)
