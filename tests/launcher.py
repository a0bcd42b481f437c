"""Starts the training command as a process of its own, for tests that signal it, starve it or start it twice."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
import uuid

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")


@dataclasses.dataclass
class Process:
    """A command that has ended: its exit code, what it printed, and the processes it left behind."""

    code: int
    out: str
    err: str
    left: list[int]


class Launcher:
    """Starts the training command in a process group of its own, as a shell does."""

    def __init__(self, folder, overrides, compiled=None):
        """compiled: a folder of compiled programs that launchers share."""
        self.workdir, self.script, self._overrides = folder / "run", ROOT / "run.py", overrides
        self._folder, self._mark = folder, f"CIFAR_JAX_TEST={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self._env = os.environ | {
            name: value,
            "JAX_COMPILATION_CACHE_DIR": str(compiled or folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }

    def __call__(self, until=None, *numbers, group=False, do=None) -> Process:
        """Runs the command to its end; once `until()` holds it gets the signals, and do(process) is called."""
        command = [sys.executable, str(self.script), "--config", SMOKE, "--workdir", str(self.workdir), *self._overrides]
        with open(self._folder / "out", "w+") as out, open(self._folder / "err", "w+") as err:
            child = subprocess.Popen(command, cwd=self._folder, env=self._env, stdout=out, stderr=err, start_new_session=True)
            try:
                while until and not until() and child.poll() is None:
                    time.sleep(0.02)
                for number in numbers:
                    with contextlib.suppress(ProcessLookupError):
                        (os.killpg if group else os.kill)(child.pid, number)
                    time.sleep(0.05)
                if do:
                    do(child)
                code = child.wait(600)
            finally:
                child.kill()
            return Process(code, self.read("out"), self.read("err"), self._left())

    def read(self, name):
        return (self._folder / name).read_text()

    def saved(self):
        """The steps of which there is a checkpoint."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())

    def _left(self):
        deadline = time.monotonic() + 10
        while (left := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _alive(self):
        return [int(path.parent.name) for path in pathlib.Path("/proc").glob("[0-9]*/environ") if self._ours(path)]

    def _ours(self, path):
        with contextlib.suppress(OSError):
            return self._mark.encode() in path.read_bytes()
        return False


def find_workers(pid: int) -> list[int]:
    """The data workers of a training process."""
    children = [int(child) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [child for child in children if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]
