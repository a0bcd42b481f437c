"""The convolutions equal lax.conv_general_dilated, in value and in every gradient, whatever their geometry."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cifar_jax.errors import InputError
from cifar_jax.models import depthwise, ops


class Geometry(NamedTuple):
    shape: tuple[int, int, int, int]
    kernel: int
    stride: int
    dilation: int
    padding: int

    @property
    def window(self):
        return {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}

    @property
    def output(self):
        return [ops.output_size(size, *self[1:]) for size in self.shape[1:3]]


@st.composite
def geometries(draw):
    """Any geometry whose kernel fits at least once; 11 images are more than a group of the weight gradient."""
    kernel = draw(st.sampled_from((3, 1, 5)))
    stride = draw(st.integers(1, 3))
    dilation = draw(st.sampled_from((1, 2, 4, 8)))
    padding = draw(st.integers(0, 4))
    lowest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    height, width = (draw(st.integers(lowest, lowest + 6)) for _ in range(2))
    shape = draw(st.sampled_from((2, 1, 11))), height, width, draw(st.integers(1, 3))
    return Geometry(shape, kernel, stride, dilation, padding)


def reference(x, kernel, *, stride=1, dilation=1, padding=0):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def value_and_gradients(function, x, kernel, cotangent):
    """(output, gradient of x, gradient of the kernel)."""

    def run(x, kernel, cotangent):
        y, pull_back = jax.vjp(function, x, kernel)
        return y, *pull_back(cotangent)

    return jax.jit(run)(x, kernel, cotangent)


def draw_arrays(shape, kernel_shape, output, dtype):
    rng = np.random.default_rng(0)
    shapes = shape, kernel_shape, (shape[0], *output, kernel_shape[-1])
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def check_float64(function, geometry, kernel_shape, **window):
    with jax.enable_x64(True):
        arrays = draw_arrays(geometry.shape, kernel_shape, geometry.output, jnp.float64)
        ours = value_and_gradients(lambda x, k: function(x, k, **window), *arrays)
        theirs = value_and_gradients(lambda x, k: reference(x, k, **window), *arrays)
        # Sums of at most a few thousand products of order 1, at 1e-16 each.
        chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-12)


def check_float32(function, geometry, kernel_shape):
    """Every number within n * eps of the sum of its n products' magnitudes: a bound for any order of summing."""
    arrays = draw_arrays(geometry.shape, kernel_shape, geometry.output, jnp.float32)
    ours = value_and_gradients(lambda x, k: function(x, k, **geometry.window), *arrays)
    chex.assert_type(ours, jnp.float32)
    rows, cols = geometry.output
    products = kernel_shape[0] ** 2 * max(kernel_shape[2:]), geometry.shape[0] * rows * cols
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a), jnp.float64) for a in arrays]
        expected = value_and_gradients(lambda x, k: reference(x, k, **geometry.window), *exact)
        magnitude = value_and_gradients(lambda x, k: reference(x, k, **geometry.window), *map(jnp.abs, exact))
    for got, want, size in zip(ours, expected, magnitude, strict=True):
        bound = max(products) * np.finfo(np.float32).eps * np.asarray(size)
        assert (np.abs(np.asarray(got, np.float64) - np.asarray(want)) <= bound).all()


@given(geometries())
@settings(max_examples=10)
def test_depthwise_equals_the_grouped_convolution(geometry):
    k, c = geometry.kernel, geometry.shape[-1]
    check_float64(ops.conv_depthwise, geometry, (k, k, 1, c), **geometry.window)


@given(geometries(), st.integers(1, 4))
@settings(max_examples=8)
def test_dense_equals_the_convolution(geometry, features):
    k, c = geometry.kernel, geometry.shape[-1]
    check_float64(ops.conv_dense, geometry, (k, k, c, features), **geometry.window)


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 4))
@settings(max_examples=4)
def test_pointwise_equals_the_1x1_convolution(shape, features):
    check_float64(ops.conv_pointwise, Geometry(shape, 1, 1, 1, 0), (1, 1, shape[-1], features))


NETWORK = {
    "same": Geometry((2, 8, 8, 3), 3, 1, 1, 1),
    "strided": Geometry((9, 8, 8, 3), 3, 2, 1, 1),
    "dilated": Geometry((2, 10, 10, 3), 3, 1, 4, 0),
}


