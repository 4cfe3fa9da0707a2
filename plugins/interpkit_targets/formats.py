"""What a file is, by its content, because people name files as they like; by its ending where that does not tell."""

from __future__ import annotations

import zipfile
from pathlib import Path

ENDINGS = {
    ".safetensors": "safetensors",
    ".pt": "checkpoint",
    ".pth": "checkpoint",
    ".th": "checkpoint",
    ".ckpt": "checkpoint",
    ".bin": "checkpoint",
    ".tar": "checkpoint",
    ".pkl": "checkpoint",
    ".ts": "torchscript",
    ".jit": "torchscript",
    ".pt2": "exported program",
    ".onnx": "onnx",
}
"""Usual endings, in lower case."""
MOST_NAMES = 10_000
"""Of an archive's members that are looked at."""


def kind_of(path: Path) -> str | None:
    """Return a file's kind, one of the values of `ENDINGS`, or None; cheap, and runs nothing that is in it."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return None
    return _kind_of_archive(path) or _kind_of_head(head, path.stat().st_size) or ENDINGS.get(path.suffix.lower())


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()[:MOST_NAMES]]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if path.suffix.lower() == ".pt2" or any(name.startswith("models/") for name in names):
        return "exported program"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    return "checkpoint" if "data.pkl" in names else None


def _kind_of_head(head: bytes, size: int) -> str | None:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 2:  # a pickle of protocol 2 or more
        return "checkpoint"
    if head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42" and len(head) > 8:
        return "onnx"  # the version of its format, then one of the fields of a model
    return None
