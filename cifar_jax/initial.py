"""Weights that a run begins from in place of random ones, `init.weights`: read, compared with the network, taken over.

The head is taken over only for the same classes in the same order. What images are normalized by is not: a run uses the
mean and std of its own data.
"""

import pathlib

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from cifar_jax.errors import InputError
from cifar_jax.models import create_model
from cifar_jax.state import TrainState
from cifar_jax.weights import Weights, check_variables, find_weights, load_weights

HEAD = "head"


def read_initial(config) -> Weights | None:
    """The weights that config.init.weights names; None for "".

    Raises InputError where the file is missing or damaged, or a tensor differs from that of the config's network; the head
    may, where the number of classes does.
    """
    name = config.init.weights
    if not name:
        return None
    found = load_named("init.weights", name)
    model = create_model(ConfigDict(config.model.to_dict() | {"kernels": "xla"}))  # others would be compiled for their shapes
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    given = found.variables
    if len(found.classes) != config.model.num_classes:
        given, expected = _without_head(given), _without_head(expected)
    try:
        check_variables(given, expected, found.path)
    except InputError as error:
        theirs = found.config.model
        raise InputError(
            f"init.{error}, {theirs.get('variant')} with widths {theirs.widths}: set model.variant and model.widths so"
        ) from error
    return found


def load_named(key: str, name: str) -> Weights:
    """load_weights(name), whose errors name the config's `key`, init.weights or another that ends so."""
    try:
        return load_weights(name)
    except InputError as error:
        raise InputError(f"{key.removesuffix('weights')}{error}") from error  # it begins with "weights"


def _without_head(variables) -> dict:
    flat = traverse_util.flatten_dict(variables)  # of a stranger's file: of any depth
    return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path[1:2] != (HEAD,)})


def check_same_weights(path: pathlib.Path, key: str, begun: str | None, name: str) -> None:
    """Raises InputError where the weights `name` of the config's `key` are there and damaged, or not those of the run in `path`.

    begun: what its config.json says of them, their sha256. Where they are gone, others tell what that means.
    """
    if not name:
        return
    try:
        find_weights(name)
    except InputError:
        return
    now = load_named(key, name).sha256
    if begun != now:
        raise InputError(
            f"--workdir: {path} holds a run with other weights ({key}: got {now[:8]}, expected {str(begun)[:8]}); use the same "
            "file or another --workdir"
        )


def take_over(state: TrainState, weights: Weights, classes: tuple[str, ...]) -> TrainState:
    """The initial state with the tensors of `weights`, an average included; classes: those of the data.

    A state's own head is kept where they are not the classes of the weights.
    """
    given = weights.variables if weights.classes == classes else _without_head(weights.variables)

    def merge():  # the step gives its state's memory away: an average needs arrays of its own
        own = {"params": state.params, "batch_stats": state.batch_stats}
        return jax.tree.map(jnp.array, {name: own[name] | given.get(name, {}) for name in own})

    return state.replace(**merge(), ema=None if state.ema is None else merge())


def describe(name: str, weights: Weights | None, classes: tuple[str, ...]) -> str:
    """What the first line of a run adds about its beginning; weights: None where it resumes, or begins from the seed."""
    if not weights:
        return ""
    return f", from {name}" + ("" if weights.classes == classes else " with a new head, for other classes")
