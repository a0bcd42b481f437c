"""Cross-entropy with smoothed labels and distillation, against PyTorch and against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cifar_jax.losses import cross_entropy, distillation

pytestmark = pytest.mark.usefixtures("strict_ranks")
BATCH, CLASSES = 5, 4
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
rows = arrays.arrays(np.float64, (BATCH, CLASSES), elements=st.floats(-50, 50))
targets = arrays.arrays(np.int32, (BATCH,), elements=st.integers(0, CLASSES - 1))


def formula(logits, labels, smoothing):
    log_p = logits - logits.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    return -(target * log_p).sum(1)


@SMOOTHINGS
def test_values_and_gradients_equal_torch(smoothing):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).standard_normal((BATCH, CLASSES)) * 3
    labels = np.array([0, 1, 2, 3, 0])
    theirs = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    losses = criterion(theirs, torch.tensor(labels))
    losses.mean().backward()
    with jax.enable_x64(True):
        ours = jnp.asarray(logits), jnp.asarray(labels)
        values = cross_entropy(*ours, label_smoothing=smoothing)
        grads = jax.grad(lambda logits: cross_entropy(logits, ours[1], label_smoothing=smoothing).mean())(ours[0])
    np.testing.assert_allclose(values, losses.detach(), rtol=1e-12)  # float64, a handful of operations
    np.testing.assert_allclose(grads, theirs.grad, rtol=1e-12, atol=1e-15)


@SMOOTHINGS
def test_shares_of_classes_are_torchs_and_a_whole_share_is_a_label(smoothing):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).standard_normal((BATCH, CLASSES)) * 3
    shares = np.random.default_rng(2).dirichlet(np.ones(CLASSES), BATCH)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    labels = jnp.array([0, 1, 2, 3, 0])
    with jax.enable_x64(True):
        values = cross_entropy(jnp.asarray(logits), jnp.asarray(shares), label_smoothing=smoothing)
        whole = cross_entropy(jnp.asarray(logits), jax.nn.one_hot(labels, CLASSES), label_smoothing=smoothing)
        labelled = cross_entropy(jnp.asarray(logits), labels, label_smoothing=smoothing)
    np.testing.assert_allclose(values, criterion(torch.tensor(logits), torch.tensor(shares)), rtol=1e-12)
    np.testing.assert_array_equal(whole, labelled)


@given(rows, targets, st.floats(0, 0.999))
def test_equals_the_formula_in_float64(logits, labels, smoothing):
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        values = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)
    # Differences of logits up to 100, at 1e-16 each.
    np.testing.assert_allclose(values, formula(logits, labels, smoothing), rtol=1e-12, atol=1e-12)


@given(rows, targets)
def test_float32_is_close_to_float64(logits, labels):
    logits = logits.astype(np.float32)
    values = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=0.1)
    assert values.dtype == jnp.float32
    # Differences of logits up to 100, at 1e-7 each.
    np.testing.assert_allclose(values, formula(logits.astype(np.float64), labels, 0.1), rtol=1e-5, atol=1e-4)


@SMOOTHINGS
def test_huge_logits_stay_finite(smoothing):
    logits = jnp.array([[1e30, -1e30, 0.0, 1.0]])
    assert jnp.isfinite(cross_entropy(logits, jnp.array([1]), label_smoothing=smoothing)).all()


@SMOOTHINGS
def test_uniform_logits_cost_the_log_of_the_classes(smoothing):
    losses = cross_entropy(jnp.zeros((2, CLASSES)), jnp.array([0, 3]), label_smoothing=smoothing)
    np.testing.assert_allclose(losses, np.log([CLASSES] * 2), rtol=1e-6)  # float32


def test_smoothing_is_least_at_the_smoothed_target_not_at_certainty():
    target = jnp.log(jnp.array([[0.925, 0.025, 0.025, 0.025]]))
    best, certain = (cross_entropy(logits, jnp.array([0]), label_smoothing=0.1) for logits in (target, 5 * target))
    assert best[0] < certain[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_and_its_gradient_are_torchs(temperature):
    torch = pytest.importorskip("torch")
    logits, taught = np.random.default_rng(3).standard_normal((2, BATCH, CLASSES)) * 3
    theirs = torch.tensor(logits, requires_grad=True)
    soft = torch.log_softmax(torch.tensor(taught) / temperature, 1)
    losses = torch.nn.functional.kl_div(torch.log_softmax(theirs / temperature, 1), soft, reduction="none", log_target=True).sum(
        1
    )
    (losses * temperature**2).mean().backward()
    with jax.enable_x64(True):
        values = distillation(jnp.asarray(logits), jnp.asarray(taught), temperature)
        mean = lambda logits, taught: distillation(logits, taught, temperature).mean()  # noqa: E731
        grads = jax.grad(mean, (0, 1))(jnp.asarray(logits), jnp.asarray(taught))
    np.testing.assert_allclose(values, losses.detach() * temperature**2, rtol=1e-11)
    np.testing.assert_allclose(grads[0], theirs.grad, rtol=1e-11, atol=1e-15)
    assert not grads[1].any()


@given(rows, st.floats(0.1, 10))
def test_who_says_what_the_teacher_says_has_nothing_to_learn(logits, temperature):
    with jax.enable_x64(True):
        values = distillation(jnp.asarray(logits), jnp.asarray(logits) + 3.0, temperature)  # a constant changes no probability
    np.testing.assert_allclose(values, 0, atol=1e-10)
