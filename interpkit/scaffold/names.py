"""What a new plugin may be called."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from interpkit.config.recipe import Recipe
from interpkit.errors import UsageError
from interpkit.plugins.discovery import ENTRY_POINTS

LONGEST = 40
WORDS = (
    *("interpkit", "plugin", "loss", "metric", "attribution", "loader"),  # of the command line
    *("step", "seconds", "inversion_accuracy"),  # of a run's history
    *("schema", "count", "confidence", "per_class", "evaluators", "left_out", "measured_on"),  # of its metrics.json
)
"""What a component of that name would be mistaken for, beside the fields of a recipe."""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def check(name: str) -> None:
    """Refuse a name that is no plugin's, or is taken.

    Raises:
        UsageError: says what a name looks like, and suggests one.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        place, _, _ = name.replace("\\", "/").rstrip("/").rpartition("/")
        where = f" The place goes to --out: --out {place}/{suggestion(name)}." if place else ""
        raise UsageError(
            f"{name!r} is no name for a plugin: lower case letters, digits and single dashes between them, a letter "
            f"first, at most {LONGEST} characters, e.g. {suggestion(name)!r}.{where}"
        )
    why = taken(name)
    if why:
        raise UsageError(f"the name {name!r} is taken: {why}. Name it otherwise, e.g. {suggestion(name)!r}.")


def taken(name: str) -> str | None:
    """Return why a well-formed name cannot be had; None if it can."""
    words = {*WORDS, *Recipe.model_fields}
    if name in words or f"{name}s" in words:
        return "it is a word of interpkit's own"
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return f"it is an installed plugin ({point.dist.name if point.dist else point.value})"
        if _mentions(point, name):
            return f"the plugin {point.name!r} has something of that name"
    for module in (package_of(name), name.replace("-", "_")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # without an origin it is but a folder that lies about
            return f"there is a Python package {module!r}"
    return None


def _mentions(point: importlib.metadata.EntryPoint, name: str) -> bool:
    """Say whether a plugin's source names something so; it is read, not imported, as that would import torch."""
    spec = importlib.util.find_spec(re.split(r"[.:]", point.value)[0])
    if spec is None or spec.origin is None:
        return False
    folders = spec.submodule_search_locations
    files = [file for folder in folders for file in Path(folder).rglob("*.py")] if folders else [Path(spec.origin)]
    named = re.compile(rf"""(\bname(: [^=\n]+)? = |Preset\(\s*)["']{re.escape(name)}["']""")
    return any(named.search(file.read_text("utf-8", errors="replace")) for file in files)


def suggestion(name: str) -> str:
    """Return the nearest well-formed name that can be had."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", last).lower()
    near = "-".join(re.findall(r"[a-z0-9]+", split)).lstrip("0123456789-")[: LONGEST - 3].rstrip("-")
    if not near:
        return "my-plugin"
    return f"my-{near}" if taken(near) else near


def package_of(name: str) -> str:
    """Return the name of the Python package of a plugin: ``interpkit_my_loss`` of ``my-loss``."""
    return f"interpkit_{name.replace('-', '_')}"
