"""One process at a time writes into a folder; readers are not kept out, as every file there is whole at any moment."""

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
from interpkit.io.atomic import to_json, write_atomically

log = logging.getLogger("interpkit")

LOCK = ".lock"
HOLDER = ".lock.json"
"""Who holds the lock; both are there while the folder is written."""


@contextmanager
def only_writer(folder: Path, files: Iterable[str] = ()) -> Iterator[None]:
    """Keep other processes from writing into a folder, for a block; it is made if need be.

    The system lets go of it when the process ends, in whatever way.

    Args:
        folder: to be written.
        files: names of those that will be; what a killed process has left of them half written is removed.

    Raises:
        RunError: another process writes there, or the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}.") from error
    if (folder / LOCK).is_symlink():  # locking it would empty the file that it leads to
        raise RunError(f"{folder / LOCK} is a link. Remove it.")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder} is being written by {_holder(folder)}. Wait until that has ended, stop it, or name another "
            f"folder by {setting('out', None)}."
        ) from error
    except NotImplementedError:
        log.warning("%s lies on a disk without locks: see that one process alone writes there", folder)
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
    """Return who writes into a folder, for a message."""
    try:
        facts = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {facts['process']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
