"""Workers that fill batch slots: spawned processes on shared memory, or one thread of this process.

Both run `_serve` at the far end of a pipe, so what holds of one (order, bits, errors) holds of the other. The pipe is
the only bond: a worker ends when its parent's end closes, be it by close() or by the parent's death, and a worker's
death is the end of file its parent reads. Shared memory is anonymous (a RawArray, whose file is unlinked before it is
used), so nothing is left in /dev/shm however a process ends.
"""

import contextlib
import ctypes
import functools
import logging
import math
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.util
import shutil
import signal
import tempfile
import threading

import numpy as np

from cifar_jax.data.augment import SHUFFLE, augment_batch, make_train_transform, seed_sequence
from cifar_jax.errors import InputError, RunError

_JOIN_SECONDS = 1.0
# For one batch, which takes milliseconds, or a minute where a cold disk holds what a worker imports first. Without an end
# a run whose worker is stopped (SIGSTOP, a frozen cgroup) or hangs would hold its machine for ever and say nothing.
_WARN_SECONDS, _LOST_SECONDS = 30, 300
log = logging.getLogger("cifar_jax")


def permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the order, int64 (n,), in which an epoch visits n images."""
    return np.random.default_rng(seed_sequence(seed, epoch, SHUFFLE)).permutation(n)


class Workers:
    """A pool to which batches are handed by number: batch i goes to worker i % count and to slot i % depth.

    `depth`, the most batches that may be under way at once, is a multiple of the number of workers: so a slot belongs
    to one worker, which fills it in the order asked, and a batch no longer wanted cannot overwrite a newer one.
    """

    def __init__(self, images, augment, mean, std, *, batch_size, rows, seed, workers, depth=4):
        """images: uint8 (n, 32, 32, 3). workers: number of processes; 0 is one thread here. rows: a slice of each batch,
        what is made of it. See `make_train_loader`.
        """
        count = max(workers, 1)
        self.depth = count * max(2, -(-depth // count))
        self._peers, self._pipes = [], []
        # Runs at close, at garbage collection and at exit, there before multiprocessing joins its children.
        self._finalize = multiprocessing.util.Finalize(self, _stop, (self._peers, self._pipes), exitpriority=10)
        make = _make_processes if workers else _make_thread
        shape = (self.depth, rows.stop - rows.start, *images.shape[1:])
        start, self._slots = make(images, (augment, mean, std), shape, (batch_size, rows, seed))
        # Both stay blocked in the children, from their first instruction: Ctrl-C and a scheduler's SIGTERM reach the
        # whole group, and the parent decides. The tracker, if the first child started it, would unblock them.
        multiprocessing.resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            for k in range(count):
                peer, pipe = start(f"data worker {k}")
                self._peers.append(peer)
                self._pipes.append(pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def submit(self, generation: int, epoch: int, i: int) -> None:
        """Asks for batch i of `epoch`; `generation` comes back with the result."""
        with contextlib.suppress(OSError):  # a worker that has ended: `wait` reads its last words first
            self._pipes[i % len(self._peers)].send((generation, epoch, i))

    def wait(self, generation: int, i: int) -> np.ndarray:
        """Waits for batch i and returns a copy of it, float32 (b, 32, 32, 3); drops what other generations asked for.

        Raises RunError if its worker failed, died or fell silent, InputError if it refused the config.
        """
        k = i % len(self._peers)
        while True:
            try:
                self._wait_for_message(k)
                kind, message = self._pipes[k].recv()
            except (EOFError, OSError):
                self._raise_dead(k)
            if kind == "input":
                raise InputError(message)
            if kind == "error":
                raise RunError(f"{self._peers[k].name} failed: {message}; set data.workers=0 to see it in this process")
            if message == (generation, i):
                return self._slots[i % self.depth].copy()

    def close(self) -> None:
        """Ends the workers and waits for them; safe to call twice."""
        self._finalize()

    def _wait_for_message(self, k):
        # In seconds of this process: those in which it is itself stopped, as by Ctrl-Z, do not count.
        for second in range(1, _LOST_SECONDS + 1):
            if self._pipes[k].poll(1.0):
                return
            if second == _WARN_SECONDS:
                log.warning(
                    "%s has given no batch for %d s; the run ends unless it does within %d s; `kill -CONT` lets a stopped "
                    "process go on",
                    _describe(self._peers[k]),
                    second,
                    _LOST_SECONDS - second,
                )
        raise RunError(
            f"{_describe(self._peers[k])} has given no batch for {_LOST_SECONDS} s; find out what holds it up, then start the "
            "same command again to resume"
        )

    def _raise_dead(self, k):
        peer = self._peers[k]
        if isinstance(peer, threading.Thread):
            raise RunError(f"{peer.name} ended unexpectedly; start the same command again to resume")
        peer.join(_JOIN_SECONDS)
        code = peer.exitcode
        reason = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        raise RunError(
            f"{peer.name} (process {peer.pid}) {reason}; if memory ran out lower data.workers, then start the same "
            "command again to resume"
        )


def _describe(peer) -> str:
    """Such as "data worker 0 (process 123, T (stopped))"; of a thread only the name."""
    if isinstance(peer, threading.Thread):
        return peer.name
    state = ""
    with contextlib.suppress(OSError, StopIteration), open(f"/proc/{peer.pid}/status") as file:
        state = ", " + next(line for line in file if line.startswith("State:")).removeprefix("State:").strip()
    return f"{peer.name} (process {peer.pid}{state})"


def _make_thread(images, transform, shape, batches):
    slots = np.empty(shape, np.float32)
    # Made here: to treat warnings as errors, for a moment, changes the whole process and not one thread of it.
    compose = make_train_transform(*transform)

    def start(name):
        ours, theirs = multiprocessing.Pipe()
        peer = threading.Thread(target=_serve, args=(theirs, lambda: compose, images, slots, batches), name=name, daemon=True)
        peer.start()
        return peer, ours

    return start, slots


def _make_processes(images, transform, shape, batches):
    context = multiprocessing.get_context("spawn")  # fork is unsafe once XLA has its threads
    _check_room(images.nbytes + np.dtype(np.float32).itemsize * math.prod(shape))
    shared_images = context.RawArray(ctypes.c_uint8, images.size)
    _view(shared_images, np.uint8, images.shape)[:] = images
    shared_slots = context.RawArray(ctypes.c_float, math.prod(shape))

    def start(name):
        ours, theirs = context.Pipe()
        args = (theirs, transform, (shared_images, images.shape), (shared_slots, shape), batches)
        peer = context.Process(target=_serve_process, args=args, name=name, daemon=True)
        peer.start()
        theirs.close()  # or this process would hold the far end open too, and never read its end of file
        return peer, ours

    return start, _view(shared_slots, np.float32, shape)


def _check_room(size):
    """Raises RunError where shared memory has no room for `size` bytes: writing to it would be a bus error."""
    free = {}
    for folder in ("/dev/shm", tempfile.gettempdir()):  # where multiprocessing puts it: in the first with room
        with contextlib.suppress(FileNotFoundError):  # the first is Linux's
            free[folder] = shutil.disk_usage(folder).free
    if max(free.values()) < size + 2**16:  # rounded up to pages, twice
        found = " and ".join(f"{folder} {room / 1e6:.1f} MB" for folder, room in free.items())
        raise RunError(
            f"data.workers: the workers share {size / 1e6:.1f} MB of memory, got {found} free, expected one with that much; make "
            "room there or set data.workers=0, then start the same command again"
        )


def _view(shared, dtype, shape):
    return np.frombuffer(shared, dtype).reshape(shape)


def _stop(peers, pipes):
    for pipe in pipes:
        pipe.close()
    for peer in peers:
        if peer is threading.current_thread():
            continue  # garbage was collected, and so the loader, by the worker itself
        peer.join(_JOIN_SECONDS)
        if peer.is_alive() and not isinstance(peer, threading.Thread):
            peer.kill()  # SIGKILL: the milder ones are blocked
            peer.join()


def _serve_process(pipe, transform, images, slots, batches):
    make = functools.partial(make_train_transform, *transform)
    _serve(pipe, make, _view(images[0], np.uint8, images[1]), _view(slots[0], np.float32, slots[1]), batches)


def _serve(pipe, make, images, slots, batches):
    depth, (batch_size, rows, seed) = len(slots), batches
    order, order_epoch = None, None
    try:
        compose = make()
        while True:
            generation, epoch, i = pipe.recv()
            if epoch != order_epoch:
                order, order_epoch = permutation(len(images), seed=seed, epoch=epoch), epoch
            indices = order[i * batch_size : (i + 1) * batch_size][rows]
            augment_batch(compose, images, indices, slots[i % depth], seed=seed, epoch=epoch)
            pipe.send(("done", (generation, i)))
    except (EOFError, ConnectionError):
        pass  # the parent closed its end, or is gone
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OSError):
            pipe.send(("input", str(error)) if isinstance(error, InputError) else ("error", text))
    finally:
        pipe.close()
