"""Layers without batch statistics: what the variant `gated` is made of, computed by XLA.

A gated layer looks at its input through three windows, normalizes each position over its channels, and multiplies one
linear map of them by a gate, another one. Source: the block of github.com/xvel/cifar10-tiniest.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.models import ops

EPSILON = 1e-5  # PyTorch's
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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - wide.mean(-1, keepdims=True)
    var = jnp.square(centered).mean(-1, keepdims=True)
    return (centered * lax.rsqrt(var + EPSILON) * scale + bias).astype(x.dtype)


class ChannelNorm(nn.Module):
    """normalize_channels with a scale and a bias that are trained."""

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        return normalize_channels(x, scale, self.param("bias", nn.initializers.zeros, features))


class BiasedConv(nn.Module):
    """k x k convolution with a bias that keeps the size, over all channels or of each by itself.

    (b, h, w, c) -> (b, h, w, features).
    """

    features: int
    dtype: Any
    kernel: int = 1
    dilation: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x):
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", _kernel_init, (self.kernel, self.kernel, inputs, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        conv = ops.conv_depthwise if self.depthwise else ops.conv_dense
        return conv(x, kernel, dilation=self.dilation, padding=self.dilation * (self.kernel - 1) // 2) + bias


class Gated(nn.Module):
    """Windows - channel norm - gated pair of 1x1 convolutions - 1x1, plus the scaled input where shapes allow.

    (b, h, w, c) -> (b, h, w, features). layer: a layers.Layer of the kind "gated".
    """

    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        c, features = x.shape[-1], self.layer.features
        y = ChannelNorm(name="norm")(self._look(x))
        y = gated_product(BiasedConv(2 * features, self.dtype, name="conv_in")(y))
        y = BiasedConv(features, self.dtype, name="conv_out")(y)
        if c != features:
            return y
        return y + x * self.param("skip", nn.initializers.ones, (c,)).astype(self.dtype)

    def _look(self, x):
        """Each part of the channels through its window."""
        parts = jnp.split(x, [sum(split_channels(x.shape[-1])[:n]) for n in (1, 2, 3)], -1)
        parts[3] = ops.average(parts[3], POOL)
        for n, (name, window) in enumerate(WINDOWS.items(), 1):
            if parts[n].shape[-1]:  # fewer than four channels leave the first parts empty
                parts[n] = BiasedConv(parts[n].shape[-1], self.dtype, *window, depthwise=True, name=name)(parts[n])
        return jnp.concatenate(parts, -1)


class ConvNorm(nn.Module):
    """k x k convolution over all channels - channel norm. (b, h, w, c) -> (b, h, w, features)."""

    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = BiasedConv(self.layer.features, self.dtype, self.layer.kernel, self.layer.dilation, name="conv")(x)
        return ChannelNorm(name="norm")(y)


class SeparableNorm(nn.Module):
    """Depthwise k x k - 1x1 - channel norm. (b, h, w, c) -> (b, h', w', features)."""

    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        spec = self.layer
        kernel = self.param("conv_dw", _kernel_init, (spec.kernel, spec.kernel, 1, x.shape[-1])).astype(self.dtype)
        y = ops.conv_depthwise(x, kernel, stride=spec.stride, dilation=spec.dilation, padding=spec.padding)
        return ChannelNorm(name="norm")(BiasedConv(spec.features, self.dtype, name="conv_pw")(y))


MODULES = {"conv_ln": ConvNorm, "separable_ln": SeparableNorm, "gated": Gated}
