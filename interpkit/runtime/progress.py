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


_current: Progress | None = None


def tell(what: str, done: int, total: int) -> None:
    """Say how far a part of the computation is, which ends with ``done == total``; it costs nothing where nobody asks.

    Example:
        >>> from interpkit.runtime import progress
        >>> progress.tell("images classified", 64, 1000)
        >>> str(progress.current())
        '64 of 1,000 images classified'
        >>> progress.tell("images classified", 1000, 1000)
        >>> progress.current() is None
        True
    """
    global _current
    _current = Progress(what, done, total) if done < total else None


def current() -> Progress | None:
    """Return the part that runs now, from any thread; None if none is known."""
    return _current
