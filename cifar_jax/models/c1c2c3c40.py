"""C1C2C3C40: four convolution blocks C1-C4, up to three transitions T1-T3 between them, global average pooling and an output.

No max pooling anywhere. What the transitions do is the variant; each variant is a plain tuple of layers.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models import ops
from cifar_jax.models.layers import Layer, conv, conv_ln, gate, make_layer, separable, separable_ln


def strided(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """Transitions are depthwise-separable 3x3 convolutions of stride 2: 32 -> 16 -> 8 -> 4."""
    return (
        conv("c1_conv", w1),
        separable("c1_sep", w1),
        separable("t1", w2, stride=2),
        separable("c2_sep1", w2, dilation=2),
        separable("c2_sep2", w2),
        separable("c2_sep3", w2),
        separable("t2", w3, stride=2),
        separable("c3_sep1", w3, dilation=2),
        separable("c3_sep2", w3),
        separable("c3_sep3", w3),
        separable("t3", w4, stride=2),
        separable("c4_sep", w4),
    )


def dilated(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """No stride and no pooling: unpadded 3x3 convolutions of dilation 4 shrink the map: 32 -> 24 -> 16 -> 8."""
    return (
        conv("c1_conv", w1),
        separable("c1_sep", w1),
        conv("t1", w2, dilation=4, padding=0),
        separable("c2_sep1", w2, dilation=2),
        separable("c2_sep2", w2),
        conv("t2", w3, dilation=4, padding=0),
        separable("c3_sep1", w3, dilation=2),
        separable("c3_sep2", w3, dilation=2),
        separable("c3_sep3", w3),
        conv("t3", w4, dilation=4, padding=0),
        separable("c4_sep1", w4, dilation=2),
        separable("c4_sep2", w4),
    )


def mixed(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """T1 a 1x1 convolution, T2 an unpadded 3x3 of dilation 8 (32 -> 16), T3 a 3x3 of stride 2 (16 -> 8); six separable ones."""
    return (
        conv("c1_conv", w1),
        separable("c1_sep", w1),
        conv("t1", w2, kernel=1),
        separable("c2_sep", w2, dilation=2),
        conv("t2", w3, dilation=8, padding=0),
        separable("c3_sep1", w3, dilation=2),
        separable("c3_sep2", w3),
        conv("t3", w4, stride=2),
        separable("c4_sep1", w4, dilation=2),
        separable("c4_sep2", w4),
    )


def early(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """The first convolution has stride 2, T1 none: 32 -> 16 -> 16 -> 8 -> 4, at two thirds of the operations of `strided`."""
    return (
        conv("c1_conv", w1, stride=2),
        separable("c1_sep", w1),
        separable("t1", w2),
        separable("c2_sep1", w2, dilation=2),
        separable("c2_sep2", w2),
        separable("t2", w3, stride=2),
        separable("c3_sep1", w3, dilation=2),
        separable("c3_sep2", w3),
        separable("c3_sep3", w3),
        separable("t3", w4, stride=2),
        separable("c4_sep", w4),
    )


def coarse(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """The first convolution is a 4x4 of stride 2, T2 has none: 32 -> 16 -> 8 -> 8 -> 4. At equal widths it has 0.4 of
    the operations of `strided`.
    """
    return (
        conv("c1_conv", w1, kernel=4, stride=2),
        separable("c1_sep", w1),
        separable("t1", w2, stride=2),
        separable("c2_sep1", w2, dilation=2),
        separable("c2_sep2", w2),
        separable("t2", w3),
        separable("c3_sep1", w3, dilation=2),
        separable("c3_sep2", w3),
        separable("t3", w4, stride=2),
        separable("c4_sep", w4),
    )


def gated(w1, w2, w3, w4) -> tuple[Layer, ...]:
    """No batch statistics. T2 is a depthwise-separable 4x4 of stride 2: 32 -> 32 -> 16 -> 16; T1 and T3 are none.

    For the most accuracy from a count of parameters, at eight times the operations of `strided`. A gated layer that keeps its
    width takes two turns and has a shortcut, so w1 = w2 and w3 = w4 are best: half as many weights as layers leave room for
    wider ones.
    """
    return (
        conv_ln("c1_conv", w1),
        gate("c1_gated", w1, turns=2),
        gate("c2_gated", w2, turns=2 if w1 == w2 else 1),
        separable_ln("t2", w3, kernel=4, stride=2, padding=1),
        gate("c3_gated", w3, turns=2),
        gate("c4_gated", w4, turns=2 if w3 == w4 else 1),
    )


VARIANTS = {"strided": strided, "dilated": dilated, "mixed": mixed, "early": early, "coarse": coarse, "gated": gated}


class Network(nn.Module):
    """Images (b, h, w, 3), float, normalized -> logits (b, num_classes), float32 or better.

    head: "dense" pools, then maps to the classes; "pointwise" maps each position with a 1x1 convolution, then pools.
    dtype: that of activations and, on a GPU, of the computation (ops.compute_dtype); parameters and statistics are float32.
    axis_name: the mapped axis (pmap, shard_map) over which batch statistics are averaged.
    kernels: "xla"; "native", layers by native/, which must be registered, on a CPU; or "pallas", on a GPU. See choose_kernels.
    """

    layers: tuple[Layer, ...]
    num_classes: int
    head: str = "dense"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = x.astype(self.dtype)
        for layer in self.layers:
            module = make_layer(layer, self.dtype, self.axis_name, self.kernels)
            for _ in range(layer.turns):
                x = module(x, train=train)
        x = x.astype(ops.wide(self.dtype))
        head = nn.Dense(self.num_classes, name="head")
        return head(x).mean((1, 2)) if self.head == "pointwise" else head(x.mean((1, 2)))
