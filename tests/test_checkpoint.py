"""Checkpoints: which are kept, that they come back bit for bit, and what a damaged one says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.checkpoint import Checkpoints
from cifar_jax.errors import RunError
from cifar_jax.state import TrainState


def make_state(value=0.0, ema=None):
    params = {"head": {"kernel": jnp.full((2, 3), value), "bias": jnp.arange(3.0) * value}}
    return TrainState(jnp.int32(value), params, {"norm": {"mean": jnp.ones(2)}}, ({"trace": params},), ema)


def save(path, accuracies, keep_best):
    with Checkpoints(path, keep_best=keep_best) as checkpoints:
        for step, accuracy in enumerate(accuracies, 1):
            checkpoints.save(step, make_state(float(step)), {"rows": [{"epoch": step}]}, accuracy)


def kept(path):
    return sorted(int(child.name) for child in path.iterdir() if child.name.isdigit())


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        assert checkpoints.restore(make_state()) is None


def test_the_newest_comes_back_with_its_progress(tmp_path):
    save(tmp_path / "c", [0.1, 0.3, 0.2], keep_best=True)
    with Checkpoints(tmp_path / "c", keep_best=True) as checkpoints:
        state, progress = checkpoints.restore(make_state())
    assert progress == {"rows": [{"epoch": 3}]} and int(state.step) == 3
    np.testing.assert_array_equal(state.params["head"]["kernel"], np.full((2, 3), 3.0))
    np.testing.assert_array_equal(state.opt_state[0]["trace"]["head"]["bias"], np.arange(3) * 3.0)


@pytest.mark.parametrize(
    ("accuracies", "keep_best", "steps"),
    [
        ([0.1, 0.2, 0.3, 0.4], False, [3, 4]),
        ([0.1, 0.9, 0.3, 0.2, 0.1], True, [2, 4, 5]),
        ([0.1, 0.2, 0.3, 0.4], True, [3, 4]),
    ],
)
def test_which_are_kept(tmp_path, accuracies, keep_best, steps):
    save(tmp_path / "c", accuracies, keep_best)
    assert kept(tmp_path / "c") == steps


def test_the_best_is_remembered_on_resume(tmp_path):
    save(tmp_path / "c", [0.1, 0.9, 0.5], keep_best=True)
    with Checkpoints(tmp_path / "c", keep_best=True) as checkpoints:
        for step in (4, 5, 6):
            checkpoints.save(step, make_state(), {}, 0.7 - step / 10)
    assert kept(tmp_path / "c") == [2, 5, 6]


def test_the_average_comes_back(tmp_path):
    ema = {"params": {"w": jnp.array([1.5])}, "batch_stats": {"m": jnp.array([2.5])}}
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        checkpoints.save(1, make_state(1.0, ema), {}, 0.0)
        checkpoints.close()
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        state, _ = checkpoints.restore(make_state(0.0, jax.tree.map(jnp.zeros_like, ema)))
    assert float(state.ema["params"]["w"][0]) == 1.5 and float(state.ema["batch_stats"]["m"][0]) == 2.5


def test_a_save_that_was_killed_is_ignored(tmp_path):
    save(tmp_path / "c", [0.1, 0.2], keep_best=False)
    (tmp_path / "c" / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        assert int(checkpoints.restore(make_state())[0].step) == 2


def test_relative_paths_and_moved_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("c", [0.1], keep_best=False)
    (tmp_path / "c").rename(tmp_path / "moved")
    with Checkpoints("moved", keep_best=False) as checkpoints:
        assert int(checkpoints.restore(make_state())[0].step) == 1


def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path):
    save(tmp_path / "c", [0.1, 0.2], keep_best=False)
    for path in (tmp_path / "c" / "2").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(b"damaged")
    said = r"/c/2 cannot be read .* remove that folder.* resume from the one before"
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints, pytest.raises(RunError, match=said) as error:
        checkpoints.restore(make_state())
    assert "\n" not in str(error.value)
