"""Where images are augmented and batched: on the host, by the loader's workers, or on the device, within the step's program.

A Pipeline is what training needs to know of either.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from cifar_jax import epoch as host
from cifar_jax.data.augment import MIX
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.data.loader import make_train_loader
from cifar_jax.device_augment import make_device_augment, make_epoch_key
from cifar_jax.evaluate import BATCH_SIZE, evaluate, to_counts
from cifar_jax.mesh import own_rows
from cifar_jax.mixing import make_mix
from cifar_jax.resident import Resident, make_count


class Pipeline(NamedTuple):
    """train_epoch(state, epoch, schedule, log, *, start, save): see epoch.train_epoch. make_count(split): a function from
    variables to the counts that evaluate.evaluate returns.
    """

    train_epoch: Callable
    make_count: Callable


def make_batches(config, mean, std):
    """make_batch of resident.Resident: what the config's augment section makes of a batch on the device."""
    augment = make_device_augment(config.augment, mean, std)
    mix = make_mix(config.augment, config.model.num_classes)

    def make_batch(images, labels, indices, seed, epoch, number):
        key = jax.random.fold_in(make_epoch_key(seed, epoch, MIX), number)
        done = (epoch - 1) / config.train.epochs
        return mix({"image": augment(images, indices, seed, epoch), "label": labels}, key, done)

    return make_batch


@contextlib.contextmanager
def make_pipeline(config, dataset: Dataset, kept: Split, train_step, eval_step, mesh=None) -> Iterator[Pipeline]:
    """The pipeline that config.augment.backend asks for, training on `kept`.

    train_step, eval_step: pure, see steps.py; split over `mesh` where there is one.
    """
    statistics = (dataset.mean, dataset.std)
    if config.augment.backend == "device":
        make_batch = make_batches(config, *statistics)
        resident = Resident(train_step, make_batch, kept, batch_size=config.train.batch_size, mesh=mesh)

        def make_resident_count(split):
            count = make_count(eval_step, split, *statistics, BATCH_SIZE, mesh)
            return lambda variables: to_counts(jax.device_get(count(variables)))

        yield Pipeline(functools.partial(resident.train_epoch, seed=config.seed), make_resident_count)
        return
    options = {"batch_size": config.train.batch_size, "seed": config.seed, "workers": config.data.workers}
    options["rows"] = own_rows(config.train.batch_size)
    with make_train_loader(kept, config.augment, *statistics, **options) as loader:
        step, eval_step = jax.jit(train_step, donate_argnums=0), jax.jit(eval_step)

        def train_epoch(state, epoch, schedule, log, **rest):
            return host.train_epoch(step, state, loader, epoch, schedule, log, mesh=mesh, **rest)

        def make_host_count(split):
            return lambda variables: evaluate(eval_step, variables, split, *statistics, mesh=mesh)

        yield Pipeline(train_epoch, make_host_count)
