"""The training objective."""

import jax
import optax


def cross_entropy(logits, labels, *, label_smoothing: float = 0.0):
    """Cross-entropy of each example: logits (b, classes) -> (b,), in nats.

    labels: int (b,), or each class's share (b, classes), as mixing.soft_labels makes them.
    label_smoothing, 0 <= s < 1: the target is 1 - s of the label plus s spread evenly over all classes, as in PyTorch.
    """
    targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def distillation(logits, teacher_logits, temperature: float):
    """Kullback-Leibler divergence of each example's softened probabilities from the teacher's, times temperature squared.

    logits, teacher_logits: (b, classes), both divided by `temperature` > 0 -> (b,), in nats. The factor keeps the gradient's
    size the same at any temperature (arXiv:1503.02531). Nothing is passed back to the teacher.
    """
    ours, theirs = (jax.nn.log_softmax(each / temperature) for each in (logits, jax.lax.stop_gradient(teacher_logits)))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(ours, theirs)
