"""Read files of `torch.save` without running code from them, in memory limited by the file's size."""

from __future__ import annotations

import io
import os
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # like torch, translate Python 2 names in pickles
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from interpkit.io.stand_ins import is_inert, stand_in

AS_LARGE = 4
"""Tensors may be this many times as large as the file in total, because tied weights are stored once."""
ROOM = 1_000_000
LONGEST_WORD = 20_000
"""Longest word accepted in a string. When torch refuses a file, it searches its own error message in time quadratic in
the length of a word: in torch 2.14 a file of 80 kB takes minutes. So pickles are scanned first."""
MOST_NAMES = 1000
"""Most classes and functions in a pickle; torch compares them pairwise, and checkpoints have a few dozen."""
LONG_TEXT = 1000
"""Strings of at least this length count every time they are repeated: torch copies those that encode bytes."""
OLD_PICKLES = 5
"""Number of pickles at the beginning of a file from before torch 1.6."""


def load_plain(path: Path, *, skip_objects: bool = False) -> Any:
    """Read a file of `torch.save` that contains only tensors and plain values.

    Besides everything that ``weights_only`` refuses, this refuses archives that unpack to more than their size, and
    tensors that are larger than their stored values (repeated rows, or no values at all).

    Args:
        path: the file, in today's format (an archive) or that from before torch 1.6.
        skip_objects: accept files that hold other objects too, such as a training configuration. Their classes are not
            imported and none of their code is run: each object becomes a dictionary of its attributes, and NumPy's
            arrays and numbers become tensors. Names that would act when unpickled (``os.system``) are still refused.

    Raises:
        Exception: the file is refused or damaged; `torch.load` raises many kinds.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from interpkit import load_plain
        >>> torch.save({"state_dict": torch.nn.Linear(4, 3).state_dict(), "epoch": 7}, "net.pt")
        >>> content = load_plain(Path("net.pt"))
        >>> content["epoch"], content["state_dict"]["weight"].shape
        (7, torch.Size([3, 4]))
    """
    size, names = path.stat().st_size, set[str]()
    most = AS_LARGE * size + ROOM
    with warnings.catch_warnings(), _Clipped(io.FileIO(path)) as file:
        warnings.simplefilter("ignore")  # old pickle protocols
        if file.peek(2).startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
                if unpacked > size:
                    raise ValueError(f"it unpacks to {unpacked:,} bytes, more than its {size:,}")
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as pickled:
                            names |= _scan(pickled, most)
        else:
            for _ in range(OLD_PICKLES):
                names |= _scan(file, most)
        file.seek(0)
        stand_ins: list[Any] = [stand_in(name) for name in sorted(names) if is_inert(name)] if skip_objects else []
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True)
    tensors = tensors_in(content)
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError("it has tensors without values")
    held = sum(tensor.nbytes for tensor in tensors if tensor.layout == torch.strided)
    if held > most:
        raise ValueError(f"its tensors have {held:,} bytes together, and the file {size:,}")
    for tensor in tensors:
        vars(tensor).clear()  # a parameter's stored attributes may hide its methods
    return content


class _Clipped(io.BufferedReader):
    """A reader that never requests more bytes than remain: Python allocates as much as is requested."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def _scan(pickled: IO[bytes], most: int) -> set[str]:
    """Return the names that a pickle refers to, as ``module.name``; refuse long words and heavily repeated strings."""
    names = set()
    lengths: dict[Any, int] = {}
    length = repeated = 0
    for code, text, _ in pickletools.genops(pickled):
        if code.name in ("BINPUT", "LONG_BINPUT"):
            lengths[text] = length if length >= LONG_TEXT else 0
        elif code.name in ("BINGET", "LONG_BINGET"):
            repeated += lengths.get(text, 0)
            if repeated > most:
                raise ValueError(f"it repeats its texts to more than {most:,} characters")
        length = len(text) if isinstance(text, str | bytes) else 0
        if isinstance(text, str | bytes) and len(text) > LONGEST_WORD:
            longest = max(map(len, text.split()), default=0)
            if longest > LONGEST_WORD:
                raise ValueError(f"it has a word of {longest:,} characters")
        if code.name == "GLOBAL" and isinstance(text, str):
            module, _, name = text.partition(" ")
            names.add(".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))))
            if len(names) > MOST_NAMES:
                raise ValueError(f"it refers to more than {MOST_NAMES:,} classes and functions")
    return names


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in nested containers; a container may contain itself."""
    tensors: list[Tensor] = []
    todo, visited = [value], set()
    while todo:
        value = todo.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            todo += dict.values(value)  # a stand-in's attribute may hide the method
        elif isinstance(value, list | tuple | set):
            todo += value
    return tensors
