"""The native kernels equal the convolutions and the normalization that XLA computes, in value and in every gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from cifar_jax.models import native, ops
from cifar_jax.models.blocks import Window, native_apply, native_block
from cifar_jax.models.norm import EPSILON, norm_relu

if not native.find_compiler():
    pytest.skip("no C compiler", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def registered():
    assert native.register("float") == native.register("double") == native.register("bfloat16") == ""


def xla_block(x, taps, matrix, scale, bias, window, shortcut, axis_name):
    """native_block's contract, by ops and norm."""
    geometry = {"stride": window.stride, "dilation": window.dilation, "padding": window.padding}
    if window.depthwise:
        y = ops.conv_pointwise(ops.conv_depthwise(x, taps[:, :, None], **geometry), matrix[None, None])
    else:
        y = ops.conv_dense(x, matrix.reshape(*taps.shape, -1), **geometry)
    return norm_relu(y, scale, bias, x if shortcut else None, axis_name)


def draw_arrays(batch, size, channels, features, window, dtype):
    rng = np.random.default_rng(0)
    depth = channels if window.depthwise else window.kernel**2 * channels
    shapes = (batch, *size, channels), (window.kernel, window.kernel, channels), (depth, features), (features,), (features,)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def outputs_and_gradients(block, arrays, window, shortcut, axis_name=None):
    def loss(arrays):
        out, mean, var = block(*arrays, window, shortcut, axis_name)
        weights = np.random.default_rng(1).standard_normal(out.shape[1:])
        return (out * jnp.asarray(weights, out.dtype)).mean(), (out, mean, var)

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return outputs, grads


@st.composite
def cases(draw):
    """(batch, size, channels, features, window, shortcut); 35 images are more than there are groups."""
    kernel, stride, dilation = draw(st.sampled_from((3, 1, 4, 5))), draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 4)))
    padding = draw(st.integers(0, 4))
    lowest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    size = tuple(draw(st.integers(lowest, lowest + 6)) for _ in range(2))
    window = Window(kernel, stride, dilation, padding, draw(st.booleans()))
    channels, features = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    same = tuple(ops.output_size(n, *window[:4]) for n in size) == size
    shortcut = same and draw(st.booleans())
    return draw(st.sampled_from((2, 1, 35))), size, channels, channels if shortcut else features, window, shortcut


@given(cases())
@settings(max_examples=5)
def test_float64_equals_xla_whatever_the_geometry(case):
    *shapes, window, shortcut = case
    with jax.enable_x64(True):
        arrays = draw_arrays(*shapes, window, "float64")
        ours, theirs = (outputs_and_gradients(f, arrays, window, shortcut) for f in (native_block, xla_block))
        # Sums of at most a few thousand products of order 1 at 1e-16, over a deviation that few positions may make small.
        chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-9)


NETWORK = {
    "first": (Window(3, 1, 1, 1, False), 3, 32, False),
    "same": (Window(3, 1, 2, 2, True), 24, 24, True),
    "strided": (Window(3, 2, 1, 1, True), 32, 40, False),
    "shrinking": (Window(3, 1, 4, 0, False), 8, 20, False),
    "even": (Window(4, 2, 1, 1, False), 3, 24, False),
}
LAYERS = pytest.mark.parametrize("window, channels, features, shortcut", NETWORK.values(), ids=NETWORK)


@LAYERS
def test_float32_is_as_near_to_float64_as_xla_is(window, channels, features, shortcut):
    with jax.enable_x64(True):
        arrays = draw_arrays(8, (12, 12), channels, features, window, "float32")
        exact = outputs_and_gradients(xla_block, [a.astype("float64") for a in arrays], window, shortcut)
        for block in (native_block, xla_block):
            result = outputs_and_gradients(block, arrays, window, shortcut)
            for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True):
                assert got.dtype == jnp.float32
                assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()  # 100 times float32's epsilon


@LAYERS
def test_bfloat16_is_within_its_rounding_of_float64(window, channels, features, shortcut):
    """Outputs and gradients are rounded to 8 bits, and on some machines what is multiplied. The bias keeps relu open: which
    values it cuts is a matter of the rounding, and so would the gradients be.
    """
    with jax.enable_x64(True):
        x, *weights, bias = draw_arrays(8, (11, 11), channels, features, window, "float32")
        arrays = [x.astype("bfloat16"), *weights, bias + 8]
        exact = outputs_and_gradients(xla_block, [a.astype("float64") for a in arrays], window, shortcut)
        result = outputs_and_gradients(native_block, arrays, window, shortcut)
        (out, mean, var), _ = exact
        gain = (arrays[3] / jnp.sqrt(var + EPSILON)).astype("float32")
        applied = native_apply(*arrays[:3], gain, jnp.zeros(features, "float32"), window, shortcut)
        assert [a.dtype for a in (result[0][0], applied, result[1][0])] == ["bfloat16"] * 3
        assert all(a.dtype == "float32" for a in (*result[0][1:], *result[1][1:]))
        known = jax.nn.relu(out + mean * gain - arrays[4])  # as out is positive
        for got, want in zip(jax.tree.leaves((result, applied)), jax.tree.leaves((exact, known)), strict=True):
            assert np.linalg.norm(got.astype("float64") - want) <= 1e-2 * np.linalg.norm(want)


