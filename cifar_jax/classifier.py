"""A trained network ready for use: images in, probabilities out. `cifar_jax.load` makes one.

Batches are padded to one of three sizes: each is compiled once, when it is first needed, for any number of images.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.budget import summarize
from cifar_jax.config import check_config
from cifar_jax.data.augment import normalize
from cifar_jax.device import check_device
from cifar_jax.errors import InputError
from cifar_jax.models import create_model
from cifar_jax.weights import Weights, check_variables, load_weights

BATCH_SIZES = (1, 16, 128)  # the last has the most images a second on a CPU; more change little


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network. mean, std: what images are normalized by, fractions of 255; config: that of the training.

    >>> import cifar_jax
    >>> from cifar_jax.data.shapes import make_shapes
    >>> model = cifar_jax.load("base")
    >>> images = make_shapes(1, 12).test.images
    >>> probabilities = model.predict(images)
    >>> probabilities.shape, probabilities.dtype, len(model.classes)
    ((12, 10), dtype('float32'), 10)
    >>> bool(abs(probabilities.sum(1) - 1).max() < 1e-5)
    True
    >>> model.parameters, model.receptive_field
    (89386, 83)
    """

    path: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parameters: int
    receptive_field: int
    config: ConfigDict = dataclasses.field(repr=False)
    apply: Callable[[np.ndarray], jax.Array] = dataclasses.field(repr=False)  # normalized images -> probabilities

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the classes, float32 (n, len(classes)); those of an image add up to 1.

        images: uint8, RGB, (n, 32, 32, 3) or one (32, 32, 3); `cifar_jax.read_image` makes one of a file. They do not
        depend on the other images, but for rounding. InputError: images of another type or shape, or weights so large
        that the numbers overflow.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-3:] != (32, 32, 3):
            raise InputError(
                f"images: got {images.dtype} {images.shape}, expected uint8 (n, 32, 32, 3) or (32, 32, 3), RGB; read files "
                "with cifar_jax.read_image"
            )
        images = images.reshape(-1, 32, 32, 3)
        size = next((size for size in BATCH_SIZES if size >= len(images)), BATCH_SIZES[-1])
        probabilities = np.empty((len(images), len(self.classes)), np.float32)
        for first in range(0, len(images), size):
            some = images[first : first + size]
            batch = np.zeros((size, 32, 32, 3), np.float32)
            batch[: len(some)] = normalize(some, self.mean, self.std)
            probabilities[first : first + size] = self.apply(batch)[: len(some)]
        if not np.isfinite(probabilities).all():
            raise InputError(f"weights {self.path}: got an output that is not finite; use a run that did not diverge")
        return probabilities


def load_network(name: str):
    """Returns (Weights, Flax module) of a committed name or a weights file.

    Raises InputError where the file is missing or damaged, its config invalid, or its tensors those of another network.
    """
    found = load_weights(name)
    check_stored(found.config, found.path)
    check_device()
    model = create_model(found.config.model)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    check_variables(found.variables, expected, found.path)
    return found, model


def check_stored(config, path) -> None:
    """Raises InputError where the config in a file is none that training writes."""
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"{path}: got an invalid config in it ({error}); expected what training wrote; name another") from error


def load(name: str) -> Classifier:
    """Reads a committed name, such as "base", or a weights file; raises InputError, see load_network."""
    return make_classifier(*load_network(name))


def make_classifier(weights: Weights, model) -> Classifier:
    """The Classifier of weights that fit the Flax module."""
    variables = jax.device_put(weights.variables)
    probabilities = jax.jit(lambda variables, images: jax.nn.softmax(model.apply(variables, images, train=False)))
    counted = summarize(weights.config.model)
    return Classifier(
        path=weights.path,
        classes=weights.classes,
        mean=weights.mean,
        std=weights.std,
        parameters=counted.parameters,
        receptive_field=counted.receptive_field,
        config=weights.config,
        apply=lambda images: probabilities(variables, images),
    )
