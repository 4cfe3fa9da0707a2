"""Code of the user's own that this user has typed for a classifier, so that runs of it need not have it typed again.

A record is kept in the user's own state folder, never in a run: whoever makes a run folder cannot have code run by it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

from interpkit.config.recipe import TargetOptions
from interpkit.io import strict_json
from interpkit.io.atomic import sha256, to_json, write_atomically

log = logging.getLogger("interpkit")


def remember(target: TargetOptions, classifier: str | None) -> None:
    """Record that the user typed the code that ``target`` names, with the content of each file of it that was loaded.

    Args:
        target: the facts of a run's classifier. Nothing is recorded unless its ``arch`` is ``py:FILE.py:NAME``.
        classifier: the sha256 of its file.
    """
    place = _record(target, classifier)
    if place is None:
        return
    code = _code(target)
    try:
        files = {str(path): sha256(path) for path in {code, *_loaded_beside(code)}}
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(place, to_json(files))
    except OSError as error:  # no home, or a full disk: the user types it again
        log.debug("%s is not written: %s", place, error)


def refusal(target: TargetOptions, classifier: str | None) -> str | None:
    """Return why the code that ``target`` names may not run without being typed again; None if it may.

    It may if this user typed the same file and name, with the same arguments, for the same classifier, and neither the
    file nor any module beside it that it loaded has changed.
    """
    place = _record(target, classifier)
    try:
        known = strict_json.parse(strict_json.read_text(place)) if place is not None and place.is_file() else None
        if not isinstance(known, dict) or str(_code(target)) not in known:
            return "a file cannot have it run"
        changed = [path for path, digest in known.items() if not Path(path).is_file() or sha256(Path(path)) != digest]
    except (OSError, ValueError):
        return "a file cannot have it run"
    return f"{min(changed)} has changed since you typed it" if changed else None


def _code(target: TargetOptions) -> Path:
    return Path((target.arch or "").removeprefix("py:").rpartition(":")[0]).resolve()


def _record(target: TargetOptions, classifier: str | None) -> Path | None:
    """Return the place of a record, named after all that it stands for; None if there cannot be one."""
    place, _, name = (target.arch or "").rpartition(":")
    if not place.startswith("py:") or not place.endswith(".py") or classifier is None:  # a link may lead to some
        return None
    code = _code(target)
    key = json.dumps([str(code), name, target.arch_args, classifier], sort_keys=True)
    try:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        state = state if state.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # there is no home
        return None
    return state / "interpkit" / "typed-code" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _loaded_beside(code: Path) -> set[Path]:
    """Return the files of the loaded modules under the folder of some code, without installed packages."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {Path(file) for file in files if isinstance(file, str)}
    beside = {path for path in paths if path.is_relative_to(code.parent) and "site-packages" not in path.parts}
    return {path for path in beside if path.is_file()}
