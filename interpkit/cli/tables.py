"""Tables on stdout: figures stay whole, words fold, and columns for which a terminal has no room follow below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interpkit.cli.console import out

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.measure import Measurement
    from rich.table import Column, Table

LONGEST = 20
"""Length from which on a word may be folded."""


def figures(*headings: str) -> list[Column]:
    """Return columns of figures, which are those that are justified to the right."""
    from rich.table import Column

    return [Column(heading, justify="right") for heading in headings]


def show(table: Table) -> None:
    """Print a table.

    If its columns do not fit even with all words folded, a terminal gets several tables, each with the first column;
    a file or a pipe gets one of longer lines.
    """
    first, *others = table.columns
    while others:
        for count in range(len(others), 0, -1):
            part = _fitted(table, [first, *others[:count]])
            if not out.is_terminal or _measure(part).maximum <= out.width:
                break
        out.print(part)
        others = others[count:]


def _fitted(table: Table, columns: Sequence[Column]) -> Table:
    """Return a table of some columns, folded to the width of stdout as far as the figures stay whole."""
    from rich.table import Table

    part = Table(box=table.box, pad_edge=table.pad_edge)
    for column in columns:
        part.add_column(column.header, justify=column.justify, overflow="fold", width=1)
    for row, *cells in zip(table.rows, *(column.cells for column in columns), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    frame = _measure(part).maximum - len(columns)
    ranges = [_range(column) for column in columns]
    widths = [most for _, most in ranges]
    while sum(widths) + frame > out.width and widths != [least for least, _ in ranges]:
        level = max(width for width, (least, _) in zip(widths, ranges, strict=True) if width > least) - 1
        widths = [max(least, min(width, level)) for width, (least, _) in zip(widths, ranges, strict=True)]
    for column, width in zip(part.columns, widths, strict=True):
        column.width = width
    part.width = sum(widths) + frame
    return part


def _range(column: Column) -> tuple[int, int]:
    """Return the least and the greatest width for a column."""
    heading, cells = _measure(column.header), [_measure(cell) for cell in column.cells]
    most = max((cell.maximum for cell in cells), default=1)
    least = max((cell.minimum for cell in cells), default=1)
    whole = most if column.justify == "right" else min(least, LONGEST)
    return max(whole, min(heading.minimum, LONGEST)), max(most, heading.maximum)


def _measure(part: RenderableType) -> Measurement:
    """Return the width of something where there is any amount of room."""
    return out.measure(part, options=out.options.update(width=1_000_000))
