"""All hooks of interpkit, one sentence each; plugins mark their own with ``@interpkit.hookimpl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from interpkit.config.recipe import Recipe
    from interpkit.interfaces.inversions import Inversion
    from interpkit.interfaces.targets import Target
    from interpkit.plugins.registry import Registration
    from interpkit.runtime.recorder import StepRecord

NAMESPACE = "interpkit"
hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def register(registry: Registration) -> None:
    """Add the plugin's components, metrics, loaders, architectures and presets with ``registry.add(...)``."""


@hookspec
def inversion_started(target: Target, recipe: Recipe) -> None:
    """Called once before the first step, with the target and the resolved recipe."""


@hookspec
def inversion_step(record: StepRecord) -> None:
    """Called with each line of the history, at least every ten steps up to 100,000 steps."""


@hookspec
def inversion_finished(inversion: Inversion) -> None:
    """Called once after the last step, also if the run was interrupted, with the inversion."""
