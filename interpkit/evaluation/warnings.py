"""Warnings and report sentences that the installed metrics derive from metrics.json."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pydantic

from interpkit.evaluation.flatten import Figure
from interpkit.interfaces.contracts import described, sections_of_metric
from interpkit.interfaces.metrics import Metric
from interpkit.interfaces.sections import Section
from interpkit.plugins.discovery import installed
from interpkit.plugins.registry import Entry

log = logging.getLogger("interpkit")


def metric_classes() -> list[type[Metric]]:
    """Return the metrics of all plugins, in order of registration."""
    return [entry.item for entry in installed().registry.entries("metric")]


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings of all metrics about metrics.json; see `Metric.warnings`."""
    return [text for texts in _each(lambda metric: metric.warnings(metrics)) for text in texts]


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics' sentences for the report; see `Metric.summary`."""
    return [text for text in _each(lambda metric: metric.summary(metrics)) if text]


def sections(metrics: Mapping[str, Any]) -> list[Section]:
    """Return the metrics' sections of the report; see `Metric.sections`."""
    return [made for each in _each(lambda metric: sections_of_metric(metric, metrics)) for made in each]


def doubts_of_metrics(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return what the metrics know against the samples of each class, by a few words; see `Metric.doubts`."""

    def shares(metric: type[Metric]) -> list[dict[str, float]]:
        return [{words: float(share) for words, share in metric.doubts(row).items() if 0 < share <= 1} for row in rows]

    of_classes: list[dict[str, float]] = [{} for _ in rows]
    for found in _each(shares):
        for known, more in zip(of_classes, found, strict=True):
            known |= more
    return of_classes


def class_columns(rows: Sequence[Mapping[str, Figure]]) -> dict[str, str]:
    """Return the names of figures of classes by the titles that metrics and terms give them; see `Metric.columns`.

    Args:
        rows: the figures of each class by name, as `flattened` returns them.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    found: dict[str, str] = {}
    for metric in metric_classes():
        for title, pattern in metric.columns.items():
            matches = (re.fullmatch(pattern, name) for name in names)
            found |= {title.format(*match.groups()): match[0] for match in matches if match}
    described = {f"{entry.name}.{figure}": figure for entry in _losses() for figure in entry.item.describe}
    return found | {title.replace("_", " "): name for name, title in described.items() if name in names}


def meanings_of_terms() -> dict[str, str]:
    """Return the meanings of what the terms say of single images, by ``TERM.FIGURE``; see `InversionLoss.describe`."""
    return {f"{entry.name}.{figure}": words for entry in _losses() for figure, words in entry.item.describe.items()}


def _losses() -> Iterator[Entry]:
    return installed().registry.entries("loss")


def invalid(metrics: Mapping[str, Any]) -> str | None:
    """Return the first violation of a metric's schema in metrics.json, or None; see `Metric.schema`."""
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
    """Yield the result for each metric; log a warning for one that fails and skip it."""
    for metric in metric_classes():
        try:
            yield ask(metric)
        except Exception as error:
            log.warning("%s failed: %r", described(metric), error)
