"""Bad flags and config values: one line on stderr that says what was got, expected and to be done; exit code 2."""

import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batchsize=1", ["train.batchsize", "did you mean --config.train.batch_size?"]),
        ("trian.epochs=1", ["trian.epochs", "did you mean --config.train.epochs?"]),
        ("augment.to_grey.p=1", ["augment.to_grey.p", "did you mean --config.augment.to_gray.p?"]),
        ("zzz=1", ["zzz", "known keys", "train.epochs"]),
        ("train.epochs=abc", ["train.epochs: got 'abc', expected a whole number; write --config.train.epochs=6"]),
        ("train.epochs=2.5", ["train.epochs: got '2.5', expected a whole number"]),
        ("train.epochs=", ["train.epochs: got '', expected a whole number"]),
        ("optim.nesterov=maybe", ["optim.nesterov: got 'maybe', expected true or false"]),
        ("schedule.learning_rate=fast", ["schedule.learning_rate: got 'fast', expected a number"]),
        ("model.widths=abc", ["model.widths", "'abc'", "four whole numbers"]),
        ("model.widths=(8,8,8)", ["model.widths", "(8, 8, 8)", "four whole numbers"]),
        ("model.widths=(8,8,8,0)", ["model.widths", "(8, 8, 8, 0)", "1 to 4096"]),
        ("model.widths=(8,8,8,8.5)", ["model.widths", "8.5", "four whole numbers"]),
    ],
)
def test_bad_keys_and_types(refused, override, said):
    line = refused("--config", SMOKE, f"--config.{override}")
    assert all(word in line for word in said), line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=61"], ["train.batch_size", "got 61", "60 training images"]),
        (["train.batch_size=41", "data.num_validation=20"], ["train.batch_size", "got 41", "40 training images"]),
        (["data.num_validation=60"], ["data.num_validation", "got 60", "fewer than the 60"]),
        (["model.num_classes=7"], ["model.num_classes", "got 7", "expected 10", "--config.model.num_classes=10"]),
        (["model.widths=(64,128,192,256)"], ["parameters", "fewer than 100,000", "lower model.widths"]),
        (["budget.receptive_field=83"], ["receptive field of 83", "more than 83", "variant"]),
        (["optim.name=adamw"], ["optim.nesterov: got True beside adamw", "expected False"]),
        (["data.source=folder"], ["data.dir", "got nothing", "--config.data.dir=FOLDER"]),
    ],
)
def test_values_that_do_not_fit_together(refused, overrides, said):
    line = refused("--config", SMOKE, *(f"--config.{override}" for override in overrides))
    assert all(word in line for word in said), line


@pytest.mark.parametrize("override", ["train.epochs=abc", "train.batch_size=6000"])
def test_a_process_of_its_own_says_one_line_too(tmp_path, override):
    command = [sys.executable, str(ROOT / "run.py"), "--config", SMOKE, f"--config.{override}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--config configs/smoke.py", "evaluate --weights base"])
def test_a_python_without_the_dependencies_says_how_to_install_them(tmp_path, arguments):
    command = [sys.executable, "-S", str(ROOT / "run.py"), *arguments.split()]  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: got a Python without the module ") and done.stderr.count("\n") == 1
    assert f"-m pip install -e {shlex.quote(str(ROOT))}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_host_augmentation_without_albumentations(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    line = refused("--config", SMOKE)
    assert all(word in line for word in ["augment.backend", "got 'host'", "albumentations", "augment.backend=device"]), line
