"""Networks: ops and norm (pure functions), layers (Flax modules), and one file a network family.

A family gives a list of layers for the budget and a Flax module for the step; MODELS is the table of families.
"""

import jax.numpy as jnp

from cifar_jax.models import c1c2c3c40
from cifar_jax.models.layers import Layer

MODELS = {"c1c2c3c40": c1c2c3c40}


def describe(model) -> tuple[Layer, ...]:
    """The layers before pooling, from the config's model section."""
    return MODELS[model.name].VARIANTS[model.variant](*model.widths)


def create_model(model, *, axis_name: str | None = None):
    """The Flax module, from the config's model section; axis_name: see steps.make_train_step."""
    return MODELS[model.name].Network(
        describe(model), model.num_classes, head=model.head, dtype=jnp.dtype(model.dtype), axis_name=axis_name
    )