@given(cases())
@settings(max_examples=3)
def test_known_statistics_give_the_same_output_and_gradients(case):
    *shapes, window, shortcut = case
    with jax.enable_x64(True):
        arrays = draw_arrays(*shapes, window, "float64")
        (out, mean, var), _ = outputs_and_gradients(xla_block, arrays, window, shortcut)
        gain = arrays[3] / jnp.sqrt(var + EPSILON)
        arrays[3:] = gain, arrays[4] - mean * gain
        chex.assert_trees_all_close(native_apply(*arrays, window, shortcut), out, rtol=1e-9, atol=1e-9)


def test_a_network_in_use_has_a_gradient_in_bfloat16_too():
    window = NETWORK["same"][0]
    x, *arrays = draw_arrays(2, (8, 8), 24, 24, window, "float32")
    grad = jax.grad(lambda x: (native_apply(x, *arrays, window, True).astype("float32") ** 2).sum())
    rounded, exact = grad(x.astype("bfloat16")), grad(x)
    assert rounded.dtype == "bfloat16"
    assert np.linalg.norm(rounded.astype("float32") - exact) <= 2e-2 * np.linalg.norm(exact)


def test_a_network_in_use_has_a_gradient():
    """Saliency maps and receptive fields need it: that of the same layer in XLA."""
    window = NETWORK["same"][0]
    with jax.enable_x64(True):
        arrays = draw_arrays(2, (8, 8), 24, 24, window, "float64")
        loss = jax.jit(lambda arrays: jnp.sum(native_apply(*arrays, window, True) ** 2))
        grads = jax.jit(jax.grad(loss))(arrays)
        for array, grad in zip(arrays, grads, strict=True):
            direction = jnp.asarray(np.random.default_rng(2).standard_normal(array.shape))
            chex.assert_equal_shape((array, grad))
            moved = [[a + e * direction if a is array else a for a in arrays] for e in (1e-6, -1e-6)]
            low, high = map(loss, moved)
            assert float(low - high) / 2e-6 == pytest.approx(float(jnp.vdot(grad, direction)), rel=1e-5)


def test_a_variance_that_overflows_ends_as_nan():
    window = NETWORK["first"][0]
    x, *arrays = draw_arrays(4, (8, 8), 3, 32, window, "float32")
    total = jax.jit(lambda x: native_block(x, *arrays, window, False, None)[0].sum())  # where XLA may fuse what follows
    assert np.isfinite(total(x)) and np.isnan(total(x * 1e30))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["first", "same"])
def test_nan_is_not_hidden_by_relu(layer, dtype):
    window, channels, features, shortcut = NETWORK[layer]
    x, *arrays = draw_arrays(4, (8, 8), channels, features, window, "float32")
    x = x.at[0, 2, 2].set(np.nan).astype(dtype)
    assert np.isnan(native_apply(x, *arrays, window, shortcut)[0, 2, 2]).all()


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float64"), ("float64", "float32")])
def test_arrays_of_types_that_do_not_go_together_are_refused(dtypes):
    """C would read past their ends."""
    window = NETWORK["same"][0]
    with jax.enable_x64(True):
        x, *arrays = draw_arrays(2, (8, 8), 24, 24, window, dtypes[1])
        with pytest.raises(TypeError, match=f"got {dtypes[1]} beside {dtypes[0]}"):
            native_apply(x.astype(dtypes[0]), *arrays, window, True)


@LAYERS
def test_two_devices_equal_one_on_the_whole_batch(window, channels, features, shortcut):
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices("cpu")[:2], axis_types=(jax.sharding.AxisType.Auto,))
    with jax.enable_x64(True):
        arrays = draw_arrays(6, (12, 12), channels, features, window, "float64")

        def on_each(arrays):
            outputs, (x, *grads) = outputs_and_gradients(native_block, arrays, window, shortcut, "batch")
            return outputs, (x / 2, *jax.lax.pmean(tuple(grads), "batch"))  # the loss is the mean over devices

        images, shared = P("batch"), P()
        specs = [images, shared, shared, shared, shared]
        out_specs = (images, shared, shared), tuple(specs)
        mapped = jax.shard_map(on_each, mesh=mesh, in_specs=(specs,), out_specs=out_specs, check_vma=False)
        outputs, grads = outputs_and_gradients(native_block, arrays, window, shortcut)
        chex.assert_trees_all_close(jax.jit(mapped)(arrays), (outputs, tuple(grads)), rtol=1e-11, atol=1e-11)


def test_the_same_call_gives_the_same_bits():
    window = NETWORK["same"][0]
    arrays = draw_arrays(40, (12, 12), 24, 24, window, "float32")
    run = jax.jit(functools.partial(outputs_and_gradients, native_block, window=window, shortcut=True))
    first = run(arrays)
    for _ in range(5):
        chex.assert_trees_all_equal(run(arrays), first)


def test_the_gradient_of_images_is_left_out_where_nobody_asks():
    window = NETWORK["first"][0]
    arrays = draw_arrays(2, (8, 8), 3, 32, window, "float32")

    def loss(matrix, x):
        return native_block(x, arrays[1], matrix, *arrays[3:], window, False, None)[0].sum()

    def grad_shapes(argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(arrays[2], arrays[0]).as_text()
        return next(line for line in text.splitlines() if "cifar_jax_block_backward" in line).split("->")[-1]

    assert "2x8x8x3x" in grad_shapes((0, 1))
    assert "2x8x8x3x" not in grad_shapes(0)
