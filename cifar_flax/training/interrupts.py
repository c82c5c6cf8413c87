"""SIGTERM and Ctrl-C as a flag that a loop looks at between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def as_flag() -> Iterator[Callable[[], int | None]]:
    """While it lasts, SIGTERM and SIGINT only set a flag; a second SIGINT is an ordinary Ctrl-C.

    Yields:
      A function that returns the number of the signal that came, or None. Outside the main thread,
      which alone may handle signals, it always returns None.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if number == signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
