import os
import signal
import threading
import time

import pytest

from florence_jax.runtime.signals import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_asks(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        assert interruption.asked
        with pytest.raises(Interrupted):
            interruption.check()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once():
    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_work_that_cannot_be_interrupted_is_left_behind():
    go_on = threading.Event()
    with Interruption() as interruption:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begun = time.monotonic()
        with pytest.raises(Interrupted):
            interruption.wait_for(lambda: go_on.wait(60))
        assert time.monotonic() - begun < 30
    go_on.set()


def test_results_and_errors_come_through():
    with Interruption() as interruption:
        assert interruption.wait_for(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            interruption.wait_for(lambda: 1 // 0)
