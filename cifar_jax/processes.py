"""The processes of one run, on one host or many: joining them, and what they must agree on. JAX's distributed runtime
does it; one process needs none of it, and then nothing here changes anything.

Process 0 alone reads and writes the workdir and logs; what it finds there the others are told.
"""

import collections
import contextlib
import itertools
import json
import os
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_jax import stopping
from cifar_jax.errors import InputError, RunError

HEARTBEAT_SECONDS = 10  # a process that has been silent for so long is taken for dead, and the others end
JOIN_SECONDS = 300

# Where these variables are set, JAX finds out about the processes by itself; the first counts them.
_CLUSTERS = (
    ("SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
    ("JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"),  # an indexed job; JAX asks the cluster how many there are
)


def are_several(parallel) -> bool:
    """Whether the config's parallel section, or where that says nothing the cluster, means more than this process."""
    if parallel.num_processes or parallel.coordinator:
        return parallel.num_processes != 1
    for count, *others in _CLUSTERS:
        if count in os.environ and all(name in os.environ for name in others):
            return count == "JOB_COMPLETION_INDEX" or int(os.environ[count]) > 1
    return False


def join(parallel) -> None:
    """Meets the other processes of the run, where there are any; before anything is computed.

    Raises InputError where the section is incomplete or the others are not found.
    """
    if not are_several(parallel) or jax.distributed.is_initialized():
        return
    address, count, index = parallel.coordinator, parallel.num_processes, parallel.process_id
    if not (address or count):
        address = count = index = None  # JAX asks the cluster
    elif not (":" in address and 0 <= index < count):
        raise InputError(
            f"parallel.coordinator, parallel.num_processes, parallel.process_id: got {address!r}, {count}, {index}, expected "
            "HOST:PORT of process 0, how many there are, and which this is, from 0 on; give all three"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from stopping.py
    try:
        _meet(address, count, index)
    except Exception as error:  # of many kinds, by cluster and transport
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"parallel: the processes of the run have not met ({reason}); start all of them with the same coordinator, a free "
            "port and a process_id of its own each, or set parallel.num_processes=1 for this one alone"
        ) from error
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise InputError(
            f"parallel: got processes of {sorted(counts.values())} devices, expected as many in each; give all of them the same"
        )


def _meet(address, count, index) -> None:
    """jax.distributed.initialize, in a thread: it hears no signal, and at the end of its own time aborts the process."""
    errors = []

    def initialize():
        try:
            seconds = {"initialization_timeout": JOIN_SECONDS + 60, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
            jax.distributed.initialize(address, count, index, **seconds)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    deadline = time.monotonic() + JOIN_SECONDS
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        stopping.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all were there within {JOIN_SECONDS} s")
    if errors:
        raise errors[0]


@contextlib.contextmanager
def ends_of_others():
    """Turns the error of an exchange that another process has broken off into a RunError.

    Where JAX's own watch over the processes notices first, it ends this process, in its words.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # its own lack of memory
            raise
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"another process of the run has ended or cannot be reached ({reason}); its output says why; start all of them again "
            "to resume"
        ) from error


def is_first() -> bool:
    """Whether this is the process that reads and writes the workdir, and logs."""
    return jax.process_index() == 0


def from_first(make):
    """Returns make() on every process, which process 0 alone calls; a JSON value. An InputError there is raised on all."""
    if jax.process_count() == 1:
        return make()
    error, said = None, b""
    if is_first():
        try:
            said = json.dumps({"value": make()}).encode()
        except InputError as raised:
            error, said = raised, json.dumps({"error": str(raised)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(said)] = np.frombuffer(said, np.uint8)
    heard = json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes())
    if "error" in heard:
        raise error or InputError(heard["error"])
    return heard["value"]


def state_from_first(state):
    """The state of process 0, a tree of host arrays, on every process; the others give one of the same structure."""
    return multihost_utils.broadcast_one_to_all(state) if jax.process_count() > 1 else state


def together(make):
    """Returns make() of each process; an InputError in any is raised in all, before anything else is done."""
    value = error = None
    try:
        value = make()
    except InputError as raised:
        error = raised
    if highest(error is not None):
        raise error or InputError("another process of the run has refused to begin; its output says why; start all of them again")
    return value


def check_same(name: str, value: str) -> None:
    """Raises InputError in all processes where one has another value than process 0."""
    first = from_first(lambda: value)

    def compare():
        if first != value:
            raise InputError(
                f"{name}: got {value} in process {jax.process_index()}, expected {first} as in process 0; use the same"
            )

    together(compare)


def make_agreement(number, every: int = 16):
    """Returns agree(): number() of one process; of several the highest, on every `every`-th call and 0 on the others.

    So that all act upon it at the same point, and seldom wait for each other.
    """
    calls = itertools.count(1)
    if jax.process_count() == 1:
        return number
    return lambda: 0 if next(calls) % every else highest(number())


def highest(number: int) -> int:
    """The highest of the processes' numbers, 0 to 255. All must call it at the same point; it waits for them."""
    return int(multihost_utils.process_allgather(np.uint8(number)).max()) if jax.process_count() > 1 else number
