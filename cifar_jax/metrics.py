"""Sums over examples that add up exactly: over batches, over devices, and over padded batches (mask 0 counts nothing)."""

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.losses import cross_entropy


def step_sums(losses, logits, labels, mask=None) -> dict[str, jax.Array]:
    """Sums of one batch, each a scalar: loss (float32), correct and examples (int32). losses, labels, mask: (b,)."""
    mask = jnp.ones(labels.shape, jnp.float32) if mask is None else mask
    hit = (jnp.argmax(logits, -1) == labels) & (mask > 0)
    # where, not a product: a padded example's loss may be anything
    return {
        "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)),
        "correct": jnp.sum(hit, dtype=jnp.int32),
        "examples": jnp.sum(mask > 0, dtype=jnp.int32),
    }


def eval_sums(logits, labels, mask, num_classes: int) -> dict[str, jax.Array]:
    """step_sums of the unsmoothed loss, plus class_correct and class_examples, int32 (num_classes,)."""
    sums = step_sums(cross_entropy(logits, labels), logits, labels, mask)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32) * (mask > 0)[:, None]
    hit = (jnp.argmax(logits, -1) == labels)[:, None]
    return sums | {"class_correct": jnp.sum(one_hot * hit, 0), "class_examples": jnp.sum(one_hot, 0)}


def sum_over(sums, axis_name):
    """Adds up over the devices of a mapped axis; None: as it is."""
    return lax.psum(sums, axis_name) if axis_name else sums


@jax.jit  # else a program for each kind of sum
def add(a, b):
    """Adds two trees of sums."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def summarize(sums) -> dict:
    """Host side: loss and accuracy (fractions), correct and examples of summed-up sums."""
    examples = int(sums["examples"])
    return {
        "loss": float(sums["loss"]) / examples,
        "accuracy": int(sums["correct"]) / examples,
        "correct": int(sums["correct"]),
        "examples": examples,
    }
