"""Kills training processes at random moments, starts them again, and compares what they end in with an undisturbed run.

python -m benchmarks.kill [--runs 200] [--signal KILL] [--jobs 1] [--seed 0] [--json]

A run is the smoke recipe, narrower, with a checkpoint every 0.3 seconds. Its whole process group gets the signal: one time
in ten before training begins, one in three amid a save, from a random moment on, else at a random moment of its training.
The same command is started again until it ends by itself. Then its weights must be those of the undisturbed run, byte by
byte, its rows the same but for times, and nothing may be left behind. Exit code 1 where anything differs.

Latest result: see results/reliability.md.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.measure import make_plain_parser, print_report
from cifar_jax import arguments, manifest
from cifar_jax.weights import load_weights

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ("seconds", "images_per_second", "input_wait_fraction")
OVERRIDES = {
    "model.widths": "(8,8,8,16)",
    "train.batch_size": 50,
    "train.epochs": 2,
    "data.workers": 1,
    "ema.decay": 0.9,
    "checkpoint.every_seconds": 0.3,
}


def start(workdir: pathlib.Path, compiled: pathlib.Path) -> subprocess.Popen:
    """Starts or resumes the run, in a process group of its own; it prints into files beside the workdir."""
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    command = [sys.executable, "run.py", "--config", "configs/smoke.py", "--workdir", str(workdir), *overrides]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    with open(f"{workdir}.out", "w") as out, open(f"{workdir}.err", "w") as err:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err, start_new_session=True)


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether something is half written: a checkpoint without its manifest, or a file that is about to be renamed."""
    with contextlib.suppress(OSError):  # what is looked at may be renamed meanwhile
        folders = [path for path in (workdir / "checkpoints").iterdir() if path.is_dir()]
        return bool(any(not manifest.is_complete(folder) for folder in folders) or list(workdir.glob("*.tmp")))
    return False


def wait_for(process: subprocess.Popen, condition, limit: float) -> None:
    """Returns once the condition holds, the process has ended, or `limit` seconds have passed."""
    deadline = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(0.001)


def catch_saving(process: subprocess.Popen, workdir: pathlib.Path, limit: float) -> None:
    """Returns with the process group halted amid a save, or as wait_for does."""
    deadline = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < deadline:
        wait_for(process, lambda: is_saving(workdir), deadline - time.monotonic())
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended; what it left, live kills
            os.killpg(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # the last of its threads may still run
            if is_saving(workdir):  # not done in the meantime
                return
            os.killpg(process.pid, signal.SIGCONT)


def live(workdir: pathlib.Path, reference, rng: random.Random | None, number: signal.Signals) -> dict:
    """One life of a run: started, and sent the signal at a moment drawn from rng (None: never). Returns how it ended."""
    process = start(workdir, reference.compiled)
    moment = rng.choices(["start", "save", "any"], [3, 10, 17])[0] if rng else "end"
    if moment in ("save", "any"):
        wait_for(process, lambda: "Training" in pathlib.Path(f"{workdir}.out").read_text(), 120)
    span = {"start": 4, "end": 600}.get(moment, reference.seconds)
    wait_for(process, lambda: False, rng.uniform(0, span) if rng else span)
    if moment == "save":
        catch_saving(process, workdir, 30)
    sent = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number if sent else signal.SIGKILL)  # what a process that ended may have left
        os.killpg(process.pid, signal.SIGCONT)
    code = process.wait(120)
    ended = {"sent": sent and code != 0, "code": code, "mid_save": sent and is_saving(workdir), "moment": moment}
    return ended | {"err": pathlib.Path(f"{workdir}.err").read_text()}


