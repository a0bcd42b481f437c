"""What the answers to a split come to, in numpy: which class was taken for which, accuracy of each, calibration.

Answers are (n,) arrays: the predicted class, the label, and the confidence, which is the probability of the predicted class.
"""

from typing import NamedTuple

import numpy as np

BINS = 15


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of images by (label, predicted class): int64, (num_classes, num_classes)."""
    return np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)


def class_counts(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(images answered right, images) of each class: int64, (num_classes,)."""
    right = labels[predicted == labels]
    return np.bincount(right, minlength=num_classes), np.bincount(labels, minlength=num_classes)


class Reliability(NamedTuple):
    """Bins of equal width by confidence, (BINS,) each: images, and their mean confidence and accuracy, 0 for an empty bin."""

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Bins images by confidence, 0 to 1; right: whether each is answered right. Source: Guo et al., arXiv:1706.04599."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right))
    return Reliability(images, *(total / np.maximum(images, 1) for total in sums))


def expected_calibration_error(bins: Reliability) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin; a fraction."""
    return float((bins.images * abs(bins.accuracy - bins.confidence)).sum() / bins.images.sum())
