"""What `torch.save` wrote, read without running code and in no more memory than the file is large."""

from __future__ import annotations

import io
import os
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # pickles have the names of Python 2, as torch reads them
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from interpkit.io.stand_ins import is_inert, stand_in

AS_LARGE = 4
"""How many times as large as the file its tensors may be together: tied weights are stored once."""
ROOM = 1_000_000
LONGEST_WORD = 20_000
"""In a text. Where torch refuses a file, it searches its message in time that grows with the square of this: in torch
2.14 a file of 80 kB takes minutes, so pickles are scanned first."""
MOST_NAMES = 1000
"""Of classes and functions in a pickle; torch compares them with each other, and checkpoints have a few dozen."""
LONG_TEXT = 1000
"""Texts from this length on count each time they are repeated: torch makes a copy where they stand for bytes."""
OLD_PICKLES = 5
"""One after another at the beginning of a file of before torch 1.6."""


def load_plain(path: Path, *, skip_objects: bool = False) -> Any:
    """Read a file of `torch.save` that holds tensors and plain values alone.

    Besides what ``weights_only`` refuses, an archive that unpacks to more than its size is not unpacked, and tensors
    that are larger than what is stored (repeated rows, or no values at all) are refused.

    Args:
        path: in the format of today, an archive, or that of before torch 1.6.
        skip_objects: whether the file may hold other objects too, such as the configuration of a training. Neither
            their classes nor their code are imported or run: an empty dictionary stands for each, with the object's
            attributes as its own, and NumPy's arrays and numbers become tensors. What would act when it is unpickled
            (``os.system``) is refused all the same.

    Raises:
        Exception: it is none such; `torch.load` has many kinds.

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
        warnings.simplefilter("ignore")  # of old pickle protocols
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
        vars(tensor).clear()  # attributes of a parameter, which may hide its methods
    return content


class _Clipped(io.BufferedReader):
    """A file that is not asked for more than it has: Python takes memory for what it is asked for."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def _scan(pickled: IO[bytes], most: int) -> set[str]:
    """Return the names that a pickle refers to, as ``module.name``; refuse long words, and texts repeated too often."""
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
    """Return the tensors in containers, each once, though a container may hold itself."""
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
            todo += dict.values(value)  # an attribute of what stands for an object may hide the method
        elif isinstance(value, list | tuple | set):
            todo += value
    return tensors
