"""Adds finished runs to results/runs.csv, a row a run, and writes the README's tables from the files in results/.

python results/table.py [WORKDIR ...]     a workdir's own name is that of its config, such as runs/base or /tmp/gpu/base; of a
run of a sweep, such as runs/base-sweep/seed-1, it is the sweep's

benchmarks.jsonl holds what `python -m benchmarks.NAME --json` printed, a line a call (the ablation: a row), appended by hand.
"""

import csv
import json
import math
import pathlib
import statistics
import sys

from cifar_jax import arguments, workdir
from cifar_jax.errors import InputError

RUNS = pathlib.Path(__file__).parent / "runs.csv"
BENCHMARKS = pathlib.Path(__file__).parent / "benchmarks.jsonl"
README = pathlib.Path(__file__).parent.parent / "README.md"
FIELDS = (
    "config",
    "seed",
    "epochs",
    "parameters",
    "receptive_field",
    "correct",
    "examples",
    "seconds",
    "device",
    "kernels",
    "versions",
)
TABLES = ("results", "fast", "ablation", "speed")
MARKS = {name: (f"<!-- {name}: written by results/table.py -->\n", f"<!-- end of {name} -->") for name in TABLES}
Z_95 = 1.96
ABLATED = {
    "all": "the recipe as it is",
    "flip": "no mirroring",
    "alternation": "mirrored by chance instead of in turns",
    "translation": "no translation",
    "smoothing": "no label smoothing",
    "muon": "SGD in place of Muon, at the rate for 12 epochs of `early`",
    "nesterov": "momentum without Nesterov's",
    "decay": "no weight decay",
    "warm-up": "no warm-up of the learning rate",
    "network": "base's network, `strided`",
}


def to_row(name: str, result: dict) -> dict:
    """A row of runs.csv from a result.json; name: that of the config. A run that other weights had a part in is another entry."""
    parts = {"init": "from", "distill": "taught by"}
    others = [f"{word} {given}" for key, word in parts.items() if (given := result["config"].get(key, {}).get("weights"))]
    return {
        "config": ", ".join([name, *others]),
        "seed": result["seed"],
        "epochs": result["epochs"],
        "parameters": result["parameters"],
        "receptive_field": result["receptive_field"],
        "correct": result["correct"],
        "examples": result["examples"],
        "seconds": round(result["train_seconds"]),
        "device": result["device"],
        "kernels": result.get("kernels", result.get("framework", "xla")),
        "versions": " ".join(f"{key}={value}" for key, value in result["versions"].items()),
    }


