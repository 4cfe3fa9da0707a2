"""The page of an audit: the verdict, what was found and what shows it, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from interpkit.interfaces.audits import Audit
from interpkit.interfaces.sections import Strip
from interpkit.interfaces.targets import Target
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render

Pictures = Mapping[str, tuple[type[Audit], Mapping[int | None, Sequence[Strip]]]]


def write_audit(target: Target, record: Mapping[str, Any], pictures: Pictures) -> str:
    """Return the page.

    Args:
        target: the classifier.
        record: all figures; see `interpkit.api.audit.AuditReport`.
        pictures: the pictures of each test, by class.
    """
    shown: list[list[tuple[str, int]]] = []
    strips: list[torch.Tensor] = []
    for finding in record["findings"]:
        _, of_test = pictures[finding["test"]]
        row = []
        for strip in of_test.get(finding["class"], ()):
            row.append((strip.title, len(strips)))
            images = (
                (strip.images * 255).round().clamp(0, 255).to(torch.uint8) if strip.images.dim() == 4 else strip.images
            )
            strips.append(encode.strip(encode.drawable(images, shape=target.description.input_shape or ())))
        shown.append(row)
    uris = encode.encode(strips, of_classes.CHARACTERS) if strips else []
    names = dict(zip(record["classes"]["tested"], record["classes"]["names"], strict=True))
    surest = min((row["p_value"] for test in record["tests"].values() for row in test["classes"]), default=1.0)
    return render(
        "audit.html",
        title=f"Audit of {target.name}",
        record=record,
        names=names,
        surest=surest,
        shown=[
            [(title, uris[place], (strips[place].shape[2], strips[place].shape[1])) for title, place in row]
            for row in shown
        ],
    )
