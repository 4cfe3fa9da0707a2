"""Writing so that a killed run leaves the old file or the new one, and naming a file by its content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpkit.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside the place; once the block is through, it is flushed and renamed into it.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old file is still there, the temporary one gone.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("ab") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the place and rename into it; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: Path, missing: str = "", torn: str = "") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file in a run.

    Args:
        path: the file.
        missing: what to say if there is none; by default, that the run was not finished.
        torn: what to add if it is not whole.

    Raises:
        RunError: it is missing or not whole.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise RunError(missing or f"there is no {path}: the run was not finished. Go on by --resume.") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is not a whole safetensors file: {error}.{torn}") from error


def to_json(value: Any) -> str:
    """Return indented JSON with a final newline; a value that is not finite is refused (ValueError)."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sha256(path: Path) -> str:
    """Return the hex digest of a file, or of a folder's files with their relative names, in order of name."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256(file_path)}\n".encode())
    return digest.hexdigest()
