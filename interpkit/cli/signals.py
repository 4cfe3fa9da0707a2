"""What Ctrl-C does to a command, and SIGTERM, by which torchrun and schedulers end a process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that was stopped."""


@contextmanager
def on_stop(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call a handler in a block, in the background too."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
