"""What a run will take of the disk, said before it starts and held against what is free."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.errors import RunError, setting
from interpkit.interfaces.targets import Target
from interpkit.runtime.recorder import MOST_RECORDS, RECORD_EVERY

PAGES = 8_000_000
"""Bytes of the report, which has a budget, and of the small files."""


def at_most(recipe: Recipe, target: Target, *trained: nn.Module | None) -> int:
    """Return how many bytes the folder of a run takes at most, while a checkpoint replaces the one before.

    A run that trains no networks is taken to move the images themselves.
    """
    classes = target.num_classes if recipe.labels is None else len(recipe.labels)
    numbers = math.prod(target.input_shape)
    kept = 100 * classes if classes <= 10 else max(1000, classes)
    tensors: list[Tensor] = [tensor for part in trained if part is not None for tensor in part.state_dict().values()]
    if tensors:
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    else:
        per_class = recipe.inverter.options.get("per_class")
        weights = 4 * numbers * classes * (per_class if isinstance(per_class, int) else 1)
    # Three states (as it is, the last good one, and the one that may become it) of the weights and Adam's two moments.
    checkpoint = 3 * 3 * weights
    samples = kept * (numbers * (1 if len(target.input_shape) == 3 else 4) + 4 * min(target.num_classes, 100) + 20)
    lines = min(recipe.steps // RECORD_EVERY + 2, MOST_RECORDS)
    history = lines * 30 * (len(recipe.losses) + 4)
    return 2 * checkpoint + weights + 2 * samples + history + PAGES  # the grid is not larger than the samples


def check(folder: Path, needed: int) -> None:
    """Raise a `RunError` unless there is room for a run."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    replaced = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    if free + replaced < needed:
        raise RunError(
            f"{folder} may take {decimal(needed)}, and {decimal(free)} are free there: make room, name a folder on "
            f"another disk by {setting('out', None)}, or make the generator narrower."
        )
