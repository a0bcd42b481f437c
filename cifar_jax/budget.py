"""Parameters, multiply-accumulates and receptive field of a network, counted from its description, without building it."""

import dataclasses
import math

from cifar_jax.errors import InputError
from cifar_jax.models import describe, gated
from cifar_jax.models.layers import Layer

IMAGE_SIZE = 32
IMAGE_CHANNELS = 3
FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One row of the summary. shape: (h, w, c) after the layer; macs: of one image, in all turns; receptive_field: of a central
    unit, in input pixels; activation_bytes: the most that must lie in memory at once while it is computed, in float32: its
    input and output, and what its parts hand to each other.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    kernel: int
    stride: int
    dilation: int
    turns: int
    parameters: int
    macs: int
    receptive_field: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Totals of a network; weight_bytes and peak_activation_bytes in float32, for one image, at inference."""

    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    receptive_field: int
    weight_bytes: int
    peak_activation_bytes: int


def summarize(model) -> Summary:
    """Counts the network of a config's model section. Raises InputError where a map shrinks to nothing, or its shape changes in
    a layer of several turns.

    >>> from cifar_jax.config import read_config
    >>> summary = summarize(read_config("configs/base.py", []).model)
    >>> summary.parameters, summary.receptive_field, summary.layers[0].shape
    (89386, 83, (32, 32, 32))
    """
    size, channels, field, jump = IMAGE_SIZE, IMAGE_CHANNELS, 1, 1
    costs = []
    for layer in describe(model):
        if layer.output_size(size) < 1:
            raise InputError(f"model: layer {layer.name} needs more than its input of {size}x{size}; shrink the map less")
        before, after = (size, channels), (layer.output_size(size), layer.features)
        if layer.turns > 1 and before != after:
            raise InputError(
                f"model: layer {layer.name} takes {layer.turns} turns, but makes (size, channels) {after} of {before}, expected "
                "no change; give it one turn"
            )
        field += layer.turns * (layer.extent - 1) * jump
        jump *= layer.stride
        cost = _count(layer, size, channels, field)
        size, channels = after
        costs.append(cost)
    costs += _head(model, size, channels, field)
    parameters = sum(cost.parameters for cost in costs)
    return Summary(
        layers=tuple(costs),
        parameters=parameters,
        macs=sum(cost.macs for cost in costs),
        receptive_field=field,
        weight_bytes=parameters * FLOAT_BYTES,
        peak_activation_bytes=max(cost.activation_bytes for cost in costs),
    )


def _count(layer: Layer, size: int, channels: int, field: int) -> LayerCost:
    out, features = layer.output_size(size), layer.features
    shape = (out, out, features)
    weights, vectors = _count_parameters(layer, channels)
    live = size * size * channels + math.prod(shape)
    # The input is needed to the end only where it is added to the output.
    shortcut = size * size * channels if shape == (size, size, channels) else 0
    if layer.kind in ("separable", "separable_ln"):
        shortcut = shortcut if layer.kind == "separable" else 0
        between = out * out * channels
        live = max(size * size * channels + between, between + math.prod(shape) + shortcut)
    if layer.kind == "gated":  # what the windows make of the input, then the pair of maps and their product
        live = out * out * max(2 * channels, channels + 2 * features, 3 * features) + shortcut
    return LayerCost(
        layer.name,
        layer.kind,
        shape,
        layer.kernel,
        layer.stride,
        layer.dilation,
        layer.turns,
        parameters=weights + vectors,
        macs=layer.turns * weights * out * out,
        receptive_field=field,
        activation_bytes=FLOAT_BYTES * live,
    )


def _count_parameters(layer: Layer, channels: int) -> tuple[int, int]:
    """(weights of the kernels, the rest: biases, and scales of norms and of the shortcut) of a layer."""
    taps, features = layer.kernel**2, layer.features
    if layer.kind in ("conv", "conv_ln"):
        weights = taps * channels * features
    elif layer.kind in ("separable", "separable_ln"):
        weights = taps * channels + channels * features
    else:
        passed, *seen = gated.split_channels(channels)
        weights = sum(kernel**2 * n for n, (kernel, _) in zip(seen, gated.WINDOWS.values(), strict=True))
        weights += 2 * channels * features + features * features
        skip = channels if channels == features else 0
        return weights, (channels - passed) + 2 * channels + 3 * features + skip
    return weights, (3 if layer.kind in gated.MODULES else 2) * features


def _head(model, size: int, channels: int, field: int) -> list[LayerCost]:
    """Pooling and the output, in the order that model.head asks for."""
    classes = model.num_classes
    weights = channels * classes
    positions, pooled = (size * size, classes) if model.head == "pointwise" else (1, channels)

    def row(name, kind, shape, parameters, macs, read):
        bytes_ = FLOAT_BYTES * (read + math.prod(shape))
        return LayerCost(name, kind, shape, 1, 1, 1, 1, parameters, macs, field, bytes_)

    side = size if model.head == "pointwise" else 1
    output = row("head", model.head, (side, side, classes), weights + classes, weights * positions, side * side * channels)
    pool = row("gap", "average", (1, 1, pooled), 0, 0, size * size * pooled)
    return [output, pool] if model.head == "pointwise" else [pool, output]


def check_budget(model, budget) -> Summary:
    """Returns the summary, or raises InputError where the network breaks a limit of the config's budget section.

    budget.parameters: the count must stay below; budget.receptive_field: the field must exceed it.
    """
    summary = summarize(model)
    if summary.parameters >= budget.parameters:
        raise InputError(
            f"model: got {summary.parameters:,} parameters, expected fewer than {budget.parameters:,} (budget.parameters); "
            "lower model.widths"
        )
    if summary.receptive_field <= budget.receptive_field:
        raise InputError(
            f"model: got a receptive field of {summary.receptive_field}, expected more than {budget.receptive_field} "
            "(budget.receptive_field); use a variant that dilates or strides more"
        )
    return summary


def format_table(summary: Summary) -> str:
    """The summary as aligned lines for a terminal."""
    header = ("layer", "kind", "output", "stride", "dilation", "turns", "parameters", "MACs", "field")
    rows = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.shape)),
            str(layer.stride),
            str(layer.dilation),
            str(layer.turns),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            str(layer.receptive_field),
        )
        for layer in summary.layers
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in (header, *rows)
    ]
    totals = (
        f"parameters {summary.parameters:,}   MACs {summary.macs:,}   receptive field {summary.receptive_field}   "
        f"weights {summary.weight_bytes:,} bytes   peak activations {summary.peak_activation_bytes:,} bytes"
    )
    return "\n".join([*lines, totals])
