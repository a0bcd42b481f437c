"""Training in this process: what a run leaves, how it resumes, held-out images, averages, and runs that break off."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal

import cv2
import jax
import numpy as np
import pytest

from cifar_jax import epoch as epoch_module
from cifar_jax import pipeline as pipeline_module
from cifar_jax import stopping, workdir
from cifar_jax import train as train_module
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.config import read_config
from cifar_jax.data import shapes
from cifar_jax.data.augment import augment_batch, make_train_transform
from cifar_jax.data.dataset import fingerprint
from cifar_jax.errors import InputError, RunError
from cifar_jax.evaluate import evaluate_files
from cifar_jax.log import RunLog
from cifar_jax.models import c1c2c3c40
from cifar_jax.models.layers import conv, gate, separable, separable_ln
from cifar_jax.train import train
from cifar_jax.weights import load_weights

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
TINY = ["model.widths=(8,8,8,16)", "train.batch_size=50", "train.epochs=2", "log.tensorboard=false", "log.progress=off"]
TINY += ["budget.receptive_field=16"]
DATA = shapes.make_shapes(400, 100)
LOAD_DATASET = train_module.load_dataset
TIMES = ("seconds", "images_per_second", "input_wait_fraction")


def make_config(*overrides):
    return read_config(SMOKE, [f"--config.{override}" for override in (*TINY, *overrides)])


def read_rows(path, times=False):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return rows if times else [{key: row[key] for key in row if key not in TIMES} for row in rows]


def steps_kept(path):
    return sorted(int(child.name) for child in (path / "checkpoints").iterdir() if child.name.isdigit())


class Stop(BaseException):
    """Stands for a signal."""


def stop_after(monkeypatch, epoch):
    """Makes the run end once an epoch is done and its checkpoint asked for, as a signal would."""
    begin = RunLog.epoch_bar

    def epoch_bar(self, number, done=0):
        if number == epoch + 1:
            raise Stop
        return begin(self, number, done)

    monkeypatch.setattr(RunLog, "epoch_bar", epoch_bar)


@contextlib.contextmanager
def signalled_after(step, monkeypatch):
    """Sends this process SIGTERM as soon as a run has made its step of that number."""
    train_epoch = epoch_module.train_epoch
    handlers = {number: signal.getsignal(number) for number in stopping.NUMBERS}

    def signalling_epoch(train_step, *rest, **options):
        def signalling_step(state, batch):
            state, sums = train_step(state, batch)
            if int(state.step) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return state, sums

        return train_epoch(signalling_step, *rest, **options)

    stopping.listen()
    with monkeypatch.context() as patch:
        patch.setattr(epoch_module, "train_epoch", signalling_epoch)
        yield
    stopping.listen()  # forgets it
    for number, handler in handlers.items():
        signal.signal(number, handler)


def shallow(w1, w2, w3, w4):
    """Four layers in place of twelve, which take a quarter of the time to compile."""
    return (conv("c1_conv", w1), *(separable(f"t{i}", w, stride=2) for i, w in enumerate((w2, w3, w4), 1)))


def shallow_gated(w1, w2, w3, w4):
    return separable_ln("t2", w1, kernel=4, stride=4, padding=0), gate("t3", w4)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few images and a shallow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
        patch.setitem(c1c2c3c40.VARIANTS, "gated", shallow_gated)
        patch.setattr(train_module, "load_dataset", lambda source, directory: DATA)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: (folder, result)."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, train(make_config(), path)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run that was stopped after one epoch of two; copy it."""
    path = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 1)
        train(make_config(), path)
    return path


@pytest.fixture
def stopped(half, tmp_path):
    return pathlib.Path(shutil.copytree(half, tmp_path / "moved"))


def assert_same_outcome(path, whole):
    one, other = (load_weights(str(folder / "weights.safetensors")) for folder in (path, whole[0]))
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    assert read_rows(path) == read_rows(whole[0])


