"""A signal ends the command wherever it arrives, even where the exception it raises is swallowed."""

import os
import signal
import sys
import time

import pytest

from cifar_jax import stopping


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in stopping.NUMBERS}
    hook = sys.unraisablehook
    yield
    stopping.listen()  # forgets what has been received
    sys.unraisablehook = hook
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


def test_a_signal_swallowed_by_a_destructor_comes_again_and_says_nothing(capsys):
    class Noisy:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    stopping.listen()
    with pytest.raises(stopping.Stopped):
        noisy = Noisy()
        del noisy
        time.sleep(5)
    assert capsys.readouterr().err == ""


def test_amid_training_a_signal_is_noted_and_raised_where_that_is_asked():
    stopping.listen()
    done = []
    with pytest.raises(stopping.Stopped):
        with stopping.deferred():
            assert not stopping.received()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("step")
            assert stopping.received()
            stopping.check()
            done.append("next step")
    assert done == ["step"]


def test_at_its_end_what_was_noted_is_raised():
    stopping.listen()
    done = []
    with pytest.raises(stopping.Stopped):
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("step")
    assert done == ["step"]


def test_a_second_signal_does_not_wait():
    stopping.listen()
    with pytest.raises(stopping.Stopped):
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal was waited for")


def test_ignored_signals_do_nothing():
    stopping.listen()
    stopping.ignore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)
    stopping.check()  # does not raise
