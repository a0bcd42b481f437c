"""A training step on a batch that lies ready: ours against PyTorch's, forward, backward and update.

python -m benchmarks.train_step [--config configs/base.py] [--compile] [--json]; ratio = PyTorch's time over ours. The config's
optimizer must be one that PyTorch has too, SGD or AdamW.

Latest result, 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2, torch 2.13.0+cpu,
base, medians of n = 9: ours 93 ms (1,380 images/s), PyTorch channels_last 158 ms, torch.compile 203 ms; ratio 1.69, over
torch.compile 2.13. Floor: 7.1 GFLOP in 37 ms (and 0.50 GB in 10 ms); ours takes 2.5 times that, PyTorch 4.2, compiled 5.4.
In bfloat16 (PyTorch by autocast), n = 9: 66 ms, PyTorch 191, torch.compile 200; ratio 2.94.
GPU: not measured.
"""

import itertools
import math
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from cifar_jax import allocator, arguments
from cifar_jax.budget import IMAGE_CHANNELS, IMAGE_SIZE, summarize
from cifar_jax.models import create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state
from cifar_jax.steps import make_train_step

STEPS = 5  # of one measurement


def draw_batch(config):
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    return {
        "image": rng.standard_normal((size, 32, 32, 3), np.float32),
        "label": rng.integers(0, config.model.num_classes, size, dtype=np.int32),
    }


def make_ours(config):
    """A function that makes STEPS of our steps."""
    model = create_model(config.model)
    tx = make_optimizer(config.optim, make_schedule(config.schedule, 10_000))
    step = jax.jit(make_train_step(model, tx, label_smoothing=config.train.label_smoothing), donate_argnums=0)
    state = create_state(model, tx, config.seed, with_ema=False)
    batch = jax.device_put(draw_batch(config))

    def run():
        nonlocal state
        for _ in range(STEPS):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))

    return run


def make_torch(config, compile_: bool = False):
    """A function that makes STEPS of the baseline's steps."""
    import torch

    from baselines import train as baseline
    from baselines.model import create_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(config.model).to(device).train()
    optimizer = baseline.make_optimizer(model, config.optim, config.schedule.learning_rate)
    scheduler = baseline.make_scheduler(optimizer, config.schedule, 10_000)
    batch = draw_batch(config)
    images, labels = (torch.from_numpy(batch[key]).to(device) for key in ("image", "label"))
    labels = labels.long()
    network = torch.compile(model) if compile_ else model
    options = {
        "label_smoothing": config.train.label_smoothing,
        "autocast": torch.bfloat16 if config.model.dtype == "bfloat16" else None,
    }

    def run():
        for _ in range(STEPS):
            loss, _ = baseline.train_step(network, optimizer, scheduler, images, labels, **options)
        loss.item()

    return run


def floor(config) -> dict:
    """The least a step can take: its operations, and each layer's activations moved once, over what the machine can do.

    What it can do is measured in float32, also for a config of bfloat16, of which some machines multiply more. Backward does
    twice the forward's operations; it reads a layer's input, output and gradient and writes a gradient.
    """
    cost = summarize(config.model)
    size = config.train.batch_size
    flops = 3 * 2 * cost.macs * size
    maps = [IMAGE_SIZE**2 * IMAGE_CHANNELS, *(math.prod(layer.shape) for layer in cost.layers for _ in range(layer.turns))]
    moved = 3 * jnp.dtype(config.model.dtype).itemsize * sum(before + after for before, after in itertools.pairwise(maps)) * size
    flops_time, moved_time = flops / measure.peak_flops(), moved / measure.peak_bandwidth()
    return {"gflop": flops / 1e9, "gigabytes": moved / 1e9, "flops_s": flops_time, "bytes_s": moved_time}


def main(argv):
    parser = measure.make_parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile as a second opponent (needs a C++ compiler)")
    flags, config = measure.parse(parser, argv)
    allocator.keep_freed_memory()  # as training does; PyTorch, in the same process, has it too
    sides = {"ours": make_ours(config), "torch": make_torch(config)}
    if flags.compile and shutil.which("c++"):
        sides["torch_compiled"] = make_torch(config, compile_=True)
    least = floor(config)
    seconds = measure.in_turn(sides, flags.repeats)
    summaries = measure.summarize(seconds, STEPS)
    ratios = {f"{name} over ours": measure.ratio(seconds, "ours", name) for name in sides if name != "ours"}
    bound = max(least["flops_s"], least["bytes_s"])
    report = {
        "benchmark": "train_step",
        "machine": measure.machine(),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {config.train.batch_size}, {config.model.dtype}",
        "images_per_second": {name: round(config.train.batch_size / s["median"]) for name, s in summaries.items()},
        "floor": f"{least['gflop']:.1f} GFLOP in {1000 * least['flops_s']:.0f} ms; {least['gigabytes']:.2f} GB in "
        f"{1000 * least['bytes_s']:.0f} ms",
        "over_the_floor": {name: round(s["median"] / bound, 1) for name, s in summaries.items()},
        "sides": summaries,
        "ratios": ratios,
        "ratio": min(r["median"] for r in ratios.values()),
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
