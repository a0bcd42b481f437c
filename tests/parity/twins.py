"""The two networks side by side: the same weights and the same batches, in Flax and in PyTorch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from cifar_jax import port
from cifar_jax.models import native
from cifar_jax.models.c1c2c3c40 import VARIANTS, Network
from configs import base

torch = pytest.importorskip("torch")

KERNELS = ("xla", "native") if native.find_compiler() else ("xla",)
# `gated` takes as long to compile as all others: test_gated_layers.py has a short one.
SLOW = {"gated": pytest.mark.slow}
ALL_VARIANTS = pytest.mark.parametrize("variant", [pytest.param(name, marks=SLOW.get(name, ())) for name in VARIANTS])
# `strided` and `mixed` have every kind of layer, and kernels are compared layer by layer elsewhere.
_FAST = ("strided", "mixed")


def _pairs(fast):
    """Each variant with each kind of kernels; slow are those for which fast(variant, kernels) is not true."""
    pairs = [(variant, kernels) for variant in VARIANTS for kernels in KERNELS]
    return [pytest.param(*pair, marks=() if fast(*pair) else pytest.mark.slow) for pair in pairs]


EVERY_PAIR = pytest.mark.parametrize(
    "variant, kernels", _pairs(lambda variant, kernels: variant in _FAST or variant not in SLOW and kernels == KERNELS[-1])
)
# Updates take the longest to compile.
UPDATES = pytest.mark.parametrize(
    "variant, kernels", _pairs(lambda variant, kernels: variant in _FAST and kernels == KERNELS[-1])
)
BATCH = 6


def model_section(variant: str, **changes):
    """The model section of a network small enough for float64; all its geometry is that of the real one."""
    return ConfigDict(base.get_config().model.to_dict() | {"variant": variant, "widths": (4, 6, 8, 10)} | changes)


@dataclasses.dataclass
class Twins:
    """config: the model section. network, variables: Flax. torch_model: PyTorch. Both hold the same numbers."""

    config: Any
    network: Network
    variables: Any
    torch_model: Any


def make_twins(variant: str, dtype=np.float64, kernels="xla", **changes) -> Twins:
    """Twins in float64 or float32, from random numbers of which no tensor is trivial; call it under
    jax.enable_x64. kernels: what trains the Flax side."""
    from baselines.model import create_model

    config = model_section(variant, **changes)
    if kernels == "native":
        assert not native.register(native.REALS[np.dtype(dtype).name])
    network = Network(VARIANTS[variant](*config.widths), config.num_classes, config.head, dtype, kernels=kernels)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)

    def draw(shape):
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape)
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))

    variables = jax.tree.map(lambda leaf: draw(leaf.shape).astype(dtype), dict(shapes))
    torch_model = create_model(config).to(torch.float64 if dtype == np.float64 else torch.float32)
    load(torch_model, port.to_state_dict(variables, config))
    return Twins(config, network, variables, torch_model)


def load(torch_model, state_dict):
    torch_model.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()}, strict=True)


def draw_batches(count: int, dtype=np.float64):
    """A list of {"image", "label"} of normal noise."""
    rng = np.random.default_rng(1)
    return [
        {"image": rng.standard_normal((BATCH, 32, 32, 3)).astype(dtype), "label": rng.integers(0, 10, BATCH)}
        for _ in range(count)
    ]


def to_torch(batch):
    """(images (b, 32, 32, 3), labels) as tensors."""
    return torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])


def logits_in_evaluation(twins: Twins, batch):
    """(Flax's, PyTorch's) of a batch."""
    with torch.no_grad():
        theirs = twins.torch_model.eval()(to_torch(batch)[0].permute(0, 3, 1, 2)).numpy()
    return jax.jit(twins.network.apply, static_argnames="train")(twins.variables, batch["image"], train=False), theirs


def flatten(variables) -> dict[str, np.ndarray]:
    """{"params/c1_conv/conv": array} of a tree."""
    return {key: np.asarray(value) for key, value in traverse_util.flatten_dict(dict(variables), sep="/").items()}


def distance(a, b) -> float:
    """The largest difference, relative to the largest number of b."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / np.abs(b).max())
