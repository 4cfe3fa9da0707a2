"""Explain the figures of a run in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from interpkit.errors import percent
from interpkit.evaluation.flatten import flattened
from interpkit.evaluation.warnings import meanings_of_terms, metric_classes, summary

MEANINGS = {
    r"inversion_accuracy": "Share of samples that the target classifies as the class asked for, even if it is noise.",
    r"confidence": "Mean probability that the target assigns to the class asked for.",
    r"count": "Number of samples.",
    r"kl": "KL divergence, in nats, between the distribution asked for and the target's probabilities; 0 means equal.",
}
"""Meanings of the figures that every run has, keyed by a pattern for the full dotted name."""


def meaning(name: str) -> str:
    """Return the meaning of a figure in metrics.json, by default the first line of its metric's docstring."""
    key, first_line = name.partition(".")[0], ""
    for metric in metric_classes():
        if key in (metric.key, metric.name):
            for pattern, sentence in metric.describe.items():
                if re.fullmatch(pattern, name):
                    return sentence
            first_line = first_line or (metric.__doc__ or "").strip().partition("\n")[0]
    if words := meanings_of_terms().get(name):
        return words
    own = (sentence for pattern, sentence in MEANINGS.items() if re.fullmatch(pattern, name))
    return next(own, first_line)


def rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of metrics.json with their meanings, as rows of a table."""
    return [{"name": name, "figure": f, "meaning": meaning(name)} for name, f in flattened(metrics).items()]


def verdict(metrics: Mapping[str, Any], target: str, classes: int) -> str:
    """Return one paragraph about how the target classifies the samples and what the metrics found."""
    figures = flattened(metrics)
    asked = f"{classes:,} classes" if classes > 1 else "one class"
    count = f" {figures['count']}" if "count" in figures else ""
    sentences = [f"The inversion produced{count} samples of {asked}."]
    accuracy = figures.get("inversion_accuracy")
    if accuracy is not None:
        interval = (
            "" if accuracy.interval is None else " (95% interval {} to {})".format(*map(percent, accuracy.interval))
        )
        confidence = figures.get("confidence")
        mean = "" if confidence is None else f", with a mean confidence of {confidence.value:.2f}"
        sentences.append(
            f"{target} itself classifies {percent(accuracy.value)} of them as the class asked for{interval}{mean}. "
            f"That alone does not mean that they look like it."
        )
    return " ".join([*sentences, *summary(metrics)])


def place_of(finding: Mapping[str, Any]) -> str:
    """Return what a finding of an audit is of: "class 7", where the class is called 7 or class 7."""
    if finding["class"] is None:
        return "the whole classifier"
    name: str = finding["name"]
    return name if re.match(r"class(?![a-z])", name, re.IGNORECASE) else f"class {name}"
