"""Weights to and from the PyTorch twin (baselines/model.py): a state_dict of numpy arrays <-> Flax variables.

Every number is carried over bit by bit: kernels are transposed (HWIO <-> OIHW, in-out <-> out-in), nothing is computed.
No PyTorch is imported: a state_dict is any mapping from names to what numpy can read, such as CPU tensors.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cifar_jax.errors import InputError
from cifar_jax.models import create_model

# Flax's names of a normalization's four vectors, as (collection, name), and PyTorch's.
_NORM = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_COUNTER = "num_batches_tracked"  # PyTorch's count of training batches, which nothing here uses


def to_state_dict(variables, model) -> dict[str, np.ndarray]:
    """Returns the state_dict of the twin that computes what `variables` compute.

    variables: {"params", "batch_stats"}; model: the config's model section. Counters of batches are 0.
    Raises InputError naming the first tensor that is missing, unexpected or of another shape.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    names = _names(model)
    _check({key: np.shape(value) for key, value in flat.items()}, {key: shape for key, (_, shape) in names.items()}, "Flax")
    state_dict = {}
    for key, (name, _) in names.items():
        value = np.asarray(flat[key])
        state_dict[name] = np.ascontiguousarray(_to_torch(value, name, model))
        if name.endswith("running_var"):
            state_dict[name.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state_dict


def from_state_dict(state_dict: Mapping, model) -> dict:
    """The inverse of to_state_dict: {"params", "batch_stats"} of numpy arrays; counters of batches are dropped.

    Raises InputError naming the first tensor that is missing, unexpected or of another shape.
    """
    names = _names(model)
    expected = {name: _to_torch(np.empty(shape), name, model).shape for name, shape in names.values()}
    arrays = {name: np.asarray(value) for name, value in state_dict.items() if not name.endswith("." + _COUNTER)}
    _check({name: value.shape for name, value in arrays.items()}, expected, "PyTorch")
    flat = {key: np.ascontiguousarray(_from_torch(arrays[name], name)) for key, (name, _) in names.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _names(model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{Flax key: (PyTorch name, shape in Flax)} of every tensor of the network."""
    network = create_model(model)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    names = {}
    for key, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items():
        collection, *layer, last = key.split("/")
        if layer[-1] == "norm":
            last = _NORM[collection, last]
        elif last == "kernel":
            last = "weight"
        elif len(leaf.shape) > 1:
            last += ".weight"
        names[key] = ".".join([*layer, last]), leaf.shape
    return names


def _to_torch(value, name: str, model):
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)  # HWIO -> OIHW; depthwise (k, k, 1, c) -> (c, 1, k, k) as well
    if name == "head.weight":  # a 1x1 convolution there if it comes before pooling
        return value.T[:, :, None, None] if model.head == "pointwise" else value.T
    return value


def _from_torch(value, name: str):
    if name == "head.weight":
        return value.reshape(value.shape[:2]).T
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _check(have: dict, want: dict, framework: str) -> None:
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise InputError(
                f"port: {framework} tensor {name}: got {have.get(name, 'nothing')}, expected {want.get(name, 'nothing')}; "
                "these weights are for another network"
            )
