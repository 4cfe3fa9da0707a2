"""`Section`: a part of the report that an inversion adds, as data that the page lays out and escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MOST_IN_STRIP = 12


@dataclass(frozen=True)
class Strip:
    """A row of images, side by side; below each the report writes the target's class for it, and how sure it is.

    Attributes:
        title: its heading.
        images: (K, *input_shape) float in [0, 1], K from 1 to 12.
    """

    title: str
    images: Tensor


@dataclass(frozen=True)
class Section:
    """A section of the report: a heading, a few sentences, and below them a table, rows of images, or both.

    Attributes:
        title: the heading.
        text: what the reader sees here.
        columns: the headings of the table.
        rows: its rows, each with a cell for every column.
        strips: rows of images.
        one_at_a_time: show one strip, chosen by its title from a list, in place of all of them.

    Example:
        >>> from interpkit import Section
        >>> rules = [("bright at the top", 0.93), ("dark in the middle", 0.71)]
        >>> section = Section("Rules", "What decides the class.", columns=("rule", "share"), rows=rules)
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = ()
    strips: Sequence[Strip] = ()
    one_at_a_time: bool = False
