"""Weights files: what is written is what is read, in one piece, and the file says all that is needed to use it."""

import json
import os
import pathlib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cifar_jax.config import read_config, to_json
from cifar_jax.errors import InputError
from cifar_jax.weights import check_variables, find_weights, load_weights, save_weights
from cifar_jax.workdir import portable

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
CLASSES = tuple("abcdefghij")
MEAN, STD = (0.1, 0.2, 1 / 3), (0.25, 0.5, 0.75)


def make_variables():
    rng = np.random.default_rng(0)
    return {
        "params": {
            "conv": {"kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32)},
            "head": {
                "bias": np.array([np.pi, -0.0], np.float32),
                "kernel": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            },
        },
        "batch_stats": {"conv": {"mean": np.zeros(4, np.float32)}},
    }


@pytest.fixture
def content():
    config = portable(to_json(read_config(SMOKE, ["--config.data.dir=/secret", "--config.data.workers=3"])))
    return {"config": config, "classes": CLASSES, "mean": MEAN, "std": STD, "train_seconds": 61.5}


@pytest.fixture
def saved(tmp_path, content):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_variables(), **content)
    return path


def test_arrays_survive_bit_for_bit(saved):
    found, expected = load_weights(str(saved)).variables, make_variables()
    check_variables(found, expected, "")
    for collection, layer, name in (
        ("params", "conv", "kernel"),
        ("params", "head", "kernel"),
        ("params", "head", "bias"),
        ("batch_stats", "conv", "mean"),
    ):
        got, want = found[collection][layer][name], expected[collection][layer][name]
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()


def test_metadata_survives(saved):
    found = load_weights(str(saved))
    assert (found.classes, found.mean, found.std, found.path) == (CLASSES, MEAN, STD, str(saved))


def test_the_config_survives_without_what_depends_on_the_machine(saved):
    config = load_weights(str(saved)).config
    assert (config.data.dir, config.data.workers) == ("", 0)
    assert to_json(config) == portable(to_json(read_config(SMOKE, [])))


def test_keys_and_metadata_are_those_of_the_contract(saved):
    with safe_open(saved, "numpy") as file:
        assert set(file.keys()) == {
            "params/conv/kernel",
            "params/head/bias",
            "params/head/kernel",
            "batch_stats/conv/mean",
        }
        assert {"config", "classes", "mean", "std"} <= file.metadata().keys()
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)


def test_a_file_appears_whole_or_not_at_all(saved, monkeypatch):
    before = saved.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_weights(saved, {"params": {"x": {"y": np.ones(3)}}}, config={}, classes=(), mean=(), std=(), train_seconds=None)
    assert saved.read_bytes() == before


def test_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_jax.weights.FORMAT_VERSION", 3)
    save_weights(tmp_path / "w", make_variables(), config={}, classes=(), mean=(), std=(), train_seconds=None)
    monkeypatch.setattr("cifar_jax.weights.FORMAT_VERSION", 2)
    with pytest.raises(InputError, match="got format 3, expected at most 2; update"):
        load_weights(str(tmp_path / "w"))


def test_equal_weights_make_equal_files(saved, tmp_path, content):
    for i in range(5):  # safetensors' own order of the metadata differs from call to call
        save_weights(tmp_path / f"{i}", make_variables(), **content)
        assert (tmp_path / f"{i}").read_bytes() == saved.read_bytes()


def test_a_flipped_bit_anywhere_is_noticed(saved):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    in_header = [8 * byte + rng.integers(8) for byte in range(header)]
    for bit in [*in_header, *rng.integers(8 * header, 8 * len(whole), 200)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(content)
        with pytest.raises(InputError, match="weights "):
            load_weights(str(saved))


def test_a_file_made_before_there_was_a_digest_is_read(saved, tmp_path):
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata() | {"format_version": "1"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    del metadata["sha256"]
    save_file(tensors, tmp_path / "old", metadata)
    assert load_weights(str(tmp_path / "old")).classes == CLASSES


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(InputError, match="expected a file"):
        find_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["params"]["head"].pop("bias"), r"params/head/bias: got nothing, expected float32 \(2,\)"),
        (lambda v: v["params"]["head"].update(more=np.zeros(5)), r"params/head/more: got float64 \(5,\), expected nothing"),
        (lambda v: v["batch_stats"]["conv"].update(mean=np.zeros(5)), r"conv/mean: got float64 \(5,\), expected float32 \(4,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said):
    variables = make_variables()
    change(variables)
    with pytest.raises(InputError, match=said):
        check_variables(variables, make_variables(), "file")
