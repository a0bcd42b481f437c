"""Sums over examples: exact, and blind to whatever stands in a padded example."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cifar_jax import metrics

pytestmark = pytest.mark.usefixtures("strict_ranks")
BATCH, CLASSES = 6, 3
logits_of = arrays.arrays(np.float32, (BATCH, CLASSES), elements=st.floats(-9, 9, width=32))
labels_of = arrays.arrays(np.int32, BATCH, elements=st.integers(0, CLASSES - 1))
masks_of = arrays.arrays(np.float32, BATCH, elements=st.sampled_from((0.0, 1.0)))
eval_sums = jax.jit(metrics.eval_sums, static_argnums=3)


def example():
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, BATCH).astype(np.int32)


@given(logits_of, labels_of, masks_of)
def test_counts_are_those_of_the_examples_that_count(logits, labels, mask):
    sums = jax.device_get(eval_sums(logits, labels, mask, CLASSES))
    kept = mask > 0
    hit = (logits.argmax(1) == labels)[kept]
    assert (sums["correct"], sums["examples"]) == (hit.sum(), kept.sum())
    np.testing.assert_array_equal(sums["class_examples"], np.bincount(labels[kept], minlength=CLASSES))
    np.testing.assert_array_equal(sums["class_correct"], np.bincount(labels[kept][hit], minlength=CLASSES))


@given(logits_of, labels_of, masks_of)
def test_the_loss_is_the_sum_over_the_examples_that_count(logits, labels, mask):
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    expected = -(log_p[np.arange(BATCH), labels] * mask).sum()
    # Six float32 losses up to about 20.
    np.testing.assert_allclose(eval_sums(logits, labels, mask, CLASSES)["loss"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_a_padded_example_may_hold_anything(junk):
    logits, labels = example()
    mask = np.array([1, 1, 0, 1, 0, 0], np.float32)
    spoilt = np.where(mask[:, None] > 0, logits, junk).astype(np.float32)
    chex.assert_trees_all_equal(eval_sums(spoilt, labels, mask, CLASSES), eval_sums(logits, labels, mask, CLASSES))


def test_a_batch_without_a_mask_counts_every_example():
    logits, labels = example()
    losses = np.arange(BATCH, dtype=np.float32)
    chex.assert_trees_all_equal(
        metrics.step_sums(losses, logits, labels), metrics.step_sums(losses, logits, labels, np.ones(BATCH, np.float32))
    )


def test_counts_are_whole_numbers_and_the_loss_is_float32():
    logits, labels = example()
    sums = eval_sums(logits, labels, np.ones(BATCH, np.float32), CLASSES)
    assert {name: leaf.dtype for name, leaf in sums.items()} == {"loss": jnp.float32} | {
        name: jnp.int32 for name in ("correct", "examples", "class_correct", "class_examples")
    }
    chex.assert_shape([sums["class_correct"], sums["class_examples"]], (CLASSES,))


def test_sums_of_two_halves_add_up_to_those_of_the_whole():
    logits, labels = example()
    mask = np.ones(BATCH, np.float32)
    halves = [metrics.eval_sums(logits[i::2], labels[i::2], mask[i::2], CLASSES) for i in range(2)]
    whole = metrics.eval_sums(logits, labels, mask, CLASSES)
    chex.assert_trees_all_close(metrics.add(*halves), whole, rtol=1e-6)  # integers exactly; six float32 losses


def test_sum_over_leaves_the_sums_alone_without_an_axis():
    sums = {"loss": jnp.ones(())}
    assert metrics.sum_over(sums, None) is sums


def test_sum_over_adds_over_a_mapped_axis():
    summed = jax.vmap(lambda x: metrics.sum_over({"correct": x}, "batch"), axis_name="batch")(jnp.array([1, 2, 4]))
    chex.assert_trees_all_equal(summed, {"correct": jnp.array([7, 7, 7])})


def test_summarize_gives_means_and_counts_as_plain_numbers():
    summary = metrics.summarize({"loss": np.float32(6), "correct": np.int32(3), "examples": np.int32(4)})
    assert summary == {"loss": 1.5, "accuracy": 0.75, "correct": 3, "examples": 4}
    assert [type(value) for value in summary.values()] == [float, float, int, int]
