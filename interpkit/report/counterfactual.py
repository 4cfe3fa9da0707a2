"""The report of counterfactuals: inputs before and after, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interpkit.interfaces.targets import Target
from interpkit.inversion.nearest import Nearest
from interpkit.io.atomic import write_atomically
from interpkit.io.images import colour_scale, save_panel, to_heat, to_picture
from interpkit.io.locking import only_writer
from interpkit.report import classes as of_classes
from interpkit.report import encode
from interpkit.report.page import render

PAGE, PICTURE = WRITTEN = "report.html", "counterfactual.png"


def write_counterfactuals(
    target: Target,
    given: Tensor,
    free: Nearest,
    along: Nearest | None,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
) -> None:
    """Write report.html and, for images, counterfactual.png into a folder.

    Args:
        target: the classifier.
        given: (N, *input_shape) in [0, 1].
        free: the results of `nearest`.
        along: those of `nearest_along`, if any.
        rows: a record for each input; see `interpkit.api.counterfactual.Counterfactuals.rows`.
        folder: the folder, created if it does not exist.
    """
    results = [("free pixels", free)] + ([] if along is None else [("along the generator", along)])
    found = torch.stack([result.found for _, result in results]).any(0)
    differences = [_strongest(result.images - given) for _, result in results]
    with only_writer(folder, WRITTEN):
        pictures: dict[int, list[str]] = {}
        scale = 1.0
        if given.dim() == 4:
            # One scale for all differences, so that their colors can be compared.
            scale = max(colour_scale(each) for each in differences)
            shown = found.nonzero()[:, 0].tolist()
            panels = []
            for row in shown:
                drawn = [to_picture(_bytes(given[row]))]
                for (_, result), difference in zip(results, differences, strict=True):
                    there = bool(result.found[row])
                    after = (
                        to_picture(_bytes(result.images[row]))
                        if there
                        else Image.new(drawn[0].mode, drawn[0].size, "white")
                    )
                    drawn += [after, to_heat(difference[row] if there else torch.zeros(1, *given.shape[2:]), scale)]
                panels.append((f"{row}: {_told(rows[row])}", drawn))
            parts = ", then ".join(f"after by {name} and the difference" for name, _ in results)
            if panels:
                channel = ", of the channel that changes most" if given.shape[1] > 1 else ""
                colors = f"red is more, blue is less{channel}, {scale:.2g} in full color"
                save_panel(panels, f"before, {parts} (white: none found): {colors}", folder / PICTURE)
            tensors = [torch.from_numpy(_array(picture)) for _, drawn in panels for picture in drawn]
            uris = iter(encode.encode(tensors, of_classes.CHARACTERS) if tensors else [])
            pictures = {row: [next(uris) for _ in drawn] for row, (_, drawn) in zip(shown, panels, strict=True)}
        if not pictures:
            (folder / PICTURE).unlink(missing_ok=True)  # of an earlier result
        page = render(
            "counterfactual.html",
            title=f"{target.name}: what would have to change",
            rows=rows,
            pictures=pictures,
            kinds=[name for name, _ in results],
            scale=scale,
            channels=given.shape[1],
            size=given.shape[:1:-1] if given.dim() == 4 else (1, 1),
            found=[int(result.found.sum()) for _, result in results],
        )
        write_atomically(folder / PAGE, page)


def _told(row: Mapping[str, Any]) -> str:
    answers = dict.fromkeys(row[key] for key in ("after", "along_after") if key in row)
    return f"{row['before']} → {', '.join(answers)}"


def _strongest(differences: Tensor) -> Tensor:
    """Return the difference of the channel that changes most at each place, (N, 1, H, W); vectors as they are."""
    return differences.gather(1, differences.abs().argmax(1, keepdim=True)) if differences.dim() == 4 else differences


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def _array(picture: Image.Image) -> np.ndarray:
    """Return a picture as (C, H, W) uint8."""
    pixels = np.array(picture)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
