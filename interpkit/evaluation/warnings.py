"""What the installed metrics say about a metrics.json: warnings, and sentences for the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from interpkit.interfaces.contracts import described
from interpkit.interfaces.metrics import Metric
from interpkit.plugins.discovery import installed

log = logging.getLogger("interpkit")


def metric_classes() -> list[type[Metric]]:
    """Return the metrics of all plugins, in the order of their registration."""
    return [entry.item for entry in installed().registry.entries("metric")]


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return what a reader of metrics.json should not miss, as the metrics say it; see `Metric.warnings`."""
    return [text for texts in _each(lambda metric: metric.warnings(metrics)) for text in texts]


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics' sentences for the report; see `Metric.summary`."""
    return [text for text in _each(lambda metric: metric.summary(metrics)) if text]


def invalid(metrics: Mapping[str, Any]) -> str | None:
    """Return where metrics.json is not as its metrics describe it (`Metric.schema`); None if it is."""
    rows = [("", metrics), *((f"per_class.{row['label']}.", row) for row in metrics.get("per_class", []))]
    for metric in metric_classes():
        key = metric.key or metric.name
        for place, row in rows:
            if metric.schema is None or row.get(key) is None:
                continue
            try:
                metric.schema.model_validate({key: row[key]}, strict=True)
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                return f"{place}{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None


def _each(ask: Callable[[type[Metric]], Any]) -> Iterator[Any]:
    """Yield each metric's answer; one that fails is named in a warning and left out."""
    for metric in metric_classes():
        try:
            yield ask(metric)
        except Exception as error:
            log.warning("%s failed: %r", described(metric), error)
