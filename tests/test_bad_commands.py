"""Bad input to the PyTorch twin and to the benchmarks: one line on stderr, exit code 2, nothing written, as run.py has it."""

import functools
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from cifar_jax import arguments
from cifar_jax.errors import RunError

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
FAST = str(ROOT / "configs" / "fast.py")
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", "measure"))
PLAIN = ("ablation", "damage", "deploy", "gpu_compile", "kill", "speedrun")  # those that time no sides in turn


def run_benchmark(name, monkeypatch):
    """The benchmark as `python -m benchmarks.NAME` runs it, as a function of its arguments that returns the exit code."""
    module = importlib.import_module(f"benchmarks.{name}")

    def main(argv):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *argv])
        return arguments.run(module.main, argv)

    return main


@pytest.fixture
def benchmark_refused(refused, monkeypatch):
    return lambda name, *argv: refused(*argv, main=run_benchmark(name, monkeypatch))


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epochs"], "--epochs: unknown argument; see python -m benchmarks.NAME --help"),
        (["x"], "x: unknown argument; see python -m benchmarks.NAME --help"),
        (["--jso"], "--jso: unknown argument"),
        (["--json=x"], "--json: got the value 'x', expected none"),
    ],
)
def test_arguments_that_no_benchmark_has(benchmark_refused, name, argv, said):
    assert said.replace("NAME", name) in benchmark_refused(name, *argv)


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in PLAIN])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--repeats", "0"], "--repeats: got '0', expected a whole number, 1 or more"),
        (["--repeats", "-1"], "--repeats: got '-1', expected a whole number, 1 or more"),
        (["--repeats", "1.5"], "--repeats: got '1.5', expected a whole number, 1 or more"),
        (["--repeats="], "--repeats: got '', expected a whole number, 1 or more"),
        (["--repeats"], "--repeats: got no value, expected one"),
        (["--config"], "--config: got no value, expected one"),
        (["--config="], "--config: got an empty name"),
        (["--config", "nosuch.py"], "--config: got nosuch.py, which cannot be read"),
        (["--config", SMOKE, "--config.train.batchsize=1"], "did you mean --config.train.batch_size?"),
        (["--config", SMOKE, "--config.train.batch_size", "1"], "1: unknown argument"),
        (["--config", SMOKE, "--config.train.batch_size=0"], "train.batch_size: got 0, expected a whole number from 1"),
        (["--config", SMOKE, "--config.train.batch_size=x"], "train.batch_size: got 'x', expected a whole number"),
        (["--config", SMOKE, "--config.distill.weights=base"], "distill.weights: got 'base', expected ''"),
        (["--config", SMOKE, "--config.init.weights=base"], "init.weights: got 'base', expected ''"),
    ],
)
def test_flags_of_every_timed_benchmark(benchmark_refused, name, argv, said):
    assert said in benchmark_refused(name, *argv)


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("loader", ["--config", SMOKE, "--workers", "7"], "--workers: got 7, expected a divisor of 60"),
        ("loader", ["--workers", "-1"], "--workers: got '-1', expected a whole number, 0 or more"),
        ("loader", ["--workers", "two"], "--workers: got 'two', expected a whole number, 0 or more"),
        ("loader", ["--workers"], "--workers: got no value"),
        ("loader", ["--grain=x"], "--grain: got the value 'x', expected none"),
        ("epoch", ["--images", "0"], "--images: got '0', expected a whole number, 1 or more"),
        ("epoch", ["--images", "-1"], "--images: got '-1', expected a whole number, 1 or more"),
        ("epoch", ["--images", "many"], "--images: got 'many', expected a whole number, 1 or more"),
        ("epoch", ["--config", SMOKE, "--images", "255"], "--images: got 255, expected at least a batch, 256"),
        ("epoch", ["--images"], "--images: got no value"),
        ("epoch", ["--config", FAST], "augment.translate.p: got 1.0 for Albumentations, expected 0.0"),
        ("epoch", ["--only", "mine"], "--only: got 'mine', expected one of "),
        ("epoch", ["--only"], "--only: got no value"),
        ("train_step", ["--compile=x"], "--compile: got the value 'x', expected none"),
        ("kill", ["--runs", "0"], "--runs: got '0', expected a whole number, 1 or more"),
        ("kill", ["--jobs", "none"], "--jobs: got 'none', expected a whole number, 1 or more"),
        ("kill", ["--seed", "-1"], "--seed: got '-1', expected a whole number, 0 or more"),
        ("kill", ["--signal", "HUP"], "--signal: got 'HUP', expected one of "),
        ("kill", ["--signal"], "--signal: got no value"),
        ("speedrun", ["--runs", "0"], "--runs: got '0', expected a whole number, 1 or more"),
        ("speedrun", ["--config", SMOKE, "--seed", "4294967292"], "--seed: got 4294967292 for 5 runs, expected the last to be"),
        ("speedrun", ["--config", SMOKE], "augment.backend: got host, expected device"),
        ("damage", ["--flips", "0"], "--flips: got '0', expected a whole number, 1 or more"),
        ("damage", ["--seed", "x"], "--seed: got 'x', expected a whole number, 0 or more"),
    ],
)
def test_flags_of_one_benchmark(benchmark_refused, name, argv, said):
    assert said in benchmark_refused(name, *argv)


