"""Kills training processes at random moments, starts them again, and compares what they end in with an undisturbed run.

python -m benchmarks.kill [--runs 200] [--signal KILL] [--jobs 1] [--seed 0] [--json]

A run is the smoke recipe, narrower, with a checkpoint every 0.3 seconds. Its whole process group gets the signal: one time
in ten before training begins, one in three as soon as a save is seen under way, else at a random moment of its training.
The same command is started again until it ends by itself. Then its weights must be those of the undisturbed run, byte by
byte, its rows the same but for times, and nothing may be left behind. Exit code 1 where anything differs.

Latest result: see results/reliability.md.
"""

import argparse
import collections
import contextlib
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

from cifar_jax import manifest
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


def live(workdir, compiled, rng: random.Random, number: signal.Signals, seconds: float) -> dict:
    """One life of a run: started, and sent the signal at a moment drawn from rng. Returns how it ended."""
    process = start(workdir, compiled)
    moment = rng.choices(["start", "save", "any"], [3, 10, 17])[0]
    if moment == "start":
        wait_for(process, lambda: False, rng.uniform(0, 4))
    else:
        wait_for(process, lambda: "Training" in pathlib.Path(f"{workdir}.out").read_text(), 120)
        wait_for(process, lambda: False, rng.uniform(0, seconds))
        if moment == "save":
            wait_for(process, lambda: is_saving(workdir), 5)
    sent = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number if sent else signal.SIGKILL)
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
    if rows != reference[1]:
        return "the rows differ from those of the undisturbed run"
    differing = [key for key in reference[0] if tensors.get(key) != reference[0][key]]
    if differing or tensors.keys() != reference[0].keys():
        return f"{len(differing)} tensors differ from those of the undisturbed run"
    return f"half-written files are left in {workdir}" if is_saving(workdir) else ""


def measure(runs: int, number: signal.Signals, jobs: int, seed: int, folder: pathlib.Path) -> dict:
    """Sends the signal `runs` times; returns what was counted."""
    began, compiled = time.perf_counter(), folder / "compiled"
    times = []
    for name in ("warm", "reference"):
        process = start(folder / name, compiled)
        if process.wait(600):
            raise RuntimeError((folder / f"{name}.err").read_text())
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        times.append(sum(row["seconds"] for row in rows))
    reference, shared = read_outcome(folder / "reference"), set(os.listdir("/dev/shm"))
    counts, faults, guard = collections.Counter(), [], threading.Lock()

    def job(k):
        rng, workdir = random.Random(f"{seed} {k}"), None
        while not faults:
            with guard:
                if counts["started"] >= runs and workdir is None:
                    return
            if workdir is None:
                with guard:
                    counts["folders"] += 1
                    workdir = folder / f"run{counts['folders']}"
            enough = counts["started"] >= runs  # the last lives are left alone
            with guard:
                counts["started"] += not enough
            ended = live(workdir, compiled, rng, number, times[-1] if not enough else 600.0)
            fault = find_fault(ended, workdir, reference, number)
            with guard:
                counts["started"] -= not enough and not ended["sent"]
                counts["signals"] += ended["sent"]
                counts["mid_save"] += ended["sent"] and ended["mid_save"]
                counts[f"moment_{ended['moment']}"] += ended["sent"]
                counts["resumed"] += "resuming" in pathlib.Path(f"{workdir}.out").read_text()
                counts["finished"] += ended["code"] == 0
                faults.extend([f"{workdir.name}: {fault}"] if fault else [])
            if ended["code"] == 0:
                workdir = None

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(job, range(jobs)))
    if left := set(os.listdir("/dev/shm")) - shared:
        faults.append(f"left in /dev/shm: {sorted(left)}")
    names = ("signals", "mid_save", "moment_start", "moment_save", "moment_any", "resumed", "finished")
    minutes = (time.perf_counter() - began) / 60
    return {"signal": number.name, **{name: counts[name] for name in names}, "faults": faults, "minutes": round(minutes, 1)}


def main(argv) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="how many times the signal is sent")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print one object, last")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cifar_jax-kill-") as folder:
        report = measure(flags.runs, signal.Signals[f"SIG{flags.signal}"], flags.jobs, flags.seed, pathlib.Path(folder))
    print(json.dumps(report) if flags.json else "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in report.items()))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
