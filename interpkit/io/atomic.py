"""Atomic writes, so that a killed run leaves either the old file or the new one, and hashes of files and tensors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpkit.errors import RunError, UsageError, resume

if TYPE_CHECKING:
    from torch import Tensor


def to_path(name: str | Path) -> Path:
    """Return a path that the file system accepts as a name; it does not need to exist.

    Raises:
        UsageError: the name is too long, contains a NUL byte, or is not text in the system's encoding.
    """
    encoding = sys.getfilesystemencoding()
    try:
        os.path.realpath(name).encode(encoding)  # the path that a run records
        os.lstat(name)
    except UnicodeEncodeError as error:
        way = "Rename it" if encoding == "utf-8" else "Set PYTHONUTF8=1, or LC_ALL=C.UTF-8, before Python starts"
        raise UsageError(f"{error.object!a} is not a name in {encoding}, the encoding of names here. {way}.") from error
    except ValueError as error:
        raise UsageError(f"{str(name)!r:.80} is not the name of a file: {error}. Pass a path without that.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            short, count = f"{str(name)[:60]}...", len(str(name))
            raise UsageError(f"{short!r} is too long for a file name: {count} characters. Shorten it.") from error
    return Path(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to ``path``; when the block succeeds, flush it and rename it to ``path``.

    The new file has the permissions of the old one. A link is replaced itself, as in a run; see `followed` for others.

    Raises:
        OSError: the disk is full, or the folder cannot be written. The old file is still there, and the temporary file
            is removed.
        UsageError: there is a folder, a pipe or a device.
    """
    # Choose the name before creating the file, so that an interruption at any moment cleans it up.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path):
            mode = None
            if not path.is_symlink():
                refuse_special(path)
                mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
            temporary.open("xb").close()
            if mode is not None:  # before the content is there, which others may not be allowed to read
                with suppress(OSError):  # some file systems have no modes
                    temporary.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)
            yield temporary
            with temporary.open("ab") as file:
                os.fsync(file.fileno())
            if mode is not None:
                with suppress(OSError):
                    temporary.chmod(mode)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError raised in the block name ``path`` instead of no file, or of a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a loss of power; not every system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def refuse_special(path: Path) -> None:
    """Raise a `UsageError` if a path is a folder, a pipe or a device, which no file may replace."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise UsageError(f"{path} is {what}, which a file does not replace: name another file.")


def followed(name: str | Path) -> Path:
    """Return the file to write for a name that the user typed: of a link the end, so that the link stays.

    Raises:
        UsageError: there is a folder, a pipe or a device, or no file can have that name.
    """
    path = to_path(name)
    refuse_special(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def inner_folder(path: Path) -> Path:
    """Create a folder, if it does not exist, inside one that the user named.

    Raises:
        RunError: it cannot be created, or is a link, which may lead outside the user's folder.
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link to {os.readlink(path)}. interpkit does not write through links. Remove it.")
    make_folder(path)
    return path


def make_folder(path: Path) -> None:
    """Create a folder if it does not exist; raise a `RunError` if it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}.") from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_tensors(path: Path, missing: str = "", torn: str = "") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file in a run.

    Args:
        path: the file.
        missing: error message if there is no such file; by default, that the run was not finished.
        torn: sentence to append to the error message if the file is incomplete.

    Raises:
        RunError: it is missing or incomplete.
    """
    import safetensors.torch

    if not path.is_file():  # also refuses a pipe, which would never end
        raise RunError(missing or f"there is no {path}: the run was not finished. Resume it: {resume(path.parent)}.")
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors' own kinds, and dtypes that this torch lacks
        raise RunError(f"{path} is not a complete safetensors file: {error}.{torn}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically."""
    write_atomically(path, to_safetensors(tensors, metadata))


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; equal tensors and metadata give equal bytes (see `_in_order`)."""
    import safetensors.torch

    content = memoryview(safetensors.torch.save(dict(tensors), dict(metadata)))
    end = 8 + int.from_bytes(content[:8], "little")
    return b"".join([_in_order(bytes(content[:end])), content[end:]])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the same file as `write_tensors`, but directly, for tensors too large to copy in memory."""
    import safetensors.torch

    safetensors.torch.save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = file.read(8)
        header = _in_order(size + file.read(int.from_bytes(size, "little")))
        file.seek(0)
        file.write(header)


def _in_order(header: bytes) -> bytes:
    """Return the header of a safetensors file, of the same length, with its entries in a fixed order.

    safetensors writes the metadata in the order of a hash map, which changes from call to call.

    Args:
        header: the length of the JSON in eight bytes, then the JSON.
    """
    entries: dict[str, Any] = json.loads(header[8:])
    metadata = {"__metadata__": dict(sorted(entries.pop("__metadata__").items()))}
    tensors = dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    ordered = json.dumps(metadata | tensors, ensure_ascii=False, separators=(",", ":")).encode()
    return header[:8] + ordered.ljust(len(header) - 8)  # safetensors pads with spaces, too


def to_json(value: Any) -> str:
    """Return indented JSON with a final newline; raise ValueError for a value that is not finite."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sha256(path: Path) -> str:
    """Return the hex digest of a file, or of all files in a folder with their relative names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors with their names, types and shapes, sorted by name."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
