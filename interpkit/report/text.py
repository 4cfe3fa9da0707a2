"""What the figures of a run mean, in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from interpkit.evaluation.flatten import Figure, flattened
from interpkit.plugins.discovery import installed

MEANINGS = (
    (
        r"inversion_accuracy",
        "Share of samples that the target itself takes for the class asked for, fooled by noise or not.",
    ),
    (r"confidence", "The mean probability that the target gives the class asked for."),
    (r"count", "Samples that were measured."),
    (r"kl", "How far the target's answer is from what the generator was asked for, in nats; 0 is the same."),
    (
        r"diversity\.vendi_pixels",
        "How many wholly different pictures a class is worth, pixel by pixel; 1 is all alike.",
    ),
    (r"diversity\.vendi_pooled", "The same of coarse pictures, so that noise does not pass for variety."),
    (r"diversity\.vendi_features", "The same of what the target's last layer sees."),
    (r"diversity\.cosine_within", "How alike two samples of a class are to the target, from -1 to 1; 1 is the same."),
    (r"diversity\.cosine_between", "How alike samples of different classes are to the target."),
    (r"diversity\.duplicates", "Share of samples that have a near copy among those of their class."),
    (r"evaluators\..*\.agreement", "Share of samples that this independent classifier puts in the class asked for."),
    (
        r"evaluators\..*\.reference_accuracy",
        "How often it is right on real images: the most that its agreement can reach.",
    ),
    (r"evaluators\..*\.relative", "Its agreement as a share of how often it is right on real images."),
    (r"reference\..*\.precision", "Share of samples that lie among real images, as this classifier sees them."),
    (r"reference\..*\.recall", "Share of real images that lie among the samples of the class."),
    (r"reference\..*\.density", "How deep among real images the samples lie; 1 is as deep as real images themselves."),
    (r"reference\..*\.coverage", "Share of real images that have a sample near: how much of the class was found."),
    (r"reference\..*\.kid", "Distance of the samples' distribution from the real images'; about 0 is the same."),
    (r"reference\.excess_vendi", "Variety beyond a single picture, as a share of that of real images; 1 is as varied."),
    (r"reference\.ssim\.mean", "How alike a sample and its best-matched real image look; 1 is the same picture."),
    (r"reference\.ssim\.at_least.*", "Share of samples that look at least so much like a real image."),
    (r"reference\.target_accuracy", "How often the target is right on the real images."),
    (r"memorisation\..*nearer_to_training", "Share nearer to a training image than to a held-out one; half is chance."),
    (r"memorisation\..*gap", "How much nearer to the training images they are, as a share; 0 is not at all."),
    (r"robustness\.clean", "Share in the class asked for before anything is done to the samples."),
    (r"robustness\.noise\..*\.kept", "Share that keep their class under noise of this standard deviation."),
    (r"robustness\.pgd\..*\.kept", "Share that keep their class under the worst change found within this L2 distance."),
    (r"robustness\.count", "Samples that were tested so."),
)
"""By dotted name, a pattern of the whole of it."""


def meaning(name: str) -> str:
    """Return what a figure of metrics.json means; where no sentence is here, its metric's first line."""
    for pattern, sentence in MEANINGS:
        if re.fullmatch(pattern, name):
            return sentence
    key = name.partition(".")[0]
    for entry in installed().registry.entries("metric"):
        if key in (entry.item.key, entry.item.name) and entry.item.__doc__:
            return str(entry.item.__doc__).strip().splitlines()[0]
    return ""


def rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of metrics.json with their meanings, for a table."""
    return [{"name": name, "figure": f, "meaning": meaning(name)} for name, f in flattened(metrics).items()]


def verdict(metrics: Mapping[str, Any], target: str, classes: int) -> str:
    """Return one paragraph: what the target says of the samples, what others say, and how varied they are.

    Args:
        metrics: the content of metrics.json; what is not measured, is not spoken of.
        target: its name.
        classes: how many were inverted.
    """
    figures = flattened(metrics)
    asked = f"each of {classes:,} classes" if classes > 1 else "one class"
    count = f" {figures['count']}" if "count" in figures else ""
    said = f"Asked for {asked}, the inversion gave{count} samples."
    accuracy = figures.get("inversion_accuracy")
    if accuracy is not None:
        between = "" if accuracy.interval is None else " (95% interval {:.1%} to {:.1%})".format(*accuracy.interval)
        said += f" {target} itself takes {accuracy.value:.1%} of them for the class asked for{between}"
        said += f", with a mean confidence of {figures['confidence'].value:.2f}." if "confidence" in figures else "."
    agreed = _values(figures, r"evaluators\..*\.agreement")
    if agreed:
        who = "An independent classifier agrees" if len(agreed) == 1 else "Independent classifiers agree"
        said += f" {who} on {_span(agreed)}."
    else:
        said += (
            " No independent classifier has judged them yet: that the target takes them for a class does not mean "
            "that they look like one."
        )
    for excess in _values(figures, r"reference\.excess_vendi"):
        said += f" Within a class they are {excess:.0%} as varied as real images."
    covered = _values(figures, r"reference\.features\..*\.coverage")
    if covered:
        said += f" Of the real images, {_span(covered)} have a sample near."
    return said


def _values(figures: Mapping[str, Figure], pattern: str) -> list[float]:
    return [figure.value for name, figure in figures.items() if re.fullmatch(pattern, name)]


def _span(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"
