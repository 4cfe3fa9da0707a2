"""Read CSV tables of labeled images or vectors."""

from __future__ import annotations

import csv
import logging
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from interpkit.errors import UsageError, listed

log = logging.getLogger("interpkit")

MAX_TABLE_BYTES = 500_000_000
PICTURE_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "path", "filepath", "image_id")
LABEL_COLUMNS = ("label", "class", "target", "category", "species", "y", "labels", "diagnosis")
"""Common names of these columns, in upper or lower case; the first one that exists is used."""


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read a CSV file; return the names of its columns and its rows.

    Raises:
        UsageError: it is missing, too large, not text, or its rows differ in length.
    """
    if not os.path.isfile(path):  # refuses pipes, which never end; Path.is_file raises for a name that is too long
        raise UsageError(f"there is no file {path}.")
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_TABLE_BYTES:,} bytes: pass an .npz.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(4096)
            file.seek(0)
            separator = max(",;\t", key=start.partition("\n")[0].count)
            header, *rows = [row for row in csv.reader(file, delimiter=separator) if row] or [[]]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV table: {error}. Save it as CSV in UTF-8.") from error
    uneven = next((row for row in rows if len(row) != len(header)), None)
    if uneven is not None or not rows:
        found = f"a row of {len(uneven)}: {','.join(uneven)[:80]}" if uneven else "no rows"
        raise UsageError(f"{path} has {len(header)} columns ({listed(header)}) and {found}.")
    return [name.strip() for name in header], [[value.strip() for value in row] for row in rows]


def pictures_of(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[Path, str]] | None:
    """Return the path and class name of each picture in a table, or None if it has no column of pictures.

    Paths are relative to the table's folder. Without a label column, the picture's folder names its class.
    """
    place = _column(header, PICTURE_COLUMNS)
    if place is None:
        return None
    label = _column(header, LABEL_COLUMNS)
    return [(path.parent / row[place], Path(row[place]).parent.name if label is None else row[label]) for row in rows]


def numbers_of(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    input_shape: tuple[int, ...],
    *,
    labeled: bool = True,
) -> tuple[np.ndarray, list[str]]:
    """Return inputs (N, *input_shape) and class names from a table with one label and D numbers per row.

    If not ``labeled``, the label may be missing, and there are no class names.

    Raises:
        UsageError: the columns do not fit the classifier, or a value is not a number.
    """
    label = _column(header, LABEL_COLUMNS)
    features = [i for i in range(len(header)) if i != label]
    width = math.prod(input_shape)
    if (labeled and label is None) or len(features) != width or (len(input_shape) == 3 and input_shape[0] != 1):
        raise UsageError(
            f"{path} has the columns {listed(header)}; it needs the columns image (a path) and label"
            + (f", or label and {width} numbers." if len(input_shape) != 3 or input_shape[0] == 1 else ".")
        )
    try:
        values = np.array([[float(row[i]) for i in features] for row in rows])
    except ValueError as error:
        raise UsageError(f"{path} has a value that is not a number: {error}.") from error
    # Up to 16 gray levels, as in scikit-learn's digits, are not bytes.
    if len(input_shape) == 3 and (values == values.round()).all() and values.min() >= 0 and 16 < values.max() <= 255:
        values = values.astype(np.uint8)
    return values.reshape(-1, *input_shape), [row[label] for row in rows] if labeled and label is not None else []


def feature_columns(header: Sequence[str]) -> dict[int, str]:
    """Return the names of a table's columns but for that of the label, by place."""
    label = _column(header, LABEL_COLUMNS)
    return {place: name for place, name in enumerate(header) if place != label}


def labels_of(names: Sequence[str], class_names: Sequence[str], where: str | Path) -> np.ndarray:
    """Return the labels (N,) int64 of class names; a number that is not a class name is itself the label.

    Raises:
        UsageError: there is no such class.
    """
    normal = [_normal(name) for name in class_names]
    known = {name: label for label, name in enumerate(normal)}
    labels: dict[str, int] = {}
    for name in dict.fromkeys(names):
        whole = name.removesuffix(".0")
        label = known.get(_normal(name), int(whole) if whole.isdecimal() and len(whole) < 19 else None)
        if label is None:
            raise UsageError(
                f"{where}: no class is named {name!r}. Classes: {listed(class_names)}. Rename it, or use its number."
            )
        several = [str(label) for label, each in enumerate(normal) if each == _normal(name)]
        if len(several) > 1:
            raise UsageError(
                f"{where}: the classes {', '.join(several[:-1])} and {several[-1]} are all named {name!r}. Use the "
                f"number of the class instead."
            )
        labels[name] = label
    named = [name for name, label in labels.items() if name.isdecimal() and label != int(name) < len(normal)]
    if named:
        log.warning("%s: %s are taken for the names of classes, not for their numbers.", where, listed(named))
    return np.array([labels[name] for name in names], dtype=np.int64)


def _normal(name: str) -> str:
    """Return a name with each accented letter as one character; file systems differ in this."""
    return unicodedata.normalize("NFC", name)


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in names if name in lower), None)
