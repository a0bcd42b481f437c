"""The log of a run: lines, metrics.jsonl, TensorBoard events, and JSON written in one piece."""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from cifar_jax.duration import format_duration
from cifar_jax.log import SCALARS, RunLog, epoch_line
from cifar_jax.tensorboard import append_scalars, create_events

ROW = {
    "epoch": 1,
    "step": 10,
    "learning_rate": 0.1,
    "train_loss": 2.0,
    "train_accuracy": 0.25,
    "eval_split": "test",
    "eval_loss": 1.23456,
    "eval_accuracy": 0.8647,
    "eval_correct": 8647,
    "eval_examples": 10000,
    "seconds": 3.0,
    "images_per_second": 1000.0,
    "input_wait_fraction": 0.0,
}


def make_log(path, progress="lines", tensorboard=False, rows=()):
    config = ConfigDict({"progress": progress, "tensorboard": tensorboard})
    return RunLog(path, config, num_epochs=3, steps_per_epoch=10, rows=rows)


def read_rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (59.6, "01:00"), (61, "01:01"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_epoch_line_is_that_of_the_course_log():
    assert epoch_line(ROW) == "Test set: average loss 1.2346, accuracy 8647/10000 (86.47%)"
    assert epoch_line(ROW | {"eval_split": "validation"}).startswith("Held-out set: average loss")


def test_an_epoch_is_two_lines_and_a_row(tmp_path, capsys):
    log = make_log(tmp_path)
    log.write(ROW, seconds_left=6)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Epoch 1/3: loss 2.0000, accuracy 25.00%, 1000 images/s, 3.0 s, 00:06 left"
    assert second == epoch_line(ROW)
    assert read_rows(tmp_path) == [ROW] == log.rows


def test_rows_are_on_disk_as_soon_as_written(tmp_path):
    log = make_log(tmp_path, "off")
    for epoch in (1, 2):
        log.write(ROW | {"epoch": epoch}, 0)
        assert [row["epoch"] for row in read_rows(tmp_path)] == list(range(1, epoch + 1))


def test_resuming_rewrites_the_rows_from_the_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    log = make_log(tmp_path, "off", rows=[ROW])
    assert read_rows(tmp_path) == [ROW]
    log.write(ROW | {"epoch": 2}, 0)
    assert [row["epoch"] for row in read_rows(tmp_path)] == [1, 2]


def test_off_says_nothing(tmp_path, capsys):
    log = make_log(tmp_path, "off")
    log.say("hello")
    log.write(ROW, 0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("progress", "tty", "shown"),
    [("bar", False, True), ("auto", True, True), ("auto", False, False), ("lines", True, False), ("off", True, False)],
)
def test_when_the_bar_is_shown(tmp_path, monkeypatch, capsys, progress, tty, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
    log = make_log(tmp_path, progress)
    with log.epoch_bar(2) as bar:
        bar.update(10)
    assert ("epoch 2/3" in capsys.readouterr().err) == shown


def read_events(folder):
    """{(step, name): (value, time)} of the curves that TensorBoard shows of a folder."""
    found = EventAccumulator(str(folder)).Reload()
    points = [(name, point) for name in found.Tags()["tensors"] for point in found.Tensors(name)]
    events = {(point.step, name): (make_ndarray(point.tensor_proto), point.wall_time) for name, point in points}
    assert len(events) == len(points)  # nothing twice
    return events


def test_tensorboard_shows_the_rows(tmp_path):
    log = make_log(tmp_path, "off", True)
    rows, began = [ROW, ROW | {"epoch": 2, "train_loss": 1.5}], time.time()
    for row in rows:
        log.write(row, 0)
    found = read_events(tmp_path / "tensorboard")
    expected = {(row["epoch"], name): np.float32(row[name]) for row in rows for name in SCALARS}
    assert {key: value for key, (value, _) in found.items()} == expected and len(expected) == 14
    assert all(began <= then <= time.time() for _, then in found.values())


def test_on_resume_tensorboard_forgets_what_the_checkpoint_does_not_have(tmp_path):
    log = make_log(tmp_path, "off", True)
    for epoch in (1, 2, 3):
        log.write(ROW | {"epoch": epoch}, 0)
    make_log(tmp_path, "off", True, rows=[ROW])
    assert {step for step, _ in read_events(tmp_path / "tensorboard")} == {1}


def test_tensorboard_costs_no_import_of_a_framework():
    code = """
import pathlib, sys, tempfile
from cifar_jax.tensorboard import append_scalars, create_events
with tempfile.TemporaryDirectory() as folder:
    append_scalars(create_events(pathlib.Path(folder), 1), 1, {"loss": 1.0})
sys.exit(any(name in sys.modules for name in ("torch", "tensorflow", "jax")))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_events_of_which_only_a_part_finds_room_are_an_error_at_once(tmp_path):
    path = create_events(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left on device"):
            append_scalars(path, 1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_tensorboard_there_are_no_events(tmp_path):
    make_log(tmp_path, "off", False).write(ROW, 0)
    assert not (tmp_path / "tensorboard").exists()
