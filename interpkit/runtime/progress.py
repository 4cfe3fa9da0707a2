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
    """

    what: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.what}"


_running: dict[str, Progress] = {}


def tell(what: str, done: int, total: int) -> None:
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
        _running[what] = Progress(what, done, total)
    else:
        _running.pop(what, None)


def current() -> Progress | None:
    """Return the part that has begun last and still runs, from any thread; None if none is known."""
    return next(reversed(list(_running.values())), None)


def restart() -> None:
    """Forget the parts that an error has left unfinished."""
    _running.clear()
