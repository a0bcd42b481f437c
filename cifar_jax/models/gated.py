"""Layers without batch statistics: what the variant `gated` is made of, computed by XLA, or on a GPU by
gate_kernels.py and on a CPU by native_gated.py.

A gated layer looks at its input through three windows, normalizes each position over its channels, and multiplies one
linear map of them by a gate, another one. Source: the block of github.com/xvel/cifar10-tiniest.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.models import gate_kernels, native_gated, ops
from cifar_jax.models.norm import EPSILON

POOL = 3  # side of the average that precedes the dilated window
# name: (side, dilation) of a window; the first part of the channels has none
WINDOWS = {"conv_near": (3, 1), "conv_wide": (7, 1), "conv_far": (7, 3)}
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's


def split_channels(channels: int) -> tuple[int, ...]:
    """Sizes of the four parts of a gated layer's channels: passed on as they are, then one a window. They differ by 1 at most.

    >>> split_channels(10)
    (2, 2, 3, 3)
    """
    return tuple((channels + part) // 4 for part in range(4))


@jax.custom_vjp
def gated_product(x):
    """value * tanh(exp(value)) * gate of x = (value, gate): (..., 2 c) -> (..., c). TanhExp: arXiv:2003.09855.

    Its own gradient, because the one of split and product would compute every tanh twice.
    """
    value, gate, _, factor = _gate_parts(x)
    return value * factor * gate


def _gate_parts(x):
    value, gate = jnp.split(x, 2, -1)
    # From 4 on the factor is 1 in float64, too; without the limit exp overflows, and its gradient is not a number.
    exp = jnp.exp(jnp.minimum(value, 4.0))
    return value, gate, exp, jnp.tanh(exp)


def _gated_product_backward(x, grad):
    value, gate, exp, factor = _gate_parts(x)
    slope = factor + value * exp * (1 - jnp.square(factor))
    return (jnp.concatenate([grad * gate * slope, grad * value * factor], -1),)


gated_product.defvjp(lambda x: (gated_product(x), x), _gated_product_backward)


def normalize_channels(x, scale, bias):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias over the channels of each position; statistics in float32 or better.

    x: (b, h, w, c); scale, bias: (c,).
    """
    wide = x.astype(ops.wide(x.dtype))
    centered = wide - wide.mean(-1, keepdims=True)
    var = jnp.square(centered).mean(-1, keepdims=True)
    return (centered * lax.rsqrt(var + EPSILON) * scale + bias).astype(x.dtype)


class ChannelScale(nn.Module):
    """The scale and the bias of normalize_channels, as parameters."""

    @nn.compact
    def __call__(self, channels: int):
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", nn.initializers.zeros, (channels,))


