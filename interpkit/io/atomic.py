"""Writing so that a killed run leaves the old file or the new one, and naming a file by its content."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpkit.errors import RunError, setting

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside the place; once the block is through, it is flushed and renamed into it.

    Raises:
        OSError: the disk is full, or the folder cannot be written; it names the place. The old file is still there, the
            temporary one gone.
    """
    # Named before it is made: an interruption at any moment finds it.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path):
            temporary.open("xb").close()
            yield temporary
            with temporary.open("ab") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the disk in a block name the file that is meant; by itself it names none, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """See that a renamed file has its new name after a loss of power; not every system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def inner_folder(path: Path) -> Path:
    """Make a folder, if need be, within one that the user has named.

    Raises:
        RunError: it is a link: nothing is written outside what the user has named.
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link to {os.readlink(path)}, and nothing is written through it. Remove the link.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the place and rename into it; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


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

    if not path.is_file():  # or a pipe, say, which would never end
        raise RunError(missing or f"there is no {path}: the run was not finished. Resume it with {setting('resume')}.")
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # of safetensors, and of types that this torch has not
        raise RunError(f"{path} is not a whole safetensors file: {error}.{torn}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; see `to_safetensors`."""
    write_atomically(path, to_safetensors(tensors, metadata))


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; equal tensors and metadata make equal bytes, see `_in_order`."""
    import safetensors.torch

    content = memoryview(safetensors.torch.save(dict(tensors), dict(metadata)))
    end = 8 + int.from_bytes(content[:8], "little")
    return b"".join([_in_order(bytes(content[:end])), content[end:]])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the same file as `write_tensors` straight to its place, for tensors too large to hold a second time."""
    import safetensors.torch

    safetensors.torch.save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = file.read(8)
        header = _in_order(size + file.read(int.from_bytes(size, "little")))
        file.seek(0)
        file.write(header)


def _in_order(header: bytes) -> bytes:
    """Return the head of a safetensors file with its entries in a fixed order, and no longer or shorter than it was.

    safetensors writes the metadata in the order of a hash map, which changes from call to call.

    Args:
        header: eight bytes that say how long the JSON after them is, and the JSON.
    """
    entries: dict[str, Any] = json.loads(header[8:])
    metadata = {"__metadata__": dict(sorted(entries.pop("__metadata__").items()))}
    tensors = dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    ordered = json.dumps(metadata | tensors, ensure_ascii=False, separators=(",", ":")).encode()
    return header[:8] + ordered.ljust(len(header) - 8)  # spaces at the end are what safetensors pads with, too


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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors with their names, types and shapes, in the order of their names."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
