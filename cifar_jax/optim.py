"""Learning-rate schedules and the optimizer, made from the config as optax values."""

import jax
import jax.numpy as jnp
import optax


def make_schedule(schedule, num_steps: int) -> optax.Schedule:
    """The learning rate of each step 0 <= step < num_steps.

    schedule.name: "constant"; "cosine" - linear warm-up, then half a cosine down to 0; "one_cycle" - linear up to
    schedule.learning_rate at warmup_fraction of the steps, then linear down to 0. The last step's rate is just
    above 0; float32 rounds it to 0 at the end of a cosine of some 9,000 steps or more.
    """
    rate = _make_rate(schedule, num_steps)
    # A step as a float, not an int32, makes the rate float64 where JAX is set to that.
    return lambda step: rate(jnp.asarray(step, jnp.result_type(float)))


def _make_rate(schedule, num_steps):
    peak = schedule.learning_rate
    warmup_steps = round(num_steps * schedule.warmup_fraction)
    down_steps = max(num_steps - warmup_steps, 1)
    if schedule.name == "constant":
        return optax.constant_schedule(peak)
    down = {
        "cosine": optax.cosine_decay_schedule(peak, down_steps),
        "one_cycle": optax.linear_schedule(peak, 0.0, down_steps),
    }[schedule.name]
    if warmup_steps == 0:
        return down
    # From one step's worth up, not from 0, so that no step is without effect.
    up = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1) if warmup_steps > 1 else (lambda _: peak)
    return optax.join_schedules([up, down], [warmup_steps])


def is_kernel(params):
    """A tree of bools: True for convolution and dense kernels, False for biases and normalization scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(optim, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD as PyTorch writes it: the decay (kernels only) joins the gradient before momentum; see optax.sgd."""
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay, is_kernel),
        optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov),
    )