@pytest.mark.parametrize("geometry", NETWORK.values(), ids=NETWORK)
def test_depthwise_in_float32_is_within_its_rounding_bound(geometry):
    check_float32(ops.conv_depthwise, geometry, (3, 3, 1, 3))


@pytest.mark.parametrize("geometry", NETWORK.values(), ids=NETWORK)
def test_dense_in_float32_is_within_its_rounding_bound(geometry):
    check_float32(ops.conv_dense, geometry, (3, 3, 3, 4))


@pytest.mark.parametrize("k", [1, 5])
def test_depthwise_weight_gradient_of_bfloat16_is_summed_in_float32(k):
    x, kernel = jnp.ones((512, 2, 2, 1), jnp.bfloat16), jnp.ones((k, k, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: ops.conv_depthwise(x, kernel, padding=k // 2).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[k // 2, k // 2, 0, 0] == x.size  # a bfloat16 count of ones ends at 256


GPU = {
    "same": Geometry((2, 8, 9, 3), 3, 1, 1, 1),
    "even kernel": Geometry((2, 8, 9, 3), 4, 1, 2, 3),
    "strided": Geometry((2, 9, 9, 3), 3, 2, 1, 1),
}


@pytest.mark.parametrize("geometry", GPU.values(), ids=GPU)
def test_xlas_forms_for_a_gpu_are_exact_too(geometry, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    channels = geometry.shape[-1]
    check_float64(ops.conv_depthwise, geometry, (geometry.kernel, geometry.kernel, 1, channels), **geometry.window)
    check_float64(ops.conv_dense, geometry, (geometry.kernel, geometry.kernel, channels, 4), **geometry.window)


KERNELS = {
    "even kernel": Geometry((2, 8, 9, 3), 4, 1, 2, 3),
    "even kernel, strided": Geometry((2, 8, 8, 3), 4, 2, 1, 1),
    "padded by more than the kernel": Geometry((2, 4, 4, 3), 1, 1, 1, 1),
    "dilated, blocks of rows of unequal length": Geometry((2, 14, 9, 3), 3, 1, 3, 3),
    "more than one block of rows and of lanes, one image": Geometry((1, 26, 26, 7), 3, 1, 1, 1),
    "stride and dilation with a common divisor": Geometry((2, 9, 9, 3), 3, 2, 2, 2),
    "stride and dilation without one": Geometry((3, 11, 9, 3), 3, 3, 2, 0),
}


@pytest.mark.parametrize("geometry", KERNELS.values(), ids=KERNELS)
def test_the_pallas_kernels_are_within_the_rounding_bound(geometry):
    def interpreted(x, kernel, *, stride, dilation, padding):
        return depthwise.depthwise(x, kernel[:, :, 0], stride, dilation, padding, True)

    check_float32(interpreted, geometry, (geometry.kernel, geometry.kernel, 1, geometry.shape[-1]))


@pytest.mark.parametrize("images, side, most", [(2**15, 32, 2**31), (2**16, 4, 2**26)], ids=["int32", "images"])
def test_a_batch_too_large_is_refused_by_the_kernels(images, side, most):
    x, kernel = jax.ShapeDtypeStruct((images, side, side, 64), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 64), jnp.float32)
    with pytest.raises(InputError, match=f"got a layer of {most} numbers from {images} images"):
        jax.eval_shape(lambda x, kernel: depthwise.depthwise(x, kernel, 1, 1, 1), x, kernel)


def test_average_is_pytorchs_with_zeros_around():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.standard_normal((2, 5, 4, 3))), jnp.full((3, 3, 1, 3), 1 / 9)
        chex.assert_trees_all_close(ops.average(x, 3), reference(x, kernel, padding=1), rtol=0, atol=1e-15)


@given(geometries())
@settings(max_examples=25)
def test_output_size_is_that_of_the_convolution(geometry):
    k = geometry.kernel
    x, kernel = jnp.zeros(geometry.shape), jnp.zeros((k, k, geometry.shape[-1], 1))
    y = jax.eval_shape(lambda x, kernel: reference(x, kernel, **geometry.window), x, kernel)
    assert geometry.output == list(y.shape[1:3])


@pytest.mark.parametrize("size, kernel, dilation, padding", [(2, 3, 1, 0), (8, 3, 4, 0), (6, 5, 2, 1)])
def test_output_size_is_below_1_where_the_kernel_does_not_fit(size, kernel, dilation, padding):
    assert ops.output_size(size, kernel, 1, dilation, padding) < 1
    assert ops.output_size(size + 1, kernel, 1, dilation, padding) == 1
