"""The layers the family is made of, each drawn from one description: a Layer value names it, budget.py counts it,
make_layer turns it into a Flax module: one of those here, with batch statistics, or of gated.py, without.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models import gated, ops
from cifar_jax.models.blocks import Window, native_apply, native_block
from cifar_jax.models.norm import NormRelu

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")  # He et al. 2015


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer. kind: "conv" (k x k over all channels - norm - relu) or "separable" (depthwise k x k - 1x1 - norm,
    plus the input where shapes allow, - relu); "conv_ln" and "separable_ln", the same up to a norm over channels, without
    relu; or "gated", of which kernel, dilation and padding are those of its widest window. padding: zeros on every side.
    turns: how often it is applied, each time to its last result and with the same weights; more than 1 where shapes stay.
    """

    name: str
    kind: str
    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int = 1
    turns: int = 1

    def output_size(self, size: int) -> int:
        return ops.output_size(size, self.kernel, self.stride, self.dilation, self.padding)

    @property
    def extent(self) -> int:
        """Positions along a side of the input that a position of the output sees."""
        window = (self.kernel - 1) * self.dilation + 1
        return window + gated.POOL - 1 if self.kind == "gated" else window


def conv(name: str, features: int, *, kernel=3, stride=1, dilation=1, padding=None) -> Layer:
    """A convolution over all channels; padding defaults to what keeps the size at stride 1."""
    return Layer(name, "conv", features, kernel, stride, dilation, _same(kernel, dilation, padding))


def separable(name: str, features: int, *, kernel=3, stride=1, dilation=1, padding=None) -> Layer:
    """A depthwise-separable convolution; padding defaults to what keeps the size at stride 1."""
    return Layer(name, "separable", features, kernel, stride, dilation, _same(kernel, dilation, padding))


def conv_ln(name: str, features: int) -> Layer:
    """A 3x3 convolution over all channels with a norm over channels."""
    return Layer(name, "conv_ln", features)


def separable_ln(name: str, features: int, *, kernel: int, stride: int, padding: int) -> Layer:
    """A depthwise-separable convolution with a norm over channels."""
    return Layer(name, "separable_ln", features, kernel, stride, 1, padding)


def gate(name: str, features: int, *, turns: int = 1) -> Layer:
    """A gated layer, which keeps the size."""
    kernel, dilation = gated.WINDOWS["conv_far"]
    return Layer(name, "gated", features, kernel, 1, dilation, _same(kernel, dilation, None), turns)


def _same(kernel, dilation, padding):
    return dilation * (kernel - 1) // 2 if padding is None else padding


class Conv(nn.Module):
    """k x k convolution - norm - relu. (b, h, w, c) -> (b, h', w', features)."""

    layer: Layer
    dtype: Any
    axis_name: str | None
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        spec = self.layer
        dtype = ops.compute_dtype(self.dtype, self.kernels)
        kernel = self.param("conv", _kernel_init, (spec.kernel, spec.kernel, x.shape[-1], spec.features)).astype(dtype)
        norm = NormRelu(spec.features, self.axis_name, name="norm")
        if self.kernels == "native":
            no_taps = jnp.zeros((spec.kernel, spec.kernel, x.shape[-1]), dtype)
            return norm(_native(spec, x, no_taps, kernel.reshape(-1, spec.features), False, train), train=train)
        return norm(ops.conv_dense(x.astype(dtype), kernel, **_window(spec)).astype(self.dtype), train=train)


class Separable(nn.Module):
    """Depthwise k x k - 1x1 - norm, plus the input where shapes allow, - relu. (b, h, w, c) -> (b, h', w', features)."""

    layer: Layer
    dtype: Any
    axis_name: str | None
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        spec = self.layer
        dtype = ops.compute_dtype(self.dtype, self.kernels)
        kernel_dw = self.param("conv_dw", _kernel_init, (spec.kernel, spec.kernel, 1, x.shape[-1])).astype(dtype)
        kernel_pw = self.param("conv_pw", _kernel_init, (1, 1, x.shape[-1], spec.features)).astype(dtype)
        size = (spec.output_size(x.shape[1]), spec.output_size(x.shape[2]), spec.features)
        shortcut = size == x.shape[1:]
        norm = NormRelu(spec.features, self.axis_name, name="norm")
        if self.kernels == "native":
            return norm(_native(spec, x, kernel_dw[:, :, 0], kernel_pw[0, 0], shortcut, train), train=train)
        y = ops.conv_depthwise(x.astype(dtype), kernel_dw, **_window(spec), pallas=self.kernels == "pallas")
        y = ops.conv_pointwise(y, kernel_pw).astype(self.dtype)
        return norm(y, x if shortcut else None, train=train)


def _window(spec: Layer) -> dict:
    return {"stride": spec.stride, "dilation": spec.dilation, "padding": spec.padding}


def _native(spec, x, taps, matrix, shortcut, train):
    """The layer on x as a function of what norm knows: see NormRelu."""
    window = Window(spec.kernel, spec.stride, spec.dilation, spec.padding, spec.kind == "separable")

    def block(a, b, axis_name=None):
        a, b = a.astype(matrix.dtype), b.astype(matrix.dtype)
        if train:
            return native_block(x, taps, matrix, a, b, window, shortcut, axis_name)
        return native_apply(x, taps, matrix, a, b, window, shortcut)

    return block


MODULES = {"conv": Conv, "separable": Separable}


def make_layer(layer: Layer, dtype: jnp.dtype, axis_name: str | None, kernels: str = "xla") -> nn.Module:
    """The Flax module of a description; kernels: see c1c2c3c40.Network."""
    if layer.kind in gated.MODULES:
        return gated.MODULES[layer.kind](layer, dtype, kernels, name=layer.name)
    return MODULES[layer.kind](layer, dtype, axis_name, kernels, name=layer.name)
