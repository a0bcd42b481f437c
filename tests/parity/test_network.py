"""One pass through both networks in float64: the same numbers, up to the order of sums.

Bounds: a pass adds some 1e4 products per number, each with an error of 1e-16, through a dozen normalizations: 1e-11 of
the largest number leaves two digits of room, and any difference of formula (an epsilon, a variance) is far above it.
"""

import functools

import jax
import numpy as np
import pytest

from cifar_jax import budget, port
from cifar_jax.losses import cross_entropy
from cifar_jax.models.c1c2c3c40 import VARIANTS
from cifar_jax.models.norm import MOMENTUM
from tests.parity.twins import (
    ALL_VARIANTS,
    BATCH,
    EVERY_PAIR,
    distance,
    draw_batches,
    flatten,
    logits_in_evaluation,
    make_twins,
    model_section,
    to_torch,
    torch,
)

BOUND = 1e-11
SMOOTHING = 0.1


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def training_pass(variant, kernels):
    """(twins, batch, {logits, losses, grads, batch_stats} of ours)."""
    twins, (batch,) = make_twins(variant, kernels=kernels), draw_batches(1)

    @jax.jit
    def run(variables, batch):
        def loss_of(params):
            logits, updated = twins.network.apply(
                variables | {"params": params}, batch["image"], train=True, mutable=["batch_stats"]
            )
            losses = cross_entropy(logits, batch["label"], label_smoothing=SMOOTHING)
            return losses.mean(), {"logits": logits, "losses": losses, **updated}

        grads, seen = jax.grad(loss_of, has_aux=True)(variables["params"])
        return seen | {"params": grads}

    return twins, batch, jax.device_get(run(twins.variables, batch))


def torch_pass(twins, batch):
    """The same of PyTorch: (logits, losses), with gradients and running statistics left in the model."""
    twins.torch_model.train().zero_grad()
    images, labels = to_torch(batch)
    logits = twins.torch_model(images.permute(0, 3, 1, 2))
    losses = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="none")
    losses.mean().backward()
    return logits.detach().numpy(), losses.detach().numpy()


@ALL_VARIANTS
@pytest.mark.parametrize("head", ["dense", "pointwise"])
def test_logits_in_evaluation(variant, head):
    ours, theirs = logits_in_evaluation(make_twins(variant, head=head), *draw_batches(1))
    assert theirs.std() > 0.1
    assert distance(ours, theirs) < BOUND


@EVERY_PAIR
def test_logits_and_smoothed_losses_in_training(variant, kernels):
    twins, batch, ours = training_pass(variant, kernels)
    logits, losses = torch_pass(twins, batch)
    assert distance(ours["logits"], logits) < BOUND
    assert distance(ours["losses"], losses) < BOUND


@EVERY_PAIR
def test_gradient_of_every_parameter(variant, kernels):
    twins, batch, ours = training_pass(variant, kernels)
    torch_pass(twins, batch)
    gradients = {name: p.grad.numpy() for name, p in twins.torch_model.named_parameters()}
    buffers = {name: b.numpy() for name, b in twins.torch_model.named_buffers()}
    expected = flatten(port.from_state_dict(gradients | buffers, twins.config)["params"])
    got = flatten(ours["params"])
    assert got.keys() == expected.keys()
    distances = {key: distance(got[key], expected[key]) for key in got}
    assert max(distances.values()) < BOUND, distances


@EVERY_PAIR
def test_running_statistics_after_a_step(variant, kernels):
    """PyTorch's running variance is unbiased, n / (n - 1) of the batch's; the initial one is drawn the same."""
    if variant == "gated":
        pytest.skip("it has none")
    twins, batch, ours = training_pass(variant, kernels)
    twins = make_twins(variant)
    torch_pass(twins, batch)
    expected = flatten(port.from_state_dict(twins.torch_model.state_dict(), twins.config)["batch_stats"])
    before, got = flatten(twins.variables["batch_stats"]), flatten(ours["batch_stats"])
    positions = {cost.name: BATCH * cost.shape[0] * cost.shape[1] for cost in budget.summarize(twins.config).layers}
    for key in got:
        mine, theirs = got[key] - MOMENTUM * before[key], expected[key] - MOMENTUM * before[key]
        if key.endswith("var"):
            n = positions[key.split("/")[0]]
            theirs = theirs * (n - 1) / n
        assert distance(mine, theirs) < BOUND, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_of_the_whole_network(variant):
    from baselines.model import create_model
    from configs import base, dilated, fast, mixed, record

    configs = {"strided": base, "dilated": dilated, "mixed": mixed, "coarse": fast, "gated": record}
    model = configs.get(variant, base).get_config().model
    if variant in configs:
        assert model.variant == variant
    else:
        model.variant = variant
    assert sum(p.numel() for p in create_model(model).parameters()) == budget.summarize(model).parameters


@ALL_VARIANTS
def test_receptive_field_by_the_twins_input_gradient(variant):
    """Positive weights and identity statistics: no term cancels, so the gradient of a unit covers its whole field."""
    from baselines.model import create_model

    config = model_section(variant)
    model = create_model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(0.1)
    field = budget.summarize(config).receptive_field
    x = torch.ones((1, 3, 2 * field + 64, 2 * field + 64), dtype=torch.float64, requires_grad=True)
    y = model.features(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    touched = x.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        extent = np.flatnonzero(touched.any(axis).numpy())
        assert extent[-1] - extent[0] + 1 == field
        assert extent[0] > 0 and extent[-1] < x.shape[-1] - 1  # not cut off by the border
