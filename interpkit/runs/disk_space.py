"""Estimate the disk space of a run before it starts, and check that it is free."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.config.sizes import is_large
from interpkit.errors import RunError, setting
from interpkit.evaluation.scoring import most_samples
from interpkit.interfaces.targets import Target
from interpkit.runtime.recorder import MOST_RECORDS, RECORD_EVERY

PAGES, OF_LARGE_IMAGES = 8_000_000, 18_000_000
"""Bytes for the report, which has a size budget, and for the small files."""


def at_most(recipe: Recipe, target: Target, *trained: nn.Module | None, in_groups: bool = False) -> int:
    """Return an upper bound for the bytes of a run folder, including the moment when a checkpoint replaces another.

    A run without trained networks is assumed to optimize the images themselves, all at once, or `Inverter.in_groups`.
    """
    classes = target.num_classes if recipe.labels is None else len(recipe.labels)
    numbers = math.prod(target.input_shape)
    kept = most_samples(classes)
    per_class = recipe.inverter.options.get("per_class")
    count = classes * (per_class if isinstance(per_class, int) else 1)
    tensors: list[Tensor] = [tensor for part in trained if part is not None for tensor in part.state_dict().values()]
    if tensors:
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    else:
        weights = 4 * numbers * (min(count, recipe.batch_size) if in_groups else count)
    # Three states (current, last good, and candidate for the next good one) of the weights and Adam's two moments.
    checkpoint = 3 * 3 * weights + (numbers * count if in_groups else 0)  # in 8 bits
    samples = kept * (numbers * (1 if len(target.input_shape) == 3 else 4) + 4 * min(target.num_classes, 100) + 20)
    lines = min(recipe.steps // RECORD_EVERY + 2, MOST_RECORDS)
    history = lines * 30 * (len(recipe.losses) + 4)
    pages = OF_LARGE_IMAGES if is_large(target.input_shape) else PAGES
    return 2 * checkpoint + weights + 2 * samples + history + pages  # samples.png is at most as large as the samples


def check(folder: Path, needed: int) -> None:
    """Raise a `RunError` unless the disk of ``folder`` has ``needed`` bytes free."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    replaced = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    if free + replaced < needed:
        raise RunError(
            f"{folder} may take {decimal(needed)}, and {decimal(free)} are free there: make room, name a folder on "
            f"another disk with {setting('out', None)}, or make the generator narrower."
        )
