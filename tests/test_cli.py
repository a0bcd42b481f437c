"""The command line from end to end: one run that is stopped twice, resumed, finished, and then asked about."""

import json
import logging
import re
import signal
import subprocess
import sys

import pytest
from launcher import ROOT, SMOKE, Launcher

import run
from cifar_jax.config import flatten
from cifar_jax.weights import load_weights

EASY = [
    "--config.model.widths=(8,8,8,16)",
    "--config.train.batch_size=50",
    "--config.train.epochs=2",
    "--config.data.workers=1",
    "--config.augment.horizontal_flip.p=0",
    "--config.augment.shift_scale_rotate.p=0",
    "--config.augment.coarse_dropout.p=0",
    "--config.augment.to_gray.p=0",
]
ROW_KEYS = {"epoch", "step", "learning_rate", "train_loss", "train_accuracy", "eval_split", "eval_loss"}
ROW_KEYS |= {"eval_accuracy", "eval_correct", "eval_examples", "seconds", "images_per_second", "input_wait_fraction"}
RESULT_KEYS = {"config", "seed", "split", "examples", "correct", "accuracy", "loss", "per_class_accuracy", "parameters"}
RESULT_KEYS |= {"epochs", "train_seconds", "device", "versions"}


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """The same command four times, the last to the end: SIGTERM before the first step (in place 4), Ctrl-C (twice) once an
    epoch is saved, SIGTERM once resumed."""
    launch = Launcher(tmp_path_factory.mktemp("journey"), EASY)
    early = launch(lambda: "Training" in launch.read("out"), signal.SIGTERM)  # XLA compiles
    saved = launch.workdir / "checkpoints" / "100" / "manifest.sha256"  # written last
    interrupted = launch(saved.exists, signal.SIGINT, signal.SIGINT, group=True)
    terminated = launch(lambda: "resuming" in launch.read("out"), signal.SIGTERM)
    return launch, interrupted, terminated, launch(), early


@pytest.fixture
def finished(journey):
    return journey[0].workdir


