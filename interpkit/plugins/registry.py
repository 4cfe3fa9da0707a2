"""The registry: every component, loader, architecture family and preset, by kind and name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from interpkit.errors import DISTRIBUTION, PluginError, UsageError, a, did_you_mean, listed, setting
from interpkit.interfaces.components import register_owner
from interpkit.interfaces.contracts import KINDS, SAID, kind_of
from interpkit.interfaces.loaders import Architectures, Loader
from interpkit.interfaces.metrics import RESERVED
from interpkit.runtime import recorder

NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Entry:
    """A registered class of a component, or an instance of a loader, family or preset.

    ``owner`` is the plugin that registered it, and ``package`` that plugin's installed package, or empty.
    """

    kind: str
    name: str
    owner: str
    item: Any
    package: str = ""

    def is_called(self, name: str) -> bool:
        """Return whether ``name`` is its own name, alone or as ``plugin:name`` or ``package:name``."""
        packages = (DISTRIBUTION, "interpkit") if self.package == DISTRIBUTION else (self.package,)  # as in early runs
        return name in (self.name, *(f"{prefix}:{self.name}" for prefix in (self.owner, *packages)))

    @property
    def full_name(self) -> str:
        """Its unambiguous name: with its plugin's name in front, or its package's where two plugins share a name."""
        return f"{self.package if ':' in self.owner else self.owner}:{self.name}"


class Registry:
    """All that the loaded plugins provide."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, item: Any, owner: str, package: str = "") -> None:
        """Add a class or an instance of one of the kinds, on behalf of the plugin ``owner``.

        An unknown kind, an abstract class, an invalid name, and one that the owner already has, are a `PluginError`.
        """
        base = item if inspect.isclass(item) else type(item)
        kind = kind_of(base)
        if kind is None:
            raise PluginError(f"{item!r} is not of a kind that interpkit knows: {', '.join(KINDS)}.")
        if inspect.isabstract(base):
            missing = ", ".join(sorted(getattr(base, "__abstractmethods__", ())))
            raise PluginError(f"{kind} {base.__name__} does not define: {missing}.")
        name = getattr(item, "name", None)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise PluginError(f"{kind} {base.__name__} needs a name such as 'my-name', not {name!r}.")
        if kind == "loss" and name in recorder.RESERVED:
            raise PluginError(f"a loss cannot be named {name!r}: the history has a column of that name.")
        if kind == "metric" and (entry := item.key or name) in RESERVED:
            raise PluginError(f"a metric cannot have the entry {entry!r}: metrics.json has its own of that name.")
        if any((entry.kind, entry.name, entry.owner) == (kind, name, owner) for entry in self._entries):
            raise PluginError(f"the {kind} {name!r} is registered twice.")
        if inspect.isclass(item) and issubclass(item, Loader | Architectures):
            item = item()
        if kind != "preset":
            register_owner(base, kind, name, owner)
        self._entries.append(Entry(kind, name, owner, item, package))

    def remove(self, owner: str) -> None:
        """Forget all that a plugin has added."""
        self._entries = [entry for entry in self._entries if entry.owner != owner]

    def entries(self, kind: str | None = None, owner: str | None = None) -> Iterator[Entry]:
        """Return the entries of a kind and an owner, in order of registration."""
        return (e for e in self._entries if kind in (None, e.kind) and owner in (None, e.owner))

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind, sorted."""
        return sorted({entry.name for entry in self.entries(kind)})

    def has(self, kind: str, name: str) -> bool:
        """Return whether anything of a kind has the name ``name``."""
        return any(entry.is_called(name) for entry in self.entries(kind))

    def get(self, kind: str, name: str) -> Any:
        """Return the item of a kind by its name; see `entry`."""
        return self.entry(kind, name).item

    def entry(self, kind: str, name: str) -> Entry:
        """Return the one entry of a kind called ``name``, alone or with its plugin or package; else a `UsageError`."""
        found = [entry for entry in self.entries(kind) if entry.is_called(name)]
        if len(found) == 1:
            return found[0]
        if found:
            choices = " or ".join(entry.full_name for entry in found)
            raise UsageError(
                f"several plugins have {a(kind)} {name!r}: say {choices}, or leave a plugin out by "
                f"{setting('no_plugin', 'NAME')}."
            )
        known, said = self.names(kind), SAID.get(kind, kind)
        raise UsageError(f"there is no {said} {name!r}.{did_you_mean(name, known)} There are: {listed(known)}.")


class Registration:
    """The argument of a plugin's ``register`` hook, which adds components under the plugin's name.

    Example:
        >>> from interpkit import Preset, Registration, hookimpl
        >>> @hookimpl
        ... def register(registry: Registration) -> None:
        ...     registry.add(Preset("quick", {"steps": 50}, "A short run, to try things out."))
    """

    def __init__(self, registry: Registry, owner: str, package: str = "") -> None:
        self._registry = registry
        self._owner = owner
        self._package = package

    def add(self, item: Any) -> None:
        """Add a component's class, a loader, an architecture family or a `Preset`; see `Registry.add`."""
        self._registry.add(item, self._owner, self._package)