def read_rows() -> list[dict]:
    """All rows of runs.csv, as text."""
    if not RUNS.exists():
        return []
    with RUNS.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[dict]) -> None:
    with RUNS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def format_table(rows: list[dict]) -> str:
    """A Markdown table: a line for each (config, epochs, device, kernels), mean ± std over its seeds where there are several.

    The accuracy of a single run carries the 95 % interval of counting that many images instead.
    """
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("config", "epochs", "device", "kernels")), []).append(row)
    lines = [
        "| config | parameters | receptive field | epochs | test accuracy | n | training time | device; kernels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (config, epochs, device, kernels), group in groups.items():
        parameters, field = f"{int(group[0]['parameters']):,}", group[0]["receptive_field"]
        seconds = [float(row["seconds"]) for row in group if row["seconds"]]
        time = f"{statistics.mean(seconds) / 60:.1f} min" if seconds else "not measured alone"
        cells = (config, parameters, field, epochs, _accuracy(group), len(group), time, f"{device}; {kernels}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _accuracy(group: list[dict]) -> str:
    fractions = [int(row["correct"]) / int(row["examples"]) for row in group]
    mean = statistics.mean(fractions)
    if len(group) > 1:
        return f"{100 * mean:.2f} ± {100 * statistics.stdev(fractions):.2f} %"
    row = group[0]
    interval = Z_95 * math.sqrt(mean * (1 - mean) / int(row["examples"]))
    return f"{100 * mean:.2f} % ({row['correct']} of {row['examples']}; 95 % interval ± {100 * interval:.2f})"


def read_benchmarks() -> list[dict]:
    """What each benchmark printed, the latest call last."""
    return [json.loads(line) for line in BENCHMARKS.read_text().splitlines()]


def format_speed(reports: list[dict]) -> str:
    """A Markdown table of the comparison with PyTorch, from the latest report of each kind."""
    latest = {(report["benchmark"], report.get("batches", report.get("network"))): report for report in reports}
    steps = [report for (name, _), report in latest.items() if name == "train_step"]
    epoch = latest["epoch", None]
    lines = [f"| {steps[0]['machine'].split('; load')[0]} | cifar_jax | PyTorch | ratio |", "|---|---|---|---|"]

    def line(what, report, ours, theirs, others=()):
        ratios = "; ".join(f"{report['ratios'][f'{name} over ours']['median']:.2f}" for name in ("torch", *others))
        return f"| {what}, medians of {report['sides']['ours']['n']} | {ours} | {theirs} | {ratios} |"

    for step in steps:
        ms = {name: f"{1000 * side['median']:.0f} ms" for name, side in step["sides"].items()}
        theirs = f"{ms['torch']} channels_last; {ms['torch_compiled']} torch.compile"
        lines.append(line(f"training step, {step['network']}", step, ms["ours"], theirs, ["torch_compiled"]))
    for (name, batches), report in latest.items():
        if name == "loader":
            speed = {name: f"{value:,} images/s" for name, value in report["images_per_second"].items()}
            what = f"loader, batches {batches}; {report['fraction_of_floor']:.2f} of Compose alone"
            lines.append(line(what, report, speed["ours"], f"{speed['torch']}; grain {speed['grain']}", ["grain"]))
    seconds = {name: f"{side['median']:.2f} s" for name, side in epoch["sides"].items()}
    lines.append(line(f"an epoch of {epoch['epoch']}", epoch, seconds["ours"], seconds["torch"]))
    memory = {name: f"{value:,} MB" for name, value in epoch["peak_memory_mb"].items()}
    times = f"{epoch['peak_memory_ours_over_torch']} times theirs"
    what = f"peak memory of a training process and its worker, medians of {epoch['peak_memory_n']}"
    lines.append(f"| {what} | {memory['ours']} | {memory['torch']} | {times} |")
    return "\n".join(lines) + "\n"


def format_fast(reports: list[dict]) -> str:
    """A Markdown table of the shortest trainings, from the latest report of each config and machine."""
    latest = {}
    for report in reports:
        if report["benchmark"] == "speedrun" and report["split"] == "test":
            config = report["config"]
            model, optimizer = config["model"], config["optim"]["name"]
            network = model["variant"], *model["widths"]
            what = report["name"], model["dtype"], network, optimizer, config["train"]["epochs"]
            latest[what, _device(report)] = report
    columns = ("config", "network", "optimizer", "epochs", "test accuracy", "seconds", "n", "device; kernels")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for ((name, dtype, (variant, *_), optimizer, epochs), device), report in latest.items():
        accuracy, seconds = (_spread(report[key], digits) for key, digits in (("accuracy", 2), ("seconds", 1)))
        cells = (f"{name}, {dtype}", variant, optimizer, epochs, f"{accuracy} %", seconds, report["n"], device)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def format_ablation(reports: list[dict]) -> str:
    """A Markdown table of what each ingredient is worth, the latest row of each from the config and machine that came last."""
    reports = [report for report in reports if report["benchmark"] == "ablation"]
    config, device = reports[-1]["config"], _device(reports[-1])
    alike = [report for report in reports if report["config"] == config and _device(report) == device]
    latest = {row["without"]: row for report in alike for row in report["rows"]}
    lines = [f"| {device} | test accuracy, 95 % interval of the mean | n |", "|---|---|---|"]
    for name, row in latest.items():
        accuracy = f"{row['accuracy']['mean']:.2f} ± {row['interval']:.2f} %"
        lines.append(f"| {ABLATED[name]} | {accuracy} | {row['n']} |")
    return "\n".join(lines) + "\n"


def _device(report: dict) -> str:
    return f"{report['machine'].split('; ')[0]}; {report['kernels']}"


def _spread(summary: dict, digits: int) -> str:
    std = "" if summary["std"] is None else f" ± {summary['std']:.{digits}f}"
    return f"{summary['mean']:.{digits}f}{std}"


def updated_readme(text: str, rows: list[dict], reports: list[dict]) -> str:
    """The README with the tables between their marks replaced."""
    tables = {"results": format_table(rows), "fast": format_fast(reports)}
    tables |= {"ablation": format_ablation(reports), "speed": format_speed(reports)}
    for name, table in tables.items():
        begin, end = MARKS[name]
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def read_cifar10(folder: pathlib.Path) -> dict:
    """result.json of a finished run; raises InputError where there is none, or of other images than CIFAR-10's."""
    result = workdir.read_finished(str(folder))
    if (source := result["config"]["data"]["source"]) in ("folder", "shapes"):
        raise InputError(f"{folder}: got a run on data.source={source}, expected one on CIFAR-10, as all rows are; leave it out")
    return result


def main(argv: list[str]) -> None:
    parser = arguments.Parser(prog="python results/table.py", description=__doc__)
    parser.add_argument("workdirs", nargs="*", metavar="WORKDIR", type=arguments.path, help="the folder of a finished run")
    names = parser.parse_args(argv).workdirs
    rows, added = read_rows(), []
    for folder in (pathlib.Path(name).resolve() for name in names):
        name = folder.parent.name.removesuffix("-sweep") if folder.name.startswith("seed-") else folder.name
        row = to_row(name, read_cifar10(folder))
        row = {key: str(value) for key, value in row.items()}
        rows = [r for r in rows if any(r[key] != row[key] for key in ("config", "seed", "epochs", "device", "kernels"))] + [row]
        added.append(
            f"{folder}: a row of {row['config']}, seed {row['seed']}, {row['epochs']} epochs, in {RUNS.name} and {README.name}"
        )
    write_rows(rows)
    README.write_text(updated_readme(README.read_text(), rows, read_benchmarks()))
    print(*added, sep="\n", end="\n" * bool(added))


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
