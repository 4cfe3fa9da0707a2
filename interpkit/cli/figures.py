"""Tables of the numbers of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interpkit.cli import tables
from interpkit.evaluation.flatten import Figure, flattened

if TYPE_CHECKING:
    from rich.table import Table

MOST_CLASSES = 20
"""Largest number of classes for which a table has one row per class."""


def table_of_all(metrics: Mapping[str, Any]) -> Table:
    """Return a table with one row per figure."""
    from rich.table import Table

    table = Table("", *tables.figures("value", "95 % interval"))
    for name, figure in flattened(metrics).items():
        interval = "" if figure.interval is None else "{:.3f} to {:.3f}".format(*figure.interval)
        table.add_row(name, str(figure), interval)
    return table


def class_titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the classes of rows, with the number where several have the same name."""
    names = [str(row["name"]) for row in rows]
    return [
        name if names.count(name) == 1 else f"{name} ({row['label']})" for name, row in zip(names, rows, strict=True)
    ]


def table_of_classes(metrics: Mapping[str, Any]) -> Table | None:
    """Return a table of the most telling figures with one row per class; None for many classes."""
    from rich.table import Table

    from interpkit.evaluation.warnings import class_columns

    rows = metrics.get("per_class", [])
    if not 0 < len(rows) <= MOST_CLASSES:
        return None
    flat = [flattened(row) for row in rows]
    wanted = {"n": "count", "acc.": "inversion_accuracy", "conf.": "confidence", **class_columns(flat)}
    shown = {title: name for title, name in wanted.items() if any(name in figures for figures in flat)}
    table = Table("class", *tables.figures(*shown))
    for title, figures in zip(class_titles(rows), flat, strict=True):
        table.add_row(title, *(_short(figures.get(name)) for name in shown.values()))
    return table


def _short(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return str(figure) if isinstance(figure.value, int) else f"{figure.value:.2f}"
