"""What a long computation is doing: it says so by `tell`, and whoever shows progress reads `current`."""

from __future__ import annotations

import time
from dataclasses import dataclass

EVEN = 20
"""Fewer pieces than these may take very different times, such as the metrics of an evaluation."""
FIRST_SECONDS = 10.0
"""How long to wait before the rest is estimated."""


@dataclass(frozen=True)
class Progress:
    """A part of a computation.

    Attributes:
        what: what is counted, such as ``images classified``.
        done: how many are done.
        total: how many there are.
        detail: anything else about it, in words; in place of the time left.
        since: the time and `done` when it began; the time is that of `time.monotonic`.
        now: the time when `done` was reached.
    """

    what: str
    done: int
    total: int
    detail: str = ""
    since: tuple[float, int] = (0.0, 0)
    now: float = 0.0

    @property
    def left(self) -> str:
        """The time that the rest takes if it goes on like this; empty for few pieces, and in the first seconds."""
        seconds, done = self.now - self.since[0], self.done - self.since[1]
        if self.total < EVEN or seconds < FIRST_SECONDS or not done:
            return ""
        return f"about {duration(seconds / done * (self.total - self.done))} for the rest"

    def __str__(self) -> str:
        more = self.detail or self.left
        return f"{self.done:,} of {self.total:,} {self.what}" + (f" ({more})" if more else "")


_running: dict[str, Progress] = {}


def tell(what: str, done: int, total: int, detail: str = "") -> None:
    """Say how far a part of a long computation is; the command prints it every few seconds, with the time left.

    Parts may be in one another; a part ends with ``done == total``.

    Args:
        what: what is counted, such as ``images classified``; with the name of a component if others may count the same.
        done: how many are done.
        total: how many there are.
        detail: anything else about it, in words; in place of the time left.

    Example:
        >>> from interpkit import tell
        >>> from interpkit.runtime import progress
        >>> tell("images classified", 64, 1000)
        >>> str(progress.current())
        '64 of 1,000 images classified'
        >>> tell("images classified", 1000, 1000)
        >>> progress.current() is None
        True
    """
    if done < total:
        now, before = time.monotonic(), _running.get(what)
        since = before.since if before is not None and before.done <= done else (now, done)
        _running[what] = Progress(what, done, total, detail, since, now)
    else:
        _running.pop(what, None)


def current() -> Progress | None:
    """Return the part that has begun last and still runs, from any thread; None if none is known."""
    return next(reversed(list(_running.values())), None)


def restart() -> None:
    """Forget the parts that an error has left unfinished."""
    _running.clear()


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> from interpkit.runtime.progress import duration
        >>> duration(12.3), duration(100), duration(3000), duration(15000)
        ('12 s', '100 s', '50 min', '4 h 10 min')
    """
    if seconds < 120:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
