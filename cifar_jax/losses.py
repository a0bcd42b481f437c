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