def read_outcome(workdir: pathlib.Path) -> tuple[dict, list]:
    """(tensors of the weights as bytes, rows without times)."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(load_weights(str(workdir / "weights.safetensors")).variables)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tensors = {jax.tree_util.keystr(path): (value.dtype.str, value.shape, value.tobytes()) for path, value in leaves}
    return tensors, [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def find_fault(ended: dict, workdir: pathlib.Path, reference, number: signal.Signals) -> str:
    """ "" where a life ended as it should, else what is wrong with it."""
    if ended["sent"]:
        expected = [-number] if number == signal.SIGKILL else [128 + number]
        if ended["moment"] == "start":  # Python itself may have been starting
            expected.append(-number)
        if ended["code"] not in expected or "Traceback" in ended["err"]:
            return f"exit code {ended['code']}, expected {expected[0]}: {ended['err'][-300:]}"
        return "" if number == signal.SIGKILL or not ended["mid_save"] else "stopped amid a save"
    if ended["code"] != 0:
        return f"ended with {ended['code']}: {ended['err'][-300:]}"
    tensors, rows = read_outcome(workdir)
    if rows != reference.rows:
        return "the rows differ from those of the undisturbed run"
    differing = [key for key in reference.tensors if tensors.get(key) != reference.tensors[key]]
    if differing or tensors.keys() != reference.tensors.keys():
        return f"{len(differing)} tensors differ from those of the undisturbed run"
    return f"half-written files are left in {workdir}" if is_saving(workdir) else ""


class Reference(NamedTuple):
    """What an undisturbed run ended in, the seconds its training takes, and where its compiled programs lie."""

    tensors: dict
    rows: list
    seconds: float
    compiled: pathlib.Path


def train_reference(folder: pathlib.Path) -> Reference:
    """Trains the undisturbed run in a folder."""
    process = start(folder / "reference", folder / "compiled")
    if process.wait(600):
        raise RuntimeError((folder / "reference.err").read_text())
    rows = [json.loads(line) for line in (folder / "reference" / "metrics.jsonl").read_text().splitlines()]
    seconds = len(rows) * rows[-1]["seconds"]  # the first epoch waits for the compiler
    return Reference(*read_outcome(folder / "reference"), seconds, folder / "compiled")


def measure(runs: int, number: signal.Signals, jobs: int, seed: int, folder: pathlib.Path, reference: Reference) -> dict:
    """Sends the signal `runs` times to runs in `folder`; returns what was counted."""
    began, counts, faults, guard = time.perf_counter(), collections.Counter(), [], threading.Lock()

    def take():
        with guard:
            counts["taken"] += (free := counts["taken"] < runs)
            return free

    def run_to_the_end(workdir, rng):
        ended = {"code": None}
        while ended["code"] != 0 and not faults:
            drawn = take()
            ended = live(workdir, reference, rng if drawn else None, number)
            fault = find_fault(ended, workdir, reference, number)
            with guard:
                counts["taken"] -= drawn and not ended["sent"]  # it had ended before its moment came
                counts["signals"] += ended["sent"]
                counts["mid_save"] += ended["sent"] and ended["mid_save"]
                counts[f"moment_{ended['moment']}"] += ended["sent"]
                counts["resumed"] += "resuming" in pathlib.Path(f"{workdir}.out").read_text()
                counts["finished"] += ended["code"] == 0
                faults.extend([f"{workdir.name}: {fault}"] if fault else [])

    def job(k):
        rng = random.Random(f"{seed} {k}")
        for n in itertools.count():
            if counts["taken"] >= runs or faults:
                return
            run_to_the_end(folder / f"run{k}-{n}", rng)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(job, range(jobs)))
    names = ("signals", "mid_save", "moment_start", "moment_save", "moment_any", "resumed", "finished")
    minutes = (time.perf_counter() - began) / 60
    return {"signal": number.name, **{name: counts[name] for name in names}, "faults": faults, "minutes": round(minutes, 1)}


def main(argv) -> int:
    parser = make_plain_parser(__doc__)
    parser.add_argument("--runs", type=arguments.whole(1), default=200, help="how many times the signal is sent")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--jobs", type=arguments.whole(1), default=1, help="runs at the same time")
    parser.add_argument("--seed", type=arguments.whole(0), default=0, help="of the moments")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cifar_jax-kill-") as name:
        folder = pathlib.Path(name)
        number = signal.Signals[f"SIG{flags.signal}"]
        report = measure(flags.runs, number, flags.jobs, flags.seed, folder, train_reference(folder))
    print_report(report, flags.json)
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
