"""Trains, evaluates and ships CIFAR-10 classifiers under 100,000 parameters in JAX and Flax.

Importing the package stays cheap (no JAX): loader workers import it too.
"""

import os

__version__ = "0.1.0"


def load(name: str):
    """Returns the classifier.Classifier of a committed name, such as "base", or of a weights file.

    Raises errors.InputError where there is none, it is damaged, or for another network.

    >>> import cifar_jax
    >>> model = cifar_jax.load("base")
    >>> probabilities = model.predict(cifar_jax.read_image("examples/images/cat.png"))
    >>> model.classes[probabilities[0].argmax()]
    'cat'
    """
    from cifar_jax import classifier

    return classifier.load(name)


def read_image(path):
    """Returns an image file as uint8 (32, 32, 3) RGB, as Classifier.predict takes it; see data.folder.read_image."""
    from cifar_jax.data import folder
    from cifar_jax.errors import InputError

    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file, expected an image; name one that exists")
    return folder.read_image(path)