@pytest.fixture
def twin_refused(refused):
    baseline = pytest.importorskip("baselines.train")
    return lambda *argv: refused(*argv, main=functools.partial(arguments.run, baseline.main))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "got no --config, expected it; see python -m baselines.train --help"),
        (["--config"], "--config: got no value, expected one"),
        (["--config="], "--config: got an empty name, expected that of a file or folder"),
        (["--config", "nosuch.py"], "which cannot be read"),
        (["--config", SMOKE, "--workdir"], "--workdir: got no value, expected one"),
        (["--config", SMOKE, "--workdir="], "--workdir: got an empty name, expected that of a file or folder"),
        (["--config", SMOKE, "--workdi=x"], "--workdi=x: unknown argument; see python -m baselines.train --help"),
        (["--config", SMOKE, "--json"], "--json: unknown argument"),
        (["--config", SMOKE, "x"], "x: unknown argument"),
        (["--config", SMOKE, "--config.seed", "1"], "1: unknown argument"),
        (["--config", SMOKE, "--config.seed=x"], "seed: got 'x', expected a whole number"),
        (["--config", SMOKE, "--config.train.epochz=3"], "did you mean --config.train.epochs?"),
        (["--config", SMOKE, "--config.train.epochs=0"], "train.epochs: got 0"),
        (["--config", SMOKE, "--config.init.weights=base"], "init.weights: got 'base', expected ''"),
        (["--config", SMOKE, "--config.distill.weights=base"], "distill.weights: got 'base', expected ''"),
        (["--config", SMOKE, "--config.optim.name=muon"], "optim.name: got muon for PyTorch, expected sgd or adamw"),
        (["--config", SMOKE, "--config.train.batch_size=6000"], "train.batch_size: got 6000"),
        (["--config", SMOKE, "--config.model.num_classes=5"], "model.num_classes: got 5"),
        (
            ["--config", SMOKE, "--config.train.batch_size=20", "--config.augment.backend=device", "--config.augment.cutout.p=1"],
            "augment.cutout.p: got 1.0 for Albumentations, expected 0.0: it is made on the device only",
        ),
        (["--config", SMOKE, "--config.model.widths=(99,199,299,399)"], "expected fewer than 100,000"),
        (["--config", SMOKE, "--config.data.source=folder", "--config.data.dir=nosuch"], "data.dir: got 'nosuch'"),
    ],
)
def test_arguments_of_the_twin(twin_refused, argv, said):
    assert said in twin_refused(*argv)


@pytest.mark.parametrize(
    "name", ["file", "file/below", "full", "pipe", "dangling", "dangling/x", "x" * 300, "/dev/null", "/proc/x"]
)
def test_workdirs_of_the_twin(twin_refused, tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nosuch")
    line = twin_refused("--config", SMOKE, "--config.train.batch_size=30", "--workdir", name)
    assert f"--workdir: got {name}, " in line and "; name another" in line


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_exit_code_is_what_a_command_returns(returned, code):
    assert arguments.run(lambda argv: returned, []) == code


def test_what_breaks_off_is_one_line_and_exit_code_1(capsys):
    def main(argv):
        raise RunError("the disk\nis full")

    assert arguments.run(main, []) == 1
    assert capsys.readouterr() == ("", "failed: the disk\\nis full\n")


def test_ctrl_c_ends_a_command_in_one_line(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert arguments.run(main, []) == 130
    assert capsys.readouterr() == ("", "stopped by SIGINT\n")


@pytest.mark.parametrize(
    ("module", "installed"), [("torch", f"{ROOT}[torch]"), ("grain", "pip install grain"), ("flax", f"-e {ROOT}")]
)
def test_a_missing_module_is_one_line_that_says_how_to_install_it(monkeypatch, capsys, module, installed):
    monkeypatch.setitem(sys.modules, module, None)
    assert arguments.run(lambda argv: importlib.import_module(module), []) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: got a Python without the module {module}, ") and err.count("\n") == 1
    assert installed in err


def test_a_missing_part_of_a_package_is_a_defect():
    with pytest.raises(ModuleNotFoundError):
        arguments.run(lambda argv: importlib.import_module("cifar_jax.nosuch"), [])


@pytest.mark.parametrize("command", ["baselines.train --config nosuch.py", "benchmarks.loader --workers 7"])
def test_a_process_of_its_own_says_one_line_too(command):
    module, *argv = command.split()
    done = subprocess.run([sys.executable, "-m", module, *argv], capture_output=True, text=True, cwd=ROOT, timeout=120)
    if "No module named 'torch'" in done.stderr:
        pytest.skip("without PyTorch")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and f"got {argv[-1]}" in done.stderr
