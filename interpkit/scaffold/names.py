"""The names that a new plugin may have."""

from __future__ import annotations

import importlib.util
import re
import shlex

from interpkit.config.recipe import Recipe
from interpkit.errors import UsageError
from interpkit.interfaces import metrics
from interpkit.plugins.discovery import installed
from interpkit.runtime import recorder

LONGEST = 36  # with a longer one, an import would not fit a line of the package
WORDS = (
    *("interpkit", "plugin", "loss", "metric", "attribution", "audit", "loader"),  # of the command line
    *recorder.RESERVED,  # of a run's history
    *(*metrics.RESERVED, "evaluators"),  # of its metrics.json
)
"""Names that a component would be confused with, besides the fields of a recipe."""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def check(name: str) -> None:
    """Check that a name is well formed and free; else a `UsageError` suggests one that is."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        place, _, _ = name.replace("\\", "/").rstrip("/").rpartition("/")
        where = f" Name the folder with --out {shlex.quote(f'{place}/{suggestion(name)}')}." if place else ""
        raise UsageError(
            f"{name!r} is not a valid plugin name. Use at most {LONGEST} lower case letters, digits and single dashes "
            f"between them, and start with a letter, e.g. {suggestion(name)!r}.{where}"
        )
    why = taken(name)
    if why:
        raise UsageError(f"the name {name!r} is taken: {why}. Choose another, e.g. {suggestion(name)!r}.")


def taken(name: str) -> str | None:
    """Return why a well-formed name cannot be used; None if it can."""
    words = {*WORDS, *Recipe.model_fields}
    if name in words or f"{name}s" in words:
        return "interpkit uses that word itself"
    plugins = installed()
    if name in plugins.found:
        return f"it is an installed plugin ({plugins.found[name].package})"
    for entry in plugins.registry.entries():
        if entry.name == name:
            return f"the plugin {entry.owner!r} has a component of that name"
    for module in (package_of(name), name.replace("-", "_")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # without an origin it is only a folder
            return f"there is a Python package {module!r}"
    return None


def suggestion(name: str) -> str:
    """Return the nearest well-formed name that is free."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", last).lower()
    near = "-".join(re.findall(r"[a-z0-9]+", split)).lstrip("0123456789-")[: LONGEST - 3].rstrip("-")
    if not near:
        return "my-plugin"
    return f"my-{near}" if taken(near) else near


def package_of(name: str) -> str:
    """Return the name of the Python package of a plugin: ``interpkit_my_loss`` of ``my-loss``."""
    return f"interpkit_{name.replace('-', '_')}"
