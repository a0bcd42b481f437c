"""The README's tables are what the files in results/ say."""

import functools
import importlib.util
import pathlib
import shutil

import pytest

from benchmarks.ablation import ROWS
from cifar_jax import arguments
from cifar_jax.jsonfile import write_json

ROOT = pathlib.Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("table", ROOT / "results" / "table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def make_row(**changes):
    row = {"config": "base", "seed": "0", "epochs": "2", "parameters": "89386", "receptive_field": "83", "correct": "8600"}
    return (
        row | {"examples": "10000", "seconds": "60", "device": "cpu: 2 cores, X", "kernels": "native", "versions": ""} | changes
    )


def test_readme_tables_are_generated_from_the_rows():
    text = (ROOT / "README.md").read_text()
    assert table.updated_readme(text, table.read_rows(), table.read_benchmarks()) == text


def test_the_latest_report_of_each_benchmark_is_shown():
    reports = table.read_benchmarks()
    old = [{**report, "peak_memory_mb": {"ours": 1, "torch": 1}} for report in reports if report["benchmark"] == "epoch"]
    assert table.format_speed(old + reports) == table.format_speed(reports) != table.format_speed(reports + old)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """results/table.py on files of the test's own, as a function of its arguments that returns the exit code."""
    for name in ("RUNS", "README"):
        monkeypatch.setattr(table, name, shutil.copy(getattr(table, name), tmp_path / getattr(table, name).name))
    return functools.partial(arguments.run, table.main)


def write_run(folder, source):
    sizes = {"parameters": 89386, "receptive_field": 83, "epochs": 2, "train_seconds": 60.0, "device": "cpu: 2 cores, X"}
    counts = {"train_accuracy": 0.9, "accuracy": 0.86, "correct": 8600, "examples": 10000, "loss": 0.5}
    config = {"data": {"source": source}}
    result = {"seed": 7, "config": config, "versions": {}, "kernels": "native", "per_class_accuracy": {"cat": 0.86}}
    folder.mkdir()
    write_json(folder / "result.json", result | sizes | counts)
    return str(folder)


def test_a_finished_run_becomes_a_row_and_is_said(tables, tmp_path, capsys):
    assert tables([write_run(tmp_path / "base", "auto")]) == 0
    assert "a row of base, seed 7, 2 epochs" in capsys.readouterr().out
    assert [row["correct"] for row in table.read_rows() if row["seed"] == "7"] == ["8600"]
    assert "| base | 89,386 | 83 | 2 | 86.00 % (8600 of 10000" in table.README.read_text()


@pytest.mark.parametrize(
    ("source", "said"),
    [("", "holds no finished run"), ("folder", "expected one on CIFAR-10"), ("shapes", "expected one on CIFAR-10")],
)
def test_no_run_or_one_on_other_images_is_refused(tables, tmp_path, capsys, source, said):
    good, other = write_run(tmp_path / "base", "auto"), str(tmp_path / "other")
    if source:
        write_run(tmp_path / "other", source)
    before = table.RUNS.read_bytes(), table.README.read_bytes()
    assert tables([good, other]) == 2
    out, err = capsys.readouterr()
    assert said in err and out == ""
    assert before == (table.RUNS.read_bytes(), table.README.read_bytes())


def test_a_run_whose_time_is_not_known_shows_none():
    assert "| not measured alone |" in table.format_table([make_row(seconds="")])


def test_every_row_counts_the_whole_test_set():
    assert table.read_rows()
    assert all(row["examples"] == "10000" and int(row["parameters"]) < 100_000 for row in table.read_rows())


def test_one_run_shows_its_count_and_interval():
    # 1.96 * sqrt(0.86 * 0.14 / 10000) = 0.0068
    assert "86.00 % (8600 of 10000; 95 % interval ± 0.68)" in table.format_table([make_row()])


def test_a_run_that_other_weights_had_a_part_in_is_an_entry_of_its_own():
    names = ("seed", "epochs", "parameters", "receptive_field", "correct", "examples", "device")
    result = dict.fromkeys(names, 1) | {"train_seconds": 1.0, "versions": {}, "config": {"distill": {"weights": ""}}}
    taught = {"init": {"weights": "base"}, "distill": {"weights": "wide.safetensors"}}
    assert table.to_row("record", result)["config"] == "record"
    assert table.to_row("record", result | {"config": taught})["config"] == "record, from base, taught by wide.safetensors"


def test_rows_of_another_recipe_are_no_part_of_an_ablation():
    (report,) = [report for report in table.read_benchmarks() if report["benchmark"] == "ablation"][-1:]
    other = report | {"config": report["config"] | {"seed": 1}, "rows": [row | {"without": "flip"} for row in report["rows"]]}
    assert table.format_ablation([other, report]) == table.format_ablation([report])


def test_every_row_of_an_ablation_has_its_words():
    assert table.ABLATED.keys() == ROWS.keys()


def test_trainings_that_differ_in_network_or_widths_are_rows_of_their_own():
    report = next(report for report in table.read_benchmarks() if report["benchmark"] == "speedrun")
    config = report["config"]
    models = ({}, {"variant": "dilated"}, {"widths": [8, 8, 8, 8]}, {})  # the last takes the first one's place
    reports = [report | {"config": config | {"model": config["model"] | changes}} for changes in models]
    assert len(table.format_fast(reports).splitlines()) == 2 + 3


def test_several_seeds_show_mean_and_standard_deviation():
    rows = [make_row(), make_row(seed="1", correct="8700"), make_row(seed="2", correct="8800")]
    line = table.format_table(rows).splitlines()[-1]
    assert "87.00 ± 1.00 %" in line and "| 3 |" in line
