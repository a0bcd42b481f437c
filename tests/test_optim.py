"""Schedules by their values; the optimizers against torch.optim.SGD and AdamW, and Muon against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cifar_jax.models import create_model
from cifar_jax.optim import is_kernel, make_optimizer, make_schedule, matrices

PEAK = 0.4
MOST_STEPS = 2000
NAMES = ("one_cycle", "cosine", "constant")
DECAYING = pytest.mark.parametrize("name", ["one_cycle", "cosine"])


def schedule_of(name, num_steps, warmup_fraction=0.25, final_fraction=0.0):
    fractions = {"warmup_fraction": float(warmup_fraction), "final_fraction": float(final_fraction)}
    return make_schedule(ConfigDict({"name": name, "learning_rate": PEAK} | fractions), num_steps)


def rates(name, num_steps, warmup_fraction=0.25, final_fraction=0.0):
    schedule = schedule_of(name, num_steps, warmup_fraction, final_fraction)
    return np.broadcast_to(schedule(jnp.arange(MOST_STEPS)), MOST_STEPS)[:num_steps]  # one shape: compiled once


@given(st.sampled_from(NAMES), st.integers(1, MOST_STEPS), st.floats(0, 0.999))
@settings(max_examples=20)
def test_every_step_has_a_rate_above_0_and_none_above_the_peak(name, num_steps, warmup_fraction):
    values = rates(name, num_steps, warmup_fraction)
    assert (values > 0).all()
    assert values.max() == pytest.approx(PEAK, rel=1e-6)  # reached, in float32


@DECAYING
def test_the_rate_rises_to_the_peak_and_falls_from_it(name):
    changes = np.diff(rates(name, 80))
    assert (changes[:19] > 0).all()
    assert abs(changes[19]) < 1e-7  # the last step up and the first step down are both at the peak
    assert (changes[20:] < 0).all()


@DECAYING
def test_the_first_step_is_one_part_of_the_way_up(name):
    assert rates(name, 80)[0] == pytest.approx(PEAK / 20, rel=1e-6)


@DECAYING
def test_without_warm_up_the_first_step_is_at_the_peak(name):
    values = rates(name, 80, 0.0)
    assert values[0] == pytest.approx(PEAK, rel=1e-6)
    assert (np.diff(values) < 0).all()


def test_one_cycle_ends_one_part_above_0():
    assert rates("one_cycle", 80)[-1] == pytest.approx(PEAK / 60, rel=1e-5)  # float32: a difference of numbers near 1


def test_one_cycle_falls_in_a_straight_line():
    np.testing.assert_allclose(rates("one_cycle", 80)[20:], PEAK * (1 - np.arange(60) / 60), rtol=1e-5)


def test_cosine_falls_along_half_a_cosine():
    expected = PEAK * (1 + np.cos(np.pi * np.arange(60) / 60)) / 2
    np.testing.assert_allclose(rates("cosine", 80)[20:], expected, atol=1e-7)  # float32


@DECAYING
def test_it_falls_to_a_fraction_of_the_peak_and_the_warm_up_is_the_same(name):
    values, to_zero = rates(name, 80, final_fraction=0.1), rates(name, 80)
    np.testing.assert_array_equal(values[:20], to_zero[:20])
    np.testing.assert_allclose(values[20:], 0.1 * PEAK + 0.9 * to_zero[20:], rtol=0, atol=1e-7)  # float32
    schedule = schedule_of(name, 80, final_fraction=0.1)
    assert float(schedule(80)) == pytest.approx(0.1 * PEAK, rel=1e-6)


def test_constant_is_the_peak_throughout():
    np.testing.assert_array_equal(rates("constant", 9), np.full(9, PEAK))


def test_kernels_are_what_has_more_than_one_axis():
    params = {"conv": jnp.ones((3, 3, 1, 2)), "norm": {"scale": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 2))}}
    assert is_kernel(params) == {"conv": True, "norm": {"scale": False}, "head": {"kernel": True}}


def optimizer_of(schedule, **changes):
    optim = {"name": "sgd", "momentum": 0.9, "b2": 0.99, "nesterov": True, "weight_decay": 5e-2} | changes
    return make_optimizer(ConfigDict(optim), schedule)


OPTIMIZERS = {
    "sgd": {"name": "sgd"},
    "sgd_heavy_ball": {"name": "sgd", "nesterov": False},
    "sgd_plain": {"name": "sgd", "nesterov": False, "momentum": 0.0},
    "adamw": {"name": "adamw", "nesterov": False},
    "adamw_without_averages": {"name": "adamw", "nesterov": False, "momentum": 0.0, "b2": 0.0},
}


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_equal_torchs_with_decay_on_kernels_only(optim):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
    steps = [{name: rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(8)]
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 5e-2},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    momentum = optim.get("momentum", 0.9)
    if optim["name"] == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=optim.get("nesterov", True))
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(momentum, optim.get("b2", 0.99)))
    with jax.enable_x64(True):
        schedule = schedule_of("one_cycle", len(steps))
        tx = optimizer_of(schedule, **optim)
        params = {name: jnp.asarray(value) for name, value in start.items()}
        opt_state = tx.init(params)
        for step, grads in enumerate(steps):
            updates, opt_state = tx.update({name: jnp.asarray(g) for name, g in grads.items()}, opt_state, params)
            params = {name: params[name] + updates[name] for name in params}
            for name, value in theirs.items():
                value.grad = torch.tensor(grads[name])
            for group in optimizer.param_groups:
                group["lr"] = float(schedule(jnp.int32(step)))
            optimizer.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(params[name], value.detach(), rtol=0, atol=1e-12)  # float64, eight steps of order 1


MUON = {"name": "muon", "momentum": 0.95, "b2": 0.9}
SHAPES = {"dense": (3, 3, 2, 5), "wide": (1, 1, 4, 6), "depthwise": (3, 3, 1, 4), "head": (4, 3), "bias": (3,)}


def orthogonalized(x):
    """Five steps of Jordan's quintic from x over its norm, https://kellerjordan.github.io/posts/muon."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


