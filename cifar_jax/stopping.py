"""How Ctrl-C and SIGTERM end a command: an exception where the signal arrives, and again at the next step if it got lost."""

import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_received = []


class Stopped(BaseException):
    """A signal, whose number is the argument, asked the process to end."""


def listen() -> None:
    """From now on either signal raises Stopped in the main thread."""
    _received.clear()
    for number in NUMBERS:
        signal.signal(number, _stop)


def ignore() -> None:
    """From now on neither signal does anything."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raises Stopped if a signal has come: what the handler raises inside a callback, Python prints and forgets."""
    if _received:
        raise Stopped(_received[0])


def _stop(number, _):
    _received.append(number)
    raise Stopped(number)
