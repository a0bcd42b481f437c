"""The short forms of benchmarks.kill and damage: real processes killed, also amid a save, end in the same bytes as one that was
not; and no damage to what a run left goes unnoticed.
"""

import logging
import random
import signal
import types

import pytest

from benchmarks import damage, kill
from cifar_jax import manifest


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """With half of the images held out, in every life."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kill.OVERRIDES, "data.num_validation", 2500)
        yield kill.train_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def moments(monkeypatch):
    """A function that sets the moments of the lives to come, in place of random ones. The last comes some times more, for lives
    that end before their moment does."""

    def set_moments(*names):
        left = [*names, *names[-1:] * 9]

        class Moments(random.Random):
            def choices(self, *_):
                return [left.pop(0)]  # IndexError where none of so many lives came to its moment

        monkeypatch.setattr(kill, "random", types.SimpleNamespace(Random=Moments))

    return set_moments


def test_killed_before_and_amid_saves_a_run_ends_in_the_same_bytes(moments, tmp_path, reference, monkeypatch):
    """Amid saves that are not the first, so that the next life has something to resume from."""
    is_saving = kill.is_saving

    def is_saving_again(workdir):
        return is_saving(workdir) and any(map(manifest.is_complete, (workdir / "checkpoints").iterdir()))

    monkeypatch.setattr(kill, "is_saving", is_saving_again)
    moments("start", "save", "save")
    report = kill.measure(3, signal.SIGKILL, 1, 0, tmp_path, reference)
    assert report["faults"] == []
    assert report["signals"] >= 3 and report["mid_save"] >= 2 and report["resumed"] >= 2 and report["finished"] >= 1


@pytest.mark.slow  # tests/test_cli.py terminates too, tests/test_train.py amid an epoch
def test_terminated_amid_a_save_a_run_finishes_it_and_resumes_to_the_same_bytes(moments, tmp_path, reference):
    moments("save", "any")
    report = kill.measure(2, signal.SIGTERM, 1, 0, tmp_path, reference)
    assert report["faults"] == []
    assert report["signals"] >= 2 and report["mid_save"] == 0 and report["finished"] >= 1


def test_damage_to_what_a_run_left_is_noticed(tmp_path, reference, monkeypatch):
    log = logging.getLogger("cifar_jax")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    report = damage.measure(reference.compiled.parent / "reference", tmp_path, 3, 0)
    assert report["faults"] == []
    assert report["cases"] > 100 and all(
        report[name] for name in ("checkpoint", "config.json", "result.json", "weights", "data cache")
    )
