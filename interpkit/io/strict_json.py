"""Read JSON of bounded size and depth with finite numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 100_000_000
MAX_DEPTH = 50
"""Most levels of nesting."""
MAX_WHOLE = 2**63


def read_text(path: Path, most: int = MAX_JSON_BYTES, errors: str = "strict") -> str:
    """Read a UTF-8 text file of at most ``most`` bytes.

    Args:
        path: the file.
        most: the maximum size in bytes.
        errors: how to handle invalid UTF-8; see `bytes.decode`.

    Raises:
        OSError: the file does not exist.
        ValueError: it is not a regular file (a pipe would never end), too large, or not UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is not a file")
    if path.stat().st_size > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return path.read_text("utf-8-sig", errors)


def parse(text: str) -> Any:
    """Parse JSON with finite numbers of at most 64 bits and valid Unicode.

    Raises:
        ValueError: it is malformed, nested too deeply, or has other numbers or text.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if is_too_deep(value):
        raise ValueError("its values are nested too deeply")
    if re.search(r"\\u[dD]", text):
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be parsed, but not encoded
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
    """Return whether dictionaries and lists are nested more than ``most`` levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(is_too_deep(item, most - 1) for item in inner)
