"""The training and evaluation steps as pure functions; jit, pmap and shard_map are the caller's choice."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cifar_jax import metrics
from cifar_jax.distill import Teacher
from cifar_jax.losses import cross_entropy, distillation
from cifar_jax.state import TrainState


def make_train_step(
    model,
    tx,
    *,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    teacher: Teacher | None = None,
):
    """Returns train_step(state, batch) -> (state, sums).

    batch: {"image": (b, 32, 32, 3) float, "label": (b,) int}, and where images are mixed "target", (b, classes), of which
    the objective is then; sums: metrics.step_sums of the objective.
    axis_name: the mapped axis that splits the batch: gradients are averaged and sums added over it; give the model the
    same one, so that batch statistics are shared too. ema_decay 0 keeps no average. teacher: what else the objective is of.
    """

    def train_step(state: TrainState, batch):
        taught = teacher and teacher.logits(batch["image"])

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
            losses = cross_entropy(logits, batch.get("target", batch["label"]), label_smoothing=label_smoothing)
            if teacher:
                share = teacher.share
                losses = (1 - share) * losses + share * distillation(logits, taught, teacher.temperature)
            return losses.mean(), (metrics.step_sums(losses, logits, batch["label"]), updated.get("batch_stats", {}))

        grads, (sums, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        if axis_name:
            grads = lax.pmean(grads, axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # Follows closely at first: an average of the first few steps would remember the initial weights.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1.0 - decay)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return state, metrics.sum_over(sums, axis_name)

    return train_step


def make_eval_step(model, *, axis_name: str | None = None):
    """Returns eval_step(variables, batch) -> metrics.eval_sums; batch has a "mask", 1.0 where an example counts."""

    def eval_step(variables, batch):
        logits = model.apply(variables, batch["image"], train=False)
        return metrics.sum_over(metrics.eval_sums(logits, batch["label"], batch["mask"], model.num_classes), axis_name)

    return eval_step
