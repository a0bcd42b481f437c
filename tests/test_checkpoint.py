"""Checkpoints: which are kept, that they come back bit for bit, and that whatever happens to a file of one is noticed."""

import functools
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import manifest
from cifar_jax.checkpoint import Checkpoints, find_newest
from cifar_jax.errors import InputError, RunError
from cifar_jax.state import TrainState


def make_state(value=0.0, ema=None):
    params = {"head": {"kernel": jnp.full((2, 3), value), "bias": jnp.arange(3.0) * value}}
    return TrainState(jnp.int32(value), params, {"norm": {"mean": jnp.ones(2)}}, ({"trace": params},), ema)


def save(path, accuracies, keep_best=False, first=1, rows=()):
    """A checkpoint a step, each after an epoch of that accuracy."""
    rows = list(rows)
    with Checkpoints(path, keep_best=keep_best, resume_from=find_newest(path)) as checkpoints:
        for step, accuracy in enumerate(accuracies, first):
            rows.append({"step": step, "eval_accuracy": accuracy})
            checkpoints.save(step, make_state(float(step)), {"rows": list(rows)})
    return rows


def restore(path, like=None):
    with Checkpoints(path, keep_best=False, resume_from=find_newest(path)) as checkpoints:
        return checkpoints.restore(like or make_state())


def kept(path):
    return sorted(int(child.name) for child in path.iterdir() if child.name.isdigit())


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert find_newest(tmp_path / "c") is None and restore(tmp_path / "c") is None


def test_the_newest_comes_back_with_its_progress(tmp_path):
    rows = save(tmp_path / "c", [0.1, 0.3, 0.2], keep_best=True)
    state, progress = restore(tmp_path / "c")
    assert progress == {"rows": rows} and int(state.step) == 3
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
    rows = save(tmp_path / "c", [0.1, 0.9, 0.5], keep_best=True)
    save(tmp_path / "c", [0.3, 0.2, 0.1], True, first=4, rows=rows)
    assert kept(tmp_path / "c") == [2, 5, 6]


def test_one_amid_an_epoch_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path / "c", keep_best=True) as checkpoints:
        rows = [{"step": 2, "eval_accuracy": 0.1}]
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(), {"rows": rows if step > 1 else []})
    assert kept(tmp_path / "c") == [2, 3, 4]


def test_the_average_comes_back(tmp_path):
    ema = {"params": {"w": jnp.array([1.5])}, "batch_stats": {"m": jnp.array([2.5])}}
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        checkpoints.save(1, make_state(1.0, ema), {"rows": []})
        checkpoints.close()
    state, _ = restore(tmp_path / "c", make_state(0.0, jax.tree.map(jnp.zeros_like, ema)))
    assert float(state.ema["params"]["w"][0]) == 1.5 and float(state.ema["batch_stats"]["m"][0]) == 2.5


def test_a_network_without_statistics_comes_back_as_such(tmp_path):
    def without(value):
        params = {"w": jnp.array([value])}
        return make_state(value, {"params": params, "batch_stats": {}}).replace(batch_stats={})

    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        checkpoints.save(1, without(1.5), {"rows": []})
    state, _ = restore(tmp_path / "c", without(0.0))
    assert state.batch_stats == {} and state.ema["batch_stats"] == {}
    assert float(state.ema["params"]["w"][0]) == 1.5


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(1.0))  # no array twice: each is given away
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        checkpoints.save(1, state, {"rows": []})
        for _ in range(5):
            state = step(state)
    assert int(restore(tmp_path / "c")[0].step) == 1


