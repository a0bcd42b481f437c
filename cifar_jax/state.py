"""Everything that training changes, as one pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class TrainState:
    """step: int32, updates made. params, batch_stats: as the model has them, {} where it keeps no statistics. ema:
    {"params", "batch_stats"} or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any


def make_create(model, tx, *, with_ema: bool):
    """Returns the compiled create(seed) -> initial TrainState, all randomness from the seed, 0 <= seed < 2**32."""

    def create(seed):
        variables = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)

    # It runs once: compiling it well takes three times as long as compiling it plainly, and longer than all else before
    # the first step.
    compiled = jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})
    return lambda seed: compiled(np.uint32(seed))


def create_state(model, tx, seed: int, *, with_ema: bool) -> TrainState:
    """The initial state of one run; see make_create."""
    return make_create(model, tx, with_ema=with_ema)(seed)


def final_variables(state: TrainState) -> dict:
    """What is evaluated and shipped: the averaged weights where there are any, else the newest."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}
