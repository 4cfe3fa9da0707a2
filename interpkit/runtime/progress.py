"""What a long computation is doing: it says so by `tell`, and whoever shows progress reads `current`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A part of a computation.

    Attributes:
        what: what is counted, such as ``images classified``.
        done: how many are done.
        total: how many there are.
        detail: anything else about it, in words.
    """

    what: str
    done: int
    total: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.what}" + (f" ({self.detail})" if self.detail else "")


_running: dict[str, Progress] = {}


def tell(what: str, done: int, total: int, detail: str = "") -> None:
    """Say how far a part of the computation is, which ends with ``done == total``; parts may be in one another.

    Example:
        >>> from interpkit.runtime import progress
        >>> progress.tell("images classified", 64, 1000)
        >>> str(progress.current())
        '64 of 1,000 images classified'
        >>> progress.tell("images classified", 1000, 1000)
        >>> progress.current() is None
        True
    """
    if done < total:
        _running[what] = Progress(what, done, total, detail)
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
