"""Runs that begin from weights: what is taken over, what is refused, and what a resumed run needs of the file."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from test_train import shallow

from cifar_jax import train as train_module
from cifar_jax.config import read_config
from cifar_jax.data import shapes
from cifar_jax.errors import InputError
from cifar_jax.initial import read_initial, take_over
from cifar_jax.models import c1c2c3c40, create_model
from cifar_jax.optim import make_optimizer, make_schedule
from cifar_jax.state import create_state
from cifar_jax.train import train
from cifar_jax.weights import load_weights, save_weights

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
TINY = ["model.widths=(4,8,12,16)", "train.batch_size=50", "train.epochs=2", "log.tensorboard=false", "log.progress=off"]
TINY += ["budget.receptive_field=16", "parallel.devices=1"]
DATA = shapes.make_shapes(100, 20)
OTHERS = dataclasses.replace(DATA, classes=tuple("abcdefghij"))


def make_config(*overrides):
    return read_config(SMOKE, [f"--config.{override}" for override in (*TINY, *overrides)])


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few images and a shallow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
        patch.setattr(train_module, "load_dataset", lambda source, directory: DATA)
        yield


@pytest.fixture(scope="module")
def network():
    """The compiled initial state of a seed, with an average."""
    config = make_config()
    model, tx = create_model(config.model), make_optimizer(config.optim, make_schedule(config.schedule, 4))
    return lambda seed: create_state(model, tx, seed, with_ema=True)


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A weights file of the shapes' classes: the initial weights of seed 7, and statistics that no initial ones are."""
    state = network(7)
    statistics = jax.tree.map(lambda x: np.full(x.shape, 1.5, x.dtype), state.batch_stats)
    return write(tmp_path_factory.mktemp("weights") / "w.safetensors", {"params": state.params, "batch_stats": statistics})


def write(path, variables, **changes):
    content = {"classes": DATA.classes, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "train_seconds": None} | changes
    save_weights(path, variables, config=make_config().to_dict(), **content)
    return str(path)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("classes", [DATA.classes, DATA.classes[::-1]], ids=["same", "other order"])
def test_all_is_taken_over_but_the_head_of_other_classes(network, weights, classes):
    found, own = load_weights(weights), network(0)
    state = take_over(own, found, classes)
    expected = found.variables["params"] | ({} if classes == DATA.classes else {"head": own.params["head"]})
    assert_equal(state.params, expected)
    assert_equal(state.batch_stats, found.variables["batch_stats"])
    assert_equal(state.ema, {"params": state.params, "batch_stats": state.batch_stats})
    assert state.step == 0 and state.ema["params"]["head"]["kernel"] is not state.params["head"]["kernel"]
    assert not np.array_equal(found.variables["params"]["head"]["kernel"], own.params["head"]["kernel"])


def test_without_an_average_none_is_made(network, weights):
    assert take_over(network(0).replace(ema=None), load_weights(weights), DATA.classes).ema is None


def test_another_number_of_classes_is_no_other_network(weights):
    assert read_initial(make_config("model.num_classes=3", f"init.weights={weights}")).classes == DATA.classes
    assert read_initial(make_config()) is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("widths=(4,8,12,20)", r"tensor batch_stats/t3/norm/mean: got float32 \(16,\), expected float32 \(20,\)"),
        ("variant=early", r"tensor batch_stats/c1_sep/norm/mean: got nothing, expected float32 \(4,\)"),
    ],
)
def test_another_network_is_refused_by_its_first_tensor(weights, override, said):
    tiny = [] if "widths" in override else TINY[:1]
    config = read_config(SMOKE, [f"--config.{key}" for key in (*tiny, f"model.{override}", f"init.weights={weights}")])
    with pytest.raises(InputError, match=rf"^init\.weights .*{said}; .* strided with widths \(4, 8, 12, 16\): set model"):
        read_initial(config)


def test_a_head_of_as_many_classes_and_another_shape_is_refused(network, tmp_path):
    state = network(0)
    params = state.params | {"head": {"kernel": np.zeros((16, 9), np.float32), "bias": np.zeros(9, np.float32)}}
    path = write(tmp_path / "w", {"params": params, "batch_stats": state.batch_stats})
    with pytest.raises(InputError, match=r"init\.weights .*tensor params/head/bias: got float32 \(9,\)"):
        read_initial(make_config(f"init.weights={path}"))


