"""Where images are augmented and batched: on the host, by the loader's workers, or on the device, within the step's program.

A Pipeline is what training needs to know of either.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from cifar_jax import epoch as host
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.data.loader import make_train_loader
from cifar_jax.device_augment import make_device_augment
from cifar_jax.evaluate import BATCH_SIZE, evaluate, to_counts
from cifar_jax.resident import Resident, make_count


class Pipeline(NamedTuple):
    """train_epoch(state, epoch, schedule, log, *, start, save): see epoch.train_epoch. make_count(split): a function from
    variables to the counts that evaluate.evaluate returns.
    """

    train_epoch: Callable
    make_count: Callable


@contextlib.contextmanager
def make_pipeline(config, dataset: Dataset, kept: Split, train_step, eval_step) -> Iterator[Pipeline]:
    """The pipeline that config.augment.backend asks for, training on `kept`. train_step, eval_step: pure, see steps.py."""
    options = {"batch_size": config.train.batch_size, "seed": config.seed}
    statistics = (dataset.mean, dataset.std)
    if config.augment.backend == "device":
        augment = make_device_augment(config.augment, *statistics)
        resident = Resident(train_step, augment, kept, **options)

        def make_resident_count(split):
            count = make_count(eval_step, split, *statistics, BATCH_SIZE)
            return lambda variables: to_counts(jax.device_get(count(variables)))

        yield Pipeline(resident.train_epoch, make_resident_count)
        return
    with make_train_loader(kept, config.augment, *statistics, workers=config.data.workers, **options) as loader:
        step, eval_step = jax.jit(train_step, donate_argnums=0), jax.jit(eval_step)

        def train_epoch(state, epoch, schedule, log, **rest):
            return host.train_epoch(step, state, loader, epoch, schedule, log, **rest)

        yield Pipeline(train_epoch, lambda split: lambda variables: evaluate(eval_step, variables, split, *statistics))
