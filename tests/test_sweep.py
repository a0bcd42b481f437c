"""A sweep: a run a seed that can be resumed and extended, mean and deviation, and what it refuses before it writes anything."""

import dataclasses
import errno
import json
import os
import statistics

import pytest
from ml_collections import ConfigDict
from test_resident import DATA, TINY, shallow
from test_results import table

import run
from cifar_jax import sweep as sweep_module
from cifar_jax import train as train_module
from cifar_jax.data.dataset import Split
from cifar_jax.jsonfile import read_json
from cifar_jax.models import c1c2c3c40

FLAGS = ["--config", "configs/smoke.py", *(f"--config.{text}" for text in (*TINY, "augment.backend=device", "data.source=auto"))]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A function that runs `sweep` in this process and returns (exit code, stdout, stderr)."""
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
    for module in (sweep_module, train_module):
        monkeypatch.setattr(module, "load_dataset", lambda source, directory: DATA)

    def run_sweep(*argv, workdir=tmp_path / "tiny-sweep"):
        code = run.main(["sweep", *FLAGS, "--workdir", str(workdir), *argv])
        return code, *capsys.readouterr()

    return run_sweep


def test_a_sweep_is_a_run_a_seed_and_goes_on_where_it_was(call, tmp_path, monkeypatch):
    code, out, said = call("--seeds", "3,1", "--json", "--config.log.progress=lines")
    summary = json.loads(out)  # what the runs say goes to stderr
    assert code == 0 and "Epoch 2/2" in said and [row["seed"] for row in summary["rows"]] == [1, 3] and summary["n"] == 2
    accuracies = [row["accuracy"] for row in summary["rows"]]
    assert (summary["mean"], summary["std"]) == (statistics.mean(accuracies), statistics.stdev(accuracies))
    for row in summary["rows"]:
        result = read_json(tmp_path / "tiny-sweep" / f"seed-{row['seed']}" / "result.json")
        assert result["seed"] == result["config"]["seed"] == row["seed"] and result["correct"] == row["correct"]
    assert read_json(tmp_path / "tiny-sweep" / "sweep.json") == summary

    # Asked again, for one of them: nothing is trained, and the other still counts.
    trained = []
    monkeypatch.setattr(train_module, "_run", lambda config, *rest: trained.append(config.seed))
    assert call("--seeds", "3", "--config.log.progress=lines") == (0, sweep_module.format_sweep(summary) + "\n", "")
    assert trained == []

    # Seed 5 is new; the folder's other runs are of another config, or other data.
    code, _, err = call("--seeds", "5", "--config.train.epochs=3")
    assert code == 2 and "made with another config: train.epochs (2 there, 3 here)" in err
    other = dataclasses.replace(DATA, train=Split(DATA.train.images[::-1], DATA.train.labels))
    for module in (sweep_module, train_module):
        monkeypatch.setattr(module, "load_dataset", lambda source, directory: other)
    code, _, err = call("--seeds", "5")
    assert code == 2 and "seed-1 holds a run on other data" in err and not (tmp_path / "tiny-sweep" / "seed-5").exists()

    monkeypatch.setattr(table, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    table.README.write_text("".join(begin + end for begin, end in table.MARKS.values()))
    table.main([str(tmp_path / "tiny-sweep" / f"seed-{seed}") for seed in (1, 3)])
    assert f"{100 * summary['mean']:.2f} ± {100 * summary['std']:.2f} % | 2 |" in table.README.read_text()
    assert [row["config"] for row in table.read_rows()] == ["tiny", "tiny"]


def test_one_seed_has_no_deviation():
    result = {"seed": 0, "correct": 9, "examples": 10, "accuracy": 0.9, "train_seconds": 61.0}
    summary = sweep_module.summarize(ConfigDict({}), [result])
    assert summary["std"] is None
    assert sweep_module.format_sweep(summary) == "seed 0: 90.00% (9/10) in 01:01\nTest accuracy      90.00% (n = 1)"


@pytest.mark.parametrize("text", ["", "x", "1,", "1,1", "-1", "1.5", "0 1"])
def test_seeds_that_are_none(refused, text):
    assert "--seeds: got" in refused("sweep", *FLAGS[:2], f"--seeds={text}")


def test_a_seed_that_is_too_large_and_none_at_all(refused):
    config = str(run.BASE.parent / "smoke.py")
    assert "seed: got 4294967296, expected a whole number from 0" in refused(
        "sweep", "--config", config, "--seeds", "0,4294967296"
    )
    assert "got no --seeds, expected it" in refused("sweep", "--config", config)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line(call, tmp_path, monkeypatch):
    result = {"seed": 0, "correct": 9, "examples": 10, "accuracy": 0.9, "train_seconds": 61.0}
    (tmp_path / "s").mkdir()

    def train_and_fill(config, folder):
        (tmp_path / "s" / "sweep.json.tmp").symlink_to("/dev/full")
        return result

    monkeypatch.setattr(sweep_module, "train", train_and_fill)
    code, _, err = call("--seeds", "0", workdir=tmp_path / "s")
    assert code == 1 and err.count("\n") == 1 and f"cannot be written ({os.strerror(errno.ENOSPC)}); make room there" in err


def test_a_folder_where_a_file_should_be(refused, tmp_path):
    (tmp_path / "full" / "sweep.json").mkdir(parents=True)
    (tmp_path / "full" / "seed-1").touch()
    argv = ["sweep", "--config", str(run.BASE.parent / "smoke.py"), "--seeds", "0", "--workdir", tmp_path / "full"]
    assert "which holds seed-1, expected nothing but the runs of a sweep" in refused(*argv)
    (tmp_path / "full" / "seed-1").unlink()
    assert "which holds sweep.json, expected nothing but the runs of a sweep" in refused(*argv)


@pytest.mark.parametrize("name", ["config.json", "seed-0.bak", "thesis.tex", "seed-x", "seed-01"])
def test_a_folder_that_holds_something_else(refused, tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / name).touch()
    config = str(run.BASE.parent / "smoke.py")
    assert f"which holds {name}, expected nothing but the runs of a sweep" in refused(
        "sweep", "--config", config, "--seeds", "0", "--workdir", tmp_path / "full"
    )


def test_a_later_seeds_folder_is_looked_at_before_the_first_is_trained(refused, tmp_path):
    (tmp_path / "full" / "seed-1").mkdir(parents=True)
    (tmp_path / "full" / "seed-1" / "notes").touch()
    config = str(run.BASE.parent / "smoke.py")
    said = refused("sweep", "--config", config, "--seeds", "0,1", "--workdir", tmp_path / "full")
    assert "seed-1, which holds files but no run" in said
