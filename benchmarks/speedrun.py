"""The shortest training to an accuracy, measured as the speed records are: time and test accuracy over n seeds.

python -m benchmarks.speedrun [--config configs/fast.py] [--runs 5] [--seed 0] [--json]

A warm-up of one epoch on random labels and one evaluation absorb compilation. Then run i trains from seed + i: what is
timed is the initial weights, all epochs, and the evaluation of the test images at the end, on images that lie on the device
(the config's augment.backend must be "device"). Nothing is evaluated or saved in between; the numbers are those of
`python run.py` with the same seed. Where data.num_validation holds images out, they are evaluated instead of the test set.

Latest result: see configs/fast.py.
"""

import pathlib
import statistics
import sys
import time
import types

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import measure
from cifar_jax import allocator, arguments
from cifar_jax.budget import check_budget
from cifar_jax.config import RANGES, to_json
from cifar_jax.data.dataset import split_training
from cifar_jax.data.sources import load_dataset
from cifar_jax.device import check_device
from cifar_jax.errors import InputError
from cifar_jax.evaluate import BATCH_SIZE
from cifar_jax.models import create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.pipeline import make_batches
from cifar_jax.resident import Resident, make_count
from cifar_jax.state import final_variables, make_create
from cifar_jax.steps import make_eval_step, make_train_step
from cifar_jax.workdir import describe_kernels

_NO_LOG = types.SimpleNamespace(epoch_bar=lambda epoch, done: tqdm(disable=True))


class Speedrun:
    """The compiled training and evaluation of a config, for any seed; `run` times one training."""

    def __init__(self, config, dataset):
        kept, held_out = split_training(dataset, config)
        moments = (dataset.mean, dataset.std)
        self._config = config
        model = create_model(config.model)
        self._schedule = make_schedule(config.schedule, config.train.epochs * (len(kept) // config.train.batch_size))
        tx = make_optimizer(config.optim, self._schedule)
        self._create = make_create(model, tx, with_ema=config.ema.decay > 0)
        step = make_train_step(model, tx, label_smoothing=config.train.label_smoothing, ema_decay=config.ema.decay)
        self._resident = Resident(step, make_batches(config, *moments), kept, batch_size=config.train.batch_size)
        watched = held_out if len(held_out) else dataset.test
        self._count = make_count(make_eval_step(model), watched, *moments, BATCH_SIZE)

    def warm_up(self) -> None:
        """Compiles everything: an epoch on random labels, and an evaluation."""
        images, labels = self._resident.data
        random = np.random.default_rng(0).integers(0, self._config.model.num_classes, labels.shape, np.int32)
        self._resident.data = images, jax.device_put(random)
        self._count(final_variables(self._train(0, epochs=1)))
        self._resident.data = images, labels

    def run(self, seed: int) -> dict:
        """Trains from `seed`; returns {"seed", "seconds", "correct", "examples"}."""
        began = time.perf_counter()
        sums = jax.device_get(self._count(final_variables(self._train(seed, epochs=self._config.train.epochs))))
        seconds = time.perf_counter() - began
        return {"seed": seed, "seconds": seconds, "correct": int(sums["correct"]), "examples": int(sums["examples"])}

    def _train(self, seed, *, epochs):
        state = self._create(seed)
        for epoch in range(1, epochs + 1):
            state, _ = self._resident.train_epoch(state, epoch, self._schedule, _NO_LOG, seed=seed)
        return state


def summarize(runs: list[dict]) -> dict:
    """Mean and standard deviation (n - 1) of seconds and of accuracy in per cent."""

    def both(values):
        return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}

    accuracies = [100 * run["correct"] / run["examples"] for run in runs]
    return {"n": len(runs), "seconds": both([run["seconds"] for run in runs]), "accuracy": both(accuracies)}


def check(config) -> None:
    """Raises InputError for a config over budget, or whose images are not augmented on the device."""
    if config.augment.backend != "device":
        raise InputError(f"augment.backend: got {config.augment.backend}, expected device; set it, or time `python run.py`")
    check_budget(config.model, config.budget)


def describe(benchmark: str, flags, config) -> dict:
    """What a report begins with: what was trained, on what it is evaluated, and where."""
    return {
        "benchmark": benchmark,
        "name": pathlib.Path(flags.config).stem,
        "config": to_json(config),
        "split": "validation" if config.data.num_validation else "test",
        "kernels": describe_kernels(config),
        "machine": measure.machine(),
    }


def make_parser():
    """The flags of this command."""
    parser = measure.make_plain_parser(__doc__)
    parser.add_argument("--config", type=arguments.path, default="configs/fast.py", help="what is trained")
    parser.add_argument("--runs", type=arguments.whole(1), default=5, help="how many seeds")
    parser.add_argument("--seed", type=arguments.whole(0), default=0, help="the first")
    return parser


def main(argv):
    flags, config = measure.parse(make_parser(), argv)
    last, most = flags.seed + flags.runs - 1, RANGES["seed"][1]
    if last > most:
        raise InputError(f"--seed: got {flags.seed} for {flags.runs} runs, expected the last to be {most} at most; lower it")
    check(config)
    check_device()
    allocator.keep_freed_memory()  # as training does
    speedrun = Speedrun(config, load_dataset(config.data.source, config.data.dir))
    began = time.perf_counter()
    speedrun.warm_up()
    report = {
        **describe("speedrun", flags, config),
        "warm_up_seconds": time.perf_counter() - began,
        "runs": [speedrun.run(flags.seed + i) for i in range(flags.runs)],
    }
    report |= summarize(report["runs"])
    measure.print_report(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
