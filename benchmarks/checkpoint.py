"""What a checkpoint costs the training that goes on beside it: the same steps with and without one, in turn.

python -m benchmarks.checkpoint [--config configs/base.py] [--repeats 9] [--json]

seconds_per_save is the median of the differences; share = seconds_per_save over checkpoint.every_seconds, what saving that
often adds to a run (aim: under 0.02). blocked is the part of it in which no step is under way: the state is copied.

Latest result, --repeats 5, 2 CPU cores (AMD EPYC), jax 0.10.2, base, medians of n = 5: 0.13 s a save, 0.002 s of it blocked; at
one a minute a share of 0.002.
"""

import functools
import pathlib
import statistics
import sys
import tempfile
import time

import jax

from benchmarks import measure
from benchmarks.train_step import draw_batch
from cifar_jax import allocator, arguments
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.models import create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state
from cifar_jax.steps import make_train_step

STEPS = 30  # of one measurement: longer than a save takes


class Run:
    """Steps of a config's training, one after the other; `blocked` gathers the seconds that save() took."""

    def __init__(self, config, checkpoints):
        model = create_model(config.model)
        tx = make_optimizer(config.optim, make_schedule(config.schedule, 10_000))
        self._step = jax.jit(make_train_step(model, tx, label_smoothing=config.train.label_smoothing), donate_argnums=0)
        self._state = create_state(model, tx, config.seed, with_ema=False)
        self._batch, self._checkpoints = jax.device_put(draw_batch(config)), checkpoints
        self.blocked = []

    def __call__(self, *, saving: bool):
        for i in range(STEPS):
            self._state, sums = self._step(self._state, self._batch)
            if saving and i == 0:
                jax.block_until_ready(sums)
                began = time.perf_counter()
                self._checkpoints.save(int(self._state.step), self._state, {"rows": []})
                self.blocked.append(time.perf_counter() - began)
        jax.block_until_ready(sums)
        self._checkpoints.wait()


def main(argv):
    flags, config = measure.parse(measure.make_parser(__doc__), argv)
    allocator.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, Checkpoints(pathlib.Path(folder), keep_best=False) as checkpoints:
        run = Run(config, checkpoints)
        sides = {"plain": functools.partial(run, saving=False), "saving": functools.partial(run, saving=True)}
        seconds = measure.in_turn(sides, flags.repeats)
    cost = statistics.median(b - a for a, b in zip(seconds["plain"], seconds["saving"], strict=True))
    found = measure.ratio(seconds, "plain", "saving")
    report = {
        "benchmark": "checkpoint",
        "machine": measure.machine(),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {config.train.batch_size}, {STEPS} steps",
        "seconds_per_save": round(cost, 3),
        "blocked": round(statistics.median(run.blocked), 4),
        "share": round(cost / config.checkpoint.every_seconds, 4),
        "sides": measure.summarize(seconds),
        "ratios": {"with one save over without": found},
        "ratio": found["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
