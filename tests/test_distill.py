"""A network taught by another: what the teacher says of an image, and what a run makes of it and remembers of it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import test_initial
from test_initial import DATA, OTHERS, make_config, write

from cifar_jax import train as train_module
from cifar_jax.classifier import load
from cifar_jax.data.augment import normalize
from cifar_jax.distill import make_teacher, read_teacher
from cifar_jax.errors import InputError
from cifar_jax.train import train
from cifar_jax.weights import load_weights

network, quick, weights = test_initial.network, test_initial.quick, test_initial.weights  # fixtures


@pytest.fixture(scope="module")
def taught(weights, tmp_path_factory):
    """(folder with a finished run and its teacher, the run's config)."""
    folder = tmp_path_factory.mktemp("taught")
    given = shutil.copy(weights, folder / "teacher.safetensors")
    config = make_config(f"distill.weights={given}", "distill.share=1.0")
    train(config, folder / "run")
    return folder, config


def test_a_teacher_says_what_it_says_to_predict_however_the_data_are_normalized(weights):
    data = dataclasses.replace(DATA, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
    config = make_config(f"distill.weights={weights}", "distill.share=0.25", "distill.temperature=3.0")
    teacher = make_teacher(config, read_teacher(config), data)
    images = DATA.test.images[:8]
    seen = np.empty(images.shape, np.float32)
    seen[:] = normalize(images, data.mean, data.std)
    said = jax.nn.softmax(teacher.logits(seen))
    np.testing.assert_allclose(said, load(weights).predict(images), atol=1e-5)  # float32, normalized twice
    assert (teacher.share, teacher.temperature) == (0.25, 3.0)
    assert make_teacher(make_config(), read_teacher(make_config()), data) is None


def test_a_run_learns_from_its_teacher_and_its_weights_name_it(taught, tmp_path):
    folder, _ = taught
    train(make_config("distill.share=1.0"), tmp_path / "alone")
    ours, alone = (load_weights(str(path / "weights.safetensors")) for path in (folder / "run", tmp_path / "alone"))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours.variables["params"], alone.variables["params"])
    assert min(jax.tree.leaves(apart)) > 1e-4  # every tensor
    assert (ours.config.distill.weights, alone.config.distill.weights) == ("teacher.safetensors", "")


def test_a_run_knows_its_teacher_by_digest_and_goes_on_with_no_other(taught, network):
    folder, config = taught
    given = folder / "teacher.safetensors"
    stored = json.loads((folder / "run" / "config.json").read_text())
    assert stored["teacher"] == load_weights(str(given)).sha256
    content, state = given.read_bytes(), network(8)
    given.unlink()
    assert train(config, folder / "run")["examples"] == 20  # finished: it needs no teacher
    write(given, {"params": state.params, "batch_stats": state.batch_stats})
    with pytest.raises(InputError, match=r"run with other weights \(distill\.weights: got [0-9a-f]{8}, expected [0-9a-f]{8}\)"):
        train(config, folder / "run")
    given.write_bytes(content)


def test_a_taught_run_resumes_to_the_same_bits_and_not_without_its_teacher(taught, tmp_path):
    folder, config = taught
    path, given = shutil.copytree(folder / "run", tmp_path / "run"), folder / "teacher.safetensors"
    (path / "result.json").unlink()
    (path / "weights.safetensors").unlink()
    shutil.rmtree(path / "checkpoints" / "4")
    content = given.read_bytes()
    given.unlink()
    with pytest.raises(InputError, match=r"^distill\.weights: got .*teacher\.safetensors, expected a file"):
        train(config, path)
    given.write_bytes(content)
    train(config, path)
    ours, whole = (load_weights(str(each / "weights.safetensors")).variables for each in (path, folder / "run"))
    jax.tree.map(np.testing.assert_array_equal, ours, whole)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "load_dataset", lambda source, directory: OTHERS)
    with pytest.raises(InputError, match=r"^distill\.weights: got .*, expected those of the data, a, b, c"):
        train(make_config(f"distill.weights={weights}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_tensors_are_of_another_network_is_refused(tmp_path):
    path = write(tmp_path / "w", {"params": {"head": np.zeros(2, np.float32)}})
    with pytest.raises(InputError, match=r"^distill\.weights .*tensor .*another network"):
        read_teacher(make_config(f"distill.weights={path}"))
