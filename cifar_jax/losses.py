"""The training objective."""

import jax
import optax


def cross_entropy(logits, labels, *, label_smoothing: float = 0.0):
    """Cross-entropy of each example: (b, classes), int (b,) -> (b,), in nats.

    label_smoothing, 0 <= s < 1: the target is 1 - s on the label plus s spread evenly over all classes, as in PyTorch.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)
