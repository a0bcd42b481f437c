"""Workers that fail or fall silent under a real training process, no room for what they share, and a copy of a living run."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from launcher import ROOT, SMOKE, Launcher, find_workers

from cifar_jax.weights import load_weights

pytestmark = pytest.mark.slow  # it waits for workers that are silent
TINY = ["--config.model.widths=(8,8,8,16)", "--config.train.batch_size=20", "--config.train.epochs=2", "--config.data.workers=2"]
# The command line with fewer images, none of which can be transformed in epoch 2 where there is a BAD_IMAGE, and patience for
# seconds, not minutes, once there is a file "impatient": a worker's start may take long.
FAULTY = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import run
from cifar_jax.data import shapes, sources, workers

def augment(compose, images, indices, out, *, seed, epoch):
    if epoch == 2 and os.environ.get("BAD_IMAGE"):
        raise ValueError("an image\\nthat cannot be transformed")
    good(compose, images, indices, out, seed=seed, epoch=epoch)

def wait(self, k):
    workers._WARN_SECONDS, workers._LOST_SECONDS = (1, 3) if os.path.exists("impatient") else (30, 300)
    good_wait(self, k)

good, workers.augment_batch = workers.augment_batch, augment
good_wait, workers.Workers._wait_for_message = workers.Workers._wait_for_message, wait
sources.make_shapes = lambda: shapes.make_shapes(1000, 200)
if __name__ == "__main__":
    code = run.main(sys.argv[1:])
    run.drop_output()
    sys.exit(code)
"""


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """One run: a worker raises in epoch 2; resumed, one is stopped for good; resumed, it ends. And a copy of it, made while
    it went on, resumed at once."""
    folder = tmp_path_factory.mktemp("life")
    launch = Launcher(folder, [*TINY, "--config.checkpoint.every_seconds=0.2"])
    launch.script = folder / "faulty.py"
    launch.script.write_text(FAULTY)
    copy = Launcher(tmp_path_factory.mktemp("copy"), launch._overrides, folder / "compiled")
    copy.script = launch.script
    seen = {}

    def copy_it(process):
        # What vanishes meanwhile is an error of cp, and one that its user may overlook.
        subprocess.run(["cp", "-r", launch.workdir, copy.workdir], capture_output=True)
        seen["alive"] = process.poll() is None

    def stop_a_worker(process):
        (folder / "impatient").touch()
        os.kill(find_workers(process.pid)[1], signal.SIGSTOP)

    launch._env["BAD_IMAGE"] = "1"
    shared = set(os.listdir("/dev/shm"))
    seen["raised"] = launch(lambda: len(launch.saved()) > 1, do=copy_it)
    seen["kept"] = launch.saved()
    del launch._env["BAD_IMAGE"]
    seen["stopped"] = launch(lambda: "First step" in launch.read("out"), do=stop_a_worker)
    (folder / "impatient").unlink()
    seen["left in /dev/shm"] = {name for name in set(os.listdir("/dev/shm")) - shared if "sem" not in name}
    seen["resumed"], seen["copy"] = launch(), copy()
    return seen, launch, copy


def test_a_worker_that_raises_is_named_with_its_reason(life):
    process = life[0]["raised"]
    assert process.code == 1 and process.left == []
    said = r"failed: data worker \d failed: ValueError: an image that cannot be transformed; set data.workers=0 .*\n"
    assert re.fullmatch(said, process.err), process.err
    assert life[0]["kept"] and "Epoch 1/2" in process.out


def test_a_worker_that_is_stopped_is_named_and_not_waited_for_without_end(life):
    process = life[0]["stopped"]
    assert process.code == 1 and process.left == [] and "resuming" in process.out
    name = r"data worker 1 \(process \d+, T \(stopped\)\) has given no batch for"
    warned, failed = process.err.splitlines()
    assert re.fullmatch(rf"{name} 1 s; the run ends unless it does within 2 s; `kill -CONT` .*", warned)
    assert re.fullmatch(rf"failed: {name} 3 s; .* then start the same command again to resume", failed)


def test_neither_leaves_anything_in_shared_memory(life):
    assert life[0]["left in /dev/shm"] == set()


def test_a_copy_of_a_run_that_goes_on_ends_in_the_same_tensors(life):
    seen, launch, copy = life
    assert seen["alive"]
    assert (seen["resumed"].code, seen["resumed"].err, seen["copy"].code) == (0, "", 0) and "resuming" in seen["resumed"].out
    # Of a checkpoint that was being written there is half: passed over, and said.
    assert all("incomplete; the one before" in line for line in seen["copy"].err.splitlines()), seen["copy"].err
    one, other = (load_weights(str(each.workdir / "weights.safetensors")).variables for each in (launch, copy))
    for part in ("params", "batch_stats"):
        np.testing.assert_equal(one[part], other[part])


def test_no_room_for_what_the_workers_share(tmp_path):
    """Shared memory and the folder for temporary files both as full as a container's may be."""
    inside = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && mount -t tmpfs -o size=2m tmpfs "$TMPDIR" || exit 77; exec "$@"'
    (tmp_path / "temporary").mkdir()
    launch = Launcher(tmp_path, TINY)
    launch._env["TMPDIR"] = str(tmp_path / "temporary")
    command = [sys.executable, str(ROOT / "run.py"), "--config", SMOKE, "--workdir", str(launch.workdir), *TINY]
    done = subprocess.run(["unshare", "-m", "sh", "-c", inside, "sh", *command], capture_output=True, text=True, env=launch._env)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 1
    said = r"failed: data.workers: the workers share 16.3 MB of memory, got /dev/shm 1.0 MB and \S+ 2.1 MB free, .*workers=0.*\n"
    assert re.fullmatch(said, done.stderr), done.stderr
