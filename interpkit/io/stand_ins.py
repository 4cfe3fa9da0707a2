"""What stands in a pickle for objects of classes that are neither imported nor called."""

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
"""Modules of the standard library whose objects stand in checkpoints."""
PLAIN = frozenset(f"builtins.{kind.__name__}" for kind in (object, dict, list, tuple, int, float, bool, str, bytes))
PLAIN |= {"functools.partial"}
"""Further names of the standard library that do."""
VALUES = frozenset({"pathlib", "datetime", "decimal", "fractions", "functools", "uuid", "zoneinfo"})
"""Modules whose objects may be keys, or have a state that is not a dictionary."""

NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
MOST_SWAPPED = 100_000_000


def is_inert(name: str) -> bool:
    """Say whether a name may be passed over. Nothing of the standard library is run either, but it is a bad sign."""
    package = name.partition(".")[0]
    return name in PLAIN or package in HARMLESS or package not in sys.stdlib_module_names


class _StandIn:
    """In the place of a class or function that a pickle names: whatever it is called with, an empty dictionary.

    The dictionary is of the one class that torch sets items and attributes of.
    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Sequence:
    """In the place of a class of sequences."""

    def __new__(cls, *_: Any) -> Any:
        return []


class _Value:
    """In the place of a class whose objects may be keys, or have a state that is not a dictionary."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Kind:
    """In the place of ``numpy.dtype``."""

    swapped = 0
    """Bytes that were copied for their order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = "=" if state[1] == "|" else state[1]

    def tensor(self, data: Any, shape: Any = ()) -> Any:
        """Return numbers as a tensor, and None for anything else."""
        data = data or b""  # a stand-in, where there are none
        if not re.fullmatch("[biufc][0-9]+", self.code) or not isinstance(data, bytes):
            return None
        array = np.frombuffer(data, np.dtype(f"{self.order}{self.code}")).reshape(shape)
        if not array.dtype.isnative:
            kind = type(self)  # a class of its own for each file
            kind.swapped += array.nbytes
            if kind.swapped > MOST_SWAPPED:
                raise ValueError(f"it has more than {MOST_SWAPPED:,} bytes of arrays in another order of bytes")
            array = array.astype(array.dtype.newbyteorder("="))
        try:
            return torch.from_numpy(array)  # no copy: any number of arrays may have the same bytes
        except TypeError:  # torch does not have it
            return None


class _Array:
    """In the place of ``numpy.ndarray``; its values are in `tensor` once its state is known."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        tensor = kind.tensor(data, shape[::-1] if by_columns else shape)
        self.tensor = tensor.permute(*range(tensor.dim())[::-1]) if by_columns and tensor is not None else tensor


class _ArrayMaker:
    """In the place of the function that makes an empty array for its state."""

    def __new__(cls, kind: type[_Array], *_: Any) -> Any:
        return kind()


class _Scalar:
    """In the place of the function that makes NumPy's numbers."""

    def __new__(cls, kind: _Kind, data: Any = None) -> Any:
        return kind.tensor(data)


_OF_NUMPY = {"dtype": _Kind, "ndarray": _Array, "_reconstruct": _ArrayMaker, "scalar": _Scalar}


def stand_in(name: str) -> type:
    """Return a class for `torch.serialization.safe_globals` that a pickle calls in the place of what it names."""
    module, _, last = name.rpartition(".")
    base: type = _Sequence if last == "deque" else _Value if module.partition(".")[0] in VALUES else _StandIn
    if module in NUMPY:
        base = _OF_NUMPY.get(last, base)
    return type(last, (base,), {"__module__": module, "__qualname__": last})
