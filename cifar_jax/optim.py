"""Learning-rate schedules and the optimizer, made from the config as optax values."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def make_schedule(schedule, num_steps: int) -> optax.Schedule:
    """The learning rate of each step 0 <= step < num_steps.

    schedule.name: "constant"; "cosine" - linear warm-up, then half a cosine down; "one_cycle" - linear up to
    schedule.learning_rate at warmup_fraction of the steps, then linear down. Down is to final_fraction of learning_rate,
    which the step after the last would have; 0 is rounded to by float32 in the last step of a cosine of some 9,000.

    >>> from ml_collections import ConfigDict
    >>> section = {"name": "one_cycle", "learning_rate": 0.4, "warmup_fraction": 0.5, "final_fraction": 0.0}
    >>> schedule = make_schedule(ConfigDict(section), 8)
    >>> [round(float(schedule(step)), 2) for step in range(8)]
    [0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1]
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
        "cosine": optax.cosine_decay_schedule(peak, down_steps, schedule.final_fraction),
        "one_cycle": optax.linear_schedule(peak, peak * schedule.final_fraction, down_steps),
    }[schedule.name]
    if warmup_steps == 0:
        return down
    # From one step's worth up, not from 0, so that no step is without effect.
    up = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1) if warmup_steps > 1 else (lambda _: peak)
    return optax.join_schedules([up, down], [warmup_steps])


def is_kernel(params):
    """A tree of bools: True for convolution and dense kernels, False for biases and normalization scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def matrices(params):
    """Which parameters Muon orthogonalizes, and as what matrices: kernels (h, w, c, features) that mix channels, c > 1, as
    (h w c, features). None for all else: windows of single channels, the head, scales, biases.
    """
    mixing = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda p: mixing if p.ndim == 4 and p.shape[2] > 1 else None, params)


def make_optimizer(optim, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD or AdamW as PyTorch writes them, the decay on kernels only; or Muon, the decay on `matrices` only.

    "sgd": the decay joins the gradient before momentum; see optax.sgd. "adamw": it joins the update, times the learning
    rate; momentum and b2 are the decay rates of the two averages, epsilon is 1e-8; see optax.adamw. "muon": the averaged
    gradients of `matrices`, made nearly orthogonal and 0.2 in root mean square, to which the decay is added; momentum is the
    decay rate of that average. All else takes the steps of Adam (with nesterov of NAdam), at the same learning rate and without
    decay; 0.9 and b2 are the decay rates of its averages. See optax.contrib.muon, arXiv:2502.16982.
    """
    if optim.name == "muon":
        return contrib.muon(
            schedule,
            beta=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
            adam_b1=0.9,
            adam_b2=optim.b2,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    if optim.name == "adamw":
        return optax.adamw(schedule, optim.momentum, optim.b2, weight_decay=optim.weight_decay, mask=is_kernel)
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay, is_kernel),
        optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov),
    )
