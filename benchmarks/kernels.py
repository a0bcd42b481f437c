"""Evaluation and training of a batch by the kernels that this machine has for the network, against XLA's alone.

python -m benchmarks.kernels [--config configs/base.py] [--json]; ratio = XLA's time of a training step over ours. Those kernels
are C on a CPU and Pallas on a GPU; --config.model.dtype=bfloat16 compares them with themselves in float32, too, and
--config.train.batch_size sets how many images there are.

Latest result, 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2, record in bfloat16, medians of n = 5: a batch of 256 is
evaluated in 0.33 s, by XLA in 1.36; a training step takes 1.22 s, by XLA 6.67; ratio 5.64. In float32 either takes 1.24 times as
long. Floor, of products in float32: 0.63 s a step. GPU: not measured.
"""

import shlex
import sys
import time

import jax
import numpy as np

from benchmarks import measure
from benchmarks.train_step import draw_batch, floor
from cifar_jax import allocator, arguments
from cifar_jax.config import with_overrides
from cifar_jax.errors import InputError
from cifar_jax.models import choose_kernels, create_model, native
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state
from cifar_jax.steps import make_eval_step, make_train_step


def choose_sides(config) -> dict:
    """{kernels: the config that gives them}, XLA's last; for one of bfloat16 also "KERNELS, float32"."""
    kernels, reason = choose_kernels(config.model)
    if kernels == "xla":
        raise InputError(f"model: XLA's kernels are all that it has here ({reason}), expected others to compare them with")
    sides = {kernels: config}
    if config.model.dtype != "float32":
        sides[f"{kernels}, float32"] = with_overrides(config, ["--config.model.dtype=float32"])
    return sides | {"xla": with_overrides(config, ["--config.model.kernels=xla"])}


def make_steps(config) -> dict[str, tuple]:
    """{"evaluation" and "training": (the step, its arguments)}, on a batch of random images."""
    model = create_model(config.model)
    tx = make_optimizer(config.optim, make_schedule(config.schedule, 10_000))
    options = {"label_smoothing": config.train.label_smoothing, "ema_decay": config.ema.decay}
    state = create_state(model, tx, config.seed, with_ema=config.ema.decay > 0)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batch = jax.device_put(draw_batch(config))
    masked = batch | {"mask": np.ones(config.train.batch_size, np.float32)}
    return {
        "evaluation": (make_eval_step(model), variables, masked),
        "training": (make_train_step(model, tx, **options), state, batch),
    }


def compile_steps(config, kernels: str) -> tuple[dict, dict]:
    """({"evaluation, KERNELS" and "training, KERNELS": a function that does it}, the seconds each took to trace and compile)."""
    sides, seconds = {}, {}
    for name, (step, *inputs) in make_steps(config).items():
        began = time.perf_counter()
        compiled = jax.jit(step).lower(*inputs).compile()
        seconds[f"{name}, {kernels}"] = round(time.perf_counter() - began, 1)
        sides[f"{name}, {kernels}"] = lambda run=compiled, given=inputs: jax.block_until_ready(run(*given))
    return sides, seconds


def main(argv):
    flags, config = measure.parse(measure.make_parser(__doc__), argv)
    allocator.keep_freed_memory()  # as training does
    sides, compilation, chosen_sides = {}, {}, choose_sides(config)
    for kernels, chosen in chosen_sides.items():
        compiled, took = compile_steps(chosen, kernels)
        sides, compilation = sides | compiled, compilation | took
    least = floor(config)
    size, bound = config.train.batch_size, max(least["flops_s"], least["bytes_s"])
    seconds = measure.in_turn(sides, flags.repeats)
    summaries = measure.summarize(seconds)
    ours, *others = chosen_sides
    ratios = {
        f"{what}, {other} over {ours}": measure.ratio(seconds, f"{what}, {ours}", f"{what}, {other}")
        for what in ("evaluation", "training")
        for other in others
    }
    report = {
        "benchmark": "kernels",
        "machine": measure.machine(),
        "compiler": shlex.join(native.find_compiler() or []),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {size}, {config.model.dtype}",
        "compile_seconds": compilation,
        "images_per_second": {name: round(size / s["median"]) for name, s in summaries.items()},
        "floor": {"training": round(size / bound), "evaluation": round(3 * size / bound)},  # images a second
        "sides": summaries,
        "ratios": ratios,
        "ratio": ratios[f"training, xla over {ours}"]["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
