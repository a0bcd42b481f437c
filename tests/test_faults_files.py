"""A disk that is full for one file, whichever it is, and for the output."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import pytest
from launcher import ROOT, SMOKE

import run
from cifar_jax.data import shapes, sources

FLAGS = ["--config.model.widths=(8,8,8,16)", "--config.train.batch_size=20", "--config.train.epochs=2", "--config.data.workers=0"]
FULL = os.strerror(errno.ENOSPC)
if not os.path.exists("/dev/full"):
    pytest.skip("there is no /dev/full here", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few images."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "make_shapes", lambda: shapes.make_shapes(60, 20))
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(path):
    return run.main(["--config", SMOKE, "--workdir", str(path), *FLAGS])


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that ended before it wrote its results."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert train(path) == 0
    (path / "result.json").unlink()
    (path / "weights.safetensors").unlink()
    return path


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "weights.safetensors", "result.json"])
def test_a_file_that_cannot_be_written_is_one_line_and_the_run_resumes(trained, tmp_path, capfd, name):
    path = shutil.copytree(trained, tmp_path / "run")
    (path / f"{name}.tmp").symlink_to("/dev/full")
    assert train(path) == 1
    said = rf"failed: {path}\S* cannot be written \({FULL}\); make room there, then start the same command again to resume\n"
    err = capfd.readouterr().err
    assert re.fullmatch(said, err), err
    assert read_files(path / "checkpoints") == read_files(trained / "checkpoints") and not (path / "result.json").exists()
    (path / f"{name}.tmp").unlink()
    assert train(path) == 0 and (path / "result.json").exists()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("argv", [["summary"], ["summary", "--json"], ["data"]])
def test_an_output_that_takes_no_more_is_one_line(argv):
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "run.py"), *argv, "--config", SMOKE]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"failed: the output cannot be written ({FULL}); make room there or send it elsewhere\n"


def test_a_reader_that_has_left_is_no_error_worth_a_word():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        command = [sys.executable, str(ROOT / "run.py"), "summary", "--config", SMOKE]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("message", "source", "said"),
    [("Event loop is closed", None, False), ("other", None, True), (*["Event loop is closed"] * 2, True)],
)
def test_only_what_a_save_given_up_leaves_behind_is_kept_silent(monkeypatch, message, source, said):
    reported = []
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    unraisable = types.SimpleNamespace(exc_value=RuntimeError(message), object=source)
    run.report_unraisable(unraisable)
    assert reported == [unraisable] * said
