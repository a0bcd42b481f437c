"""Convolution - batch normalization - plus shortcut - relu as one function: on a CPU by native/block.c, else by XLA.

Memory traffic is what such a network costs on a CPU. The native form reads a layer's input once and writes its output
once on either side of the batch statistics; windows and their gradients stay in cache, and backward computes them anew.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.models import native, ops
from cifar_jax.models.norm import EPSILON


class Window(NamedTuple):
    """Geometry of a convolution; depthwise: each channel by itself, then mixed by a matrix; else all channels at once."""

    kernel: int
    stride: int
    dilation: int
    padding: int
    depthwise: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def native_apply(x, taps, matrix, gain, offset, window: Window, shortcut: bool):
    """relu(gain * (convolution of x) + offset [+ x]): a block with statistics that are known. Shapes as in native_block."""
    shape = jax.ShapeDtypeStruct(_output_shape(x, matrix, window), x.dtype)
    affine = jnp.stack([gain, offset])
    return native.call("block_apply", shape, [x], [taps, matrix, affine], shortcut=shortcut, **window._asdict())


def _apply_by_xla(window, shortcut, x, taps, matrix, gain, offset):
    geometry = {"stride": window.stride, "dilation": window.dilation, "padding": window.padding}
    dtype, x = x.dtype, x.astype(ops.wide(x.dtype))
    if window.depthwise:
        y = ops.conv_pointwise(ops.conv_depthwise(x, taps[:, :, None], **geometry), matrix[None, None])
    else:
        y = ops.conv_dense(x, matrix.reshape(*taps.shape, -1), **geometry)
    y = y * gain + offset
    return jax.nn.relu(y + x if shortcut else y).astype(dtype)


native_apply.defvjp(
    lambda *arguments: (native_apply(*arguments), arguments[:5]),
    lambda window, shortcut, arguments, grad: jax.vjp(functools.partial(_apply_by_xla, window, shortcut), *arguments)[1](grad),
)


def _output_shape(x, matrix, window):
    rows, cols = (ops.output_size(n, *window[:4]) for n in x.shape[1:3])
    return x.shape[0], rows, cols, matrix.shape[-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def native_block(x, taps, matrix, scale, bias, window: Window, shortcut: bool, axis_name):
    """(output, mean, var): relu(norm(convolution of x) [+ x]) and the batch's statistics.

    x: (b, h, w, c) of float32, float64 or bfloat16; the others of ops.wide of it. Depthwise: taps (k, k, c), matrix
    (c, features); else taps is ignored and the matrix (k * k * c, features). No gradient flows through the returned statistics.
    """
    return _forward(x, taps, matrix, scale, bias, window, shortcut, axis_name)[0]


def _forward(x, taps, matrix, scale, bias, window, shortcut, axis_name, wants_x=True):
    shape = _output_shape(x, matrix, window)
    shapes = (jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct((2, shape[-1]), ops.wide(x.dtype)))
    y, (mean, var) = native.call("block_forward", shapes, [x], [taps, matrix], **window._asdict())
    if axis_name:
        square = lax.pmean(var + jnp.square(mean), axis_name)
        mean = lax.pmean(mean, axis_name)
        var = square - jnp.square(mean)
    # A variance that overflowed would otherwise make every output its bias, and the run would go on.
    inverse = jnp.where(jnp.isfinite(var), lax.rsqrt(var + EPSILON), jnp.nan)
    gain = scale * inverse
    offset = bias - mean * gain
    out = y * gain + offset
    out = out + x if shortcut else out
    out = jnp.where(out < 0, 0, out).astype(x.dtype)  # not maximum: XLA's may make a NaN 0 on a CPU
    return (out, mean, var), (x, y, taps, matrix, mean, inverse, scale, offset)


def _vjp_forward(x, taps, matrix, scale, bias, window, shortcut, axis_name):
    values = [a.value for a in (x, taps, matrix, scale, bias)]
    outputs, residuals = _forward(*values, window, shortcut, axis_name)
    return outputs, (x.perturbed, residuals)


def _vjp_backward(window, shortcut, axis_name, residuals, cotangents):
    wants_x, (x, y, taps, matrix, mean, inverse, scale, offset) = residuals
    grad = cotangents[0]
    if isinstance(grad, jax.custom_derivatives.SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    gain = scale * inverse
    sums = native.call(
        "relu_sums",
        jax.ShapeDtypeStruct((2, y.shape[-1]), mean.dtype),
        [grad, y, *([x] if shortcut else [])],
        [jnp.stack([gain, offset, mean])],
    )
    count = y.size // y.shape[-1]
    grad_bias, grad_scale = sums[0], sums[1] * inverse
    grad_mean, product_mean = sums[0] / count, grad_scale / count
    if axis_name:
        grad_mean, product_mean = lax.pmean((grad_mean, product_mean), axis_name)
    slope = -gain * inverse * product_mean
    affine = jnp.stack([gain, offset, gain, slope, -gain * grad_mean - slope * mean])
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (matrix, taps, x)]
    grads = native.call(
        "block_backward",
        shapes if wants_x else shapes[:2],
        [grad, y, x],
        [affine, taps, matrix],
        shortcut=shortcut,
        **window._asdict(),
    )
    x_grad = grads[2] if wants_x else jnp.zeros_like(x)
    return x_grad, grads[1], grads[0], grad_scale, grad_bias


native_block.defvjp(_vjp_forward, _vjp_backward, symbolic_zeros=True)
