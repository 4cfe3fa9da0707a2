"""Predictions in a file: a classifier's answers, one row per image, as probabilities or as logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interpkit.errors import InterpkitError, UsageError, first_line, listed, setting
from interpkit.io.atomic import read_tensors
from interpkit.io.datasets import check_member
from interpkit.io.tables import feature_columns, read_table

ENDINGS = (".npy", ".npz", ".safetensors", ".csv", ".tsv")
NAMES = ("predictions", "probabilities", "logits")
"""Names of the array in a file of several; the first that exists is read."""
ROUNDING = 0.01
"""How far the sum of a row may differ from 1, as probabilities are often rounded."""


def load_predictions(path: Path, class_names: Sequence[str] = ()) -> Tensor:
    """Return the numbers of a file of predictions, (N, n) float64.

    Args:
        path: an ``.npy``; an ``.npz`` or ``.safetensors`` whose array is called predictions, probabilities or logits,
            or is the only one; or a ``.csv`` with one column per class, with or without a header.
        class_names: those of the classifier. Columns with these names are put into their order.

    Raises:
        UsageError: it cannot be read as such.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{path} is not a file of predictions: pass one of {listed(ENDINGS)}.")
    try:
        if ending == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)  # as large as the file, whatever its header says
        elif ending == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                name = _name(path, arrays.files)
                check_member(path, arrays.zip, f"{name}.npy")
                values = arrays[name]
        elif ending == ".safetensors":
            tensors = read_tensors(path)
            values = tensors[_name(path, list(tensors))].numpy()
        else:
            values = _table(path, class_names)
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except InterpkitError as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # numpy has many kinds
        raise UsageError(f"{path} cannot be read as predictions: {first_line(error)[:300]}.") from error


def log_probabilities(values: Tensor, num_classes: int, what: str, *, logits: bool = False) -> Tensor:
    """Return predictions as log-probabilities, (N, n) float32.

    Args:
        values: (N, n), probabilities or logits.
        num_classes: n.
        what: name of the predictions in an error message.
        logits: whether the values are logits, or log-probabilities.

    Raises:
        UsageError: they are of another number of classes, do not sum to 1, or are logits where probabilities are
            expected, or the reverse.
    """
    if values.dim() != 2 or values.shape[1] != num_classes or not len(values):
        raise UsageError(
            f"{what} has predictions of shape {tuple(values.shape)}; the classifier has {num_classes} classes, so "
            f"(N, {num_classes}) is expected, one row per answer."
        )
    if not values.isfinite().all():
        raise UsageError(f"{what} has values that are not finite.")
    values = values.double()
    sums = values.sum(1)
    wrong = (sums - 1).abs() > ROUNDING
    low, high = values.min().item(), values.max().item()
    if logits:
        if low >= 0 and not wrong.any():
            raise UsageError(f"{what} already holds probabilities: leave {setting('logits', None)} out.")
        return values.log_softmax(1).float()
    if low < 0 or high > 1 + ROUNDING:
        raise UsageError(
            f"{what} has values from {low:.4g} to {high:.4g}, which are not probabilities. If they are logits or "
            f"log-probabilities, add {setting('logits')}."
        )
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise UsageError(
            f"{what} is not a distribution in row {row}, whose sum is {sums[row]:.4g}. Each row needs the "
            f"probabilities of all classes: spread what is missing over the classes that have none, or divide each row "
            f"by its sum."
        )
    return (values / sums[:, None]).log().float()


def _name(path: Path, names: list[str]) -> str:
    """Return the name of the array to read."""
    found = [name for name in NAMES if name in names] or (names if len(names) == 1 else [])
    if not found:
        raise UsageError(f"{path} has {listed(names)}; call the array of predictions {NAMES[0]!r}.")
    return found[0]


def _table(path: Path, class_names: Sequence[str]) -> np.ndarray:
    header, rows = read_table(path)
    columns = feature_columns(header)
    places = list(columns)
    numbered = header == [str(number) for number in range(len(header))]  # as pandas names columns
    numbered = numbered and any("." in value for row in rows for value in row)  # else an answer of whole numbers
    if not numbered and sorted(columns.values()) == sorted(class_names) and len({*class_names}) == len(columns):
        places = [place for name in class_names for place, own in columns.items() if own == name]
    elif not numbered:
        try:
            rows = [[str(float(name)) for name in header], *rows]
            places = list(range(len(header)))
        except ValueError:
            pass  # names, not the first row
    return np.array([[float(row[place]) for place in places] for row in rows])
