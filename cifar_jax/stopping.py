"""How Ctrl-C and SIGTERM end a command: at once by an exception, or, amid training, once a step is done and saved."""

import contextlib
import os
import signal
import sys
import threading

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_received = []
_deferred = False


class Stopped(BaseException):
    """A signal, whose number is the argument, asked the process to end."""


def listen() -> None:
    """From now on either signal raises Stopped in the main thread."""
    _received.clear()
    sys.unraisablehook = _raise_again
    for number in NUMBERS:
        signal.signal(number, _stop)


def ignore() -> None:
    """From now on neither signal does anything."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred():
    """Within it the first signal is only noted: the code inside asks `received` and calls `check` where it can end well.

    A second signal raises at once.
    """
    global _deferred
    check()
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    check()


def received() -> bool:
    """Whether a signal has come."""
    return bool(_received)


def check() -> None:
    """Raises Stopped if a signal has come."""
    if _received:
        raise Stopped(_received[0])


def _stop(number, _):
    _received.append(number)
    if not _deferred or len(_received) > 1:
        raise Stopped(number)


def _raise_again(unraisable):
    """What the handler raises inside a callback, such as a destructor's, Python prints and forgets: sends the signal again."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.args[0]))
    again.daemon = True
    again.start()
