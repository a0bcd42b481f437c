"""What may befall a training process: a full disk, a read-only one, a second run, a dead worker, a loss that is not finite."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from launcher import SMOKE, Launcher, find_workers

import run
from cifar_jax.data import shapes, sources
from cifar_jax.weights import load_weights

TINY = ["--config.model.widths=(8,8,8,16)", "--config.train.batch_size=100", "--config.train.epochs=2", "--config.data.workers=1"]
SMALL = shapes.make_shapes(60, 20)


def mount(*arguments):
    """Mounts, or skips the test where that is not allowed."""
    if subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of 330 kB: room for two checkpoints of the tiny run, not for three."""
    path = tmp_path_factory.mktemp("disk")
    mount("-t", "tmpfs", "-o", "size=330k", "tmpfs", path)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    with contextlib.suppress(OSError), (path / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


@pytest.fixture(scope="module")
def full(disk, compiled):
    """The same command on a disk that is too small for checkpoints, too full for the log, and then on one that has room."""
    # Four epochs, so four checkpoints, however slow the machine.
    few = ["--config.train.epochs=4", "--config.train.batch_size=250", "--config.checkpoint.every_seconds=0"]
    few += ["--config.data.num_validation=4000"]  # a fifth of the images is left to train on
    launch = Launcher(disk.parent, [*TINY, *few], compiled)
    launch.workdir = disk / "run"
    at_checkpoint = launch()
    kept = sorted(int(path.name) for path in (launch.workdir / "checkpoints").iterdir() if path.name.isdigit())
    mount("-o", "remount,size=8m", disk)
    later = launch(lambda: "First step" in launch.read("out"), do=lambda _: fill(disk))
    (disk / "fill").unlink()
    return at_checkpoint, kept, later, launch(), launch.workdir


def test_a_disk_too_full_for_a_checkpoint(full):
    process, kept = full[:2]
    assert process.code == 1 and process.left == []
    said = r"failed: a checkpoint cannot be written to \S+/run/checkpoints \(.*No space left on device.*\); make room there, .*\n"
    assert re.fullmatch(said, process.err), process.err
    assert kept  # what was saved before is still there


def test_a_disk_that_fills_up_amid_a_run(full):
    """Whether the log or a checkpoint notices it first depends on the room left in its last page."""
    process = full[2]
    assert process.code == 1 and "resuming" in process.out
    said = r"failed: .*/run\S* (cannot be written )?\(No space left on device\); make room there, .*"
    *before, last = process.err.splitlines()
    assert re.fullmatch(said, last), last
    assert all("is incomplete; the one before, of step" in line for line in before), before  # the save that failed first


def test_with_room_on_the_disk_the_run_ends_well(full):
    process, workdir = full[3:]
    assert process.code == 0 and process.err == "" and "resuming" in process.out
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.fixture(scope="module")
def beset(tmp_path_factory, compiled):
    """A run that a second one is started beside and whose worker is killed, and what became of it in another folder."""
    launch = Launcher(tmp_path_factory.mktemp("beset"), [*TINY, "--config.checkpoint.every_seconds=0.2"], compiled)
    other = Launcher(launch.workdir.parent / "..", launch._overrides)
    other._folder = tmp_path_factory.mktemp("second")
    other.workdir = other._folder / "link"
    other.workdir.symlink_to(launch.workdir)
    seen = {}

    def disturb(process):
        seen["second"] = other()
        os.kill(find_workers(process.pid)[0], signal.SIGKILL)
        seen["killed"] = time.monotonic()
        process.wait(60)
        seen["seconds"] = time.monotonic() - seen["killed"]

    shared = set(os.listdir("/dev/shm"))
    before = launch.workdir / "checkpoints"
    seen["first"] = launch(lambda: before.is_dir() and any(path.name.isdigit() for path in before.iterdir()), do=disturb)
    seen["left in /dev/shm"] = {name for name in set(os.listdir("/dev/shm")) - shared if "sem" not in name}
    launch.workdir = launch.workdir.rename(launch.workdir.parent / "moved")
    seen["resumed"] = launch()
    return seen, launch.workdir


def test_a_second_run_in_a_workdir_is_refused_also_by_another_name(beset):
    process = beset[0]["second"]
    assert process.code == 2 and process.out == ""
    assert re.fullmatch(r"error: --workdir: \S+/link is in use by another process, expected one run a folder; .*\n", process.err)


def test_a_killed_worker_is_noticed_within_seconds_and_named(beset):
    seen = beset[0]
    assert seen["first"].code == 1 and seen["seconds"] < 5
    said = r"failed: data worker 0 \(process \d+\) was killed by SIGKILL; if memory ran out lower data.workers, .*\n"
    assert re.fullmatch(said, seen["first"].err), seen["first"].err
    assert seen["first"].left == [] and not seen["left in /dev/shm"]


def test_moved_it_resumes_and_ends(beset):
    seen, moved = beset
    assert seen["resumed"].code == 0 and "resuming" in seen["resumed"].out
    assert load_weights(str(moved / "weights.safetensors")).variables["params"]


@pytest.fixture
def frozen(beset, tmp_path):
    """A folder, read-only, with a finished run and an unfinished one in it."""
    shutil.copytree(beset[1], tmp_path / "disk" / "finished")
    shutil.copytree(beset[1], tmp_path / "disk" / "unfinished")
    (tmp_path / "disk" / "unfinished" / "result.json").unlink()
    mount("--bind", tmp_path / "disk", tmp_path / "disk")
    mount("-o", "remount,bind,ro", tmp_path / "disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


@pytest.fixture
def command(capsys):
    """A function that runs arguments in this process: (exit code, stdout, stderr)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*argv):
        return run.main([str(word) for word in argv]), *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_read_only_folder(frozen, command):
    for name in ("new", "unfinished"):
        code, out, err = command("--config", SMOKE, "--workdir", frozen / name, *TINY)
        assert (code, out) == (2, "")
        assert re.fullmatch(
            r"error: --workdir: got \S+, but \S+ cannot be written \(Read-only file system\); name another\n", err
        )
    code, out, err = command("--config", SMOKE, "--workdir", frozen / "finished", *TINY)
    assert (code, err) == (0, "") and "Test accuracy" in out


def test_a_loss_that_is_not_finite_is_said_again_and_nothing_is_lost(tmp_path, command, monkeypatch):
    few = ["--config.model.widths=(8,8,8,16)", "--config.train.batch_size=20", "--config.log.progress=off"]
    few += ["--config.train.epochs=20", "--config.log.tensorboard=false"]
    monkeypatch.setattr(sources, "make_shapes", lambda: SMALL)
    said = []
    for _ in range(2):
        code, out, err = command("--config", SMOKE, "--workdir", tmp_path / "run", *few, "--config.schedule.learning_rate=100")
        found = re.fullmatch(
            r"failed: the loss is (nan|inf) at step (\d+) \(learning rate (\S+)\); .*lower schedule.learning_rate .*\n", err
        )
        assert (code, out) == (1, "") and found, err
        kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
        assert kept and kept[-1] <= int(found[2]) and 0 < float(found[3]) <= 100
        said.append((kept, err))
    assert said[0] == said[1]
    assert not (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "weights.safetensors").exists()
