"""Two processes with two devices each, on this machine: the numbers of one process, one workdir, and what ends them."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from cifar_jax import processes, sweep
from cifar_jax.config import ANYWHERE, read_config
from cifar_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
OPTIONS = [
    "model.widths=(4,5,6,7)",
    "data.num_validation=3000",  # two fifths of the images are left to train on
    "train.batch_size=500",
    "train.epochs=3",
    "schedule.learning_rate=0.02",  # low: training makes little of differences in rounding
    "log.tensorboard=false",
    "checkpoint.every_seconds=0.3",
]
GLOO = set("Gloo Rank is connected to peer ranks Expected number of".split())  # the transport's own lines, which may be mixed up
NUMBERS = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "eval_examples")


REFUSED = "another process of the run has refused to begin; its output says why; start all of them again\n"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    """The processes of one run, begun one after the other; those but the first are given a workdir that they must not make.

    last: an override of the last process alone.
    """

    def __init__(self, folder, *overrides, number=2, devices=2, last=None):
        self.folder, self.workdir = folder, folder / "run"
        folder.mkdir(exist_ok=True)
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        address = f"127.0.0.1:{free_port()}"
        self.children = []
        for index in range(number):
            workdir = self.workdir if index == 0 else folder / "none"
            flags = [*OPTIONS, *overrides]
            if number > 1:
                flags += [f"parallel.coordinator={address}", f"parallel.num_processes={number}", f"parallel.process_id={index}"]
            if last and index == number - 1:
                flags.append(last)
            command = [sys.executable, str(ROOT / "run.py"), "--config", SMOKE, "--workdir", str(workdir)]
            with open(folder / f"out-{index}", "w") as out, open(folder / f"err-{index}", "w") as err:
                arguments = command + [f"--config.{flag}" for flag in flags]
                self.children.append(subprocess.Popen(arguments, cwd=folder, env=environment, stdout=out, stderr=err))

    def wait(self, seconds=240):
        """The exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [child.wait(max(deadline - time.monotonic(), 0.1)) for child in self.children]
        finally:
            for child in self.children:
                child.kill()

    def until(self, holds, seconds=240):
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            assert all(child.poll() is None for child in self.children), self.read("err-0") + self.read("err-1")
            time.sleep(0.05)

    def until_saved(self):
        self.until(self.last_saved)

    def last_saved(self):
        """The step of the newest checkpoint that is whole, or 0."""
        return max((int(path.parent.name) for path in self.workdir.glob("checkpoints/*/manifest.sha256")), default=0)

    def read(self, name):
        return (self.folder / name).read_text()

    def rows(self):
        rows = [json.loads(line) for line in self.read("run/metrics.jsonl").splitlines()]
        return [[row[name] for name in NUMBERS] for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process on one device."""
    group = Group(tmp_path_factory.mktemp("runs") / "alone", number=1, devices=1)
    assert group.wait() == [0], group.read("err-0")
    return group


def same_numbers(rows, expected):
    # Twelve steps in float32. Seen: losses that differ by 4e-5, and three of 2000 images.
    for name, tolerance in {"train_loss": 1e-3, "eval_loss": 1e-3, "train_accuracy": 5e-3, "eval_accuracy": 5e-3}.items():
        ours, theirs = ([row[NUMBERS.index(name)] for row in some] for some in (rows, expected))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
    assert [row[-1] for row in rows] == [row[-1] for row in expected]


def test_killed_one_of_two_ends_the_other_and_resumed_they_end_in_the_numbers_of_one(alone):
    killed = Group(alone.folder.parent / "two")
    killed.until_saved()
    killed.children[1].kill()
    began = time.monotonic()
    codes = killed.wait(60)
    assert time.monotonic() - began < 30
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert re.search("another (process|task)", killed.read("err-0"))

    group = Group(killed.folder)
    assert group.wait() == [0, 0], group.read("err-0") + group.read("err-1")
    same_numbers(group.rows(), alone.rows())
    assert "resuming" in group.read("out-0")
    assert "4 cpu devices in 2 processes, 125 images of a batch each" in group.read("out-0")
    # Only the first has written.
    assert set(re.findall("[A-Za-z]+", group.read("out-1"))) <= GLOO
    assert not (group.folder / "none").exists()
    assert (group.workdir / "result.json").exists()


@pytest.mark.slow  # that a state of two devices is restored onto one: tests/test_mesh.py
def test_stopped_one_of_two_stops_the_other_and_the_run_goes_on_on_any_devices(alone):
    stopped = Group(alone.folder.parent / "stopped")
    stopped.until_saved()
    stopped.children[1].send_signal(signal.SIGTERM)
    assert stopped.wait(60) == [143, 143], stopped.read("err-0") + stopped.read("err-1")

    # One process on one device restores what four devices of two processes saved, each only a part of a batch theirs.
    resumed = Group(stopped.folder, number=1, devices=1)
    assert resumed.wait() == [0], resumed.read("err-0")
    assert "resuming" in resumed.read("out-0")
    same_numbers(resumed.rows(), alone.rows())


def test_another_seed_in_one_of_two_is_refused_by_both_and_nothing_is_written(tmp_path):
    group = Group(tmp_path / "differing", last="seed=5")
    assert group.wait() == [2, 2]
    assert group.read("err-0") == "error: " + REFUSED
    assert "error: config: process 1 got another than process 0: seed (0 there, 5 here); start all" in group.read("err-1")
    assert not group.workdir.exists()


# The others never come. A process of its own: JAX joins but once.
ABSENT = """
import sys
from cifar_jax import processes, stopping
from cifar_jax.config import ANYWHERE
from cifar_jax.errors import InputError
from ml_collections import ConfigDict

stopping.listen()
processes.JOIN_SECONDS = int(sys.argv[2])
try:
    processes.join(ConfigDict(ANYWHERE | {"coordinator": sys.argv[1], "num_processes": 2, "process_id": 0}))
except InputError as error:
    print(error, flush=True)
except stopping.Stopped as stopped:
    print("stopped", stopped, flush=True)
import os
os._exit(0)
"""


def test_an_absent_process_is_waited_for_within_bounds_and_a_signal_ends_the_waiting():
    def begin(seconds):
        command = [sys.executable, "-c", ABSENT, f"127.0.0.1:{free_port()}", seconds]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    short, long = begin("1"), begin("100")
    assert "not all were there within 1 s" in short.communicate(timeout=60)[0]
    long.terminate()  # imported as long ago as the other
    assert long.communicate(timeout=60)[0].strip() == f"stopped {signal.SIGTERM:d}"


def section(**changes):
    return ConfigDict(ANYWHERE | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"coordinator": "host:1"},
        {"num_processes": 2},
        {"coordinator": "host", "num_processes": 2, "process_id": 0},
        {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
    ],
)
def test_an_incomplete_section_is_refused(changes):
    with pytest.raises(InputError, match="give all three"):
        processes.join(section(**changes))


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, False),  # a batch script: no step of its own
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "n[1-2]",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
            },
            True,
        ),
        (
            {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            False,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, True),
    ],
)
def test_what_a_cluster_says_of_its_processes(monkeypatch, environment, several):
    for names in processes._CLUSTERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.are_several(section()) == several
    assert not processes.are_several(section(num_processes=1))


def test_a_sweep_is_one_process(tmp_path):
    config = read_config(SMOKE, ["--config.parallel.num_processes=2"])
    with pytest.raises(InputError, match="a sweep"):
        sweep.sweep(config, str(tmp_path / "sweep"), [0])
    assert not (tmp_path / "sweep").exists()
