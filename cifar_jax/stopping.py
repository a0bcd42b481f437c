"""How Ctrl-C and SIGTERM end a command: the first is noted, and raised where the code asks; the second ends the process.

An exception out of a signal handler may land inside an import or a callback of a library written in C++, which then
crashes. Only `interruptible` code, such as a download, is left at once.
"""

import contextlib
import os
import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_received = []
_interruptible = False


class Stopped(BaseException):
    """A signal, whose number is the argument, asked the process to end."""


def listen() -> None:
    """From now on either signal is noted. A second one ends the process with 128 + its number."""
    _received.clear()
    for number in NUMBERS:
        signal.signal(number, _note)


def ignore() -> None:
    """From now on neither signal does anything."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def received() -> int:
    """The number of the signal that has come first; 0: none."""
    return _received[0] if _received else 0


def check() -> None:
    """Raises Stopped if a signal has come."""
    stop(received())


def stop(number: int) -> None:
    """Raises Stopped, unless the number is 0."""
    if number:
        raise Stopped(number)


@contextlib.contextmanager
def interruptible():
    """Within it a signal raises Stopped where it arrives; at its end, if that got lost in a callback."""
    global _interruptible
    check()
    _interruptible = True
    try:
        yield
    finally:
        _interruptible = False
    check()


def describe(number: int) -> str:
    """What the command says at its end."""
    return f"stopped by {signal.Signals(number).name}; the same command resumes a training run at its last checkpoint"


def _note(number, _):
    _received.append(number)
    if len(_received) > 1:
        os.write(2, f"{describe(number)}\n".encode())
        os._exit(128 + number)
    if _interruptible:
        raise Stopped(number)
