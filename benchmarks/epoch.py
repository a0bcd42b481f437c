"""A whole epoch, loader and step together: ours against the PyTorch baseline, and augmented on the device against the host;
and the peak memory of training each way.

python -m benchmarks.epoch [--config configs/base.py] [--images 6400] [--json]; ratio = PyTorch's time over ours.

An epoch runs over the first --images training images (50000 for all). Memory is that of a process of its own that
trains one such epoch and evaluates the test set: the largest sum, over it and its workers, of the proportional set
sizes (shared pages counted once), sampled five times a second; the median of three such processes, sides in turn.

Latest result, 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2, torch 2.13.0+cpu,
base, 3,840 images, 1 worker, medians of n = 7: host 3.15 s (1,219 images/s), device 2.67 s, PyTorch 5.68 s; PyTorch's time
over the host's 1.67, the host's over the device's 1.22. Peak memory, n = 3, 1,206 and 896 against 1,180 MB. GPU: not measured.
"""

import contextlib
import functools
import itertools
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure
from cifar_jax import arguments
from cifar_jax.data.augment import check_host
from cifar_jax.data.dataset import Split
from cifar_jax.data.sources import load_dataset


def load_images(config, num_images: int):
    """(the data set, the first images of its training split, in whole batches)."""
    dataset = load_dataset(config.data.source, config.data.dir)
    count = min(num_images, len(dataset.train)) // config.train.batch_size * config.train.batch_size
    return dataset, Split(dataset.train.images[:count], dataset.train.labels[:count])


def loader_options(config):
    return {"batch_size": config.train.batch_size, "seed": config.seed, "workers": config.data.workers}


def make_jax(config, num_images, backend: str):
    """(a function that trains one epoch, one that evaluates the test set), augmented on the host or on the device."""
    from cifar_jax import allocator
    from cifar_jax.log import RunLog
    from cifar_jax.models import create_model
    from cifar_jax.optim import make_optimizer, make_schedule
    from cifar_jax.pipeline import make_pipeline
    from cifar_jax.state import create_state, final_variables
    from cifar_jax.steps import make_eval_step, make_train_step

    allocator.keep_freed_memory()
    dataset, split = load_images(config, num_images)
    config = config.copy_and_resolve_references()
    config.augment.backend = backend
    config.log.update(progress="off", tensorboard=False)
    schedule = make_schedule(config.schedule, 10_000)
    model, tx = create_model(config.model), make_optimizer(config.optim, schedule)
    train_step = make_train_step(model, tx, label_smoothing=config.train.label_smoothing)
    state = create_state(model, tx, config.seed, with_ema=False)
    # Both live as long as the process: the functions returned need them.
    opened = contextlib.ExitStack()
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    pipeline = opened.enter_context(make_pipeline(config, dataset, split, train_step, make_eval_step(model)))
    log = RunLog(pathlib.Path(folder), config.log, num_epochs=1, steps_per_epoch=len(split) // config.train.batch_size)
    count, epochs = pipeline.make_count(dataset.test), itertools.count(1)

    def train(opened=opened):
        nonlocal state
        state, _ = pipeline.train_epoch(state, next(epochs), schedule, log)

    return train, lambda: count(final_variables(state))


def make_torch(config, num_images):
    """The same of the baseline."""
    import torch

    from baselines import train as baseline
    from baselines.data import make_train_loader
    from baselines.model import create_model

    dataset, split = load_images(config, num_images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = "spawn" if "jax" in sys.modules else None
    loader = make_train_loader(split, config.augment, dataset.mean, dataset.std, **loader_options(config), start_method=method)
    model = create_model(config.model).to(device)
    optimizer = baseline.make_optimizer(model, config.optim, config.schedule.learning_rate)
    scheduler = baseline.make_scheduler(optimizer, config.schedule, 10_000)
    autocast = torch.bfloat16 if config.model.dtype == "bfloat16" else None
    options = {"label_smoothing": config.train.label_smoothing, "autocast": autocast}
    step = functools.partial(baseline.train_step, model, optimizer, scheduler, **options)
    epochs = itertools.count(1)

    def train():
        loader.sampler.set_epoch(next(epochs))
        model.train()
        baseline.train_epoch(step, loader, device)

    return train, lambda: baseline.evaluate(model, dataset.test, dataset.mean, dataset.std, device)


MEMORY_RUNS = 3  # processes a side
SIDES = {
    "ours": functools.partial(make_jax, backend="host"),
    "device": functools.partial(make_jax, backend="device"),
    "torch": make_torch,
}


def peak_memory(name: str, argv) -> int:
    """Bytes at the peak of a process that trains and evaluates that side once."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.epoch", *argv, "--only", name])
    peak = 0
    while process.poll() is None:
        peak = max(peak, _proportional_set_size(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"the process of {name} ended with {process.returncode}")
    return peak


def _proportional_set_size(pid: int) -> int:
    """Bytes of a process and its descendants; 0 of one that has just ended."""
    try:
        proc = pathlib.Path(f"/proc/{pid}")
        line = next(line for line in (proc / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        children = [child for task in (proc / "task").iterdir() for child in (task / "children").read_text().split()]
        return 1024 * int(line.split()[1]) + sum(_proportional_set_size(int(child)) for child in children)
    except (OSError, StopIteration):
        return 0


def main(argv):
    parser = measure.make_parser(__doc__)
    parser.add_argument("--images", type=arguments.whole(1), default=6400, help="of an epoch")
    parser.add_argument("--only", choices=SIDES, help="train and evaluate one side once, and say nothing")
    flags, config = measure.parse(parser, argv)
    if flags.images < config.train.batch_size:
        parser.error(f"--images: got {flags.images}, expected at least a batch, {config.train.batch_size}")
    check_host(config.augment)  # sides are compared on transforms that all of them make
    if flags.only:
        train, evaluate = SIDES[flags.only](config, flags.images)
        train()
        evaluate()
        return
    plain = [arg for arg in argv if arg != "--json"]
    peaks = [{name: peak_memory(name, plain) for name in SIDES} for _ in range(MEMORY_RUNS)]
    memory = {name: statistics.median(peak[name] for peak in peaks) for name in SIDES}
    seconds = measure.in_turn({name: make(config, flags.images)[0] for name, make in SIDES.items()}, flags.repeats)
    summaries = measure.summarize(seconds)
    images = len(load_images(config, flags.images)[1])
    found = measure.ratio(seconds, "ours", "torch")
    ratios = {"torch over ours": found, "host over device": measure.ratio(seconds, "device", "ours")}
    report = {
        "benchmark": "epoch",
        "machine": measure.machine(),
        "epoch": f"{images} images, batch {config.train.batch_size}, {config.data.workers} workers, {config.model.variant}",
        "images_per_second": {name: round(images / s["median"]) for name, s in summaries.items()},
        "peak_memory_mb": {name: round(value / 2**20) for name, value in memory.items()},
        "peak_memory_n": MEMORY_RUNS,
        "peak_memory_ours_over_torch": round(memory["ours"] / memory["torch"], 2),
        "sides": summaries,
        "ratios": ratios,
        "ratio": found["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
