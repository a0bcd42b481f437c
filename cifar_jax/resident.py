"""Training and evaluation on images that lie on the device: they cross the bus once, before the first epoch.

Shuffling, gathering, augmentation and several steps are one compiled program; nothing is fetched until an epoch ends or is
saved. A step is the same for any number of them in a program, so a run may be saved and resumed after any step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from cifar_jax import metrics
from cifar_jax.data.augment import SHUFFLE, normalize
from cifar_jax.data.dataset import Split
from cifar_jax.device_augment import make_epoch_key
from cifar_jax.epoch import BEGINNING, Progress, check_finite, sums_from_numbers, sums_to_numbers, timed
from cifar_jax.mesh import AXIS, constrain, place, round_up

STEPS = 16  # of one program at most: long against the cost of starting it, short for whoever waits for a signal
# Kernels that do not wait for each other's results run beside each other; XLA's own choice is one after the other.
_ON_GPU = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


class Position(NamedTuple):
    """Where a program begins and ends. done: batches of the epoch; loss: of the last step; order: of the images.

    seed: uint32, a value of the program's and no part of it, so that one program serves all seeds.
    """

    state: Any
    sums: dict
    done: jax.Array
    loss: jax.Array
    order: jax.Array
    seed: jax.Array
    epoch: jax.Array


def fit_steps(steps_per_epoch: int) -> int:
    """The steps of one program, at most STEPS, of which whole programs make an epoch with the fewest too many.

    >>> fit_steps(195), fit_steps(391), fit_steps(3)
    (15, 14, 3)
    """
    most = min(STEPS, steps_per_epoch)
    return min(range((most + 1) // 2, most + 1), key=lambda steps: (-steps_per_epoch % steps, -steps))


class Resident:
    """A training split on the device, and the compiled programs that train on it.

    train_step: pure, see steps.make_train_step; make_batch(images, labels, indices, seed, epoch, number) -> the step's batch,
    from uint8 (b, 32, 32, 3), int32 (b,), the images' indices in the split, and the batch's number in the epoch; both see
    the whole batch, which lies split over `mesh` where there is one. data: the split, whole on each device.
    """

    def __init__(self, train_step, make_batch, split: Split, *, batch_size: int, mesh=None):
        self.steps_per_epoch, self._mesh = len(split) // batch_size, mesh
        self._steps = fit_steps(self.steps_per_epoch)
        self.data = place((split.images, split.labels.astype(np.int32)), mesh)
        self._begin = jax.jit(self._make_begin(len(split)))
        advance = self._make_advance(train_step, make_batch, batch_size)
        options = _ON_GPU if jax.default_backend() == "gpu" else None
        self._advance = jax.jit(advance, donate_argnums=0, compiler_options=options)

    def _make_begin(self, num_images):
        def begin(state, sums, done, seed, epoch):
            order = jax.random.permutation(make_epoch_key(seed, epoch, SHUFFLE), num_images)
            return Position(state, sums, done, jnp.zeros_like(sums["loss"]), order, seed, epoch)

        return begin

    def _make_advance(self, train_step, make_batch, batch_size):
        def step(position, images, labels):
            indices = lax.dynamic_slice_in_dim(position.order, position.done * batch_size, batch_size)
            indices = constrain(indices, self._mesh)
            when = position.seed, position.epoch, position.done
            batch = constrain(make_batch(images[indices], labels[indices], indices, *when), self._mesh)
            state, sums = train_step(position.state, batch)
            return position._replace(
                state=state, sums=metrics.add(position.sums, sums), done=position.done + 1, loss=sums["loss"]
            )

        def advance(position, images, labels):
            """Some steps, up to the end of the epoch or a loss that is not finite. Also a token of its end.

            Their number is known beforehand, and those too many change nothing: on a GPU the host would otherwise wait for each
            step to learn whether there is another.
            """

            def step_or_stay(_, position):
                goes_on = (position.done < self.steps_per_epoch) & jnp.isfinite(position.loss)
                return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), step(position, images, labels), position)

            position = lax.fori_loop(0, self._steps, step_or_stay, position)
            return position, jnp.copy(position.done)

        return advance

    def train_epoch(self, state, epoch: int, schedule, log, *, seed: int, start: Progress = BEGINNING, save=None):
        """What epoch.train_epoch does, without a loader. save is called after every program but the last."""
        first_step, clock = (epoch - 1) * self.steps_per_epoch, timed(start)
        numbers = (sums_from_numbers(start.sums), np.int32(start.batches), np.uint32(seed), np.int32(epoch))
        position, token = self._begin(state, *place(numbers, self._mesh)), None

        def get_progress():
            done, loss, sums = jax.device_get((position.done, position.loss, position.sums))
            check_finite(loss, first_step + int(done) - 1, schedule)
            return clock(int(done), sums_to_numbers(sums), 0.0)

        with log.epoch_bar(epoch, start.batches) as bar:
            for done in [*range(start.batches + self._steps, self.steps_per_epoch, self._steps), self.steps_per_epoch]:
                before, (position, token) = token, self._advance(position, *self.data)
                if before is not None:  # one program is always waiting behind the one under way
                    before.block_until_ready()
                bar.update(done - bar.n)
                if save is not None and done < self.steps_per_epoch:
                    save(position.state, get_progress)
            return position.state, get_progress()


def make_count(eval_step, split: Split, mean, std, batch_size: int, mesh=None):
    """Returns count(variables) -> sums of the whole split (see metrics.eval_sums), as one program on images that lie there.

    Images are normalized by the host's own table, so that they are the same bits. Batches are padded and masked.
    """
    batch_size = round_up(batch_size, mesh)
    num_batches = -(-len(split) // batch_size)
    padding = num_batches * batch_size - len(split)

    def batched(array):
        padded = np.concatenate([array, np.zeros((padding, *array.shape[1:]), array.dtype)])
        return padded.reshape(num_batches, batch_size, *array.shape[1:])

    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3))
    table = normalize(levels, mean, std)  # level channel
    batches = (batched(split.images), batched(split.labels.astype(np.int32)), batched(np.ones(len(split), np.float32)))
    data = (*place(batches, mesh, P(None, AXIS)), place(table, mesh))

    @jax.jit
    def count(variables, images, labels, mask, table):
        def count_batch(batch):
            image = jnp.stack([table[:, c][batch[0][..., c]] for c in range(3)], -1)
            return eval_step(variables, {"image": image, "label": batch[1], "mask": batch[2]})

        return jax.tree.map(lambda sums: sums.sum(0), lax.map(count_batch, (images, labels, mask)))

    return lambda variables: count(variables, *data)
