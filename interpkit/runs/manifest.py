"""Collect the facts of manifest.json: what determines a run besides its recipe, and where it was computed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from interpkit.config.recipe import Recipe
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import digest
from interpkit.plugins import assembly, loading
from interpkit.plugins.discovery import installed
from interpkit.runtime import environment

SCHEMA = 1
"""Version of the run folder's format; increased when old and new releases would misread each other's runs."""


def used_plugins(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the installed plugins for a manifest, each with the components that the run uses."""
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


def weights_digest(target: Target) -> str:
    """Return the sha256 of a classifier's weights and buffers, by which one in memory is known."""
    state = target.state_dict().items()
    computed = ("read.level", "read.spread")  # of units, in a forward pass, which rounds differently elsewhere
    return digest({name: value for name, value in state if isinstance(value, torch.Tensor) and name not in computed})


def used_data(recipe: Recipe, target: Target) -> dict[str, dict[str, str]]:
    """Return the labeled images that the components of a resolved recipe use, keyed by their place in the recipe."""
    data = assembly.data_options(recipe, installed())
    return {place: options.record(target) for place, options in data.items() if options.source}


def describe(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the manifest of a new run."""
    path, data = target.origin, used_data(recipe, target)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": target.name,
            "path": str(path) if path else None,
            "sha256": loading.digest(path) if path else weights_digest(target),
        },
        **conditions(recipe, target),
        **({"data": data} if data else {}),
        "precision": recipe.precision,
        "resumed_from": None,
        "steps_done": 0,
        "timings": {},
    }


def conditions(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the part of a manifest about the machine, the software and the plugins, which affect the numbers."""
    facts = environment.facts(torch.device(recipe.device))
    return {"device": recipe.device, **facts, "plugins": used_plugins(recipe, target)}
