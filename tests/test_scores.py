"""Confusion, accuracy of each class and calibration, against their definitions."""

import numpy as np
import pytest

from cifar_jax.scores import BINS, class_counts, confusion_matrix, expected_calibration_error, reliability

CONFIDENCE = np.array([0.91, 0.93, 0.7, 0.72])
RIGHT = np.array([True, False, True, True])


def test_calibration_is_the_mean_gap_between_confidence_and_accuracy():
    # The bin of 0.91 and 0.93: one of two right; that of 0.7 and 0.72: both right.
    bins = reliability(CONFIDENCE, RIGHT)
    assert expected_calibration_error(bins) == pytest.approx(0.5 * (0.92 - 0.5) + 0.5 * (1 - 0.71))
    assert bins.images.sum() == 4 and len(bins.images) == BINS
    sure = reliability(np.ones(3), np.ones(3, bool))
    assert expected_calibration_error(sure) == 0 and sure.images[-1] == 3  # a probability of 1 has a bin, too


def test_calibration_equals_the_formula_over_random_answers():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0, 1, 500), rng.uniform(0, 1, 500) < 0.6
    total = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence >= low) & (confidence < low + 1 / BINS)
        total += inside.sum() / 500 * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(reliability(confidence, right)) == pytest.approx(total, rel=1e-12)


def test_each_image_is_counted_in_the_row_of_its_label_and_the_column_of_the_answer():
    labels, predicted = np.array([0, 0, 1, 3], np.int32), np.array([0, 2, 1, 2])
    matrix = confusion_matrix(predicted, labels, 4)
    assert matrix.shape == (4, 4) and matrix.sum() == 4
    assert matrix[0, 0] == matrix[0, 2] == matrix[1, 1] == matrix[3, 2] == 1
    right, images = class_counts(predicted, labels, 4)
    assert right.tolist() == matrix.diagonal().tolist() == [1, 1, 0, 0]
    assert images.tolist() == matrix.sum(1).tolist() == [2, 1, 0, 1]
