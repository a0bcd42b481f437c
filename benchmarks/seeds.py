"""Steps of several seeds: mapped by vmap in one program, against one after the other, which is what `run.py sweep` does.

python -m benchmarks.seeds [--config configs/fast.py] [--seeds 4] [--json]; ratio = the faster way of one after the other over
the faster way by vmap: above 1 a sweep would gain by vmap. By the kernels that the machine has, and by XLA's alone; Pallas
kernels cannot be mapped.

Latest result, --repeats 3, --config.model.dtype=float32, --config.model.variant=early,
--config.model.widths="(32, 64, 96, 128)", 2 CPU cores (AMD EPYC), Python 3.11.7, jax 0.10.2, 4 seeds, a step of one, medians of
n = 3: native kernels 64 ms one after the other, 88 ms by vmap; XLA's 116 and 119 ms. Ratio 0.73 (0.73 to 0.73): a sweep gains
nothing. GPU: not measured.
"""

import sys

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.train_step import draw_batch
from cifar_jax import allocator, arguments
from cifar_jax.config import with_overrides
from cifar_jax.models import choose_kernels, create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import make_create
from cifar_jax.steps import make_train_step

STEPS = 5  # of each seed in one measurement


def make_parts(config, num_seeds: int):
    """(step, the initial states of seeds 0 to num_seeds - 1, a batch that all of them take)."""
    model = create_model(config.model)
    tx = make_optimizer(config.optim, make_schedule(config.schedule, 10_000))
    options = {"label_smoothing": config.train.label_smoothing, "ema_decay": config.ema.decay}
    create = make_create(model, tx, with_ema=config.ema.decay > 0)
    states = [create(seed) for seed in range(num_seeds)]
    return make_train_step(model, tx, **options), states, jax.device_put(draw_batch(config))


def make_in_turn(step, states, batch):
    """A function that makes STEPS steps of every state, one state after the other, and returns the states."""
    compiled, states = jax.jit(step, donate_argnums=0), jax.tree.map(jnp.copy, states)

    def run():
        for i, state in enumerate(states):
            for _ in range(STEPS):
                state, _ = compiled(state, batch)
            states[i] = jax.block_until_ready(state)
        return states

    return run


def make_mapped(step, states, batch):
    """The same with all states at once, stacked. Nothing names the mapped axis, so each keeps statistics of its own."""
    compiled = jax.jit(jax.vmap(step, (0, None)), donate_argnums=0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def run():
        nonlocal stacked
        for _ in range(STEPS):
            stacked, _ = compiled(stacked, batch)
        return jax.block_until_ready(stacked)

    return run


def make_sides(config, num_seeds: int) -> dict:
    """{"in turn, KERNELS" or "vmap, KERNELS": a function that makes STEPS steps of each seed}."""
    sides = {}
    for kernels in dict.fromkeys((choose_kernels(config.model)[0], "xla")):
        chosen = with_overrides(config, ["--config.model.kernels=xla"]) if kernels == "xla" else config
        parts = make_parts(chosen, num_seeds)
        sides[f"in turn, {kernels}"] = make_in_turn(*parts)
        if kernels != "pallas":
            sides[f"vmap, {kernels}"] = make_mapped(*parts)
    return sides


def main(argv):
    parser = measure.make_parser(__doc__)
    parser.set_defaults(config="configs/fast.py")
    parser.add_argument("--seeds", type=arguments.whole(1), default=4, help="how many")
    flags, config = measure.parse(parser, argv)
    allocator.keep_freed_memory()  # as training does
    seconds = measure.in_turn(make_sides(config, flags.seeds), flags.repeats)
    sides = measure.summarize(seconds, STEPS * flags.seeds)
    mapped, alone = (min((n for n in sides if n.startswith(way)), key=lambda n: sides[n]["median"]) for way in ("vmap", "in"))
    gain = measure.ratio(seconds, mapped, alone)
    report = {
        "benchmark": "seeds",
        "machine": measure.machine(),
        "network": f"{config.model.variant} {tuple(config.model.widths)}, batch {config.train.batch_size}, {config.model.dtype}",
        "seeds": flags.seeds,
        "sides": sides,  # seconds of a step of one seed
        "ratios": {f"{alone} over {mapped}": gain},
        "ratio": gain["median"],
    }
    measure.show(report, flags.json)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
