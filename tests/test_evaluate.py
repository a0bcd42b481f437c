"""evaluate() counts every image of a split once, whatever the batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import evaluate as module
from cifar_jax.data.dataset import Split
from cifar_jax.errors import InputError
from cifar_jax.evaluate import evaluate, evaluate_files
from cifar_jax.steps import make_eval_step

CLASSES = 4
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Reader:
    """A model that predicts the class written in an image's first pixel, with a logit of 1 against 0."""

    num_classes = CLASSES

    def apply(self, variables, images, *, train):
        written = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
        return jax.nn.one_hot(written, CLASSES)


@pytest.fixture(scope="module")
def eval_step():
    return jax.jit(make_eval_step(Reader()))


def make_split(predictions, labels):
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = predictions
    return Split(images, np.asarray(labels, np.int32))


def run(eval_step, predictions, labels):
    return evaluate(eval_step, {}, make_split(predictions, labels), MEAN, STD)


@pytest.mark.parametrize("num_images", [1, 4, 7, 8, 9])
def test_counts_each_image_once_whatever_the_batch_size(eval_step, monkeypatch, num_images):
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    labels = np.arange(num_images) % CLASSES
    counts = run(eval_step, labels, labels)
    assert (counts["examples"], counts["correct"], counts["accuracy"]) == (num_images, num_images, 1.0)


def test_one_batch_of_the_real_size_is_padded_and_counted_exactly(eval_step):
    labels = np.arange(module.BATCH_SIZE + 1) % CLASSES
    predictions = np.where(np.arange(len(labels)) < 100, (labels + 1) % CLASSES, labels)
    counts = run(eval_step, predictions, labels)
    assert (counts["examples"], counts["correct"]) == (module.BATCH_SIZE + 1, module.BATCH_SIZE - 99)


def test_the_accuracy_of_each_class(eval_step, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    counts = run(eval_step, [0, 1, 2, 0, 1, 1, 3], [0, 0, 0, 0, 1, 1, 2])
    assert counts["class_accuracy"] == [0.5, 1.0, 0.0, None]  # class 3 has no image
    assert counts["accuracy"] == 4 / 7


def test_the_loss_is_the_mean_over_images(eval_step, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    right, wrong = np.log(np.e + 3) - 1, np.log(np.e + 3)
    counts = run(eval_step, [0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 1])
    assert counts["loss"] == pytest.approx((5 * right + wrong) / 6, rel=1e-6)  # float32


@pytest.mark.parametrize("directory, weights", [(None, None), ("runs/base", "base.safetensors")])
def test_files_are_either_a_workdir_or_weights(directory, weights):
    with pytest.raises(InputError, match="expected one of --workdir DIR and --weights"):
        evaluate_files(directory, weights, [])
