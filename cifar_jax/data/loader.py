"""Batches: shuffled and augmented for training, normalized and padded for evaluation, and prefetching onto devices.

A batch of training depends on (seed, epoch, number of the batch) alone, never on the workers: a run resumes anywhere,
and with any number of workers, on the very same images.
"""

import collections
import time

import numpy as np

from cifar_jax.data.augment import check_augment, normalize
from cifar_jax.data.dataset import Split
from cifar_jax.data.workers import Workers, permutation
from cifar_jax.errors import InputError


def make_train_loader(split: Split, augment, mean, std, *, batch_size: int, seed: int, workers: int, rows=None):
    """Starts the workers and returns a TrainLoader; use it as a context manager, or close() it.

    augment: the config's section (ConfigDict or nested dict). mean, std: one a channel, fractions of 255.
    workers: number of processes; 0 augments in a thread of this one. rows: a slice of every batch, all that is made of it
    here where several hosts share each batch; None: the whole.
    Raises InputError for an invalid section, a batch larger than the split, or a seed or workers out of range.
    """
    check_augment(augment)
    for name, value, low, high in (("data.workers", workers, 0, 1024), ("seed", seed, 0, 2**64 - 1)):
        if not low <= value <= high:
            raise InputError(f"{name}: got {value}, expected {low} to {high}; change it in the config")
    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"train.batch_size: got {batch_size}, expected 1 to {len(split)} (all training images); change the config"
        )
    plain = {key: dict(value.items()) if hasattr(value, "items") else value for key, value in augment.items()}
    rows = slice(0, batch_size) if rows is None else rows
    return TrainLoader(split, plain, tuple(mean), tuple(std), batch_size=batch_size, rows=rows, seed=seed, workers=workers)


class TrainLoader:
    """Epochs of augmented batches; made by `make_train_loader`.

    steps_per_epoch: whole batches in an epoch; the images left over are dropped, other ones each epoch.
    """

    def __init__(self, split, augment, mean, std, *, batch_size, rows, seed, workers):
        self.steps_per_epoch = len(split) // batch_size
        self._labels = np.asarray(split.labels, np.int32)
        self._batch_size, self._rows, self._seed = batch_size, rows, seed
        self._generation = 0
        options = {"batch_size": batch_size, "rows": rows, "seed": seed, "workers": workers}
        self._workers = Workers(split.images, augment, mean, std, **options)

    def epoch(self, epoch: int, start: int = 0):
        """Returns an iterator over the batches of `epoch`, from batch `start` on.

        A batch is {"image": float32 (b, 32, 32, 3), "label": int32 (b,)}, arrays of its own. The workers begin at this
        call, not at the first batch: call it ahead of an evaluation to have batches ready after. It supersedes the
        iterator of an earlier call. Raises RunError, while iterating, if a worker fails or dies.
        """
        self._generation += 1
        batches = range(start, self.steps_per_epoch)
        for i in batches[: self._workers.depth]:
            self._workers.submit(self._generation, epoch, i)
        return self._batches(self._generation, epoch, batches)

    def _batches(self, generation, epoch, batches):
        order = permutation(len(self._labels), seed=self._seed, epoch=epoch)
        for i in batches:
            if generation != self._generation:
                raise RuntimeError(f"the batches of epoch {epoch} end here: epoch() was called again, or close()")
            image = self._workers.wait(generation, i)
            ahead = i + self._workers.depth  # the slot just emptied
            if ahead < batches.stop:
                self._workers.submit(generation, epoch, ahead)
            indices = order[i * self._batch_size : (i + 1) * self._batch_size]
            yield {"image": image, "label": self._labels[indices[self._rows]]}

    def close(self) -> None:
        """Ends the workers; safe to call twice. Also called at garbage collection and at exit."""
        self._generation += 1
        self._workers.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def eval_batches(split: Split, mean, std, batch_size: int, rows: slice | None = None):
    """Yields normalized batches of one constant shape, in order, each image of `split` in exactly one.

    A batch is {"image": float32 (b, 32, 32, 3), "label": int32 (b,), "mask": float32 (b,)} with b = batch_size; the last is
    padded with zeros, where mask is 0; elsewhere it is 1. rows: only these of each batch; None: all.
    """
    rows = slice(0, batch_size) if rows is None else rows
    size = rows.stop - rows.start
    for first in range(0, len(split), batch_size):
        chosen = slice(first + rows.start, first + rows.stop)
        images, labels = split.images[chosen], split.labels[chosen]
        batch = {
            "image": np.zeros((size, *split.images.shape[1:]), np.float32),
            "label": np.zeros(size, np.int32),
            "mask": np.zeros(size, np.float32),
        }
        batch["image"][: len(labels)] = normalize(images, mean, std)
        batch["label"][: len(labels)] = labels
        batch["mask"][: len(labels)] = 1
        yield batch


class Prefetch:
    """Iterates over put(item) for each item, `size` of them under way; put: such as jax.device_put, which is async.

    wait_seconds: time the consumer has been held up so far, until the input had yielded and put had returned.
    """

    def __init__(self, iterator, put, size: int = 2):
        self._iterator, self._put, self._size = iter(iterator), put, max(size, 1)
        self._ready = collections.deque()
        self.wait_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        began = time.perf_counter()
        try:
            while len(self._ready) < self._size:
                self._ready.append(self._put(next(self._iterator)))
        except StopIteration:
            self._size = 0  # exhausted: only what is ready is left
        self.wait_seconds += time.perf_counter() - began
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()
