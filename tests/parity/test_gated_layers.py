"""The layers without batch statistics against PyTorch, in a network of four: the whole variant takes minutes to compile.

Whatever holds for each kind of layer holds for the variant; its parameters and field are compared in test_network.py.
"""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cifar_jax import port
from cifar_jax.models import c1c2c3c40, layers
from tests.parity.test_network import BOUND, torch_pass, training_pass
from tests.parity.test_training import our_run, torch_run
from tests.parity.twins import KERNELS, distance, draw_batches, flatten, logits_in_evaluation, make_twins, torch

NUM_STEPS = 6
OPTIM = ConfigDict({"name": "adamw", "momentum": 0.9, "b2": 0.99, "nesterov": False, "weight_decay": 0.1})
SCHEDULE = ConfigDict({"name": "cosine", "learning_rate": 0.01, "warmup_fraction": 0.3, "final_fraction": 0.1})


def shallow(w1, w2, w3, w4):
    """A gated layer with a shortcut and one without."""
    return (
        layers.conv_ln("c1_conv", w1),
        layers.gate("c1_gated", w1, turns=2),
        layers.separable_ln("t2", w3, kernel=4, stride=2, padding=1),
        layers.gate("t3", w4),
    )


def shallow_twin(w1, w2, w3, w4):
    from baselines.model import ConvNorm, Gated, SeparableNorm

    return {"c1_conv": ConvNorm(3, w1), "c1_gated": Gated(w1, w1, turns=2), "t2": SeparableNorm(w1, w3), "t3": Gated(w3, w4)}


@pytest.fixture(scope="module", autouse=True)
def short():
    from baselines import model

    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setitem(c1c2c3c40.VARIANTS, "short_gated", shallow)
        patch.setitem(model.VARIANTS, "short_gated", shallow_twin)
        yield


def test_logits_in_evaluation():
    ours, theirs = logits_in_evaluation(make_twins("short_gated", head="pointwise"), *draw_batches(1))
    assert theirs.std() > 0.1
    assert distance(ours, theirs) < BOUND


def test_logits_of_the_variant_where_widths_stay_and_layers_take_two_turns():
    twins = make_twins("gated", kernels=KERNELS[-1], widths=(4, 4, 8, 8))
    assert [layer.turns for layer in twins.network.layers] == [1, 2, 2, 1, 2, 2]
    ours, theirs = logits_in_evaluation(twins, *draw_batches(1))
    assert theirs.std() > 0.1
    assert distance(ours, theirs) < BOUND


def test_logits_and_the_gradient_of_every_parameter_in_training():
    twins, batch, ours = training_pass("short_gated", "xla")
    logits, losses = torch_pass(twins, batch)
    assert distance(ours["logits"], logits) < BOUND and distance(ours["losses"], losses) < BOUND
    gradients = {name: p.grad.numpy() for name, p in twins.torch_model.named_parameters()}
    expected, got = flatten(port.from_state_dict(gradients, twins.config)["params"]), flatten(ours["params"])
    assert got.keys() == expected.keys()
    distances = {key: distance(got[key], expected[key]) for key in got}
    assert max(distances.values()) < BOUND, distances


def test_steps_of_adamw_in_float64():
    """1e-8 of a tensor's largest number, at every step, as for SGD in test_training.py."""
    twins, batches = make_twins("short_gated", kernels=KERNELS[-1]), draw_batches(NUM_STEPS)
    runs = (run(twins, batches, NUM_STEPS, OPTIM, SCHEDULE) for run in (our_run, torch_run))
    start = flatten({"params": twins.variables["params"]})
    for ours, theirs in zip(*runs, strict=True):
        distances = {key: distance(ours[key], theirs[key]) for key in theirs}
        assert max(distances.values()) <= 1e-8, distances
    assert min(distance(ours[key], start[key]) for key in start) > 1e-4  # nothing was equal because it stood still


def test_both_initialize_alike():
    """Kernels uniform within 1 / sqrt(inputs), biases 0, scales 1."""
    from baselines.model import create_model

    config = make_twins("short_gated", widths=(32, 32, 32, 32)).config
    torch.manual_seed(0)
    theirs = port.from_state_dict(create_model(config).state_dict(), config)["params"]
    network = c1c2c3c40.Network(shallow(*config.widths), config.num_classes)
    ours = jax.jit(lambda: network.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False)["params"])()
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for key in (key for key in ours if not key.startswith("head")):
        if ours[key].ndim == 1:
            np.testing.assert_array_equal(ours[key], theirs[key], key)
            continue
        limit = 1 / np.sqrt(np.prod(ours[key].shape[:-1]))
        for kernel in (ours[key], theirs[key]):
            assert 0.9 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6), key
            assert abs(kernel.std() / limit - 1 / np.sqrt(3)) < 0.15, key  # a few hundred numbers
