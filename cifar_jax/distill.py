"""Knowledge distillation, `distill.weights`: a trained network, the teacher, whose probabilities are part of the objective.

It sees the very images that are trained on, augmented and mixed. Sources: arXiv:1503.02531 for the objective, arXiv:2106.05237
for the same images.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.classifier import load_network
from cifar_jax.errors import InputError
from cifar_jax.models import create_model
from cifar_jax.weights import Weights


class Teacher(NamedTuple):
    """logits(images): (b, classes) of the images of a batch, normalized by the data's mean and std; share: its part of the
    objective, the labels have the rest; temperature: see losses.distillation.
    """

    logits: Callable
    share: float
    temperature: float


def read_teacher(config) -> Weights | None:
    """The weights that config.distill.weights names; None for "". Raises InputError where classifier.load_network does."""
    if not config.distill.weights:
        return None
    try:
        return load_network(config.distill.weights)[0]
    except InputError as error:
        said = str(error)
        raise InputError(f"distill.{said}" if said.startswith("weights") else f"distill.weights: {said}") from error


def make_teacher(config, weights: Weights | None, dataset) -> Teacher | None:
    """The teacher, computed in the dtype of the network that learns; raises InputError where it knows other classes."""
    if weights is None:
        return None
    if weights.classes != dataset.classes:
        raise InputError(
            f"distill.weights: got {weights.path}, a network of the classes {', '.join(weights.classes)}, expected those of the "
            f"data, {', '.join(dataset.classes)}; name another"
        )
    computed = {"dtype": config.model.dtype, "kernels": config.model.kernels}
    network = create_model(ConfigDict(weights.config.model.to_dict() | computed))
    (mean, std), (own_mean, own_std) = ((jnp.asarray(moments.mean), jnp.asarray(moments.std)) for moments in (dataset, weights))

    def logits(images):
        return network.apply(weights.variables, (images * std + mean - own_mean) / own_std, train=False)

    return Teacher(logits, config.distill.share, config.distill.temperature)
