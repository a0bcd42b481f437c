"""What several devices cost: the split step over the plain one on one device, and one process against two, a core each.

python -m benchmarks.scaling [--config configs/base.py] [--json]; ratio = plain over split (aim: above 0.97). `efficiency` is one
process's time over twice that of two that share the same batch, `exchange_ms` what two take beyond one with half the batch.
docs/scaling.md has the model of many devices, `model` below.

Latest result, --repeats 15, 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2: plain 82.4 ms, split 83.8 ms, ratio 0.98 (0.95
to 1.00, n = 15); one process on one core 145 ms, two on a core each 473 ms, 400 of them in 26 exchanges; efficiency 0.16 (0.15
to 0.16, n = 3). On a Xeon these were 147, 211 and 137 ms; 0.35. GPU: not measured.
"""

import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks import measure
from benchmarks.train_step import draw_batch
from cifar_jax import allocator, arguments, processes
from cifar_jax.budget import FLOAT_BYTES, summarize
from cifar_jax.config import read_config
from cifar_jax.errors import RunError
from cifar_jax.mesh import AXIS, make_mesh, make_put, own_rows, place, split
from cifar_jax.models import create_model, describe
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state
from cifar_jax.steps import make_train_step

STEPS = 5  # of one measurement
GPU_STEP_SECONDS = 0.002  # of 128 images: assumed, not measured
NETWORKS = {  # seconds an exchange waits for at each hop, bytes a second of a device: assumed, not measured
    "NVLink in a node": (5e-6, 200e9),
    "InfiniBand between nodes": (15e-6, 25e9),
    "Ethernet between nodes": (50e-6, 1.25e9),
}


def exchanged(layers, num_parameters: int) -> tuple[int, int]:
    """(all-reduces, bytes) of a step: the gradients with the loss, two counts, and two vectors a normalization either way.

    layers: models.describe.
    """
    features = sum(layer.features for layer in layers)
    values = num_parameters + 1 + 2 + 2 * 2 * features
    return 2 + 2 * len(layers), FLOAT_BYTES * values


def all_reduces(compiled_text: str) -> tuple[int, int]:
    """(all-reduces, bytes) that a compiled program holds, of 4-byte values."""
    found = re.findall(r"= (\S+|\([^)]*\)) all-reduce(?:-start)?\(", compiled_text)
    shapes = [re.findall(r"[fs]32\[([\d,]*)\]", text) for text in found]
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for group in shapes for shape in group]
    return len(found), FLOAT_BYTES * sum(sizes)


def model(devices: int, compute_seconds: float, exchanges: int, num_bytes: int, latency: float, bandwidth: float) -> float:
    """Efficiency of `devices` that each compute a batch of their own in compute_seconds: a model, no measurement.

    An all-reduce takes 2 log2(devices) hops of `latency` seconds, and moves 2 (devices - 1) / devices of its bytes.
    """
    waiting = exchanges * 2 * math.log2(devices) * latency
    moving = 2 * (devices - 1) / devices * num_bytes / bandwidth
    return compute_seconds / (compute_seconds + waiting + moving)


def make_step(config, mesh):
    """(compiled step, state, batch that lies ready): the plain step where mesh is None."""
    axis_name = AXIS if mesh else None
    network = create_model(config.model, axis_name=axis_name)
    tx = make_optimizer(config.optim, make_schedule(config.schedule, 10_000))
    step = make_train_step(network, tx, label_smoothing=config.train.label_smoothing, axis_name=axis_name)
    state = place(jax.device_get(create_state(network, tx, config.seed, with_ema=False)), mesh)
    rows = own_rows(config.train.batch_size)
    batch = make_put(mesh)({name: array[rows] for name, array in draw_batch(config).items()})
    return jax.jit(split(step, mesh), donate_argnums=0), state, batch


def make_run(step, state, batch):
    """A function that makes STEPS steps."""

    def run():
        nonlocal state
        for _ in range(STEPS):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))

    return run


def child(config_path, overrides, repeats: int) -> None:
    """Prints the seconds of a step in this process of several, all of which call it."""
    allocator.keep_freed_memory()
    config = read_config(config_path, overrides)
    processes.join(config.parallel)
    run = make_run(*make_step(config, make_mesh(0, config.train.batch_size)))
    seconds = measure.in_turn({"step": run}, repeats)["step"]
    print(json.dumps(statistics.median(seconds) / STEPS), flush=True)


def time_processes(config_path, overrides, number: int, batch_size: int, repeats: int) -> float:
    """Seconds of a step of `number` processes, each pinned to a core, that share batches of `batch_size` images."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))[:number]
    children = []
    for index, core in enumerate(cores):
        flags = [*overrides, f"--config.train.batch_size={batch_size}", f"--config.parallel.num_processes={number}"]
        if number > 1:
            flags += [f"--config.parallel.coordinator={address}", f"--config.parallel.process_id={index}"]
        program = f"import os; os.sched_setaffinity(0, {{{core}}}); from benchmarks.scaling import child; "
        program += f"child({config_path!r}, {flags!r}, {repeats})"
        children.append(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True))
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RunError(f"one of {number} processes ended with exit code {[child.returncode for child in children]}; see above")
    return float(outputs[0].splitlines()[-1])


def main(argv):
    parser = measure.make_parser(__doc__)
    parser.add_argument("--rounds", type=measure.arguments.whole(1), default=3, help="of one process against two")
    flags, config = measure.parse(parser, argv)
    overrides = [word for word in argv if word.startswith("--config.")]
    times = {"one": [], "half": [], "two": []}
    if len(os.sched_getaffinity(0)) > 1:
        size = config.train.batch_size
        for _ in range(flags.rounds):
            for name, number, batch in (("one", 1, size), ("half", 1, size // 2), ("two", 2, size)):
                times[name].append(time_processes(flags.config, overrides, number, batch, flags.repeats))
    allocator.keep_freed_memory()
    alone = Mesh(np.array(jax.devices()[:1]), (AXIS,), axis_types=(AxisType.Auto,))
    sides = {"plain": make_run(*make_step(config, None)), "split": make_run(*make_step(config, alone))}
    seconds = measure.in_turn(sides, flags.repeats)
    ratios = {"plain over split": measure.ratio(seconds, "split", "plain")}
    exchanges, num_bytes = exchanged(describe(config.model), summarize(config.model).parameters)
    report = {
        "benchmark": "scaling",
        "machine": measure.machine(),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {config.train.batch_size}, {config.model.dtype}",
        "exchanged_in_a_step": f"{num_bytes:,} bytes in {exchanges} all-reduces",
    }
    if times["two"]:
        one, half, two = (statistics.median(times[name]) for name in ("one", "half", "two"))
        efficiencies = [a / (2 * b) for a, b in zip(times["one"], times["two"], strict=True)]
        report |= {
            "a_core_each_ms": {"one process": round(1000 * one, 1), "two": round(1000 * two, 1)},
            "exchange_ms": round(1000 * (two - half), 1),
            "efficiency": [round(value, 3) for value in sorted(efficiencies)],
        }
    report |= {"sides": measure.summarize(seconds, STEPS), "ratios": ratios, "ratio": ratios["plain over split"]["median"]}
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
