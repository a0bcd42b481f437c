"""Updates by both frameworks on the same batches, made from the same config sections."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cifar_jax import port
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import TrainState
from cifar_jax.steps import make_train_step
from tests.parity.twins import KERNELS, UPDATES, distance, draw_batches, flatten, make_twins, to_torch, torch

NUM_STEPS = 20
OPTIM = ConfigDict({"name": "sgd", "momentum": 0.9, "b2": 0.999, "nesterov": True, "weight_decay": 0.01})
SCHEDULE = ConfigDict({"name": "one_cycle", "learning_rate": 0.05, "warmup_fraction": 0.25, "final_fraction": 0.0})


def our_run(twins, batches, num_steps=NUM_STEPS, optim=OPTIM, schedule=SCHEDULE):
    """Yields the variables after each step."""
    tx = make_optimizer(optim, make_schedule(schedule, num_steps))
    step = jax.jit(make_train_step(twins.network, tx, label_smoothing=0.1))
    params, batch_stats = twins.variables["params"], twins.variables.get("batch_stats", {})
    state = TrainState(np.int32(0), params, batch_stats, jax.jit(tx.init)(params), None)
    for batch in batches:
        state, _ = step(state, batch)
        yield flatten({"params": state.params})


def torch_run(twins, batches, num_steps=NUM_STEPS, optim=OPTIM, schedule=SCHEDULE):
    """The same by the baseline's step."""
    from baselines.train import make_optimizer, make_scheduler, train_step

    model = twins.torch_model.train()
    optimizer = make_optimizer(model, optim, schedule.learning_rate)
    scheduler = make_scheduler(optimizer, schedule, num_steps)
    for batch in batches:
        train_step(model, optimizer, scheduler, *to_torch(batch), label_smoothing=0.1)
        yield flatten({"params": port.from_state_dict(model.state_dict(), twins.config)["params"]})


@UPDATES
def test_twenty_steps_in_float64(variant, kernels):
    """1e-8 of a tensor's largest number, at every step: float64's 1e-16 may grow a little with each update."""
    with jax.enable_x64(True):
        twins, batches = make_twins(variant, kernels=kernels), draw_batches(NUM_STEPS)
        steps = 0
        for ours, theirs in zip(our_run(twins, batches), torch_run(twins, batches), strict=True):
            steps += 1
            distances = {key: distance(ours[key], theirs[key]) for key in theirs}
            assert max(distances.values()) <= 1e-8, (steps, distances)
        assert steps == NUM_STEPS
        moved = {key: distance(ours[key], value) for key, value in flatten({"params": twins.variables["params"]}).items()}
        assert min(moved.values()) > 1e-4, moved  # far above the bound: nothing was equal because it stood still


def test_the_average_of_weights_and_means():
    """Three steps with an average of both, in float64; the running variances differ as test_network says."""
    from baselines import train as baseline

    decay = 0.2  # above the cap of the first steps, 1/10 and 2/11, and below the third, 3/12
    with jax.enable_x64(True):
        twins, batches = make_twins("strided", kernels=KERNELS[-1]), draw_batches(3)
        tx = make_optimizer(OPTIM, make_schedule(SCHEDULE, 4))
        step = jax.jit(make_train_step(twins.network, tx, label_smoothing=0.1, ema_decay=decay))
        params, batch_stats = twins.variables["params"], twins.variables["batch_stats"]
        state = TrainState(np.int32(0), params, batch_stats, jax.jit(tx.init)(params), dict(twins.variables))
        model = twins.torch_model.train()
        optimizer = baseline.make_optimizer(model, OPTIM, SCHEDULE.learning_rate)
        scheduler = baseline.make_scheduler(optimizer, SCHEDULE, 4)
        ema = baseline.make_ema(model, decay)
        for batch in batches:
            state, _ = step(state, batch)
            baseline.train_step(model, optimizer, scheduler, *to_torch(batch), label_smoothing=0.1)
            ema.update_parameters(model)
        ours, theirs = flatten(state.ema), flatten(port.from_state_dict(ema.module.state_dict(), twins.config))
        distances = {key: distance(ours[key], theirs[key]) for key in ours if not key.endswith("norm/var")}
        assert max(distances.values()) <= 1e-8, distances
        newest = flatten({"params": state.params})
        assert min(distance(ours[key], newest[key]) for key in newest) > 1e-5  # an average, not the newest


@UPDATES
def test_one_step_in_float32_is_as_near_to_float64_as_pytorch(variant, kernels):
    """Both sides round; ours may be no further from float64 than four times PyTorch's distance, on the whole."""
    (batch,) = draw_batches(1)
    small = {"image": batch["image"].astype(np.float32), "label": batch["label"]}
    wide = {"image": small["image"].astype(np.float64), "label": batch["label"]}
    with jax.enable_x64(True):
        twins = make_twins(variant, np.float32, kernels)
        exact = make_twins(variant, np.float64, kernels)
        exact.variables = jax.tree.map(lambda x: x.astype(np.float64), twins.variables)
        (truth,) = our_run(exact, [wide])
    (ours,) = our_run(twins, [small])
    (theirs,) = torch_run(twins, [small])
    before = flatten({"params": exact.variables["params"]})

    def error(updated):  # of the update, not of the weights, which hardly move
        return {key: distance(updated[key] - before[key], truth[key] - before[key]) for key in truth}

    ours, theirs = error(ours), error(theirs)
    assert np.median(list(ours.values())) <= 4 * np.median(list(theirs.values())), (ours, theirs)
    assert max(ours.values()) <= 4 * max(theirs.values()), (ours, theirs)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup_fraction, final_fraction", [(0.0, 0.0), (0.02, 0.1), (0.25, 0.0), (0.25, 0.5)])
def test_learning_rate_of_every_step(name, warmup_fraction, final_fraction):
    from baselines.train import make_scheduler

    fractions = {"warmup_fraction": warmup_fraction, "final_fraction": final_fraction}
    schedule = ConfigDict({"name": name, "learning_rate": 0.4} | fractions)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=schedule.learning_rate)
    scheduler = make_scheduler(optimizer, schedule, num_steps=60)
    theirs = []
    for _ in range(60):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = make_schedule(schedule, 60)
    # float32 rates against float64 ones: a few roundings of numbers up to the peak
    np.testing.assert_allclose([float(ours(i)) for i in range(60)], theirs, rtol=0, atol=4 * 6e-8 * 0.4)
