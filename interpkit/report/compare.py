"""Compare runs on one page: their samples class by class, and their figures."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.errors import RunError, UsageError, listed
from interpkit.evaluation import warnings
from interpkit.evaluation.flatten import flattened
from interpkit.io.atomic import followed, read_tensors, write_atomically
from interpkit.report import classes as of_classes
from interpkit.report import encode, text
from interpkit.report.page import render
from interpkit.runs.folder import Run, refuse_run_files

SHOWN, MOST = 10, 1000
"""Samples of each class and run, and at most of all classes."""
MOST_CLASSES = 1000


def write_comparison(runs: Mapping[str, Run | str | Path], path: str | Path) -> Path:
    """Write a self-contained HTML page that shows runs side by side; the classifiers are not needed.

    Vectors are drawn as bars, signals as a row of bars per channel, and volumes by their middle slice, those of one
    shape on one scale.

    Args:
        runs: two or more runs, keyed by the headings of their columns.
        path: the HTML file to write.

    Returns:
        the file.

    Raises:
        RunError: a run has no samples, or has another schema.
        UsageError: there are fewer than two runs, or the file cannot be written.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap, write_comparison
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> short = invert(target, ["pixels"], steps=5).save("runs/short")
        >>> long = invert(target, ["pixels"], steps=20).save("runs/long")
        >>> write_comparison({"5 steps": short, "20 steps": long}, "compare.html").name
        'compare.html'
    """
    path = Path(path)
    if len(runs) < 2:
        raise UsageError("a comparison needs at least two runs.")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{path} cannot be written: name a file in a folder that exists.")
    for place in (path, followed(path)):
        refuse_run_files(place)
    opened = {name: run if isinstance(run, Run) else Run.open(Path(run)) for name, run in runs.items()}
    ends, every = _looked_through(opened.values())
    labels, budget = every[:MOST_CLASSES], of_classes.CHARACTERS / len(runs)
    columns = [_column(name, run, budget, ends, set(labels)) for name, run in opened.items()]
    figures = [flattened(column["metrics"]) for column in columns]
    counts = [sum(len(column["cells"].get(label, [])) for column in columns) for label in labels]
    names = {label: dict.fromkeys(c["names"][label] for c in columns if label in c["names"]) for label in labels}
    page = render(
        "compare.html",
        title=f"{len(columns)} runs compared",
        columns=columns,
        labels=labels,
        left_out=len(every) - len(labels),
        legends=dict.fromkeys(column["legend"] for column in columns if column["legend"]),
        titles=[f"{title} of {c['name']}" for c in columns for title in c["figures"].titles],
        searched=len(labels) > of_classes.SEARCHED,
        layout=of_classes.layout(max(column["size"][0] for column in columns), counts),
        names={label: " / ".join(names[label]) or str(label) for label in labels},
        differ={label for label in labels if len(names[label]) > 1},
        figures=[
            {"name": name, "meaning": text.meaning(name), "values": [column.get(name) for column in figures]}
            for name in dict.fromkeys(name for column in figures for name in column)
        ],
    )
    write_atomically(followed(path), page)
    return path


def _looked_through(runs: Iterable[Run]) -> tuple[dict[tuple[int, ...], Tensor], list[int]]:
    """Return the lowest and the highest values, (M, D), of the vectors of all runs, by their shape; and the classes."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    classes: set[int] = set()
    for run in runs:
        images, labels, _ = _stored(run / "samples.safetensors")
        classes.update(labels.tolist())
        if shape := _shape(run, images):
            found.setdefault(shape, []).extend((images.amin(0), images.amax(0)))
    return {shape: torch.stack(values) for shape, values in found.items()}, sorted(classes)


def _shape(run: Run, images: Tensor) -> tuple[int, ...]:
    """Return the shape that vectors, signals and volumes have for the classifier; nothing for images."""
    if images.dim() == 4:
        return ()
    shape = tuple(run.recipe().target.input_shape or ())
    return shape if math.prod(shape) == images.shape[1] else tuple(images.shape[1:])


def _column(
    heading: str, run: Run, budget: float, ends: Mapping[tuple[int, ...], Tensor], among: Container[int]
) -> dict[str, Any]:
    """Return the content of a run's column; ``cells`` has its pictures and the target's confidence by class."""
    metrics, manifest = run.metrics(), run.manifest()
    images, labels, confidence = _stored(run / "samples.safetensors")
    every = labels.unique().tolist()
    classes = [label for label in every if label in among]
    shown = min(SHOWN, max(1, MOST // max(1, len(classes))))
    rows = {k: (labels == k).nonzero()[:shown, 0] for k in classes}
    shape = _shape(run, images)
    drawn = encode.drawable(images[torch.cat([labels[:0], *rows.values()])], ends.get(shape), shape)
    cells: dict[int, list[tuple[str, float]]] = {k: [] for k in rows}
    order = [(k, row) for k, some in rows.items() for row in some.tolist()]
    for (label, row), uri in zip(order, encode.encode(drawn, budget), strict=True):
        cells[label].append((uri, confidence[row].item()))
    target = manifest.model.name or "the classifier"
    return {
        "name": heading,
        "model": target,
        "presets": ", ".join(manifest.presets or []),
        "steps": manifest.steps_done,
        "metrics": metrics,
        "names": {row["label"]: str(row["name"]) for row in metrics.get("per_class", [])},
        "verdict": text.verdict(metrics, target, len(metrics.get("per_class", [])) or len(every)),
        "warnings": warnings.warnings(metrics),
        "cells": cells,
        "figures": of_classes.figures(metrics),
        "size": drawn.shape[:1:-1],
        "legend": encode.legend(images, shape),
    }


def _stored(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Read the stored images (or vectors), labels and confidence."""
    tensors = read_tensors(path)
    images = tensors.get("images", tensors.get("inputs"))
    labels, confidence = tensors.get("labels"), tensors.get("confidence")
    if images is None or labels is None or confidence is None:
        raise RunError(f"{path} holds {listed(tensors)}; samples need images (or inputs), labels and confidence.")
    count = len(labels) if labels.dim() == 1 and labels.dtype == torch.int64 else 0
    fits = count and len(images) == count and confidence.shape == (count,) and confidence.dtype == torch.float32
    kinds = {4: torch.uint8, 2: torch.float32}
    drawable = images.numel() and kinds.get(images.dim()) == images.dtype and bool(images.isfinite().all())
    if not fits or not drawable:
        raise RunError(f"{path} is not a file of samples: images {images.dtype} {tuple(images.shape)}, {count} labels.")
    return images, labels, confidence
