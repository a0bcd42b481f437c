"""Adds finished runs to results/runs.csv, a row a run, and writes the README's table from those rows.

python results/table.py [WORKDIR ...]     a workdir's own name is that of its config, such as runs/base or /tmp/gpu/base
"""

import csv
import json
import math
import pathlib
import statistics
import sys

RUNS = pathlib.Path(__file__).parent / "runs.csv"
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
BEGIN, END = "<!-- results: written by results/table.py -->\n", "<!-- end of results -->"
Z_95 = 1.96


def to_row(name: str, result: dict) -> dict:
    """A row of runs.csv from a result.json; name: that of the config."""
    return {
        "config": name,
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
        minutes = statistics.mean(float(row["seconds"]) for row in group) / 60
        cells = (config, parameters, field, epochs, _accuracy(group), len(group), f"{minutes:.1f} min", f"{device}; {kernels}")
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


def updated_readme(text: str, rows: list[dict]) -> str:
    """The README with the table between its two marks replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + format_table(rows) + END + after


def main(workdirs: list[str]) -> None:
    rows = read_rows()
    for workdir in map(pathlib.Path, workdirs):
        row = to_row(workdir.name, json.loads((workdir / "result.json").read_text()))
        row = {key: str(value) for key, value in row.items()}
        rows = [r for r in rows if any(r[key] != row[key] for key in ("config", "seed", "epochs", "device", "kernels"))] + [row]
    write_rows(rows)
    README.write_text(updated_readme(README.read_text(), rows))


if __name__ == "__main__":
    main(sys.argv[1:])
