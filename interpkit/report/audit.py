"""The page of an audit: the verdict, what was found and what shows it, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpkit.interfaces.sections import Strip
from interpkit.interfaces.targets import Target
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render
from interpkit.report.text import place_of
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.devices import device_of

Pictures = Mapping[str, Mapping[int | None, Sequence[Strip]]]
REAL = "real images"
"""What an audit calls images that were not made for it."""
SMALL = 64
"""Pictures with fewer pixels on a side are enlarged without blur."""


def write_audit(target: Target, record: Mapping[str, Any], pictures: Pictures) -> str:
    """Return the page.

    Args:
        target: the classifier.
        record: all figures; see `interpkit.api.audit.AuditReport`.
        pictures: the pictures of each test, by class.
    """
    strips = [pictures[finding["test"]].get(finding["class"], ()) for finding in record["findings"]]
    shots = iter(_shots(target, [strip.images for row in strips for strip in row]))
    shape = target.description.input_shape or target.input_shape
    return render(
        "audit.html",
        title=f"Audit of {target.name}",
        record=record,
        names=target.class_names,
        where=place_of,
        looked_at=_looked_at(record),
        real=record["images"].get("images") == REAL,
        surest=min((row["p_value"] for test in record["tests"].values() for row in test["classes"]), default=1.0),
        shown=[[(strip, [next(shots) for _ in strip.images]) for strip in row] for row in strips],
        small=max(shape[1:], default=0) <= SMALL,
    )


def _looked_at(record: Mapping[str, Any]) -> str:
    """Return how many classes the tests looked at, which may differ between those with images and those without."""
    counts = {sum(row["class"] is not None for row in test["classes"]) for test in record["tests"].values()} - {0}
    least, most = (min(counts), max(counts)) if counts else [len(record["classes"]["tested"])] * 2
    return f"{least}" if least == most else f"{least} to {most}"


@torch.no_grad()
def _shots(target: Target, strips: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return each image as a picture, with what the target predicts for it."""
    if not strips:
        return []
    images = torch.cat([images.float().cpu() for images in strips])
    place = device_of(target)
    with target.frozen():
        probabilities = in_batches(
            target, images, lambda rows: target.probabilities(target(images[rows].to(place))).cpu()
        )
    confidence, labels = (column.tolist() for column in torch.cat(probabilities).max(1))
    if images.dim() == 4:
        images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    among = torch.stack([torch.zeros(images.shape[1:]), torch.ones(images.shape[1:])])
    drawn = encode.drawable(images, among, shape=target.description.input_shape or ())
    uris = encode.encode(list(drawn), of_classes.CHARACTERS)
    size = (drawn.shape[3], drawn.shape[2])
    return [
        {"uri": uri, "size": size, "label": label, "sure": sure}
        for uri, label, sure in zip(uris, labels, confidence, strict=True)
    ]
