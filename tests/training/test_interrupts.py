import os
import signal
import threading

import pytest

from cifar_flax.training import interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_nothing_else(number):
    before = signal.getsignal(number)
    with interrupts.as_flag() as stopped:
        assert stopped() is None
        os.kill(os.getpid(), number)
        assert stopped() == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_leaves_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts.as_flag():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_sigterm_is_a_first_one():
    with interrupts.as_flag() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped() == signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def run():
        with interrupts.as_flag() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]
