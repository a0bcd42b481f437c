"""Networks: ops and norm (pure functions), layers and gated (Flax modules), and one file a network family.

A family gives a list of layers for the budget and a Flax module for the step; MODELS is the table of families.
"""

import jax
import jax.numpy as jnp

from cifar_jax.models import c1c2c3c40, depthwise, native
from cifar_jax.models.layers import Layer

MODELS = {"c1c2c3c40": c1c2c3c40}


def describe(model) -> tuple[Layer, ...]:
    """The layers before pooling, from the config's model section.

    >>> from cifar_jax.config import read_config
    >>> describe(read_config("configs/base.py", []).model)[2]
    Layer(name='t1', kind='separable', features=64, kernel=3, stride=2, dilation=1, padding=1, turns=1)
    """
    return MODELS[model.name].VARIANTS[model.variant](*model.widths)


def choose_kernels(model) -> tuple[str, str]:
    """What computes the config's network on this machine, and for "xla" what keeps it from better, in a few words, else "".

    "native": native/, on a CPU; "pallas": depthwise.py and gate_kernels.py, on a GPU.
    """
    if model.kernels == "xla":
        return "xla", "model.kernels is xla"
    if jax.default_backend() == "gpu":
        reason = depthwise.why_not(model.dtype)  # of the Pallas kernels
        return ("xla", reason) if reason else ("pallas", "")
    reason = _why_not_native(model)
    return ("xla", reason) if reason else ("native", "")


def _why_not_native(model) -> str:
    if jax.default_backend() != "cpu":
        return f"they are for a CPU or a GPU, not for {jax.default_backend()}"
    if model.dtype not in native.REALS:
        return f"they do not know {model.dtype}"
    return native.register(native.REALS[model.dtype])


def create_model(model, *, axis_name: str | None = None):
    """The Flax module, from the config's model section; axis_name: see steps.make_train_step.

    >>> from cifar_jax.config import read_config
    >>> network = create_model(read_config("configs/base.py", ["--config.model.kernels=xla"]).model)
    >>> image = jnp.zeros((1, 32, 32, 3))
    >>> variables = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    >>> jax.eval_shape(lambda variables: network.apply(variables, image, train=False), variables).shape
    (1, 10)
    """
    return MODELS[model.name].Network(
        describe(model),
        model.num_classes,
        head=model.head,
        dtype=jnp.dtype(model.dtype),
        axis_name=axis_name,
        kernels=choose_kernels(model)[0],
    )