@pytest.fixture
def answer(capsys):
    """A function that runs arguments in this process and returns what they print."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*argv):
        assert run.main([str(word) for word in argv]) == 0
        return capsys.readouterr().out

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_ctrl_c_ends_with_130_and_a_line_that_says_how_to_resume(journey):
    process = journey[1]
    assert process.code == 130
    assert process.err == "stopped by SIGINT; the same command resumes a training run at its last checkpoint\n"


@pytest.mark.parametrize("when", [2, 4], ids=["training", "compiling"])
def test_a_termination_ends_with_143(journey, when):
    process = journey[when]
    assert process.code == 143
    assert process.err == "stopped by SIGTERM; the same command resumes a training run at its last checkpoint\n"


def test_no_process_is_left_behind(journey):
    assert [process.left for process in journey[1:]] == [[], [], [], []]


def test_the_same_command_resumes_and_finishes(journey):
    process = journey[3]
    assert process.code == 0 and process.err == ""
    assert "resuming after epoch 1" in process.out
    assert "Epoch 1/2" not in process.out and "Epoch 2/2" in process.out


def test_away_from_a_terminal_the_log_is_lines(journey):
    lines = journey[1].out.splitlines()
    assert not any("\r" in process.out + process.err for process in journey[1:])
    numbers = r"loss \d\.\d{4}, accuracy \d+\.\d\d%, \d+ images/s, \d+\.\d s, \d\d:\d\d left"
    assert re.fullmatch(r"First step after \d+\.\d s, compilation included", lines[1])
    assert re.fullmatch(f"Epoch 1/2: {numbers}", lines[2])
    assert re.fullmatch(r"Test set: average loss \d+\.\d{4}, accuracy \d+/1000 \(\d+\.\d\d%\)", lines[3])


def test_it_learns(finished):
    assert json.loads((finished / "result.json").read_text())["accuracy"] > 0.4


def test_what_a_run_leaves(finished):
    names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "result.json", "weights.safetensors", "checkpoints", "tensorboard"}
    assert list(finished.glob("tensorboard/events*"))


def test_rows_have_the_fields_of_the_contract(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and all(row.keys() == ROW_KEYS for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in row if name.endswith(("accuracy", "fraction")))


def test_result_has_the_fields_of_the_contract(finished):
    result = json.loads((finished / "result.json").read_text())
    assert RESULT_KEYS | {"format_version"} <= result.keys()
    assert result["accuracy"] == result["correct"] / result["examples"] and result["examples"] == 1000
    assert len(result["per_class_accuracy"]) == 10 and result["epochs"] == 2


def test_config_json_is_the_config_with_its_overrides(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored["format_version"] == 2 and len(stored["sha256"]) == 64
    assert flatten(stored["config"])["model.widths"] == [8, 8, 8, 16] and stored["config"]["train"]["epochs"] == 2


def test_closing_summary_names_totals_and_every_class(journey):
    launch, out = journey[0], journey[3].out
    result = json.loads((launch.workdir / "result.json").read_text())
    assert f"Total parameters   {result['parameters']:,}" in out and "Receptive field    83" in out
    assert f"({result['correct']}/1000)" in out and all(f"  {name} " in out for name in result["per_class_accuracy"])


def test_a_finished_run_is_reported_not_trained_again(finished, answer, caplog):
    caplog.set_level(logging.INFO, "cifar_jax")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    text = answer("--config", SMOKE, "--workdir", finished, *EASY)
    assert "Test accuracy" in text and "Epoch 1/2" not in text
    assert f"{finished} holds this run, finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("flag", ["workdir", "weights"])
def test_evaluate_counts_what_training_counted(finished, answer, tmp_path, flag):
    result = json.loads((finished / "result.json").read_text())
    if flag == "workdir":
        found = json.loads(answer("evaluate", "--workdir", finished, "--json"))
    else:  # the file is enough by itself
        (tmp_path / "w").write_bytes((finished / "weights.safetensors").read_bytes())
        found = json.loads(answer("evaluate", "--weights", tmp_path / "w", "--json"))
    same = ("correct", "examples", "per_class_accuracy", "parameters", "seed", "split")
    assert {key: found[key] for key in same} == {key: result[key] for key in same}
    assert RESULT_KEYS <= found.keys() and found["train_seconds"] == result["train_seconds"]


def test_weights_hold_the_parameters_that_result_counts(finished):
    found = load_weights(str(finished / "weights.safetensors"))
    layers = [layer for name, layer in found.variables["params"].items()]

    def count(tree):
        return sum(map(count, tree.values())) if isinstance(tree, dict) else tree.size

    assert sum(map(count, layers)) == json.loads((finished / "result.json").read_text())["parameters"]


def test_summary_has_the_keys_of_the_contract(answer):
    found = json.loads(answer("summary", "--config", SMOKE, "--json"))
    keys = {"config", "parameters", "budget", "receptive_field", "macs", "weight_bytes", "peak_activation_bytes"}
    layer_keys = {"name", "kind", "shape", "stride", "dilation", "turns", "parameters", "macs", "receptive_field"}
    assert keys | {"layers"} <= found.keys() and all(layer_keys <= layer.keys() for layer in found["layers"])
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"] < found["budget"]["parameters"]


def test_summary_as_a_table_ends_with_the_totals(answer):
    lines = answer("summary", "--config", SMOKE).splitlines()
    assert lines[0].split()[:3] == ["layer", "kind", "output"]
    assert lines[-1].startswith("parameters ") and "receptive field 83" in lines[-1]


def test_data_says_what_there_is_and_where(answer):
    text = answer("data", "--config", SMOKE)
    assert text.startswith("5000 training and 1000 test images of 10 classes from shapes") and "in memory" in text


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["evaluate", "-h"]])
def test_help_is_no_error(argv, capsys):
    with pytest.raises(SystemExit) as left:
        run.main(argv)
    assert left.value.code == 0 and "usage: run.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "cifar_jax.data.loader", "cifar_jax.data.sources", "cifar_jax.config"])
def test_imports_that_must_stay_without_jax(name):
    code = f"import sys, {name}; sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
