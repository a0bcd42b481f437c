"""Damages every file that a run or the data cache reads again, in many ways, and counts what is noticed.

python -m benchmarks.damage [--flips 200] [--seed 0] [--json]

Each file in turn: bits flipped (--flips of them, at random places), cut at as many places, lengthened, emptied, deleted.
Noticed: the newest checkpoint is passed over for the one before, with a warning that names the file;
anything else is refused, or is read as exactly what was written (white space). Exit code 1 where damage got through.

Latest result: see results/reliability.md.
"""

import collections
import logging
import pathlib
import random
import sys
import tempfile

import numpy as np

from benchmarks.kill import train_reference
from benchmarks.measure import make_plain_parser, print_report
from cifar_jax import arguments, manifest
from cifar_jax.checkpoint import find_newest, list_steps
from cifar_jax.data import cache
from cifar_jax.errors import InputError
from cifar_jax.jsonfile import read_json
from cifar_jax.weights import load_weights


def damages(content: bytes, flips: int, rng: random.Random):
    """Yields (name of the damage, the content damaged so; None: the file is gone)."""
    for _ in range(flips if content else 0):
        flipped = bytearray(content)
        bit = rng.randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        yield "flipped", bytes(flipped)
        yield "cut", content[: rng.randrange(len(content))]
    if content:
        yield "emptied", b""
    yield "lengthened", content + b"\n"
    yield "deleted", None


def is_refused(read, written) -> bool:
    """Whether a reader refuses what is there, or finds exactly what was written."""
    try:
        return read() == written
    except InputError as error:
        return "\n" not in str(error)


def make_readers(run: pathlib.Path, folder: pathlib.Path) -> list[tuple]:
    """(what it is, its files, is_noticed(file)) of all that is read again of a finished run, and of a cache in `folder`."""
    newest, before = list_steps(run / "checkpoints")[::-1][:2]
    files = [path for path in sorted((run / "checkpoints" / str(newest)).rglob("*")) if path.is_file()]
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    log = logging.getLogger("cifar_jax")
    log.addHandler(handler)
    log.propagate = False  # thousands of lines

    def passed_over(path):
        warnings.clear()
        found = find_newest(run / "checkpoints")
        # Where the manifest itself is damaged, a file seems to differ from it.
        return found == before and (path.name in warnings[0] or path.name == manifest.NAME)

    readers = [("checkpoint", files, passed_over)]
    for name in ("config.json", "result.json"):
        written = read_json(run / name)
        readers.append((name, [run / name], lambda path, w=written: is_refused(lambda: read_json(path), w) or not path.exists()))

    def read_weights(path=run / "weights.safetensors"):
        found = load_weights(str(path))
        return repr((found.config, found.classes, found.mean, found.std, found.train_seconds)), [
            (name, value.tobytes())
            for layers in found.variables.values()
            for name, layer in layers.items()
            for value in flat(layer)
        ]

    def flat(tree):
        return [leaf for value in tree.values() for leaf in flat(value)] if isinstance(tree, dict) else [tree]

    written = read_weights()
    readers.append(("weights", [run / "weights.safetensors"], lambda path: is_refused(read_weights, written)))
    rng = np.random.default_rng(0)
    sizes = {"x_train": (100, 32, 32, 3), "y_train": (100,), "x_test": (20, 32, 32, 3), "y_test": (20,)}
    arrays = cache.Arrays(**{name: rng.integers(0, 10, size, np.uint8) for name, size in sizes.items()})
    release = cache.Release(20, {name: cache.digest(array) for name, array in arrays._asdict().items()}, {}, {})
    stored = pathlib.Path(cache.write_cache(str(folder), arrays, "made"))

    def refilled(path):
        found = cache.read_cache(str(folder), release)
        return found is None or all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))

    readers.append(("data cache", sorted(stored.glob("*.npy")), refilled))
    return readers


def measure(run: pathlib.Path, folder: pathlib.Path, flips: int, seed: int) -> dict:
    """Damages the files of a finished run, which are then as before, and of a cache in `folder`; returns what was counted."""
    rng, counts, faults = random.Random(seed), collections.Counter(), []
    for name, files, is_noticed in make_readers(run, folder):
        for path in files:
            whole = path.read_bytes()
            for damage, content in damages(whole, flips, rng):
                path.unlink() if content is None else path.write_bytes(content)
                counts[name] += 1
                if not is_noticed(path):
                    faults.append(f"{path}: {damage}")
            path.write_bytes(whole)
    return {"cases": sum(counts.values()), **counts, "faults": faults}


def main(argv) -> int:
    parser = make_plain_parser(__doc__)
    parser.add_argument("--flips", type=arguments.whole(1), default=200, help="bits flipped, and cuts, of each file")
    parser.add_argument("--seed", type=arguments.whole(0), default=0, help="of the places")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cifar_jax-damage-") as name:
        folder = pathlib.Path(name)
        train_reference(folder)
        report = measure(folder / "reference", folder, flags.flips, flags.seed)
    print_report(report, flags.json)
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
