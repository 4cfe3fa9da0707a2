"""Inert classes that replace those named in a pickle, which are neither imported nor called."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

HARMLESS = frozenset(
    {"argparse", "pathlib", "datetime", "collections", "copyreg", "decimal", "fractions", "types", "uuid"}
    | {"enum", "logging", "random", "time", "typing", "zoneinfo", "__main__"}
)
"""Standard-library modules whose objects checkpoints commonly contain."""
PLAIN = frozenset(f"builtins.{kind.__name__}" for kind in (object, dict, list, tuple, int, float, bool, str, bytes))
PLAIN |= {"functools.partial"}
"""Further standard-library names that are common in checkpoints."""
VALUES = frozenset({"pathlib", "datetime", "decimal", "fractions", "functools", "uuid", "zoneinfo"})
"""Modules whose objects may be dictionary keys or have a state that is not a dictionary."""

NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
MOST_SWAPPED = 100_000_000


def is_inert(name: str) -> bool:
    """Return whether a name may be skipped. Standard-library names are never run either, but most signal an attack."""
    package = name.partition(".")[0]
    return name in PLAIN or package in HARMLESS or package not in sys.stdlib_module_names


class _StandIn:
    """Replaces any class or function; a call returns an empty dictionary.

    torch sets items and attributes on no other class than OrderedDict.
    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Sequence:
    """Replaces a sequence class; a call returns an empty list."""

    def __new__(cls, *_: Any) -> Any:
        return []


class _Value:
    """Replaces a class of one of the modules in `VALUES`."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Kind:
    """Replaces ``numpy.dtype``."""

    swapped = 0
    """Bytes copied so far to convert their byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = "=" if state[1] == "|" else state[1]

    def tensor(self, data: Any, shape: Any = ()) -> Any:
        """Return numbers as a tensor; None for anything else."""
        data = data or b""  # an empty stand-in if there are no bytes
        if not re.fullmatch("[biufc][0-9]+", self.code) or not isinstance(data, bytes):
            return None
        array = np.frombuffer(data, np.dtype(f"{self.order}{self.code}")).reshape(shape)
        if not array.dtype.isnative:
            kind = type(self)  # created for each file, see `stand_in`
            kind.swapped += array.nbytes
            if kind.swapped > MOST_SWAPPED:
                raise ValueError(f"it has more than {MOST_SWAPPED:,} bytes of arrays in foreign byte order")
            array = array.astype(array.dtype.newbyteorder("="))
        try:
            return torch.from_numpy(array)  # without copying, because many arrays may share the same bytes
        except TypeError:  # torch lacks this dtype
            return None


class _Array:
    """Replaces ``numpy.ndarray``; `tensor` has its values once the state is set."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        tensor = kind.tensor(data, shape[::-1] if by_columns else shape)
        self.tensor = tensor.permute(*range(tensor.dim())[::-1]) if by_columns and tensor is not None else tensor


class _ArrayMaker:
    """Replaces the function that creates an empty array before its state is set."""

    def __new__(cls, kind: type[_Array], *_: Any) -> Any:
        return kind()


class _Scalar:
    """Replaces the function that creates NumPy scalars."""

    def __new__(cls, kind: _Kind, data: Any = None) -> Any:
        return kind.tensor(data)


_OF_NUMPY = {"dtype": _Kind, "ndarray": _Array, "_reconstruct": _ArrayMaker, "scalar": _Scalar}


def stand_in(name: str) -> type:
    """Return the class to call instead of ``name``, for `torch.serialization.safe_globals`."""
    module, _, last = name.rpartition(".")
    base: type = _Sequence if last == "deque" else _Value if module.partition(".")[0] in VALUES else _StandIn
    if module in NUMPY:
        base = _OF_NUMPY.get(last, base)
    return type(last, (base,), {"__module__": module, "__qualname__": last})
