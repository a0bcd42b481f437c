"""A signal ends the command wherever it arrives, even where the exception it raises is swallowed."""

import os
import signal

import pytest

from cifar_jax import stopping


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in stopping.NUMBERS}
    yield
    stopping.listen()  # forgets what has been received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.NUMBERS)
def test_a_signal_raises_where_it_arrives(number):
    stopping.listen()
    with pytest.raises(stopping.Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.args == (number,)


def test_a_swallowed_signal_is_raised_again():
    stopping.listen()
    stopping.check()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except stopping.Stopped:
        pass  # as Python does in a callback
    with pytest.raises(stopping.Stopped):
        stopping.check()


def test_ignored_signals_do_nothing():
    stopping.listen()
    stopping.ignore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)
    stopping.check()  # does not raise
