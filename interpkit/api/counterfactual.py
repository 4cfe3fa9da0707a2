"""`counterfactual`: the smallest change of given inputs after which a classifier gives another answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.api.outputs import result_folder
from interpkit.attribution.export import load_images
from interpkit.errors import UsageError, did_you_mean, listed, setting
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.targets import Target
from interpkit.inversion.manifold import nearest_along
from interpkit.inversion.nearest import Classes, Nearest, nearest
from interpkit.inversion.results import GeneratorInversion
from interpkit.io.tables import PICTURE_COLUMNS, feature_columns, read_table
from interpkit.runtime.autograd import with_autograd

log = logging.getLogger("interpkit")

LEVELS = 255
MOST = 100


@dataclass(frozen=True)
class Counterfactuals:
    """Inputs, and the nearest ones of another class.

    Attributes:
        target: the classifier.
        given: (N, *input_shape) in [0, 1]; images in 8 bits, so that a change survives being saved.
        free: the nearest inputs when every pixel or value may change.
        along: the nearest samples of the run's generator; None without one.
        names: the names of a vector's values, by number where the data have none.
        decimals: the decimal places of the columns of a table; empty if the values are not of a table.
    """

    target: Target
    given: Tensor
    free: Nearest
    along: Nearest | None
    names: Sequence[str]
    decimals: Sequence[int] = ()

    def changes(self, row: int) -> dict[str, tuple[float, float]]:
        """Return what changes in a vector, from and to, in the classifier's own units; the largest changes first."""
        before, after = (self.target.from_unit(each[row, None])[0] for each in (self.given, self.free.images))
        order = (self.free.images[row] - self.given[row]).abs().argsort(descending=True, stable=True).tolist()
        places: Sequence[int | None] = self.decimals or [None] * len(self.names)
        pairs = [(self.names[k], *(_short(each[k], places[k]) for each in (before, after))) for k in order]
        return {name: (old, new) for name, old, new in pairs if old != new}

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for each input: its class before and after, the distances, and the changes of a vector."""
        names = self.target.class_names
        records: list[dict[str, Any]] = []
        for row in range(len(self.given)):
            before = names[int(self.free.before[row])]
            if self.target.multi_label:  # one label is asked for, and was absent
                found = [r for r in (self.free, self.along) if r is not None and row not in r.reasons]
                before = f"not {names[int(found[0].answers[row])]}" if found else ""
            record: dict[str, Any] = {"row": row, "before": before}
            for key, result in (("", self.free), ("along_", self.along)):
                if result is None:
                    continue
                if row in result.reasons:
                    record[f"{key}reason"] = result.reasons[row]
                else:
                    record[f"{key}after"] = names[int(result.answers[row])]
                    record[f"{key}distance"] = round(float(result.distances[row]), 6)
            if self.given.dim() == 2 and row not in self.free.reasons:
                record["changes"] = {name: list(pair) for name, pair in self.changes(row).items()}
            records.append(record)
        return records


@with_autograd
def counterfactual(
    model: Target | Inversion,
    images: Tensor | str | Path,
    to: Classes | None = None,
    *,
    fixed: Sequence[str | int] = (),
    smooth: float = 0.0,
    starts: int = 0,
    count: int = MOST,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Counterfactuals:
    """Return what would have to change in inputs for a classifier to give another answer.

    Pixels change by whole levels of 8 bits. The values of a table change by the last decimal place of their column,
    within the classifier's input range.

    Args:
        model: the classifier, or an inversion; the samples of its generator then are a second answer beside free
            pixels, to which ``smooth`` and ``starts`` do not apply; with ``fixed`` there is none.
        images: (N, *input_shape) in [0, 1]; or a picture, a folder of pictures, or a file of labeled data.
        to: the class asked for, by name or number, or one for each input; any other class if omitted.
        fixed: names or numbers of a table's columns that keep their values.
        smooth: standard deviation of a Gaussian that blurs the change of an image, in pixels.
        starts: further random starting points.
        count: the most inputs of a file, from its first.
        out: a folder to write report.html and, for images, counterfactual.png.
        seed: random seed of the starting points.
        device: device to compute on.

    Raises:
        UsageError: an argument does not fit, or the images cannot be read.

    Example:
        >>> import torch
        >>> from interpkit import counterfactual, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,), class_names=["low", "high"], input_range=(0, 10))
        >>> before, after = counterfactual(target, torch.tensor([[0.8, 0.2]]), fixed=[0]).changes(0)["1"]
        >>> before, round(after, 1)
        (2.0, 8.0)
    """
    from interpkit.report import counterfactual as report

    folder = None if out is None else result_folder(out, report.WRITTEN)
    target = model.target if isinstance(model, Inversion) else model
    names: Sequence[str] = [str(number) for number in range(target.input_shape[0])]
    steps: float | Tensor = 1 / LEVELS if len(target.input_shape) == 3 else 0.0
    decimals: Sequence[int] = ()
    if isinstance(images, Tensor):
        given = images.detach().float().cpu().clone()
    else:
        given = load_images(str(images), target)[0][:count]
        if len(target.input_shape) == 1 and Path(images).suffix.lower() in (".csv", ".tsv"):
            names, steps, decimals = _columns(Path(images), target)
    if len(target.input_shape) == 3:
        given = (given * LEVELS).round() / LEVELS
    held = _fixed(fixed, names, target)
    free = nearest(target, given, to, steps=steps, fixed=held, smooth=smooth, starts=starts, seed=seed, device=device)
    along = None
    if isinstance(model, GeneratorInversion) and held is not None:
        log.warning("the samples of a generator do not keep columns, so there are no results along the generator")
    elif isinstance(model, GeneratorInversion):
        along = nearest_along(model, given, to, seed=seed, device=device)
    result = Counterfactuals(target, given, _in_own_units(free, target, given, names), along, names, decimals)
    if folder is not None:
        report.write_counterfactuals(target, given, result.free, along, result.rows(), folder)
    return result


def _short(value: Tensor, decimals: int | None) -> float:
    """Return a number with the decimal places of its column, or else in the six digits that float32 holds."""
    return float(f"{float(value):.6g}") if decimals is None else round(float(value), decimals)


def _columns(path: Path, target: Target) -> tuple[list[str], Tensor, list[int]]:
    """Return a table's columns without the label: the names, the steps in [0, 1] of a change, the decimal places."""
    header, rows = read_table(path)
    places = feature_columns(header)
    names = [*places.values()]
    if any(name.lower() in PICTURE_COLUMNS for name in header) or len(names) != target.input_shape[0]:
        return [str(number) for number in range(target.input_shape[0])], torch.tensor(0.0), []
    decimals = [max(_decimals(row[place]) for row in rows) for place in places]
    whole = [name for name, digits in zip(names, decimals, strict=True) if digits == 0]
    if whole:
        log.warning(
            "%s: the columns %s hold whole numbers and change by whole steps. If the numbers stand for categories, a "
            "step between them means nothing: keep such columns by %s.",
            *(path, listed(whole), setting("fixed", "NAME")),
        )
    steps = torch.tensor([10.0**-digits for digits in decimals])
    return names, steps / (target.high - target.low), decimals


