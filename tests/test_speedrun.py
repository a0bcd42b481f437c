"""The shortest training, timed: the same numbers as `python run.py`, whatever the warm-up and the seeds before."""

import itertools
import json

import numpy as np
import pytest
from test_resident import DATA, TINY, shallow

from benchmarks import ablation, speedrun
from cifar_jax import train as train_module
from cifar_jax.config import read_config, to_json
from cifar_jax.errors import InputError
from cifar_jax.models import c1c2c3c40

FLAGS = ["--config", "configs/smoke.py", *(f"--config.{text}" for text in (*TINY, "augment.backend=device"))]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: DATA)
    monkeypatch.setattr(speedrun, "load_dataset", lambda source, directory: DATA)
    monkeypatch.setattr(ablation, "load_dataset", lambda source, directory: DATA)


def test_each_seed_ends_in_what_its_run_ends_in(quick, tmp_path, capsys):
    mixing = "--config.augment.mixup.p=0.5"
    speedrun.main([*FLAGS, mixing, "--runs", "2", "--seed", "3", "--json"])
    report = json.loads(capsys.readouterr().out)
    for run, seed in zip(report["runs"], (3, 4), strict=True):
        _, config = speedrun.measure.parse(speedrun.make_parser(), [*FLAGS, mixing, f"--config.seed={seed}"])
        result = train_module.train(config, tmp_path / str(seed))
        assert (run["seed"], run["correct"], run["examples"]) == (seed, result["correct"], 45)
    assert report["n"] == 2 and report["accuracy"]["mean"] == pytest.approx(
        np.mean([100 * run["correct"] / 45 for run in report["runs"]])
    )
    assert 0 < report["seconds"]["mean"] < report["warm_up_seconds"]


def test_a_warm_up_learns_nothing(quick):
    """Random labels, and the true ones again afterwards."""
    _, config = speedrun.measure.parse(speedrun.make_parser(), FLAGS)
    run = speedrun.Speedrun(config, DATA)
    seen = []
    train_epoch = run._resident.train_epoch

    def record(*args, **options):
        seen.append(np.asarray(run._resident.data[1]))
        return train_epoch(*args, **options)

    run._resident.train_epoch = record
    run.warm_up()
    run.run(0)
    assert (seen[0] == DATA.train.labels).mean() < 0.3
    for labels in seen[1:]:
        np.testing.assert_array_equal(labels, DATA.train.labels)


def test_held_out_images_are_evaluated_where_there_are_any(quick, capsys):
    speedrun.main([*FLAGS, "--config.data.num_validation=30", "--runs", "1"])
    assert "'examples': 30" in capsys.readouterr().out


def test_an_ablation_leaves_one_ingredient_out_and_is_the_same_training_otherwise(quick, capsys):
    ablation.main([*FLAGS, "--runs", "2", "--rows", "nesterov", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    speedrun.main([*FLAGS, "--config.optim.nesterov=false", "--runs", "2", "--json"])
    expected = json.loads(capsys.readouterr().out)
    assert [run["correct"] for run in row["runs"]] == [run["correct"] for run in expected["runs"]]
    assert row["without"] == "nesterov" and row["accuracy"] == expected["accuracy"]
    assert ablation.interval([1.0, 3.0]) == pytest.approx(
        12.7062
    )  # t of one degree of freedom, times a deviation of 1 of the mean


def test_an_ablation_of_an_unknown_ingredient_is_refused():
    with pytest.raises(InputError, match="--rows: got 'salt', expected some of all, flip"):
        ablation.main([*FLAGS, "--rows", "all,salt"])


def test_every_row_of_the_ablation_changes_the_config_and_no_two_alike():
    changed = [to_json(read_config("configs/fast.py", [f"--config.{text}" for text in row])) for row in ablation.ROWS.values()]
    assert all(one != other for one, other in itertools.combinations(changed, 2))
