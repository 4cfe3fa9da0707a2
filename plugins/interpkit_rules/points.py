"""The points that rules are learned from and tested on: rows of data with noise, or uniform ones."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from interpkit import DataOptions, LabelledImages, Target, UsageError, load_inversion

log = logging.getLogger("interpkit")

MOST_VALUES = 50_000_000
"""Most values in all points together, which limits the noisy copies of images."""
PER_CLASS = 100
"""Most samples of each class that are drawn from a run."""
FEW = 10
"""A column of at most so many whole numbers looks like categories."""


class RowOptions(DataOptions):
    """Options of a component that reads rows: its option ``data`` may also be a run folder."""

    data: str | None = Field(
        None,
        description="rows near which the rules should hold: FILE.csv, FILE.npz, a folder of images, or the folder of "
        "another run, whose samples are used; uniform points in the input range if omitted",
    )

    @property
    def is_run(self) -> bool:
        """Whether the rows are the samples of a run."""
        return self.data is not None and (Path(self.data) / "manifest.json").is_file()

    def load(self, target: Target) -> LabelledImages:
        """Return the rows in [0, 1]; see `DataOptions.load`."""
        if not self.is_run:
            return super().load(target)
        inversion = load_inversion(str(self.data), target=target)
        most = inversion.images_per_class
        images, labels = inversion.sample(PER_CLASS if most is None else min(PER_CLASS, most))
        return LabelledImages(images, labels)

    def record(self, target: Target) -> dict[str, str]:
        """Return the manifest's entry for the rows; see `DataOptions.record`."""
        if not self.is_run:
            return super().record(target)
        return {"path": str(self.data), "sha256": self.load(target).sha256()}


@dataclass(frozen=True)
class Points:
    """Points in [0, 1], (N, *input_shape) each; a set may be empty.

    Attributes:
        learned: those that rules are learned from.
        held_out: rows that they are tested on.
        near: held-out rows with noise.
        source: where they came from, in words.
        columns: names of the features, if the data state them.
        categorical: indices of features that look like categories.
    """

    learned: Tensor
    held_out: Tensor
    near: Tensor
    source: str
    columns: tuple[str, ...] = ()
    categorical: tuple[int, ...] = ()


def uniform(target: Target, count: int, rng: torch.Generator) -> Points:
    """Return uniform points in the input range, equally many to learn from and to test on."""
    count = max(1, min(count, MOST_VALUES // math.prod(target.input_shape)))
    learned, held_out = (torch.rand(count, *target.input_shape, generator=rng) for _ in range(2))
    return Points(learned, held_out, held_out[:0], "uniform in the input range, without data")


def near_rows(
    target: Target, options: RowOptions, count: int, sigma: float, share: float, rng: torch.Generator
) -> Points:
    """Return the rows of the data with noisy copies of them.

    Args:
        target: the classifier.
        options: name the data.
        count: the number of points to learn from; up to half of them are rows.
        sigma: standard deviation of the noise, in units of [0, 1].
        share: the share of the rows that are held out.
        rng: randomness on the CPU.

    Raises:
        UsageError: the data cannot be read, or a row lies outside the input range.
    """
    known = options.load(target)
    rows, columns = known.images, known.columns
    if rows.dim() == 2:
        _check_range(target, rows, columns, str(options.data))
    count = max(2, min(count, MOST_VALUES // math.prod(target.input_shape)))
    kept = min(round(share * len(rows)), len(rows) - 1)
    mixed = torch.randperm(len(rows), generator=rng)
    held_out, learned = rows[mixed[:kept][:count]], rows[mixed[kept:][: count // 2]]

    def noisy(of: Tensor, number: int) -> Tensor:
        copies = of[torch.randint(len(of), (number,), generator=rng)] if len(of) else of
        return (copies + sigma * torch.randn(copies.shape, generator=rng)).clamp(0, 1)

    name = Path(str(options.data)).name
    what = f"samples of the run {name}" if options.is_run else name
    return Points(
        torch.cat([learned, noisy(learned, count - len(learned))]),
        held_out,
        noisy(held_out, count),
        f"{len(learned):,} rows of {what}, and copies with noise of {sigma:g}",
        columns,
        () if options.is_run or rows.dim() != 2 else _categorical(target, rows, columns),
    )


def feature_names(columns: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return the names of the features of vectors, ``x0`` and so on unless they are known."""
    return columns or tuple(f"x{place}" for place in range(count))


def _check_range(target: Target, rows: Tensor, columns: tuple[str, ...], where: str) -> None:
    """Refuse rows outside the input range, of which neither noise nor the boundary could be in it."""
    beyond = torch.maximum(-rows, rows - 1)
    outside = beyond.amax(1) > 1e-5
    if not outside.any():
        return
    worst = int(beyond.amax(0).argmax())
    low, high = (limit.expand(rows.shape[1])[worst].item() for limit in (target.low, target.high))
    least, most = (low + (high - low) * value.item() for value in rows[:, worst].aminmax())
    raise UsageError(
        f"{int(outside.sum())} of the {len(rows)} rows of {where} lie outside the input range of {target.name}: the "
        f"range of {feature_names(columns, rows.shape[1])[worst]} is {low:g} to {high:g}, and its values go from "
        f"{least:.6g} to {most:.6g}. State an input range that includes them, or leave these rows out."
    )


def _categorical(target: Target, rows: Tensor, columns: tuple[str, ...]) -> tuple[int, ...]:
    """Return the columns of few whole numbers, which may be categories, and warn of them."""
    values = target.from_unit(rows.double())
    whole = ((values - values.round()).abs() < 1e-4 * values.abs().clamp_min(1)).all(0)
    found = {
        place: count
        for place in whole.nonzero()[:, 0].tolist()
        if 1 < (count := len(values[:, place].round().unique())) <= min(FEW, len(rows) // 4)
    }
    if found:
        names = feature_names(columns, rows.shape[1])
        log.warning(
            "these columns hold few whole numbers, like categories: %s. The rules treat them as quantities, so a rule "
            "may divide them between two categories",
            ", ".join(f"{names[place]} ({count} values)" for place, count in list(found.items())[:FEW])
            + (f" and {len(found) - FEW} more" if len(found) > FEW else ""),
        )
    return tuple(found)
