"""Configs: the shipped ones hold what they promise; reading, overriding, comparing, and JSON and back."""

import functools
import json
import operator
import pathlib
import sys

import pytest
from ml_collections import ConfigDict

from cifar_jax.budget import check_budget
from cifar_jax.config import CHOICES, check_config, differing_keys, flatten, from_json, read_config, to_json, with_overrides
from cifar_jax.data.sources import SOURCES
from cifar_jax.errors import InputError
from cifar_jax.models import MODELS

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))
SMOKE = next(str(path) for path in CONFIGS if path.name == "smoke.py")
shipped = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_the_choices_are_what_the_code_has():
    """config.py writes them out: to check a config it need not import what brings JAX."""
    assert set(CHOICES["data.source"]) == set(SOURCES)
    assert set(CHOICES["model.name"]) == set(MODELS)
    assert set(CHOICES["model.variant"]) == {name for module in MODELS.values() for name in module.VARIANTS}


@shipped
def test_shipped_configs_are_valid_and_within_the_assignment(path):
    config = read_config(str(path), [])
    check_config(config)
    summary = check_budget(config.model, config.budget)
    assert summary.parameters < 100_000 and summary.receptive_field > 44
    assert config.budget.parameters <= 100_000 and config.budget.receptive_field >= 44


@shipped
def test_shipped_configs_survive_json(path):
    config = read_config(str(path), [])
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again.to_dict() == config.to_dict() and differing_keys(config, again) == []
    assert isinstance(again.model.widths, tuple)


@shipped
def test_shipped_configs_name_their_command_first(path):
    assert f"python run.py --config configs/{path.name}" in path.read_text().split('"""')[1]


def test_overrides_are_applied_with_the_type_of_the_key():
    overrides = ["--config.train.epochs=3", "--config.model.widths=(1,2,3,4)", "--config.optim.nesterov=false"]
    config = read_config(SMOKE, [*overrides, "--config.schedule.learning_rate=1", "--config.data.dir="])
    assert (config.train.epochs, config.model.widths, config.optim.nesterov) == (3, (1, 2, 3, 4), False)
    assert isinstance(config.schedule.learning_rate, float) and config.data.dir == ""


def test_overrides_come_from_the_argument_not_from_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", "other.py", "--config.train.epochs=9"])
    assert read_config(SMOKE, ["--config.train.epochs=4"]).train.epochs == 4
    assert read_config(SMOKE, []).train.epochs == 6
    assert with_overrides(read_config(SMOKE, []), []).train.epochs == 6


def test_a_config_read_is_locked():
    config = read_config(SMOKE, [])
    with pytest.raises(AttributeError):
        config.train.batchsize = 1


def test_with_overrides_leaves_the_original_alone():
    config = read_config(SMOKE, [])
    changed = with_overrides(config, ["--config.data.source=auto", "--config.data.dir=x"])
    assert differing_keys(config, changed) == ["data.dir ( there, x here)", "data.source (shapes there, auto here)"]


def test_with_overrides_names_the_nearest_key():
    with pytest.raises(InputError, match=r"did you mean --config\.data\.dir\?"):
        with_overrides(read_config(SMOKE, []), ["--config.data.dri=x"])


def test_differing_keys_see_a_key_of_one_side_only():
    assert differing_keys({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == ["a.c (None there, 2 here)"]


def test_a_config_of_before_there_was_a_key_keeps_what_it_did():
    values = to_json(read_config(SMOKE, ["--config.schedule.final_fraction=0.5", "--config.optim.b2=0.9"]))
    for *sections, key in (
        ("optim", "b2"),
        ("schedule", "final_fraction"),
        ("augment", "mixup", "ramp"),
        ("augment", "mixup", "until"),
    ):
        del functools.reduce(operator.getitem, sections, values)[key]
    config = from_json(values)
    check_config(config)
    assert (config.optim.b2, config.schedule.final_fraction) == (0.999, 0.0)
    assert (config.augment.mixup.ramp, config.augment.mixup.until) == (0.0, 1.0)


def test_tuples_and_lists_are_the_same_value():
    assert differing_keys({"widths": (1, 2)}, {"widths": [1, 2]}) == []


def test_flatten_joins_names_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": (2,)}, "e": "x"}) == {"a.b.c": 1, "a.d": [2], "e": "x"}


@pytest.mark.parametrize("key", sorted(flatten(to_json(read_config(SMOKE, [])))))
def test_a_missing_key_is_refused(key):
    config = ConfigDict(to_json(read_config(SMOKE, [])))
    *sections, name = key.split(".")
    del functools.reduce(operator.getitem, sections, config)[name]
    with pytest.raises(InputError, match=f"{key}.* missing"):
        check_config(config)


def test_a_config_stored_before_there_was_that_key_begins_from_the_seed():
    values = to_json(read_config(SMOKE, []))
    del values["init"], values["distill"]
    assert from_json(values).init.weights == from_json(values).distill.weights == ""


def test_a_key_nobody_knows_is_refused():
    values = to_json(read_config(SMOKE, []))
    values["train"]["epoch"] = 3
    with pytest.raises(InputError, match=r"train\.epoch, .* did you mean train\.epochs\?"):
        check_config(from_json(values))