@pytest.mark.parametrize("variables", [{"params": np.zeros(2)}, {"params": {"head": np.zeros(2)}, "x": np.zeros(2)}])
def test_a_strangers_tensors_are_refused_whatever_their_names(variables, tmp_path):
    path = write(tmp_path / "w", variables)
    with pytest.raises(InputError, match=r"init\.weights .*another network"):
        read_initial(make_config("model.num_classes=3", f"init.weights={path}"))


def test_training_begins_from_them_and_normalizes_by_its_own_data(weights, tmp_path, monkeypatch):
    """At a learning rate of nearly 0 the weights stay what they were."""
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: OTHERS)
    still = ("schedule.learning_rate=1e-9", "optim.weight_decay=0", "train.epochs=1", "ema.decay=0.9")
    train(make_config(f"init.weights={weights}", *still), tmp_path / "run")
    began, ended = load_weights(weights), load_weights(str(tmp_path / "run" / "weights.safetensors"))
    for name in began.variables["params"].keys() - {"head"}:
        one, other = (found.variables["params"][name] for found in (began, ended))
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), one, other)
    assert not np.allclose(began.variables["params"]["head"]["kernel"], ended.variables["params"]["head"]["kernel"], atol=1e-3)
    assert (ended.classes, ended.mean) == (OTHERS.classes, DATA.mean) and ended.config.init.weights == "w.safetensors"


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """(folder of a finished run from weights, its config)."""
    folder = tmp_path_factory.mktemp("whole")
    config = make_config(f"init.weights={shutil.copy(weights, folder / 'given.safetensors')}")
    train(config, folder / "run")
    return folder, config


@pytest.fixture
def stopped(whole):
    """The same after its first epoch; the file is put back afterwards."""
    folder, config = whole
    path, given = folder / "stopped", folder / "given.safetensors"
    shutil.copytree(folder / "run", path)
    (path / "result.json").unlink()
    (path / "weights.safetensors").unlink()
    shutil.rmtree(path / "checkpoints" / "4")
    content = given.read_bytes()
    yield path, given, config
    given.write_bytes(content)
    shutil.rmtree(path)


def test_a_run_names_the_weights_by_their_digest(whole, weights):
    stored = json.loads((whole[0] / "run" / "config.json").read_text())
    assert stored["init"] == load_weights(weights).sha256 and len(stored["init"]) == 64


@pytest.mark.parametrize("there", [True, False])
def test_it_resumes_from_a_checkpoint_with_the_file_or_without(stopped, whole, there):
    path, given, config = stopped
    before = (path / "config.json").read_bytes()
    if not there:
        given.unlink()
    train(config, path)
    mine, others = (load_weights(str(folder / "weights.safetensors")).variables for folder in (path, whole[0] / "run"))
    assert_equal(mine, others)
    assert (path / "config.json").read_bytes() == before


def test_it_does_not_resume_with_another_file(stopped, weights, network):
    path, given, config = stopped
    state = network(8)
    write(given, {"params": state.params, "batch_stats": state.batch_stats})
    with pytest.raises(InputError, match=r"run with other weights \(init\.weights: got [0-9a-f]{8}, expected [0-9a-f]{8}\)"):
        train(config, path)
    assert not (path / "result.json").exists()


def test_it_does_not_resume_with_a_damaged_file(stopped):
    path, given, config = stopped
    given.write_bytes(given.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"^init\.weights .*given\.safetensors: not a whole weights file"):
        train(config, path)


@pytest.mark.parametrize("other", ["", "w.safetensors"])
def test_it_does_not_resume_with_another_name(stopped, other):
    with pytest.raises(InputError, match=r"another config: init\.weights \(.*given\.safetensors there, "):
        train(make_config(f"init.weights={other}"), stopped[0])


def test_without_a_checkpoint_it_needs_the_file(stopped):
    path, given, config = stopped
    shutil.rmtree(path / "checkpoints")
    given.unlink()
    with pytest.raises(InputError, match=r"^init\.weights: got .*given\.safetensors, expected a file"):
        train(config, path)


def test_a_finished_run_is_reported_without_the_file_and_not_with_another(whole, network):
    folder, config = whole
    given = folder / "given.safetensors"
    content = given.read_bytes()
    given.unlink()
    assert train(config, folder / "run")["examples"] == 20
    write(given, {"params": network(8).params, "batch_stats": network(8).batch_stats})
    with pytest.raises(InputError, match="with other weights"):
        train(config, folder / "run")
    given.write_bytes(content)
