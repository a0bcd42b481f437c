"""How benchmarks measure: sides in turn in one process, medians, spread and ratio; what the machine can do at most."""

import json
import os
import pathlib
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from cifar_jax import arguments
from cifar_jax.config import check_config, read_config
from cifar_jax.errors import InputError

PACKAGES = ("jax", "torch", "numpy", "albumentations", "grain", "kornia", "torchvision")


def make_parser(doc: str, **defaults) -> arguments.Parser:
    """The flags that all benchmarks share; see parse."""
    parser = make_plain_parser(doc)
    parser.add_argument("--config", type=arguments.path, default="configs/base.py", help="chooses the network and the batch")
    parser.add_argument("--repeats", type=arguments.whole(1), default=defaults.get("repeats", 9), help="of every side")
    return parser


def make_plain_parser(doc: str) -> arguments.Parser:
    """The parser of a benchmark that times no sides; doc: its header."""
    name = f"python -m benchmarks.{pathlib.Path(sys.argv[0]).stem}"
    parser = arguments.Parser(prog=name, description=doc)
    parser.add_argument("--json", action="store_true", help="print one object, last")
    return parser


def parse(parser: arguments.Parser, argv: list[str]):
    """Returns (flags, checked config)."""
    flags, overrides = arguments.parse(parser, argv)
    config = read_config(flags.config, overrides)
    check_config(config)
    for section in ("init", "distill"):
        if name := config[section].weights:
            raise InputError(
                f"{section}.weights: got {name!r}, expected '': a benchmark trains from the seed alone; leave it out"
            )
    return flags, config


def in_turn(sides: dict, repeats: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each call: {name: [repeats]}. A side is a function without arguments; one unmeasured round warms up.

    The order is reversed every other round, so that a drift of the machine favours nobody. `pause` seconds before each
    call let what the side before it left running in the background come to rest.
    """
    seconds = {name: [] for name in sides}
    for i in range(repeats + 1):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            time.sleep(pause)
            began = time.perf_counter()
            sides[name]()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def summarize(seconds: dict[str, list[float]], scale: float = 1.0) -> dict:
    """{name: {median, low, high, n}} with low and high the quartiles; seconds are divided by `scale`."""

    def one(values):
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)) / scale
        return {"median": float(median), "low": float(low), "high": float(high), "n": len(values)}

    return {name: one(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict:
    """Median and quartiles of theirs over ours, round by round: above 1 we are faster."""
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high), "n": len(ratios)}


def peak_flops() -> float:
    """Float32 operations a second of a large matrix product in JAX on this machine: what a step could at most do."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.devices()[0].platform == "cpu" else 8192
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(7):
        began = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)


def peak_bandwidth() -> float:
    """Bytes a second read plus written by a compiled pass over 256 MB, larger than what caches hold of it."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(64 * 2**20, jnp.float32)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(x).block_until_ready()
    times = []
    for _ in range(7):
        began = time.perf_counter()
        x = step(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(times)


def machine() -> str:
    """Processor or GPU, cores, and versions of what the figures depend on."""
    from cifar_jax.workdir import describe_device

    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            pass
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{describe_device()}; Python {platform.python_version()}, {', '.join(found)}; {load}"


def print_report(report: dict, as_json: bool) -> None:
    """Prints a report as one object, or as a line a field."""
    print(json.dumps(report) if as_json else "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in report.items()))


def show(report: dict, as_json: bool) -> None:
    """Prints a report: {"sides": summaries in seconds, "ratios": {name: ratio}, ...other lines}; the ratio comes last."""
    if as_json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        if key not in ("sides", "ratios", "ratio"):
            print(f"{key.replace('_', ' ')}: {value}")
    for name, s in report["sides"].items():
        print(
            f"{name:24s} {1000 * s['median']:9.2f} ms   quartiles {1000 * s['low']:.2f} - {1000 * s['high']:.2f}   n = {s['n']}"
        )
    for name, r in report["ratios"].items():
        print(f"{name}: {r['median']:.2f} (quartiles {r['low']:.2f} - {r['high']:.2f})")
    print(f"ratio {report['ratio']:.2f}")