def _decimals(text: str) -> int:
    """Return how many decimal places a number is written with."""
    mantissa, _, exponent = text.lower().partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))


def _fixed(fixed: Sequence[str | int], names: Sequence[str], target: Target) -> Tensor | None:
    if not fixed:
        return None
    if len(target.input_shape) != 1:
        raise UsageError(f"{setting('fixed', None)} names columns of a table; {target.name} classifies images.")
    held = torch.zeros(target.input_shape, dtype=torch.bool)
    for name in map(str, fixed):
        if name not in names:
            raise UsageError(f"there is no column {name!r}.{did_you_mean(name, names)} Columns: {listed(names)}.")
        held[list(names).index(name)] = True
    return held


def _in_own_units(found: Nearest, target: Target, given: Tensor, names: Sequence[str]) -> Nearest:
    """Return the result with the bounds in a reason as the user knows them: by name, in the classifier's units."""
    if given.dim() != 2:
        return found
    reasons = dict(found.reasons)
    for row in reasons:
        outside = ((given[row] < -1e-6) | (given[row] > 1 + 1e-6)).nonzero()[:, 0].tolist()
        if outside:
            place = outside[0]
            value = float(target.from_unit(given[row, None])[0, place])
            low, high = (float(torch.as_tensor(end).expand(len(names))[place]) for end in (target.low, target.high))
            reasons[row] = (
                f"{names[place]} is {value:g}, outside the input range {low:g} to {high:g}; "
                f"{setting('input_range', None)} states another"
            )
    return replace(found, reasons=reasons)
