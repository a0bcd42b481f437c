"""Everything that training changes, as one pytree."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class TrainState:
    """step: int32, updates made. params, batch_stats: as the model has them. ema: {"params", "batch_stats"} or None."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any


def create_state(model, tx, seed: int, *, with_ema: bool) -> TrainState:
    """Initial state; all randomness from `seed`."""
    # It runs once: compiling it well takes three times as long as compiling it plainly, and longer than all else before
    # the first step.
    init = jax.jit(model.init, static_argnames="train", compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)


def final_variables(state: TrainState) -> dict:
    """What is evaluated and shipped: the averaged weights where there are any, else the newest."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}
