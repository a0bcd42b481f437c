"""A gated layer and its gradient on a CPU by native/gated.c: what gated.Gated computes, in one pass over memory.

It keeps no more than its input for the gradient, and computes windows and hidden values anew.
"""

import functools

import jax

from cifar_jax.models import native
from cifar_jax.models.gate_kernels import Weights, Windows


def gated_layer(x, windows: Windows, weights: Weights, dilations: tuple[int, ...], pool: int):
    """(b, h, w, c) -> (b, h, w, features); see gate_kernels.gated_layer. Once differentiable, in reverse.

    x: of float32, float64 or bfloat16; weights: of ops.wide of it. Three windows of odd sides; pool: the side, odd, of the
    average that precedes the last.
    """
    # Scale and bias of the norm as part of what follows it: small matrices in place of whole activations.
    matrix = weights.scale[:, None] * weights.conv_in
    in_bias = weights.in_bias + weights.bias @ weights.conv_in
    arguments = [*windows.kernels, *windows.biases, matrix, in_bias, weights.conv_out, weights.out_bias]
    skip = [] if weights.skip is None else [weights.skip]
    return _apply([x, *arguments, *skip], dilations, pool)


def _attributes(dilations, pool):
    return {f"dilation_{n}": dilation for n, dilation in enumerate(dilations)} | {"pool": pool}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _apply(arguments, dilations, pool):
    x, *weights = arguments
    out_bias = weights[9]  # in the order of gated_layer
    shape = jax.ShapeDtypeStruct((*x.shape[:3], len(out_bias)), x.dtype)
    return native.call("gated_forward", shape, [x], weights, **_attributes(dilations, pool))


def _backward(dilations, pool, arguments, grad):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    x, *weights = arguments
    return (native.call("gated_backward", shapes, [grad, x], weights, **_attributes(dilations, pool)),)


_apply.defvjp(lambda arguments, dilations, pool: (_apply(arguments, dilations, pool), arguments), _backward)
