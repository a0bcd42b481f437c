"""The drawn data set: the same for the same seed, balanced, and of a difficulty that a linear model does not meet."""

import numpy as np
import pytest

from cifar_jax.data.shapes import CLASSES, CONTRAST, LIGHTNESS, make_shapes
from cifar_jax.data.sources import load_dataset


@pytest.fixture(scope="module")
def shapes():
    return make_shapes(3000, 1000)


def linear_accuracy(train_x, train_labels, test_x, test_labels, penalty):
    """Test accuracy of ridge regression onto one-hot labels."""
    mean = train_x.mean(0)
    x, targets = train_x - mean, np.eye(10)[train_labels] - 0.1
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets)
    return (((test_x - mean) @ weights).argmax(1) == test_labels).mean()


def test_it_meets_the_contract(shapes):
    assert shapes.train.images.shape == (3000, 32, 32, 3) and shapes.test.images.shape == (1000, 32, 32, 3)
    assert shapes.train.images.dtype == np.uint8 and shapes.train.labels.dtype == np.int32
    assert (shapes.classes, shapes.source, shapes.path, shapes.verified) == (CLASSES, "shapes", "", False)
    assert np.bincount(shapes.train.labels).tolist() == [300] * 10
    assert np.bincount(shapes.test.labels).tolist() == [100] * 10
    scaled = shapes.train.images / 255
    np.testing.assert_allclose(shapes.mean, scaled.mean((0, 1, 2)))
    np.testing.assert_allclose(shapes.std, scaled.std((0, 1, 2)))


def test_a_seed_is_a_data_set():
    first, again, other = make_shapes(40, 20, seed=1), make_shapes(40, 20, seed=1), make_shapes(40, 20, seed=2)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.labels, again.test.labels)
    assert (first.train.images != other.train.images).mean() > 0.5


def test_no_test_image_is_a_training_image(shapes):
    seen = {image.tobytes() for image in shapes.train.images}
    assert len(seen) == 3000 and not any(image.tobytes() in seen for image in shapes.test.images)


@pytest.mark.parametrize("penalty", (100.0, 3000.0))
def test_a_linear_model_of_the_pixels_fails(shapes, penalty):
    train, test = shapes.train, shapes.test
    x, y = ((split.images.reshape(len(split), -1) / 255) for split in (train, test))
    assert 0.1 < linear_accuracy(x, train.labels, y, test.labels, penalty) < 0.45


def test_colour_and_contrast_do_not_tell_the_class(shapes):
    x, y = (
        np.concatenate([split.images.mean((1, 2)), split.images.std((1, 2))], axis=1) / 255
        for split in (shapes.train, shapes.test)
    )
    assert linear_accuracy(x, shapes.train.labels, y, shapes.test.labels, 1e-3) < 0.35


def test_every_image_can_be_told_without_colour(shapes):
    grey = shapes.test.images @ LIGHTNESS
    spread = np.quantile(grey, 0.98, axis=(1, 2)) - np.quantile(grey, 0.02, axis=(1, 2))
    assert spread.min() > 0.7 * CONTRAST


def test_the_sources_know_it():
    data = load_dataset("shapes", "")
    assert (len(data.train), len(data.test), data.source) == (5000, 1000, "shapes")
