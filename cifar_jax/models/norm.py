"""Batch normalization, shortcut and relu as one function with its own gradient: each pass over the activations is made
once, where automatic differentiation of the formula would make it two or three times (measured on a CPU).

Statistics are float32 whatever the input; constants are PyTorch's (epsilon 1e-5, running average 0.9). The running
variance is the biased one, as in Flax.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.models import ops

EPSILON = 1e-5
MOMENTUM = 0.9


def _channel_mean(x, axis_name):
    mean = jnp.mean(x.reshape(-1, x.shape[-1]), 0, dtype=ops.wide(x.dtype))
    return lax.pmean(mean, axis_name) if axis_name else mean


def _affine_relu(x, gain, offset, shortcut):
    y = x * gain + offset
    return nn.relu(y if shortcut is None else y + shortcut).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def norm_relu(x, scale, bias, shortcut, axis_name):
    """relu(scale * (x - mean) / sqrt(var + 1e-5) + bias + shortcut) and the batch's (mean, var), each (c,).

    x: (b, h, w, c); scale, bias: (c,); shortcut: like x, or None; axis_name: mapped axis that shares statistics, or None.
    No gradient flows through the returned statistics: they are for the running averages.
    """
    return _norm_relu_forward(x, scale, bias, shortcut, axis_name)[0]


def _norm_relu_forward(x, scale, bias, shortcut, axis_name):
    x = lax.optimization_barrier(x)  # keeps XLA from computing the convolution that made x twice
    mean = _channel_mean(x, axis_name)
    var = jnp.maximum(_channel_mean(jnp.square(x.astype(mean.dtype)), axis_name) - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + EPSILON)
    gain = scale * inverse
    y = lax.optimization_barrier(_affine_relu(x, gain, bias - mean * gain, shortcut))
    return (y, mean, var), (x, y, mean, inverse, scale, shortcut is None)


def _norm_relu_backward(axis_name, residuals, cotangents):
    x, y, mean, inverse, scale, no_shortcut = residuals
    grad = lax.optimization_barrier(jnp.where(y > 0, cotangents[0], 0))
    grad_mean = _channel_mean(grad, None)
    # mean(grad * normalized x), from mean(grad * x) so that the normalized x is never formed
    grad_x_mean = (_channel_mean(grad * x, None) - mean * grad_mean) * inverse
    count = x.size // x.shape[-1]
    grad_scale, grad_bias = grad_x_mean * count, grad_mean * count
    if axis_name:
        grad_mean, grad_x_mean = lax.pmean((grad_mean, grad_x_mean), axis_name)
    gain, slope = scale * inverse, grad_x_mean * inverse
    grad_x = gain * (grad - grad_mean - (x - mean) * slope)
    grad_x = lax.optimization_barrier(grad_x.astype(x.dtype))
    return grad_x, grad_scale, grad_bias, None if no_shortcut else grad


norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


class NormRelu(nn.Module):
    """Batch normalization - plus shortcut - relu, with running statistics in the collection batch_stats.

    x: (b, h, w, features), or a function that computes the whole layer: in training (scale, bias, axis_name) ->
    (y, mean, var), else (gain, offset) -> y = relu(gain * x + offset + shortcut).
    """

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, shortcut=None, *, train: bool):
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.features,))
        if not train:
            gain = scale * lax.rsqrt(running_var.value + EPSILON)
            offset = bias - running_mean.value * gain
            return x(gain, offset) if callable(x) else _affine_relu(x, gain, offset, shortcut)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = x(scale, bias, axis_name) if callable(x) else norm_relu(x, scale, bias, shortcut, axis_name)
        if not self.is_initializing():
            running_mean.value += (1 - MOMENTUM) * (mean - running_mean.value)
            running_var.value += (1 - MOMENTUM) * (var - running_var.value)
        return y
