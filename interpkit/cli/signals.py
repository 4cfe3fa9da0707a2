"""The signals that stop a command: Ctrl-C, SIGTERM (torchrun, schedulers), and SIGHUP (its terminal has closed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that was stopped."""


@contextmanager
def on_stop(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP call a handler in a block, also in the background.

    Under ``nohup``, closing the terminal has no effect. Python handles signals only in its main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stopping.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in stopping}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