class BiasedKernel(nn.Module):
    """The kernel, of the shape given, and the bias of a convolution, as parameters; of `dtype` where one is given."""

    dtype: Any = None

    @nn.compact
    def __call__(self, *shape: int):
        kernel = self.param("kernel", _kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        return jax.tree.map(lambda p: p.astype(self.dtype or p.dtype), (kernel, bias))


class Gated(nn.Module):
    """Windows - channel norm - gated pair of 1x1 convolutions - 1x1, plus the scaled input where shapes allow.

    (b, h, w, c) -> (b, h, w, features). layer: a layers.Layer of the kind "gated".
    """

    layer: Any
    dtype: Any
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        c, features = x.shape[-1], self.layer.features
        sizes = split_channels(c)
        windows = {
            name: BiasedKernel(name=name)(side, side, 1, size)
            for (name, (side, _)), size in zip(WINDOWS.items(), sizes[1:], strict=True)
            if size  # fewer than four channels leave the first parts empty
        }
        norm = ChannelScale(name="norm")(c)
        conv_in = BiasedKernel(name="conv_in")(1, 1, c, 2 * features)
        conv_out = BiasedKernel(name="conv_out")(1, 1, features, features)
        skip = self.param("skip", nn.initializers.ones, (c,)) if c == features else None
        if self.kernels != "xla" and all(sizes):
            return _by_kernels(self.kernels, x, windows, norm, conv_in, conv_out, skip)
        dtype = ops.compute_dtype(self.dtype, self.kernels)
        x, windows, conv_in, conv_out, skip = jax.tree.map(lambda p: p.astype(dtype), (x, windows, conv_in, conv_out, skip))
        y = ops.conv_pointwise(normalize_channels(look(x, windows), *norm), conv_in[0]) + conv_in[1]
        y = ops.conv_pointwise(gated_product(y), conv_out[0]) + conv_out[1]
        return (y if skip is None else y + x * skip).astype(self.dtype)


def look(x, windows: dict):
    """Each part of x's channels through its window; windows: (kernel, bias) of each of WINDOWS whose part has any."""
    parts = jnp.split(x, [sum(split_channels(x.shape[-1])[:n]) for n in (1, 2, 3)], -1)
    parts[3] = ops.average(parts[3], POOL)
    for n, (name, (side, dilation)) in enumerate(WINDOWS.items(), 1):
        if name in windows:
            kernel, bias = windows[name]
            parts[n] = ops.conv_depthwise(parts[n], kernel, dilation=dilation, padding=dilation * (side - 1) // 2) + bias
    return jnp.concatenate(parts, -1)


def _by_kernels(name, x, windows, norm, conv_in, conv_out, skip):
    kernels, biases = zip(*windows.values(), strict=True)
    windows_of = gate_kernels.Windows(tuple(kernel[:, :, 0] for kernel in kernels), biases)
    weights = gate_kernels.Weights(*norm, conv_in[0][0, 0], conv_in[1], conv_out[0][0, 0], conv_out[1], skip)
    dilations = tuple(WINDOWS[window][1] for window in windows)
    if name == "pallas":
        return gate_kernels.gated_layer(x, windows_of, weights, dilations, functools.partial(ops.average, size=POOL))
    windows_of, weights = jax.tree.map(lambda p: p.astype(ops.wide(x.dtype)), (windows_of, weights))
    return native_gated.gated_layer(x, windows_of, weights, dilations, POOL)


class ConvNorm(nn.Module):
    """k x k convolution over all channels - channel norm. (b, h, w, c) -> (b, h, w, features)."""

    layer: Any
    dtype: Any
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        spec = self.layer
        dtype = ops.compute_dtype(self.dtype, self.kernels)
        kernel, bias = BiasedKernel(dtype, name="conv")(spec.kernel, spec.kernel, x.shape[-1], spec.features)
        y = ops.conv_dense(x.astype(dtype), kernel, dilation=spec.dilation, padding=spec.padding) + bias
        return normalize_channels(y, *ChannelScale(name="norm")(spec.features)).astype(self.dtype)


class SeparableNorm(nn.Module):
    """Depthwise k x k - 1x1 - channel norm. (b, h, w, c) -> (b, h', w', features)."""

    layer: Any
    dtype: Any
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        spec = self.layer
        dtype = ops.compute_dtype(self.dtype, self.kernels)
        kernel = self.param("conv_dw", _kernel_init, (spec.kernel, spec.kernel, 1, x.shape[-1])).astype(dtype)
        window = {"stride": spec.stride, "dilation": spec.dilation, "padding": spec.padding}
        y = ops.conv_depthwise(x.astype(dtype), kernel, **window, pallas=self.kernels == "pallas")
        kernel, bias = BiasedKernel(dtype, name="conv_pw")(1, 1, x.shape[-1], spec.features)
        y = normalize_channels(ops.conv_pointwise(y, kernel) + bias, *ChannelScale(name="norm")(spec.features))
        return y.astype(self.dtype)


MODULES = {"conv_ln": ConvNorm, "separable_ln": SeparableNorm, "gated": Gated}
