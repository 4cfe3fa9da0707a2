"""The page of a classifier's concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interpkit.interfaces.targets import Target
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render

MEANING = (
    "A concept is a direction of the layer's features that few images use. The figures say what the classifier "
    "computes; only the images show whether a person would call it one thing. Another seed finds other concepts."
)


def write_concepts(target: Target, record: Mapping[str, Any], pictures: Tensor, maps: Tensor) -> str:
    """Return the page of the concepts: figures, and of each its strongest samples and where in them it is.

    Args:
        target: the classifier.
        record: all figures; see `interpkit.api.concepts.Concepts`.
        pictures: the strongest samples of its concepts, in [0, 1], one concept after the other.
        maps: where the concept is in them; empty for vectors.
    """
    rows, start, strips = record["concepts"], 0, []
    drawn = pictures
    if len(pictures) and pictures.dim() == 4:
        drawn = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
    drawn = encode.drawable(drawn, shape=target.description.input_shape or ()) if len(pictures) else drawn
    heat = encode.heat(maps, drawn) if len(maps) else None
    for row in rows:
        end = start + len(row["samples"])
        if end > len(pictures):
            break
        strips.append(encode.strip(drawn[start:end]))
        if heat is not None:
            strips.append(encode.strip(heat[start:end]))
        start = end
    each = 1 if heat is None else 2
    uris = encode.encode(strips, of_classes.CHARACTERS) if strips else []
    return render(
        "concepts.html",
        title=f"{target.name}: concepts of the layer {record['layer']}",
        meaning=MEANING,
        record=record,
        rows=rows,
        judged=[(kind, record[kind]) for kind in ("samples", "reference") if kind in record],
        uris=[uris[place : place + each] for place in range(0, len(uris), each)],
        sizes=[(strip.shape[2], strip.shape[1]) for strip in strips[::each]],
        numbers={row["concept"]: row["name"] or row["concept"] for row in rows},
    )
