"""What each ingredient of the shortest training is worth: the test accuracy without it, over n seeds.

python -m benchmarks.ablation [--config configs/fast.py] [--runs 3] [--rows all,nesterov] [--json]

One row is the config as it is, each other leaves one ingredient out; all train from the same seeds, 0 on, as
benchmarks.speedrun does. An accuracy is a mean with the half width of its 95 % interval (Student's t). Each row is printed once
it is done, with --json as an object. Not for choosing: that is done on held-out images (--config.data.num_validation=5000).

Latest result: README; 7 to 11 minutes a row of 3 on one CPU core (AMD EPYC), 17 by `strided`, other work beside, warm-up not
counted.
"""

import json
import math
import sys

import jax
from scipy import stats

from benchmarks import measure
from benchmarks.speedrun import Speedrun, check, describe, summarize
from cifar_jax import allocator, arguments
from cifar_jax.config import check_config, with_overrides
from cifar_jax.data.sources import load_dataset
from cifar_jax.device import check_device
from cifar_jax.errors import InputError

ROWS = {
    "all": [],
    "flip": ["augment.horizontal_flip.alternate=false", "augment.horizontal_flip.p=0.0"],
    "alternation": ["augment.horizontal_flip.alternate=false"],  # flips drawn by chance instead
    "translation": ["augment.translate.p=0.0"],
    "smoothing": ["train.label_smoothing=0.0"],
    # SGD as it was best on held-out images in 12 epochs of `early`
    "muon": ["optim.name=sgd", "optim.momentum=0.9", "optim.weight_decay=5e-4", "schedule.learning_rate=0.6"],
    "nesterov": ["optim.nesterov=false"],
    "decay": ["optim.weight_decay=0.0"],
    "warm-up": ["schedule.warmup_fraction=0.0"],
    "network": ["model.variant=strided", "model.widths=(32, 64, 96, 128)"],  # base's
}


def interval(values: list[float]) -> float | None:
    """Half the width of the 95 % interval of their mean; None for a single one."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * stats.tstd(values) / math.sqrt(n)) if n > 1 else None


def run_row(name: str, config, dataset, runs: int) -> dict:
    """Trains without the ingredient `name`, from seeds 0 to runs - 1; accuracies in per cent."""
    speedrun = Speedrun(config, dataset)
    speedrun.warm_up()
    done = [speedrun.run(seed) for seed in range(runs)]
    half = interval([100 * run["correct"] / run["examples"] for run in done])
    return {"without": name, "overrides": ROWS[name], "runs": done, "interval": half, **summarize(done)}


def make_parser():
    """The flags of this command."""
    parser = measure.make_plain_parser(__doc__)
    parser.add_argument("--config", type=arguments.path, default="configs/fast.py", help="what is trained")
    parser.add_argument("--runs", type=arguments.whole(1), default=3, help="how many seeds a row")
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, separated by commas; default all of them")
    return parser


def main(argv):
    flags, config = measure.parse(make_parser(), argv)
    names = flags.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise InputError(f"--rows: got {unknown[0]!r}, expected some of {', '.join(ROWS)}; name these, separated by commas")
    configs = {name: with_overrides(config, [f"--config.{text}" for text in ROWS[name]]) for name in names}
    for changed in configs.values():
        check_config(changed)
        check(changed)
    check_device()
    allocator.keep_freed_memory()  # as training does
    dataset = load_dataset(config.data.source, config.data.dir)
    for name, changed in configs.items():
        row = run_row(name, changed, dataset, flags.runs)
        jax.clear_caches()
        half = "" if row["interval"] is None else f" ± {row['interval']:.2f}"
        line = f"{'' if name == 'all' else 'without '}{name}: {row['accuracy']['mean']:.2f}{half} %"
        print(json.dumps(describe("ablation", flags, config) | {"rows": [row]}) if flags.json else line, flush=True)


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
