"""The page of a classifier's concepts, and their section in the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.interfaces.sections import Section
from interpkit.interfaces.targets import Target
from interpkit.io import strict_json
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render

FILE = Path("concepts") / "concepts.json"
MEANING = (
    "A concept is a direction of the layer's features that few images use. Its figures say what the classifier computes; "
    "whether a person would call it one thing, only the images show. Another seed finds other concepts."
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


def stored_section(folder: Path) -> list[Section]:
    """Return the section of the concepts that a run folder holds, if any; a file that is no such record is ignored."""
    try:
        record = strict_json.parse(strict_json.read_text(folder / FILE))
        rows = [
            (
                row["name"] or row["concept"],
                f"{row['fires']:.1%}",
                f"{row['class']['name']} ({row['selectivity']:.0%})",
                f"{row['effect']['name']} {row['effect']['logit']:+.2f}",
            )
            for row in record["concepts"][:20]
        ]
        figures = "; ".join(
            f"{kind}: variance explained {record[kind]['variance_explained']:.3f}, label kept "
            f"{record[kind]['label_kept']:.3f}"
            for kind in ("samples", "reference")
            if kind in record
        )
        text = f"Of the layer {record['layer']}. {figures}. {MEANING} Their images are in concepts/report.html."
    except (OSError, ValueError, KeyError, TypeError):
        return []
    columns = ("Concept", "Fires on", "Strongest in", "Logit without it")
    return [Section("Concepts", text, columns=columns, rows=rows)]
