"""The folder of a run: what may be resumed and what the closing summary shows; refusals: test_cli_bad_files.py."""

import json
import pathlib

import jax
import pytest

from cifar_jax import workdir
from cifar_jax.checkpoint import may_differ
from cifar_jax.config import read_config, to_json
from cifar_jax.device import check_device
from cifar_jax.errors import InputError

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
RESULT = {
    "parameters": 89386,
    "receptive_field": 83,
    "epochs": 16,
    "train_seconds": 3601.0,
    "device": "cpu: 2 cores",
    "train_accuracy": 0.5,
    "accuracy": 0.875,
    "correct": 7,
    "examples": 8,
    "loss": 0.51234,
    "per_class_accuracy": {"cat": 0.75, "aeroplane": None},
}


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_accepted_and_left_as_it_is(tmp_path, exists):
    if exists:
        (tmp_path / "run").mkdir()
    workdir.check(tmp_path / "run", read_config(SMOKE, []))
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"] * exists


def test_a_folder_several_levels_down_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "run"
    workdir.check(path, read_config(SMOKE, []))
    workdir.create(path, read_config(SMOKE, []), "data")
    assert json.loads((path / "config.json").read_text())["config"] == to_json(read_config(SMOKE, []))


@pytest.mark.parametrize(
    "override",
    ["data.workers=2", "data.dir=/x", "log.progress=off", "log.tensorboard=false", "checkpoint.every_epochs=2"],
)
def test_what_changes_no_result_may_differ_on_resume(tmp_path, override):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    written = (tmp_path / "run" / "config.json").read_text()
    workdir.check(tmp_path / "run", read_config(SMOKE, [f"--config.{override}"]))
    assert (tmp_path / "run" / "config.json").read_text() == written


@pytest.mark.parametrize(
    "override",
    ["seed=1", "data.num_validation=10", "data.source=auto", "ema.decay=0.5", "augment.to_gray.p=0", "train.epochs=7"],
)
def test_what_changes_a_result_may_not(tmp_path, override):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    key = override.split("=")[0]
    with pytest.raises(InputError, match=rf"another config: {key} \("):
        workdir.check(tmp_path / "run", read_config(SMOKE, [f"--config.{override}"]))


def test_of_many_keys_that_differ_five_are_named(tmp_path):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    changes = [f"augment.{name}.p=0.1" for name in ("cutout", "cutmix", "mixup", "translate", "to_gray", "color_jitter")]
    for count, more in ((5, ""), (6, ", and 1 more")):
        with pytest.raises(InputError, match=rf"config: (\S+ \(\S+ there, \S+ here\)(, )?){{5}}{more}; use"):
            workdir.check(tmp_path / "run", read_config(SMOKE, [f"--config.{change}" for change in changes[:count]]))


def test_other_data_is_refused_and_nothing_is_written(tmp_path):
    workdir.create(tmp_path / "run", read_config(SMOKE, []), "data")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match="holds a run on other data"):
        workdir.create(tmp_path / "run", read_config(SMOKE, ["--config.data.dir=/x"]), "others")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path):
    with workdir.lock(tmp_path / "run"):
        workdir.check(tmp_path / "run", read_config(SMOKE, []))  # the lock alone is no foreign file
        with pytest.raises(InputError, match="in use by another process"), workdir.lock(tmp_path / "run"):
            pass
    with workdir.lock(tmp_path / "run"):
        pass


def test_a_run_of_the_baseline_is_refused(tmp_path):
    content = {"format_version": 1, "config": to_json(read_config(SMOKE, [])), "framework": "pytorch"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds a run of pytorch"):
        workdir.check(tmp_path, read_config(SMOKE, []))


def test_a_file_in_the_place_of_checkpoints_is_refused(tmp_path):
    workdir.create(tmp_path, read_config(SMOKE, []), "data")
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(InputError, match="got a file, expected a folder"):
        workdir.check(tmp_path, read_config(SMOKE, []))


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be a folder"):
        workdir.check(tmp_path / ("x" * 300), read_config(SMOKE, []))


def test_no_device_is_bad_input(monkeypatch):
    def devices():
        raise RuntimeError("no cuda\nhere")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match="no device .RuntimeError: no cuda here."):
        check_device()


@pytest.mark.parametrize(("key", "free"), [("log.progress", True), ("logger", False), ("data.dir", True), ("data.direct", False)])
def test_keys_that_may_differ_are_whole_names_or_sections(key, free):
    assert may_differ(key) == free


def test_a_dangling_link_is_no_workdir(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="no folder that can be written"):
        workdir.check(tmp_path / "run", read_config(SMOKE, []))


def test_without_result_the_run_is_unfinished(tmp_path):
    assert workdir.read_result(tmp_path) is None


def test_closing_summary():
    text = workdir.format_result(RESULT, "runs/x")
    assert "Total parameters   89,386" in text and "Receptive field    83" in text
    assert "Epochs             16 in 1:00:01 on cpu: 2 cores" in text
    assert "Test accuracy      87.50% (7/8), loss 0.5123" in text
    assert "  cat         75.00%" in text and "  aeroplane  no images" in text
    assert "runs/x" in text.splitlines()[-1]


def test_portable_config_keeps_all_but_workers_and_where_files_lie():
    overrides = ["--config.data.dir=/x", "--config.data.workers=5", "--config.init.weights=/secret/w.safetensors"]
    overrides += ["--config.distill.weights=/secret/t.safetensors"]
    config = to_json(read_config(SMOKE, overrides))
    portable = {"data": config["data"] | {"dir": "", "workers": 0}, "init": {"weights": "w.safetensors"}}
    portable["distill"] = config["distill"] | {"weights": "t.safetensors"}
    assert workdir.portable(config) == config | portable
    assert config["data"]["dir"] == "/x"


def test_versions_and_device_are_named():
    assert {"python", "jax", "flax", "optax"} <= workdir.versions().keys()
    assert workdir.describe_device().split(":")[0] in ("cpu", "gpu", "tpu")
