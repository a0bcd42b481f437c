"""Convolutions and their gradients in the form of models/ops.py against lax.conv_general_dilated, both compiled by XLA.

python -m benchmarks.convolutions [--config configs/base.py] [--json]; ratio = lax's time over ours, all kinds together.
Every convolution of the network runs once, forward and backward, on arrays that lie ready: nothing else of a step is in
it. On a GPU the depthwise ones are Pallas kernels; kernels that join convolutions with what follows are in train_step.

Latest result, 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2, base, medians of n = 9, lax's time over ours:
dense 1.88, depthwise 8.91, pointwise 2.56; all together 6.27. GPU: not measured.
"""

import functools
import sys

import jax

from benchmarks import measure
from cifar_jax import arguments
from cifar_jax.budget import IMAGE_CHANNELS, IMAGE_SIZE
from cifar_jax.models import choose_kernels, describe, gated, ops

CALLS = 5  # of one measurement
OURS = {
    "dense": ops.conv_dense,
    "depthwise": ops.conv_depthwise,
    "pointwise": lambda x, kernel, **window: ops.conv_pointwise(x, kernel),
}


def list_convolutions(model) -> list[tuple]:
    """(kind, window, sizes of input and output, shape of the kernel) of every convolution, in order, in each turn."""
    size, channels, found = IMAGE_SIZE, IMAGE_CHANNELS, []
    for layer in describe(model):
        found += _of_layer(layer, size, channels) * layer.turns
        size, channels = layer.output_size(size), layer.features
    return found


def _of_layer(layer, size, channels):
    out, k, features = layer.output_size(size), layer.kernel, layer.features
    window = {"stride": layer.stride, "dilation": layer.dilation, "padding": layer.padding}
    if layer.kind in ("conv", "conv_ln"):
        return [("dense", window, (size, out), (k, k, channels, features))]
    if layer.kind in ("separable", "separable_ln"):
        depthwise = [("depthwise", window, (size, out), (k, k, 1, channels))]
        return [*depthwise, ("pointwise", {}, (out, out), (1, 1, channels, features))]
    windows = zip(gated.WINDOWS.values(), gated.split_channels(channels)[1:], strict=True)
    depthwise = [
        ("depthwise", {"dilation": dilation, "padding": dilation * (side - 1) // 2}, (out, out), (side, side, 1, seen))
        for (side, dilation), seen in windows
        if seen
    ]
    pair = [(1, 1, channels, 2 * features), (1, 1, features, features)]
    return depthwise + [("pointwise", {}, (out, out), shape) for shape in pair]


def make_side(convolutions, kind, function, batch_size, dtype):
    """A function that runs every convolution of that kind CALLS times, forward and backward."""
    keys = iter(jax.random.split(jax.random.key(0), 3 * len(convolutions)))
    windows, arrays = [], []
    for name, window, (before, after), shape in convolutions:
        if name != kind:
            continue
        seen = shape[3] if kind == "depthwise" else shape[2]
        shapes = (batch_size, before, before, seen), shape, (batch_size, after, after, shape[3])
        windows.append(window)
        arrays.append(tuple(jax.random.normal(next(keys), s, dtype) for s in shapes))

    @jax.jit
    def forward_and_backward(arrays):
        results = []
        for window, (x, kernel, grad) in zip(windows, arrays, strict=True):
            y, backward = jax.vjp(lambda x, kernel, window=window: function(x, kernel, **window), x, kernel)
            results.append((y, backward(grad)))
        return results

    def run():
        for _ in range(CALLS):
            jax.block_until_ready(forward_and_backward(arrays))

    return run


def main(argv):
    flags, config = measure.parse(measure.make_parser(__doc__), argv)
    found = list_convolutions(config.model)
    options = {"batch_size": config.train.batch_size, "dtype": config.model.dtype}
    kinds = [kind for kind in OURS if any(kind == name for name, *_ in found)]
    ours = OURS | {"depthwise": functools.partial(ops.conv_depthwise, pallas=choose_kernels(config.model)[0] == "pallas")}
    sides = {kind: make_side(found, kind, ours[kind], **options) for kind in kinds}
    sides |= {f"{kind} by lax": make_side(found, kind, ops.conv_xla, **options) for kind in kinds}
    seconds = measure.in_turn(sides, flags.repeats)
    report = {
        "benchmark": "convolutions",
        "machine": measure.machine(),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {config.train.batch_size}, {config.model.dtype}",
        "sides": measure.summarize(seconds, CALLS),
        "ratios": {f"{kind}, lax over ours": measure.ratio(seconds, kind, f"{kind} by lax") for kind in kinds},
    }
    own, by_lax = (sum(report["sides"][kind + end]["median"] for kind in kinds) for end in ("", " by lax"))
    measure.show(report | {"ratio": by_lax / own}, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
