"""Weights cross to PyTorch's names and back without a changed bit; whatever does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cifar_jax import port
from cifar_jax.errors import InputError
from cifar_jax.models import create_model
from cifar_jax.models.c1c2c3c40 import VARIANTS


@pytest.fixture(params=[(variant, head) for variant in VARIANTS for head in ("dense", "pointwise")], ids="-".join)
def model(request, model_config):
    variant, head = request.param
    return model_config(variant=variant, head=head)


def draw_variables(model):
    network = create_model(model)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), dict(shapes))


def assert_same_bits(one, other):
    one, other = (traverse_util.flatten_dict(tree, sep="/") for tree in (one, other))
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        assert one[key].shape == other[key].shape
        assert one[key].tobytes() == other[key].tobytes(), key


def test_round_trip_keeps_every_bit(model):
    variables = draw_variables(model)
    state_dict = port.to_state_dict(variables, model)
    assert_same_bits(port.from_state_dict(state_dict, model), variables)
    assert_same_bits(port.to_state_dict(port.from_state_dict(state_dict, model), model), state_dict)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_the_type_is_kept(model_config, dtype):
    model = model_config()
    variables = jax.tree.map(lambda x: x.astype(dtype), draw_variables(model))
    assert_same_bits(port.from_state_dict(port.to_state_dict(variables, model), model), variables)


def test_kernels_are_laid_out_as_pytorch_has_them(model_config):
    model = model_config()
    variables = draw_variables(model)
    state_dict = port.to_state_dict(variables, model)
    kernel = variables["params"]["c1_conv"]["conv"]
    assert state_dict["c1_conv.conv.weight"].shape == (4, 3, 3, 3)
    assert state_dict["c1_conv.conv.weight"][3, 2, 0, 1] == kernel[0, 1, 2, 3]
    assert state_dict["c1_sep.conv_dw.weight"].shape == (4, 1, 3, 3)
    assert state_dict["head.weight"][9, 2] == variables["params"]["head"]["kernel"][2, 9]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.pop("t2.conv_pw.weight"), "t2.conv_pw.weight: got nothing, expected (6, 5, 1, 1)"),
        (lambda d: d.update({"t9.conv_pw.weight": np.zeros(3)}), "t9.conv_pw.weight: got (3,), expected nothing"),
        (lambda d: d.update({"t2.norm.bias": np.zeros(7)}), "t2.norm.bias: got (7,), expected (6,)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_tensor_that_does_not_fit_is_named(model_config, change, words):
    model = model_config()
    state_dict = port.to_state_dict(draw_variables(model), model)
    change(state_dict)
    with pytest.raises(InputError) as error:
        port.from_state_dict(state_dict, model)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v["params"].pop("t2"), "params/t2/conv_dw: got nothing, expected (3, 3, 1, 5)"),
        (lambda v: v["params"].update(t9={"conv": np.zeros(3)}), "params/t9/conv: got (3,), expected nothing"),
        (lambda v: v["batch_stats"]["t2"]["norm"].update(var=np.zeros(2)), "batch_stats/t2/norm/var: got (2,), expected (6,)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_variable_that_does_not_fit_is_named(model_config, change, words):
    model = model_config()
    variables = draw_variables(model)
    change(variables)
    with pytest.raises(InputError) as error:
        port.to_state_dict(variables, model)
    assert words in str(error.value)