def test_rows_count_epochs_steps_and_images(whole):
    rows = read_rows(whole[0], times=True)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 8), (2, 16)]
    for row in rows:
        assert row["eval_split"] == "test" and row["eval_examples"] == 100
        assert row["eval_accuracy"] == row["eval_correct"] / 100 and 0 <= row["train_accuracy"] <= 1
        assert row["seconds"] > 0 and row["images_per_second"] > 0 and 0 <= row["input_wait_fraction"] <= 1


def test_result_is_the_last_row(whole):
    path, result = whole
    last = read_rows(path)[-1]
    assert (result["correct"], result["examples"], result["split"]) == (last["eval_correct"], 100, "test")
    assert result["loss"] == last["eval_loss"] and result["train_loss"] == last["train_loss"]
    stored = json.loads((path / "result.json").read_text())
    assert {key: stored[key] for key in result} == result and stored.keys() - result.keys() == {"format_version", "sha256"}


def test_class_accuracies_add_up_to_the_count(whole):
    counts = np.bincount(DATA.test.labels)
    found = whole[1]["per_class_accuracy"]
    assert list(found) == list(DATA.classes)
    assert round(sum(found[name] * count for name, count in zip(found, counts, strict=True)), 6) == whole[1]["correct"]


def test_only_the_newest_checkpoints_are_kept(whole):
    assert steps_kept(whole[0]) == [8, 16]


def test_finished_run_is_not_trained_again(whole, monkeypatch):
    monkeypatch.setattr(train_module, "load_dataset", None)
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    assert train(make_config(), whole[0]) == whole[1]
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before


def test_a_stopped_run_resumes_to_the_same_bits(stopped, whole):
    assert len(read_rows(stopped)) == 1 and not (stopped / "result.json").exists()
    train(make_config(), stopped)
    assert_same_outcome(stopped, whole)


WITHOUT_STATISTICS = ("model.variant=gated", "optim.name=adamw", "optim.nesterov=false", "ema.decay=0.9")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("model.kernels=xla",), marks=pytest.mark.slow),
        ("ema.decay=0.9", "data.num_validation=40", "optim.name=muon"),
        pytest.param(WITHOUT_STATISTICS, marks=pytest.mark.slow),
    ],
)
def test_saved_and_stopped_amid_an_epoch_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch, overrides):
    """Signals after the first step, at the last one of an epoch (which saves at its end), amid the second."""
    config = make_config(*overrides, "train.batch_size=45")
    whole = (tmp_path / "whole", train(config, tmp_path / "whole"))
    path = tmp_path / "run"
    for stop in (1, 8, 11):
        with signalled_after(stop, monkeypatch), pytest.raises(stopping.Stopped):
            train(config, path)
        assert steps_kept(path)[-1] == stop and not (path / "result.json").exists()
        assert len(read_rows(path)) == stop // 8
    train(config, path)
    assert_same_outcome(path, whole)


def test_the_seed_changes_weights_order_and_augmentation(tmp_path, monkeypatch):
    begun = []

    def watching_epoch(step, state, loader, *rest, **options):
        begun.append((jax.device_get(state.params), next(loader.epoch(1))["label"]))
        raise Stop

    monkeypatch.setattr(epoch_module, "train_epoch", watching_epoch)
    for i, seed in enumerate((0, 0, 1)):
        with pytest.raises(Stop):
            train(make_config(f"seed={seed}"), tmp_path / str(i))
    jax.tree.map(np.testing.assert_array_equal, begun[0], begun[1])
    for one, other in zip(jax.tree.leaves(begun[0]), jax.tree.leaves(begun[2]), strict=True):
        assert one.ndim < 2 and not one.dtype == np.int32 or not np.array_equal(one, other)  # all but scales and biases
    assert np.array_equal(augmented(7, seed=0), augmented(7, seed=0))
    assert not np.array_equal(augmented(7, seed=0), augmented(7, seed=1))


def augmented(index, seed):
    """An image as the training of a seed sees it in epoch 1."""
    compose = make_train_transform(make_config().augment, DATA.mean, DATA.std)
    out = np.empty((1, 32, 32, 3), np.float32)
    augment_batch(compose, DATA.train.images, [index], out, seed=seed, epoch=1)
    return out


