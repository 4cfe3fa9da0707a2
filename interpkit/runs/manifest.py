"""manifest.json: what decides a run beside its recipe, and where it was made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from interpkit.config.recipe import Recipe
from interpkit.interfaces.targets import Target
from interpkit.plugins import assembly, loading
from interpkit.plugins.discovery import installed
from interpkit.runtime import environment

SCHEMA = 1
"""Of the whole folder; it goes up when this code would misread what an older one wrote, or an older one this."""


def used_plugins(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the installed plugins for a manifest, each with what the run takes of it."""
    plugins = installed()
    owners = assembly.owners(recipe, plugins)
    loader = loading.loader_of(target.origin) if target.origin else None
    if loader is not None:
        owners["loader", loader.name] = loader.owner
    used_by: dict[str, Any] = {}
    for plugin in plugins.found.values():
        facts = {"package": plugin.package, "version": plugin.version, "status": plugin.status}
        if plugin.file is not None:
            facts |= {"file": str(plugin.file), "sha256": str(plugin.sha256)}
        used: dict[str, list[str]] = {}
        for kind, name in (key for key, owner in owners.items() if owner == plugin.name):
            used.setdefault(kind, []).append(name)
        used_by[plugin.name] = facts | {"used": used}
    return used_by


def used_data(recipe: Recipe, target: Target) -> dict[str, dict[str, str]]:
    """Return for a manifest what images the components of a resolved recipe read, by where the recipe names them."""
    data = assembly.data_options(recipe, installed())
    return {place: options.record(target) for place, options in data.items() if options.data is not None}


def describe(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the manifest of a run: all that decides it beside the recipe, and where it was made."""
    path, data = target.origin, used_data(recipe, target)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": target.name,
            "path": str(path) if path else None,
            "sha256": loading.digest(path) if path else None,
        },
        **conditions(recipe, target),
        **({"data": data} if data else {}),
        "precision": recipe.precision,
        "resumed_from": None,
        "steps_done": 0,
        "timings": {},
    }


def conditions(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the part of a manifest that says what decides the numbers here, beside the recipe and the classifier."""
    facts = environment.facts(torch.device(recipe.device))
    return {"device": recipe.device, **facts, "plugins": used_plugins(recipe, target)}
