"""Batches augmented on the host: our loader against a torch DataLoader, and against Compose alone on as many cores.

python -m benchmarks.loader [--config configs/base.py] [--workers 1] [--grain] [--json]

Every side runs the same Compose with the same random stream for each image; ratio = PyTorch's time over ours. The floor
is that Compose in as many processes, which hand nothing over: fraction_of_floor = its time over ours.

Latest result, 2 CPU cores (AMD EPYC), Python 3.11.7, torch 2.13.0+cpu, grain 0.2.18, medians of n = 9:
--workers 2: ours 8,406 images/s, DataLoader 6,171, grain 6,450, Compose alone 9,377; ratio 1.37, fraction of the floor 0.92.
--workers 1: ours 4,636 images/s, DataLoader 3,630, grain 3,693, Compose alone 5,028; ratio 1.32, fraction of the floor 1.00.
"""

import contextlib
import itertools
import multiprocessing
import sys

import numpy as np

from benchmarks import measure
from cifar_jax import arguments
from cifar_jax.data.augment import augment_batch, make_image_augment, make_train_transform
from cifar_jax.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from cifar_jax.data.loader import make_train_loader

BATCHES = 60  # of one measurement
READY = 4  # batches that a worker of grain has made before its turn
PAUSE = 0.5  # seconds before each measurement, in which it makes them


def draw_split(num_images: int) -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8), rng.integers(0, 10, num_images, dtype=np.int32))


def make_ours(split, augment, batch_size, workers):
    loader = make_train_loader(split, augment, CIFAR10_MEAN, CIFAR10_STD, batch_size=batch_size, seed=0, workers=workers)
    epochs = itertools.count(1)

    def run():
        assert sum(1 for _ in loader.epoch(next(epochs))) == BATCHES

    return run


def make_torch(split, augment, batch_size, workers):
    from baselines.data import make_train_loader

    options = {"batch_size": batch_size, "seed": 0, "workers": workers, "start_method": "spawn"}
    loader = make_train_loader(split, augment, CIFAR10_MEAN, CIFAR10_STD, **options)
    epochs = itertools.count(1)

    def run():
        loader.sampler.set_epoch(next(epochs))
        assert sum(1 for _ in loader) == BATCHES

    return run


class ComposeOnly:
    """Compose of `num_batches` batches into one array; a call is one measurement."""

    def __init__(self, split, augment, batch_size, num_batches):
        self.images, self.batch_size, self.num_batches = split.images, batch_size, num_batches
        self.compose = make_train_transform(augment, CIFAR10_MEAN, CIFAR10_STD)
        self.out = np.empty((batch_size, 32, 32, 3), np.float32)

    def __call__(self):
        for first in range(0, self.num_batches * self.batch_size, self.batch_size):
            indices = range(first, first + self.batch_size)
            augment_batch(self.compose, self.images, indices, self.out, seed=0, epoch=1)


def make_floor(split, augment, batch_size, workers):
    """Compose alone, in `workers` processes (in this one for 0), each with its share of the batches."""
    if workers == 0:
        return ComposeOnly(split, augment, batch_size, BATCHES)
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        args = (theirs, split, augment, batch_size, BATCHES // workers)
        context.Process(target=_serve_floor, args=args, daemon=True).start()
        pipes.append(ours)

    def run():
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    return run


def _serve_floor(pipe, *args):
    compose_only = ComposeOnly(*args)
    with contextlib.suppress(EOFError):  # the benchmark has ended
        while pipe.recv():
            compose_only()
            pipe.send(True)


class GrainMap:
    """The map of the grain pipeline: an index to (image, label); Compose is made in the process that calls."""

    def __init__(self, split, augment):
        self.split, self.section, self.augment = split, augment, None

    def __call__(self, index):
        if self.augment is None:
            compose = make_train_transform(self.section, CIFAR10_MEAN, CIFAR10_STD)
            self.augment = make_image_augment(compose, seed=0, epoch=1)
        return self.augment(self.split.images[index], index), self.split.labels[index]


def make_grain(split, augment, batch_size, workers):
    import grain.python as grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads its own, which no command line of ours sets
    dataset = grain.MapDataset.range(len(split)).shuffle(seed=0).repeat().map(GrainMap(split, augment))
    # Without read-ahead in threads, a worker holds about READY batches; its default is hundreds, made while others run.
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    batches = iter(dataset)

    def run():
        for _ in range(READY * workers + BATCHES):  # the ready ones come in no time and are not counted
            next(batches)

    return run


def main(argv):
    parser = measure.make_parser(__doc__)
    parser.add_argument("--workers", type=arguments.whole(0), help="default: the config's data.workers")
    parser.add_argument("--grain", action="store_true", help="grain as a second opponent (pip install grain)")
    flags, config = measure.parse(parser, argv)
    workers = config.data.workers if flags.workers is None else flags.workers
    if workers and BATCHES % workers:
        parser.error(f"--workers: got {workers}, expected a divisor of {BATCHES}, the batches of a measurement")
    batch_size = config.train.batch_size
    args = draw_split(BATCHES * batch_size), config.augment.to_dict(), batch_size, workers
    sides = {"ours": make_ours(*args), "torch": make_torch(*args), "floor": make_floor(*args)}
    if flags.grain:
        sides["grain"] = make_grain(*args)
    seconds = measure.in_turn(sides, flags.repeats, PAUSE)
    ratios = {f"{name} over ours": measure.ratio(seconds, "ours", name) for name in sides if name != "ours"}
    summaries = measure.summarize(seconds, BATCHES)
    report = {
        "benchmark": "loader",
        "machine": measure.machine(),
        "batches": f"of {batch_size} images, {workers} workers",
        "images_per_second": {name: round(batch_size / s["median"]) for name, s in summaries.items()},
        "fraction_of_floor": round(ratios["floor over ours"]["median"], 2),
        "sides": summaries,
        "ratios": ratios,
        "ratio": ratios["torch over ours"]["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