def test_it_is_due_after_so_many_seconds_and_never_for_0(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("cifar_jax.checkpoint.time.monotonic", lambda: clock[0])
    with Checkpoints(tmp_path / "c", keep_best=False) as checkpoints:
        assert not checkpoints.is_due(0.0) and not checkpoints.is_due(10.0)
        clock[0] += 10
        assert checkpoints.is_due(10.0) and not checkpoints.is_due(0.0)
        checkpoints.save(1, make_state(), {"rows": []})
        checkpoints.wait()
        assert not checkpoints.is_due(10.0)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    save(tmp_path / "c", [0.1])
    broken = make_state().replace(params={"head": {"kernel": jnp.array([0.0, jnp.nan])}})
    with Checkpoints(tmp_path / "c", keep_best=False, resume_from=1) as checkpoints:
        with pytest.raises(RunError, match=r"not finite after step 2 .*kernel.*lower schedule\.learning_rate"):
            checkpoints.save(2, broken, {"rows": []})
    assert kept(tmp_path / "c") == [1]


def test_relative_paths_and_moved_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(pathlib.Path("c"), [0.1])
    (tmp_path / "c").rename(tmp_path / "moved")
    assert int(restore(pathlib.Path("moved"))[0].step) == 1


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two checkpoints; copy it."""
    path = tmp_path_factory.mktemp("two") / "c"
    save(path, [0.1, 0.2])
    return path


FILES = ["_CHECKPOINT_METADATA", "manifest.sha256", "progress/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/d/*"]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGES = {
    "first bit": functools.partial(flip, bit=0),
    "last bit": functools.partial(flip, bit=-1),
    "some bit": functools.partial(flip, bit=12345),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_the_newest_is_noticed(two, tmp_path, caplog, damage):
    """Each file in turn; the one before is found, and the warning names the file."""
    names = sorted(path.relative_to(two).as_posix() for path in (two / "2").rglob("*") if path.is_file())
    assert all(any(pathlib.PurePath(name).match(f"2/{pattern}") for name in names) for pattern in FILES)
    damaged = 0
    for i, name in enumerate(names):
        path = pathlib.Path(shutil.copytree(two, tmp_path / str(i)))
        before = (path / name).read_bytes()
        if before or damage in ("deleted", "longer"):
            DAMAGES[damage](path / name)
            caplog.clear()
            assert find_newest(path) == 1, name
            said = caplog.messages[0]
            assert str(path / "2") in said and "the one before, of step 1" in said
            assert name in said or "manifest" in name
            damaged += 1
    assert damaged >= len(FILES)


def test_the_one_before_is_restored_and_the_damaged_one_replaced(two, tmp_path):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))
    flip(next((path / "2/state/d").iterdir()), 99)
    assert int(restore(path)[0].step) == 1 and kept(path) == [1]
    save(path, [0.2], first=2)
    assert find_newest(path) == 2 and int(restore(path)[0].step) == 2


def test_a_save_that_was_killed_is_passed_over(two, tmp_path, caplog):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))
    (path / "2" / manifest.NAME).unlink()
    (path / "3.orbax-checkpoint-tmp").mkdir()
    assert find_newest(path) == 1 and "2 is incomplete" in caplog.text
    assert int(restore(path)[0].step) == 1
    assert [child.name for child in path.iterdir()] == ["1"]


def test_a_manifest_that_is_no_file_is_none(two, tmp_path, caplog):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))
    (path / "2" / manifest.NAME).unlink()
    os.mkfifo(path / "2" / manifest.NAME)
    assert find_newest(path) == 1 and "2 is incomplete" in caplog.text


def test_killed_amid_its_first_save_a_run_begins_again(tmp_path, caplog):
    save(tmp_path / "c", [0.1])
    (tmp_path / "c" / "1" / manifest.NAME).unlink()
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path / "c") is None
    assert kept(tmp_path / "c") == []
    assert "1 is incomplete; there is none before it: training begins again" in caplog.text


@pytest.mark.parametrize("damage", ["some bit", "emptied", "deleted"])
def test_all_damaged_is_an_error_that_changes_nothing(two, tmp_path, damage):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))
    for step in (1, 2):
        DAMAGES[damage](path / str(step) / "manifest.sha256")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(
        InputError, match=r"no checkpoint of 2 in .*/c is whole \(.*/2.*\).*restore the folder from a copy"
    ) as error:
        find_newest(path)
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_one_of_another_structure_is_named_with_the_remedy(two, tmp_path):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))
    other = make_state().replace(params={"other": jnp.ones(3)})
    with pytest.raises(RunError, match=r"/c/2 is whole, but cannot be read \(.*\); use the version") as error:
        restore(path, other)
    assert "\n" not in str(error.value)


def test_a_save_that_fails_is_reported_at_the_next_call(two, tmp_path, monkeypatch):
    path = pathlib.Path(shutil.copytree(two, tmp_path / "c"))

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with Checkpoints(path, keep_best=False, resume_from=2) as checkpoints:
        checkpoints.save(3, make_state(3.0), {"rows": []})
        with pytest.raises(RunError, match=r"cannot be written to .*/c \(No space left on device\); make room") as error:
            checkpoints.wait()
    assert "\n" not in str(error.value) and find_newest(path) == 2
