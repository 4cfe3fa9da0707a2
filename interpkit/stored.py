"""What a run's JSON files hold, as far as interpkit reads them; whoever wrote them need not have been interpkit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_JSON_BYTES = 100_000_000
MAX_DEPTH = 50
"""Of values within values."""
MAX_WHOLE = 2**63

Number = Annotated[float, Field(allow_inf_nan=False)]
Package = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+!-]*$")]
"""A package's name or version: messages tell the user to type it."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Model(_Stored):
    """The classifier in a manifest."""

    name: str | None
    path: str | None
    sha256: str | None


class UsedPlugin(_Stored):
    """A plugin in a manifest, and what the run takes of it, by kind."""

    package: Package = ""
    version: Package = ""
    used: dict[str, list[str]] = {}


class Manifest(_Stored):
    """manifest.json."""

    model: Model
    plugins: dict[str, UsedPlugin] = {}
    presets: list[Any] | None = None
    status: str = ""
    steps_done: int = Field(0, ge=0)
    interpkit: Package = ""


class ReferenceFigures(_Stored):
    """What was measured against real images."""

    excess_vendi: Number | None = None


class Evaluator(_Stored):
    """What another classifier says."""

    name: str
    agreement: Number | None = None
    reference_accuracy: Number | None = None


class _Figures(_Stored):
    count: int | None = None
    inversion_accuracy: Number | None = None
    confidence: Number | None = None
    diversity: dict[str, Number | None] | None = None
    reference: ReferenceFigures | None = None


class ClassRow(_Figures):
    """The figures of a class."""

    label: int
    name: str


class Metrics(_Figures):
    """metrics.json."""

    per_class: list[ClassRow] = []
    evaluators: list[Evaluator] = []
    left_out: dict[str, str] = {}


class ShardIndex(_Stored):
    """index.json of a folder of shards, before and after all of them are made."""

    count: int = Field(ge=1)


class ShardFacts(_Stored):
    """What is known of one shard: of each class its images, tries, and accepted tries."""

    file: str
    count: int = Field(ge=1)
    bytes: int = Field(ge=0)
    per_class: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[list[int], Field(
        min_length=3, max_length=3)]]  # fmt: skip


def read_text(path: Path, most: int = MAX_JSON_BYTES, errors: str = "strict") -> str:
    """Read a file of text, if it is a file (a pipe would never end) and not too large.

    Args:
        path: of the file.
        most: bytes.
        errors: what to do about what is not UTF-8; see `bytes.decode`.

    Raises:
        OSError: there is none.
        ValueError: it is something else, too large, or not UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is no file")
    if path.stat().st_size > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return path.read_text("utf-8", errors)


def parse(text: str) -> Any:
    """Read JSON whose values all can be handled: numbers that are finite and of 64 bits, text that can be written.

    Raises:
        ValueError: it is none such.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if is_too_deep(value):
        raise ValueError("its values are nested too deeply")
    if re.search(r"\\u[dD]", text):
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be read, but not written
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _whole(digits: str) -> int:
    value = int(digits)
    if abs(value) > MAX_WHOLE:
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def is_too_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Say whether tables and lists stand within each other more than ``most`` times."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(is_too_deep(item, most - 1) for item in inner)
