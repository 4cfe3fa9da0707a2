"""Calls of several threads take turns: they share torch's random generators, its functions and the user's network."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch

log = logging.getLogger("interpkit")

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 60.0
"""The seconds that a call waits before it says so."""

_lock = threading.RLock()


def turn() -> AbstractContextManager[object]:
    """Return the context in which no other thread has a turn; it is entered at once by the thread that has it.

    A backward pass is part of the call that waits for it, on devices in a thread of torch's own, and does not wait. Nor
    does what `torch.compile` makes of the code.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
        return nullcontext()
    if _lock.acquire(timeout=PATIENCE):
        _lock.release()
    else:
        log.warning(
            "interpkit runs in another thread, and calls take turns: this one waits until that one has ended. If that "
            "one waits for this one, both wait forever: call interpkit in one of them only."
        )
    return _lock  # entered by `with` itself, between which and its block Ctrl-C cannot fall


def taking_turns(function: Callable[P, Iterator[R]]) -> Callable[P, AbstractContextManager[R]]:
    """Make a context manager as `contextmanager` does, of whose blocks only one thread at a time is in any."""
    make = contextmanager(function)

    @contextmanager
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        with turn(), make(*args, **kwargs) as value:
            yield value

    return run


def _renew() -> None:
    """Give a forked process a lock of its own: the thread that holds its parent's may not exist in it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
