"""The numbers of metrics.json under names of one line each, for tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

NOT_FIGURES = ("schema", "per_class", "left_out", "measured_on")
INTERVAL = "_interval"
MOST_CLASSES = 20
"""Past so many classes a table has no row for each."""


@dataclass(frozen=True)
class Figure:
    """A number, and its 95 % interval if it has one."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.4g}"


def flattened(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of metrics.json by dotted name, without those of single classes.

    The entries of a list are named by their ``name``: ``evaluators.other.agreement``.
    """
    return dict(_walk({key: value for key, value in metrics.items() if key not in NOT_FIGURES}, ""))


def _walk(value: Any, name: str) -> Iterator[tuple[str, Figure]]:
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        place = f"{name}.{key}" if name else str(key)
        interval = value.get(f"{key}{INTERVAL}")
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield place, Figure(item, (interval[0], interval[1]) if isinstance(interval, list) else None)
        elif isinstance(item, list):
            for number, entry in enumerate(item):
                if isinstance(entry, Mapping):
                    yield from _walk(entry, f"{place}.{entry.get('name', number)}")
        else:
            yield from _walk(item, place)


def table_of_all(metrics: Mapping[str, Any]) -> Table:
    """Return a table with a row for each figure."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "value", "95 % interval")
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    for name, figure in flattened(metrics).items():
        interval = "" if figure.interval is None else "{:.3f} to {:.3f}".format(*figure.interval)
        table.add_row(escape(name), str(figure), interval)
    return table


def table_of_classes(metrics: Mapping[str, Any]) -> Table | None:
    """Return a table with a row for each class, of the figures that tell most; None for many classes."""
    from rich.markup import escape
    from rich.table import Table

    rows = metrics["per_class"]
    if len(rows) > MOST_CLASSES:
        return None
    wanted = {
        "n": "count",
        "acc.": "inversion_accuracy",
        "conf.": "confidence",
        "vendi": "diversity.vendi_pooled",
        "dupl.": "diversity.duplicates",
        "excess": "reference.excess_vendi",
    }
    flat = [flattened(row) for row in rows]
    endings = {".agreement": "agrees", ".coverage": "cov."}
    for name in flat[0]:
        for ending, title in endings.items():
            if name.endswith(ending):
                wanted[f"{title}: {name.removesuffix(ending).rpartition('.')[2]}"] = name
    shown = {title: name for title, name in wanted.items() if any(name in figures for figures in flat)}
    table = Table("class", *map(escape, shown))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for row, figures in zip(rows, flat, strict=True):
        table.add_row(escape(str(row["name"])), *(_short(figures.get(name)) for name in shown.values()))
    return table


def _short(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return str(figure) if isinstance(figure.value, int) else f"{figure.value:.2f}"