def test_it_saves_every_so_many_seconds(tmp_path, monkeypatch):
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest)))
    monkeypatch.setattr(Checkpoints, "is_due", lambda self, seconds: seconds == 2.5)
    train(make_config("train.epochs=1", "checkpoint.every_seconds=2.5"), tmp_path / "often")
    assert saved == [*range(1, 9)]
    saved.clear()
    train(make_config("train.epochs=1", "checkpoint.every_seconds=0"), tmp_path / "never")
    assert saved == [8]


def test_a_damaged_newest_checkpoint_costs_no_more_than_the_time_to_repeat_it(whole, tmp_path, caplog):
    path = pathlib.Path(shutil.copytree(whole[0], tmp_path / "run"))
    (path / "result.json").unlink()
    file = next((path / "checkpoints" / "16" / "state" / "d").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    train(make_config(), path)
    assert str(file) in caplog.text and "the one before, of step 8, is used" in caplog.text
    assert_same_outcome(path, whole)


def test_where_every_checkpoint_is_damaged_the_workdir_is_left_as_it_is(whole, tmp_path):
    path = pathlib.Path(shutil.copytree(whole[0], tmp_path / "run"))
    (path / "result.json").unlink()
    for step in (8, 16):
        (path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_bytes(b"")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="no checkpoint of 2 in .* is whole"):
        train(make_config(), path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_damaged_weights_of_a_finished_run_are_made_again(whole, tmp_path, caplog):
    path = pathlib.Path(shutil.copytree(whole[0], tmp_path / "run"))
    weights = path / "weights.safetensors"
    for damaged in (weights.read_bytes()[:-1], b"", None):
        weights.unlink() if damaged is None else weights.write_bytes(damaged)
        caplog.clear()
        assert train(make_config(), path) == whole[1]
        assert str(weights) in caplog.text or "weights" in caplog.text
        assert "made again from the last checkpoint" in caplog.text
        assert_same_outcome(path, whole)


def test_what_another_process_does_while_the_data_is_loaded_is_not_overlooked(tmp_path, monkeypatch):
    def load_slowly(source, directory):
        workdir.create(tmp_path / "run", make_config("seed=7"), fingerprint(DATA))
        return DATA

    monkeypatch.setattr(train_module, "load_dataset", load_slowly)
    with pytest.raises(InputError, match=r"another config: seed \(7 there, 0 here\)"):
        train(make_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_other_kernels_than_a_run_began_with_are_said(stopped, monkeypatch, caplog):
    monkeypatch.setattr(workdir, "choose_kernels", lambda model: ("xla", "no compiler"))
    before = json.loads((stopped / "config.json").read_text())["kernels"]
    train(make_config(), stopped)
    assert f"was begun with {before} kernels and goes on with xla ones" in caplog.text or before == "xla"


def test_a_torn_line_of_metrics_is_written_anew(stopped, whole):
    metrics = stopped / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 2, "st')
    train(make_config(), stopped)
    assert_same_outcome(stopped, whole)


def test_keys_that_change_no_result_may_differ_on_resume(stopped, whole, monkeypatch):
    monkeypatch.chdir(stopped.parent)
    train(make_config("data.workers=1", "checkpoint.every_epochs=2", "log.progress=lines"), "moved")
    assert_same_outcome(stopped, whole)


def test_other_keys_may_not(stopped):
    with pytest.raises(InputError, match=r"another config: seed \(0 there, 1 here\)"):
        train(make_config("seed=1"), stopped)
    assert len(read_rows(stopped)) == 1


def test_stopped_after_the_last_epoch_the_run_is_only_closed(stopped, whole, monkeypatch):
    shutil.rmtree(stopped)
    shutil.copytree(whole[0], stopped)
    (stopped / "result.json").unlink()
    (stopped / "weights.safetensors").unlink()
    monkeypatch.setattr(epoch_module, "train_epoch", None)
    assert train(make_config(), stopped)["correct"] == whole[1]["correct"]
    assert_same_outcome(stopped, whole)


def test_without_a_checkpoint_the_run_begins_again(stopped, whole):
    shutil.rmtree(stopped / "checkpoints")
    train(make_config(), stopped)
    assert_same_outcome(stopped, whole)


def test_a_loss_that_is_not_finite_breaks_the_run_off(stopped, monkeypatch):
    broken = dataclasses.replace(DATA, std=(1e-30, 1e-30, 1e-30))
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: broken)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step 8 \(learning rate 0\.\d+\).*lower schedule"):
        train(make_config(), stopped)
    assert steps_kept(stopped) == [8] and len(read_rows(stopped)) == 1


def test_evaluation_counts_what_training_counted(whole, monkeypatch):
    monkeypatch.setattr("cifar_jax.evaluate.load_dataset", lambda source, directory: DATA)
    found = evaluate_files(str(whole[0]), None, [])
    for key in ("split", "examples", "correct", "accuracy", "per_class_accuracy", "parameters", "seed"):
        assert found[key] == whole[1][key]
    assert found["loss"] == pytest.approx(whole[1]["loss"], rel=1e-6)


def test_held_out_images_are_watched_and_the_test_set_counted_once(tmp_path, monkeypatch):
    watched = []
    evaluate = pipeline_module.evaluate

    def watching(step, variables, split, *rest, **options):
        watched.append(len(split))
        return evaluate(step, variables, split, *rest, **options)

    monkeypatch.setattr(pipeline_module, "evaluate", watching)
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: shapes.make_shapes(460, 100))
    result = train(make_config("data.num_validation=60"), tmp_path / "run")
    rows = [(row["eval_split"], row["eval_examples"], row["step"]) for row in read_rows(tmp_path / "run")]
    assert rows == [("validation", 60, 8), ("validation", 60, 16)]
    assert watched == [60, 60, 100] and (result["split"], result["examples"]) == ("test", 100)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Three of the shapes as an image folder, 60 to train and 12 to test."""
    root = tmp_path_factory.mktemp("images")
    for name, split, limit in (("train", DATA.train, 20), ("test", DATA.test, 4)):
        for label, kind in enumerate(("disk", "square", "triangle")):
            folder = root / name / kind
            folder.mkdir(parents=True)
            for i, image in enumerate(split.images[split.labels == label][:limit]):
                cv2.imwrite(str(folder / f"{i}.png"), image[..., ::-1])
    return root


@pytest.fixture(scope="module")
def averaged(image_folder, tmp_path_factory):
    """A run on the image folder that averages its weights: (folder, result, the last state)."""
    path, states = tmp_path_factory.mktemp("averaged") / "run", []
    config = make_config(
        "model.num_classes=3", "data.source=folder", f"data.dir={image_folder}", "train.batch_size=20", "ema.decay=0.9"
    )
    final = train_module.final_variables

    def watching(state):
        states.append(jax.device_get(state))
        return final(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "load_dataset", LOAD_DATASET)
        patch.setattr(train_module, "final_variables", watching)
        return path, train(config, path), states[-1]


def test_an_image_folder_of_any_classes_is_trained_on(averaged):
    result = averaged[1]
    assert list(result["per_class_accuracy"]) == ["disk", "square", "triangle"] and result["examples"] == 12
    assert (result["data_source"], result["data_verified"]) == ("folder", False)


def test_its_weights_name_the_classes_and_not_the_folder(averaged):
    found = load_weights(str(averaged[0] / "weights.safetensors"))
    assert found.classes == ("disk", "square", "triangle") and found.config.data.dir == ""


def test_the_average_is_what_is_saved(averaged):
    path, _, state = averaged
    saved = load_weights(str(path / "weights.safetensors")).variables
    jax.tree.map(np.testing.assert_array_equal, saved, state.ema)
    assert not np.array_equal(saved["params"]["head"]["kernel"], state.params["head"]["kernel"])


def test_the_average_is_what_was_counted(averaged, image_folder):
    path, result, _ = averaged
    found = evaluate_files(None, str(path / "weights.safetensors"), [f"--config.data.dir={image_folder}"])
    assert found["correct"] == result["correct"] and found["loss"] == pytest.approx(result["loss"], rel=1e-6)
