"""Check the file or folder that a user named for a result; call this before the work, too."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from interpkit.io.atomic import followed, to_path
from interpkit.io.locking import only_writer
from interpkit.runs.folder import refuse_run_files


def result_file(name: str | Path) -> Path:
    """Return the file to write: what the user named, or of a link the end.

    Raises:
        UsageError: it is a file of a run; or a folder, a pipe or a device, which a file does not replace.
    """
    path = followed(name)
    for place in (Path(name), path):
        refuse_run_files(place)
    return path


def result_folder(name: str | Path, files: Iterable[str]) -> Path:
    """Return the folder that the user named, after seeing that it can be written; a link to one is followed.

    Args:
        name: the folder.
        files: names of the files to write.

    Raises:
        UsageError: one of the files is a run's.
        RunError: the folder cannot be written, or another process is writing there.
    """
    folder = to_path(name)
    for file in files:
        refuse_run_files(folder / file)
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    with only_writer(folder):
        pass
    with suppress(OSError):
        for place in new:
            place.rmdir()  # the work may be refused yet
    return folder