def averaged(grads, decay, nesterov):
    """A running average of `grads`, or Nesterov's look ahead in it, each part corrected for its beginning at 0."""
    average = sum((1 - decay) * decay ** (len(grads) - 1 - i) * grad for i, grad in enumerate(grads))
    if not nesterov:
        return average / (1 - decay ** len(grads))
    ahead = decay * average / (1 - decay ** (len(grads) + 1))
    return ahead + (1 - decay) * grads[-1] / (1 - decay ** len(grads))


def muon_formula(name, params, grads, nesterov):
    """params after a step of rate 1 for each of `grads`, with a decay of 0.05."""
    for n in range(1, len(grads) + 1):
        if name in ("dense", "wide"):
            update = averaged(grads[:n], 0.95, nesterov).reshape(-1, params.shape[-1])
            update = orthogonalized(update.T).T if update.shape[0] > update.shape[1] else orthogonalized(update)
            update = (0.2 * np.sqrt(max(update.shape)) * update).reshape(params.shape) + 0.05 * params
        else:
            second = sum(0.1 * 0.9 ** (n - 1 - i) * grad**2 for i, grad in enumerate(grads[:n])) / (1 - 0.9**n)
            update = averaged(grads[:n], 0.9, nesterov) / (np.sqrt(second) + 1e-8)
        params = params - update
    return params


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_takes_the_steps_of_its_formula_and_all_but_matrices_those_of_adam(nesterov):
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    steps = [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(4)]
    expected = {name: muon_formula(name, params[name], [grads[name] for grads in steps], nesterov) for name in SHAPES}
    with jax.enable_x64(True):
        tx = optimizer_of(lambda _: 1.0, **MUON, nesterov=nesterov)
        ours = jax.tree.map(jnp.asarray, params)
        opt_state = tx.init(ours)
        update = jax.jit(tx.update)
        for grads in steps:
            updates, opt_state = update(grads, opt_state, ours)
            ours = jax.tree.map(lambda p, u: p + u, ours, updates)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=1e-6, err_msg=name)  # coefficients are float32


def test_a_step_of_muon_turns_and_stretches_all_directions_nearly_alike():
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 16, 32)) * np.geomspace(1e-2, 1, 32), jnp.float32)
    tx = optimizer_of(lambda _: 1.0, **MUON | {"weight_decay": 0.0})
    params = {"kernel": jnp.zeros_like(kernel)}
    (update,) = jax.tree.leaves(tx.update({"kernel": kernel}, tx.init(params), params)[0])
    stretched = np.linalg.svd(update[0, 0], compute_uv=False) / (0.2 * np.sqrt(32))
    assert np.linalg.cond(kernel[0, 0]) > 4
    assert 0.5 < stretched.min() and stretched.max() < 1.5  # the quintic's own spread


@pytest.mark.parametrize(
    "variant, others", [("strided", ("conv_dw",)), ("gated", ("conv_dw", "conv_near", "conv_wide", "conv_far"))]
)
def test_matrices_are_the_kernels_that_mix_channels(model_config, variant, others):
    network = create_model(model_config(variant=variant, kernels="xla"))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    chosen = traverse_util.flatten_dict(matrices(params))
    kernels = {path for path, chosen in traverse_util.flatten_dict(is_kernel(params)).items() if chosen}
    assert {path for path, how in chosen.items() if how} == {p for p in kernels if not {"head", *others} & set(p)}


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_the_decay_leaves_biases_and_scales_alone(name):
    tx = optimizer_of(lambda _: 1.0, name=name)
    params = {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert (updates["kernel"] < 0).all() and not updates["bias"].any()
