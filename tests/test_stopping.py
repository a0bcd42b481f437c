"""A signal ends the command where that is safe; a second one at once."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from cifar_jax import stopping


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in stopping.NUMBERS}
    yield
    stopping.listen()  # forgets what has been received
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_raised_where_that_is_asked():
    stopping.listen()
    assert not stopping.received()
    stopping.check()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopping.received()
    with pytest.raises(stopping.Stopped) as stopped:
        stopping.check()
    assert stopped.value.args == (signal.SIGTERM,)


def test_a_report_ends_at_its_next_picture():
    figures = pytest.importorskip("cifar_jax.report.figures")
    stopping.listen()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(stopping.Stopped):
        figures.draw_confusion(("a", "b"), [[1, 0], [0, 1]])


@pytest.mark.parametrize("number", stopping.NUMBERS)
def test_interruptible_code_is_left_at_once(number):
    stopping.listen()
    with pytest.raises(stopping.Stopped) as stopped, stopping.interruptible():
        os.kill(os.getpid(), number)
        pytest.fail("went on")
    assert stopped.value.args == (number,)


def test_what_a_callback_swallowed_is_raised_at_the_end():
    stopping.listen()
    done = []
    with pytest.raises(stopping.Stopped), stopping.interruptible():
        with contextlib.suppress(stopping.Stopped):  # as Python does in a destructor
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest")
    assert done == ["the rest"]


def test_interruptible_code_does_not_begin_after_a_signal():
    stopping.listen()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(stopping.Stopped), stopping.interruptible():
        pytest.fail("began")


@pytest.mark.parametrize("number", stopping.NUMBERS)
def test_a_second_signal_ends_the_process(number):
    code = f"""
import os, signal
from cifar_jax import stopping
stopping.listen()
os.kill(os.getpid(), signal.SIGINT)
print("noted", flush=True)
os.kill(os.getpid(), {int(number)})
print("went on", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (128 + number, "noted\n")
    assert done.stderr == stopping.describe(number) + "\n"


def test_ignored_signals_do_nothing():
    stopping.listen()
    stopping.ignore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)
    stopping.check()  # does not raise
