"""Flatten metrics.json into figures with dotted names, for tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NOT_FIGURES = ("schema", "per_class", "doubts", "left_out", "measured_on")
INTERVAL = "_interval"


@dataclass(frozen=True)
class Figure:
    """A number and, if it has one, its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.4g}"


def flattened(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of metrics.json by dotted name, except those of single classes.

    List entries are identified by their ``name``: ``evaluators.other.agreement``.
    """
    return dict(_walk({key: value for key, value in metrics.items() if key not in NOT_FIGURES}, ""))


def _walk(value: Any, name: str) -> Iterator[tuple[str, Figure]]:
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        place = f"{name}.{key}" if name else str(key)
        interval: Any = value.get(f"{key}{INTERVAL}")
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield place, Figure(item, (interval[0], interval[1]) if _is_interval(interval) else None)
        elif isinstance(item, list):
            for number, entry in enumerate(item):
                if isinstance(entry, Mapping):
                    yield from _walk(entry, f"{place}.{entry.get('name', number)}")
        else:
            yield from _walk(item, place)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
