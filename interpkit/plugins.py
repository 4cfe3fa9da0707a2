"""Discovery: plugins are found through the entry-point group ``interpkit``, each isolated from the others."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from interpkit import hookspecs
from interpkit.errors import PluginError, did_you_mean, listed

if TYPE_CHECKING:
    from interpkit.recipe import Preset
    from interpkit.registry import Registry

ENTRY_POINTS = "interpkit"
SLOW_IMPORT_SECONDS = 10.0

log = logging.getLogger("interpkit")


@dataclass
class Plugin:
    """One plugin that was found, and what became of it."""

    name: str
    version: str = ""
    source: str = ""
    provides: dict[str, list[str]] = field(default_factory=dict)
    error: str | None = None

    @property
    def status(self) -> str:
        """``ok`` or ``broken``."""
        return "broken" if self.error else "ok"


class Plugins:
    """The plugins of one process: `registry` holds what they provide, `found` how each fared.

    Args:
        entry_points: where to look; those of the installed distributions if left out.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        from interpkit.registry import Registry
        from interpkit.training import GeneratorInverter

        self.registry: Registry = Registry()
        self.found: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager(hookspecs.NAMESPACE)
        self._manager.add_hookspecs(hookspecs)
        self.registry.add(GeneratorInverter, "interpkit")
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group=ENTRY_POINTS)
        for entry_point in sorted(entry_points, key=lambda point: point.name):
            self._load(entry_point)

    def _load(self, entry_point: importlib.metadata.EntryPoint) -> None:
        version = entry_point.dist.version if entry_point.dist else ""
        if entry_point.name in self.found:
            log.warning(
                "two packages have a plugin named %r: %s is used, %s is not",
                entry_point.name,
                self.found[entry_point.name].source,
                entry_point.value,
            )
            return
        self.add(entry_point.name, lambda: _load_watched(entry_point), version, entry_point.value)

    def add(self, name: str, load: Callable[[], object], version: str = "", source: str = "") -> Plugin:
        """Load one plugin and register what it provides; a fault in it is kept in its ``error``.

        Args:
            name: the plugin's name, the owner of what it registers.
            load: returns the plugin, any object (usually a module) that has hooks.
            version: of the package it comes from.
            source: where it comes from, for people.
        """
        plugin = self.found[name] = Plugin(name, version, source)
        try:
            self._register(name, load())
        except (Exception, SystemExit) as error:
            self._manager.unregister(name=name)
            self.registry.remove(name)
            plugin.error = f"{type(error).__name__}: {error}"
            log.warning("plugin %r is broken and is left out: %s", name, plugin.error)
        for entry in self.registry.entries(owner=name):
            plugin.provides.setdefault(entry.kind, []).append(entry.name)
        return plugin

    def _register(self, name: str, module: object) -> None:
        from interpkit.registry import Registration

        if self._manager.register(module, name) is None:
            raise PluginError("it is blocked")
        self._manager.check_pending()  # a misspelled hook
        others = [other for other in self._manager.get_plugins() if other is not module]
        only_this = self._manager.subset_hook_caller("register", others)
        only_this(registry=Registration(self.registry, name))

    def call(self, hook: str, **arguments: Any) -> None:
        """Call a lifecycle hook of every plugin; one that raises is named, and its hooks are not called again."""
        for name, plugin in self._manager.list_name_plugin():
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            try:
                self._manager.subset_hook_caller(hook, others)(**arguments)
            except Exception as error:
                self._manager.unregister(name=name)
                self.found[name].error = f"{hook}: {type(error).__name__}: {error}"
                log.warning("plugin %r failed in %s and is left out from here: %r", name, hook, error)

    def preset(self, name: str) -> Preset:
        """Return the preset that ``--plugin NAME`` applies.

        Raises:
            PluginError: no such preset, or the plugin of that name is broken.
        """
        from interpkit.errors import UsageError
        from interpkit.recipe import Preset

        known = self.registry.names("preset")
        try:
            preset = self.registry.get("preset", name)
            assert isinstance(preset, Preset)
            return preset
        except UsageError as error:
            self.raise_if_broken(name)
            if name in self.found:
                raise PluginError(
                    f"the plugin {name!r} has no preset, so there is nothing for --plugin to apply. "
                    f"Presets: {listed(known)}."
                ) from error
            raise PluginError(
                f"there is no plugin or preset {name!r}.{did_you_mean(name, known)} Presets: {listed(known)}."
            ) from error

    def raise_if_broken(self, name: str) -> None:
        """Raise the error of the plugin ``name`` if it is a broken one.

        Raises:
            PluginError: it is.
        """
        plugin = self.found.get(name.partition(":")[0])
        if plugin is not None and plugin.error:
            raise PluginError(f"the plugin {plugin.name!r} ({plugin.source}) is broken: {plugin.error}")

    def component(self, kind: str, name: str) -> Any:
        """Return a component's class by kind and name.

        Raises:
            PluginError: the plugin of that name is broken.
            UsageError: there is none.
        """
        if name not in self.registry.names(kind):
            self.raise_if_broken(name)
        return self.registry.get(kind, name)


def _load_watched(entry_point: importlib.metadata.EntryPoint) -> object:
    """Load an entry point; one that hangs is named, as nobody would guess at it."""
    watch = threading.Timer(
        SLOW_IMPORT_SECONDS,
        lambda: log.warning(
            "still importing the plugin %r (%s) after %d s",
            entry_point.name,
            entry_point.value,
            SLOW_IMPORT_SECONDS,
        ),
    )
    watch.daemon = True
    watch.start()
    try:
        plugin: object = entry_point.load()
        return plugin
    finally:
        watch.cancel()


@cache
def installed() -> Plugins:
    """Return the installed plugins, loaded once a process."""
    return Plugins()
