"""Counts a split exactly: loss and accuracy over all examples, and accuracy of each class."""

import jax

from cifar_jax import metrics
from cifar_jax.data.dataset import Split
from cifar_jax.data.loader import Prefetch, eval_batches

BATCH_SIZE = 500  # divides CIFAR-10's 10,000 and 5,000; the size changes no result, only speed


def evaluate(eval_step, variables, split: Split, mean, std) -> dict:
    """Returns loss, accuracy, correct, examples, and class_accuracy (a list of fractions, None for an absent class).

    eval_step: a compiled steps.make_eval_step. Every image counts exactly once.
    """
    sums = None
    for batch in Prefetch(eval_batches(split, mean, std, BATCH_SIZE), jax.device_put):
        batch_sums = eval_step(variables, batch)
        sums = batch_sums if sums is None else metrics.add(sums, batch_sums)
    sums = jax.device_get(sums)
    counts = zip(sums["class_correct"].tolist(), sums["class_examples"].tolist(), strict=True)
    class_accuracy = [correct / examples if examples else None for correct, examples in counts]
    return metrics.summarize(sums) | {"class_accuracy": class_accuracy}
