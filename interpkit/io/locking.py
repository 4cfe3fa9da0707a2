"""A lock that lets one process at a time write into a folder; readers need none, because all writes are atomic."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from interpkit.errors import RunError, setting
from interpkit.io.atomic import make_folder, to_json, write_atomically

log = logging.getLogger("interpkit")

LOCK = ".lock"
HOLDER = ".lock.json"
"""Names the process that holds the lock; both files exist while the folder is being written."""


@contextmanager
def only_writer(folder: Path, files: Iterable[str] = ()) -> Iterator[None]:
    """Create a folder if it does not exist, and keep other processes from writing into it during the block.

    The operating system releases the lock however the process ends.

    Args:
        folder: the folder to write.
        files: names of the files to write; temporary files that a killed process left of them are removed.

    Raises:
        RunError: another process is writing there, or the folder cannot be created or written.
    """
    make_folder(folder)
    if (folder / LOCK).is_symlink():  # locking would truncate the file that it points to
        raise RunError(f"{folder / LOCK} is a link. Remove it.")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder} is being written by {_holder(folder)}. Wait until it ends, stop it, or name another "
            f"folder with {setting('out', None)}."
        ) from error
    except NotImplementedError:
        log.warning("%s is on a disk without file locks: make sure that only one process writes there", folder)
    except OSError as error:
        raise RunError(f"cannot write into {folder}: {error.strerror}.") from error
    try:
        for name in (*files, HOLDER):
            for torn in folder.glob(f".{name}.*"):
                torn.unlink(missing_ok=True)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        facts = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomically(folder / HOLDER, to_json(facts))
        yield
    finally:
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Return which process is writing into a folder, for an error message."""
    try:
        facts = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {facts['process']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
