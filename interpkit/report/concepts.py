"""The page of a classifier's concepts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from interpkit.config import schemas
from interpkit.errors import RunError, percent
from interpkit.interfaces.targets import Target
from interpkit.io import strict_json
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render

MEANING = (
    "A concept is a direction of the layer's features that few images use. The figures say what the classifier "
    "computes; only the images show whether a person would call it one thing. Another seed finds other concepts."
)


def read_concepts(path: Path) -> dict[str, Any]:
    """Return the figures in a concepts.json; raise a `RunError` if it is damaged or of another schema."""
    try:
        record: dict[str, Any] = strict_json.parse(strict_json.read_text(path))
        schemas.Concepts.model_validate(record)
    except (OSError, ValueError) as error:
        fault = schemas.first_fault(error) if isinstance(error, pydantic.ValidationError) else error
        raise RunError(f"{path} cannot be read: {fault}. Remove it, or find the concepts again.") from error
    return record


def figures(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the figures of the samples, or of the user's images in their place, and of the reference, with names."""
    names = {"samples": record.get("source", "samples"), "reference": "reference"}
    return [(name, record[kind]) for kind, name in names.items() if kind in record]


def write_concepts(target: Target, record: Mapping[str, Any], pictures: Tensor, maps: Tensor) -> str:
    """Return the page of the concepts: figures, and of each its strongest samples and where in them it is.

    Args:
        target: the classifier.
        record: all figures; see `interpkit.api.concepts.Concepts`.
        pictures: the strongest samples of its concepts, in [0, 1], one concept after the other.
        maps: where the concept is in them; empty for vectors.
    """
    drawn = (pictures * 255).round().clamp(0, 255).to(torch.uint8) if pictures.dim() == 4 else pictures
    if len(pictures):
        drawn = encode.drawable(drawn, shape=target.description.input_shape or ())
    heat = encode.heat(maps, drawn[: len(maps)]) if len(maps) else maps
    strips: list[list[Tensor]] = []
    start = 0
    for row in record["concepts"]:
        end = start + len(row["samples"])
        kinds = [kind for kind in (drawn, heat) if end <= len(kind)]
        strips.append([encode.strip(kind[start:end]) for kind in kinds])
        start = end
    uris = iter(encode.encode(list(itertools.chain(*strips)), of_classes.CHARACTERS))
    return render(
        "concepts.html",
        percent=percent,
        title=f"{target.name}: concepts of the layer {record['layer']}",
        meaning=MEANING,
        record=record,
        judged=figures(record),
        those="images" if "source" in record else "samples",
        shown=[[(next(uris), (strip.shape[2], strip.shape[1])) for strip in row] for row in strips],
        names={row["concept"]: row["name"] or row["concept"] for row in record["concepts"]},
    )
