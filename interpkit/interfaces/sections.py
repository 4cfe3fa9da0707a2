"""`Section`: a part of the report that an inversion adds, as data that the report lays out and escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MOST_IN_STRIP = 12


@dataclass(frozen=True)
class Strip:
    """A row of images.

    Attributes:
        title: the heading of the row.
        images: (K, *input_shape) float in [0, 1], K from 1 to 12.
        predictions: whether the report shows, below each image, the class that the target predicts and its confidence;
            False for masks and other pictures that are not inputs.
    """

    title: str
    images: Tensor
    predictions: bool = True


@dataclass(frozen=True)
class Section:
    """A section of the report: a heading, a few sentences, and below them a table, rows of images, or both.

    Attributes:
        title: the heading.
        text: an explanation of what the section shows.
        columns: the column headings of the table.
        rows: the rows of the table, each with one cell per column.
        strips: rows of images.
        one_at_a_time: show a single strip, which the reader selects by title from a list, instead of all of them.

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
