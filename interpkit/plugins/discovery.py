"""Find plugins through the entry-point group ``interpkit`` and load each in isolation from the others.

The user chooses which of the installed plugins are loaded: `leaving_out` skips some, and
``INTERPKIT_LOAD_PLUGINS=NAME,NAME`` loads only those (empty: none). A plugin of one file is loaded where the user
names the file. ``INTERPKIT_TRACE_PLUGINS=1`` writes each call of a hook, and what it returned, to stderr.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import itertools
import logging
import os
import re
import reprlib
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from interpkit.errors import DISTRIBUTION, PluginError, UsageError, did_you_mean, listed, setting, upgrade, with_place
from interpkit.io.atomic import sha256, to_path
from interpkit.plugins import hookspecs

if TYPE_CHECKING:
    from interpkit.config.recipe import Layer, PluginFile, Preset, Recipe
    from interpkit.plugins.registry import Entry, Registry

LOAD = "INTERPKIT_LOAD_PLUGINS"
TRACE = "INTERPKIT_TRACE_PLUGINS"
DECLARED_INTERFACE = "INTERPKIT_INTERFACE"
"""The name in a plugin's module that declares the version of the interfaces it is made for."""
SLOW_IMPORT_SECONDS = 10.0

log = logging.getLogger("interpkit")


@dataclass
class Plugin:
    """A plugin that was found, and its status.

    ``name`` is what the user types, ``package:name`` where two packages have a plugin of one name; ``package`` the
    installed distribution, or empty; ``source`` the module that its entry point names, or its file. ``provides`` has
    the names of what it registered, by kind. ``error`` says why it is broken, and ``left_out`` is the setting by which
    the user disabled it, as typed. ``file`` and ``sha256`` are those of a plugin file.
    """

    name: str
    version: str = ""
    package: str = ""
    source: str = ""
    provides: dict[str, list[str]] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    error: str | None = None
    left_out: str | None = None
    file: Path | None = None
    sha256: str | None = None

    @property
    def status(self) -> str:
        """``ok``, ``broken`` or ``disabled``."""
        return "broken" if self.error else "disabled" if self.left_out else "ok"

    @property
    def module(self) -> str:
        """The top-level name that its code is imported by."""
        return _module_of(self.file) if self.file else re.split(r"[.:]", self.source)[0]


class Plugins:
    """The plugins of one process: `registry` holds what they provide, `found` the status of each.

    Args:
        entry_points: of the plugins; those of the installed distributions if omitted.
        leave_out: names of plugins not to load, ``NAME`` or ``package:NAME``.
        only: names of the plugins to load; all if omitted.

    Raises:
        PluginError: ``leave_out`` names a plugin that is not installed.
    """

    def __init__(
        self,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        *,
        leave_out: Collection[str] = (),
        only: Collection[str] | None = None,
    ) -> None:
        from interpkit.plugins.registry import Registry

        self.registry: Registry = Registry()
        self.found: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager(hookspecs.NAMESPACE)
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get(TRACE, "0") not in ("", "0"):
            self._manager.add_hookcall_monitoring(_trace_call, _trace_result)
        if entry_points is None:
            _warn_of_namesake()
            entry_points = importlib.metadata.entry_points(group="interpkit")
        points = sorted(entry_points, key=lambda point: (point.name, _package(point)))
        names = {name for point in points for name in (point.name, _full_name(point))}
        for name in leave_out:
            if name not in names:
                raise PluginError(
                    f"there is no plugin {name!r} to leave out.{did_you_mean(name, names)} "
                    f"Installed are: {listed(point.name for point in points)}."
                )
        for name in only or ():
            if name not in names:
                log.warning("%s names %r, which is not an installed plugin.%s", LOAD, name, did_you_mean(name, names))
        for name, sharing in itertools.groupby(points, lambda point: point.name):
            self._load(name, [(point, _choice(point, leave_out, only)) for point in sharing])

    def _load(self, name: str, sharing: Sequence[tuple[importlib.metadata.EntryPoint, str | None]]) -> None:
        """Load the plugins that share a name, except disabled ones."""
        wanted = [_full_name(point) for point, left_out in sharing if left_out is None]
        if len(wanted) > 1:
            words = "%d packages have a plugin named %r; add the package's name to distinguish them: %s"
            log.warning(words, len(wanted), name, ", ".join(wanted))
        for point, left_out in sharing:
            alone = len(sharing) == 1 or (left_out is None and len(wanted) == 1)
            key = name if alone else _full_name(point)
            version = _name_and_version(point.dist)[1] if point.dist else ""
            if key in self.found:
                log.warning("%s has two plugins named %r: %s is left out", _package(point), name, point.value)
            elif left_out is not None:
                self.found[key] = Plugin(key, version, _package(point), point.value, left_out=left_out)
            else:
                self.add(key, point.load, version, point.value, _package(point))

    def add(
        self, name: str, load: Callable[[], object], version: str = "", source: str = "", package: str = ""
    ) -> Plugin:
        """Load one plugin and register what it provides; if that fails, ``error`` says why.

        ``load`` returns the plugin, any object (usually a module) that has hooks; for the rest, see `Plugin`.
        """
        plugin = self._add(Plugin(name, version, package, source), load)
        if plugin.error:
            log.warning("plugin %r is broken and is left out: %s", name, plugin.error)
        return plugin

    def add_file(self, path: Path) -> Plugin:
        """Load a plugin file under the file's name; it replaces an earlier plugin file of that name.

        Its code runs: call this only with paths that the user typed, never with paths from a file.

        Raises:
            PluginError: there is no such file, an installed plugin has its name, or it is broken.
        """
        path = to_path(path.expanduser()).resolve()
        if not path.is_file():
            near = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise PluginError(f"there is no plugin file {path}.{did_you_mean(path.name, near)}")
        plugin = Plugin(path.stem, source=str(path), file=path, sha256=sha256(path))
        known = self.found.get(plugin.name)
        if plugin.name == "interpkit" or (known is not None and known.file is None):
            raise PluginError(
                f"the plugin file {path} would be named {plugin.name!r}, as an installed plugin is: rename the file."
            )
        if known is not None:
            if (known.file, known.sha256, known.error) == (path, plugin.sha256, None):
                return known
            self._forget(known.name)
        self._add(plugin, lambda: import_file(path, _module_of(path)))
        self.raise_if_broken(plugin.name)
        return plugin

    def check_files(self, recorded: Iterable[PluginFile], where: str) -> None:
        """Raise a `UsageError` unless the user named the files that a recipe records; warn where one has changed."""
        for file in recorded:
            plugin = self.found.get(file.name)
            if plugin is None or plugin.file is None:
                raise UsageError(
                    f"{where} records the plugin file {file.path}, which is code; a file cannot have it run. "
                    f"Type it again: {setting('plugin', str(file.path))}"
                )
            if plugin.sha256 != file.sha256:
                log.warning("%s is not what it was when %s was made (its sha256 differs)", plugin.file, where)

    def _add(self, plugin: Plugin, load: Callable[[], object]) -> Plugin:
        from interpkit.plugins.registry import Registration

        self.found[plugin.name] = plugin
        try:
            # What a plugin prints while it is loaded must not mix with a command's results.
            with redirect_stdout(sys.stderr), _watched(plugin):
                module = load()
                _check_interface(plugin, module)
                plugin.hooks = _add_hooks(self._manager, plugin.name, module)
                self._only(module, "register")(registry=Registration(self.registry, plugin.name, plugin.package))
        except (Exception, SystemExit) as error:
            self._forget(plugin.name)
            plugin.error = with_place(error, plugin.module)
        for entry in self.registry.entries(owner=plugin.name):
            plugin.provides.setdefault(entry.kind, []).append(entry.name)
        return plugin

    def _forget(self, name: str) -> None:
        self._manager.unregister(name=name)
        self.registry.remove(name)

    def _only(self, module: object, hook: str) -> pluggy.HookCaller:
        """Return the caller of a hook of one plugin."""
        others = [other for other in self._manager.get_plugins() if other is not module]
        return self._manager.subset_hook_caller(hook, others)

    def call(self, hook: str, **arguments: Any) -> None:
        """Call a lifecycle hook of every plugin; one that raises is reported, and its hooks are not called again."""
        for name, module in self._manager.list_name_plugin():
            try:
                self._only(module, hook)(**arguments)
            except (Exception, SystemExit) as error:
                self._manager.unregister(name=name)
                plugin = self.found[name]
                words = with_place(error, plugin.module)
                plugin.error = f"{hook}: {words}"
                log.warning("plugin %r failed in %s, and its hooks are not called from here: %s", name, hook, words)

    def preset(self, name: str) -> Preset:
        """Return the preset of this name; `PluginError` if there is none, or its plugin is broken or left out."""
        try:
            return self._meaning_its_own(self.registry.entry("preset", name))
        except UsageError as error:
            self.raise_if_broken(name)
            if self.registry.has("preset", name):
                raise  # several have
            known = self.registry.names("preset")
            if name in self.found:
                fault = f"the plugin {name!r} has no preset, so {setting('preset', name)} has nothing to apply."
            else:
                fault = f"there is no plugin or preset {name!r}.{did_you_mean(name, known)}"
            raise PluginError(f"{fault} Presets: {self.all_presets()}.{self.left_out_words()}") from error

    def all_presets(self) -> str:
        """Return the names of the presets as messages list them: all, as one that is cut off cannot be chosen."""
        return ", ".join(self.registry.names("preset")) or "none"

    def complete_preset(self) -> str:
        """Return a preset that names all that a run needs, preferably its plugin's own; PRESET if there is none."""
        whole = {"conditioner", "generator", "losses"}
        entries = [entry for entry in self.registry.entries("preset") if whole <= entry.item.layer.keys()]
        return min(entries, key=lambda entry: entry.name != entry.owner).name if entries else "PRESET"

    def photograph_preset(self, input_shape: tuple[int, ...]) -> str | None:
        """Return the preset that a run applies to photographs of this shape if it names none; None if too small."""
        side = min(input_shape[1:]) if len(input_shape) == 3 else 0
        for entry in self.registry.entries("preset"):
            if entry.item.photographs_from is not None and side >= entry.item.photographs_from:
                return entry.name
        return None

    def audit_preset(self) -> str | None:
        """Return the preset with which an audit makes its samples; None if there is none."""
        return next((entry.name for entry in self.registry.entries("preset") if entry.item.audits), None)

    def own_preset(self, plugin: Plugin) -> Preset | None:
        """Return the preset that a plugin registered under its own name, or its only one, or None."""
        presets = list(self.registry.entries("preset", plugin.name))
        named = [entry for entry in presets if entry.name == plugin.name]
        return self._meaning_its_own((named or presets)[0]) if named or len(presets) == 1 else None

    def _meaning_its_own(self, entry: Entry) -> Preset:
        """Return a preset in which ambiguous names mean the components of its own plugin or package."""

        def own(layer: Layer) -> Layer:
            return self.told_apart(
                layer,
                lambda other: other.owner == entry.owner,
                lambda other: bool(entry.package) and other.package == entry.package,
            )

        preset: Preset = entry.item
        for_vectors, without = (
            None if layer is None else own(layer) for layer in (preset.for_vectors, preset.without_batch_norm)
        )
        return replace(preset, layer=own(preset.layer), for_vectors=for_vectors, without_batch_norm=without)

    def told_apart(self, layer: Layer, *meant: Callable[[Entry], bool]) -> dict[str, Any]:
        """Return a fragment of a recipe in which names that several plugins use are replaced by full names.

        Of the conditions in ``meant``, the first that fits exactly one entry decides; if none does, a name stays.
        """

        def full(kind: str, name: str) -> str:
            alike = self._called(kind, name)
            if len(alike) > 1:
                for fits in meant:
                    fitting = [entry for entry in alike if fits(entry)]
                    if len(fitting) == 1:
                        return fitting[0].full_name
            return name

        return _renamed(layer, full)

    def settled(self, layer: Layer, begun: Recipe | None = None) -> dict[str, Any]:
        """Return a fragment of a recipe with one name for each component, so that fragments can be merged by name.

        That is the name in the recipe of a run that is resumed, else its own name, or its full name where several
        plugins use its own.

        Raises:
            UsageError: two names stand for one loss.
        """
        return _renamed(layer, lambda kind, name: self.settled_name(kind, name, begun))

    def settled_key(self, key: str, begun: Recipe | None = None, kinds: Sequence[str] = ()) -> str:
        """Return a setting's key ``COMPONENT.OPTION`` with the name that `settled` gives to the component.

        The component is one of ``kinds``, or else of those in a recipe.
        """
        name, dot, option = key.rpartition(".")
        for kind in kinds or (*_SLOTS, "loss"):
            name = self.settled_name(kind, name, begun)
        return f"{name}{dot}{option}"

    def settled_names(self, kind: str) -> list[str]:
        """Return the names that `settled` gives to all components of a kind, sorted."""
        return sorted(self.settled_name(kind, entry.full_name) for entry in self.registry.entries(kind))

    def settled_name(self, kind: str, name: str, begun: Recipe | None = None) -> str:
        """Return the name that `settled` gives to a component; ``name`` itself where it stands for none or several."""
        found = self._called(kind, name)
        if len(found) != 1:
            return name
        slots = [] if begun is None else [getattr(begun, slot) for slot in _SLOTS]
        known = [] if begun is None else [*begun.losses, *(part.name for part in slots if part is not None)]
        names = (*known, found[0].name, found[0].full_name)
        return next((each for each in names if self._called(kind, each) == found), name)

    def _called(self, kind: str, name: str) -> list[Entry]:
        return [entry for entry in self.registry.entries(kind) if entry.is_called(name)]

    def raise_if_broken(self, name: str) -> None:
        """Raise a `PluginError` if the plugin ``name``, or the one in ``plugin:component``, is broken or disabled."""
        owner, colon, _ = name.partition(":")
        for plugin in self.found.values():
            if plugin.name not in (name, owner) and not (colon and plugin.package == owner):
                continue
            if plugin.error:
                raise PluginError(f"the plugin {plugin.name!r} ({plugin.source}) is broken: {plugin.error}")
            if plugin.left_out:
                raise PluginError(f"the plugin {plugin.name!r} is disabled by {plugin.left_out}.")

    def left_out_words(self) -> str:
        """Return a sentence on the disabled plugins with a leading space, or an empty string."""
        left_out = [plugin for plugin in self.found.values() if plugin.left_out]
        if not left_out:
            return ""
        reasons = listed(dict.fromkeys(str(plugin.left_out) for plugin in left_out))
        return f" Disabled: {listed(plugin.name for plugin in left_out)}, by {reasons}."

    def component(self, kind: str, name: str) -> Any:
        """Return a component's class; `UsageError` if there is none, `PluginError` if its plugin is broken."""
        if not self.registry.has(kind, name):
            self.raise_if_broken(name)
        try:
            return self.registry.get(kind, name)
        except UsageError as error:
            raise UsageError(f"{error}{self.left_out_words()}") from error

    def blame(self, error: BaseException) -> PluginError | None:
        """Return an error that names the plugin whose code raised ``error``, the innermost one, or None."""
        modules = {plugin.module: plugin for plugin in self.found.values() if plugin.module}
        frames = (str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__))
        plugins = [modules[module] for module in frames if module in modules]
        if not plugins:
            return None
        return PluginError(f"the plugin {plugins[-1].name!r} failed: {with_place(error, plugins[-1].module)}")


_SLOTS = ("inverter", "conditioner", "generator")


def _renamed(layer: Layer, rename: Callable[[str, str], str]) -> dict[str, Any]:
    """Return a fragment of a recipe in which each component has the name that ``rename(kind, name)`` returns."""
    layer = dict(layer)
    for kind in _SLOTS:
        if isinstance(layer.get(kind), Mapping) and "name" in layer[kind]:
            layer[kind] = {**layer[kind], "name": rename(kind, layer[kind]["name"])}
    if isinstance(layer.get("losses"), Mapping):
        names = {name: rename("loss", name) for name in layer["losses"]}
        if twice := [name for name in names if list(names.values()).count(names[name]) > 1]:
            raise UsageError(f"the losses {listed(twice)} are one: name it once, with one weight.")
        layer["losses"] = {names[name]: term for name, term in layer["losses"].items()}
    return layer


# ------------------------------------------------------------------------------------ which to load


def _warn_of_namesake() -> None:
    """Warn where another distribution owns the same files: PyPI's interpkit, or interpkit under its earlier name."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for name in (DISTRIBUTION, "interpkit"):
            importlib.metadata.distribution(name)
        log.warning(
            f"the distributions {DISTRIBUTION} and interpkit are both installed, and overwrite each other's files: "
            f"pip uninstall interpkit {DISTRIBUTION}, then install {DISTRIBUTION} again"
        )


def _package(point: importlib.metadata.EntryPoint) -> str:
    """Return the normalized name of an entry point's package, or else its module."""
    return _name_and_version(point.dist)[0] if point.dist else point.module


@cache
def _name_and_version(package: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a package's normalized name and its version; each access to one of them parses its whole description."""
    return re.sub(r"[-_.]+", "-", package.name).lower(), package.version


def _full_name(point: importlib.metadata.EntryPoint) -> str:
    return f"{_package(point)}:{point.name}"


def _choice(
    point: importlib.metadata.EntryPoint, leave_out: Collection[str], only: Collection[str] | None
) -> str | None:
    """Return the setting that disables a plugin, as the user typed it; None if it is to be loaded."""
    names = {point.name, _full_name(point)}
    for name in leave_out:
        if name in names:
            return setting("no_plugin", name)
    # The plugin `generator` has the inverter of a recipe that names none, and is loaded in any case.
    if only is None or names & {*only, "generator"}:
        return None
    return f"{LOAD}={','.join(only)}"


_left_out: tuple[str, ...] = ()


@contextmanager
def leaving_out(names: Collection[str]) -> Iterator[None]:
    """Load no plugin of these names in this block: `installed` loads the plugins again for it, and again after it."""
    global _left_out
    before, _left_out = _left_out, tuple(names)
    installed.cache_clear()
    try:
        yield
    finally:
        _left_out = before
        installed.cache_clear()


@cache
def installed() -> Plugins:
    """Return the installed plugins that the user has not disabled, loaded once per process; see `Plugins`."""
    chosen = os.environ.get(LOAD)
    only = None if chosen is None else [name for name in map(str.strip, chosen.split(",")) if name]
    return Plugins(leave_out=_left_out, only=only)


# ---------------------------------------------------------------------------------- what is loaded


def _check_interface(plugin: Plugin, module: object) -> None:
    from interpkit.interfaces.components import INTERFACE_VERSION

    made_for = getattr(module, DECLARED_INTERFACE, INTERFACE_VERSION)
    if made_for == INTERFACE_VERSION:
        return
    if not isinstance(made_for, int):
        raise PluginError(
            f"{DECLARED_INTERFACE} is {made_for!r}, and must be an integer: write {DECLARED_INTERFACE} = "
            f"{INTERFACE_VERSION}"
        )
    newer = made_for > INTERFACE_VERSION
    remedy = f": pip install --upgrade {plugin.package}" if plugin.package else ""
    raise PluginError(
        f"it is made for version {made_for!r} of the plugin interface ({DECLARED_INTERFACE}), and this interpkit has "
        f"version {INTERFACE_VERSION}. Upgrade {f'interpkit: {upgrade()}' if newer else f'the plugin{remedy}'}"
    )


def _add_hooks(manager: pluggy.PluginManager, name: str, module: object) -> list[str]:
    """Register a plugin's hooks with pluggy, and return their names.

    A hook that is unknown, not marked, or has an argument that hooks of its name do not have, is a `PluginError`.
    """
    if (twin := manager.get_name(module)) is not None:
        raise PluginError(f"its entry point names what that of the plugin {twin!r} names too: remove one of the two")
    known = [hook for hook, value in vars(hookspecs).items() if manager.parse_hookspec_opts(hookspecs, hook)]
    for hook in known:
        function = getattr(module, hook, None)
        if hasattr(function, "__code__") and not manager.parse_hookimpl_opts(module, hook):
            raise PluginError(
                f"{hook}{_place(function)} is not marked as a hook, so it is never called: write @interpkit.hookimpl "
                f"above it, or rename it"
            )
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        hook = next(hook for hook in known if f"hook {hook!r}" in str(error))
        arguments = listed(inspect.signature(getattr(hookspecs, hook)).parameters)
        place = _place(getattr(module, hook, None))
        raise PluginError(f"{' '.join(str(error).split())}{place}. Its arguments: {arguments}") from error
    hooks = manager.get_hookcallers(module) or []
    for caller in hooks:
        if not caller.has_spec():
            place = _place(caller.get_hookimpls()[-1].function)
            raise PluginError(
                f"there is no hook {caller.name!r}{place}.{did_you_mean(caller.name, known)} Hooks: {listed(known)}"
            )
    return sorted(caller.name for caller in hooks)


def _place(function: object) -> str:
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""


@contextmanager
def _watched(plugin: Plugin) -> Iterator[None]:
    """Report a plugin that hangs while it is loaded, since nobody would guess the cause."""
    remedy = "fix it" if plugin.file else f"leave it out by {setting('no_plugin', plugin.name)}"
    words = "still loading the plugin %r (%s) after %g s: wait, or stop and %s"
    facts = (words, plugin.name, plugin.source, SLOW_IMPORT_SECONDS, remedy)
    watch = threading.Timer(SLOW_IMPORT_SECONDS, log.warning, facts)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


# -------------------------------------------------------------------------------- plugins of one file


def is_file(given: str | Path) -> bool:
    """Return whether a value of the plugin option is the path of a plugin file rather than a name."""
    return isinstance(given, Path) or given.endswith(".py")


class _Uncached(importlib.machinery.SourceFileLoader):
    """Compiles the file each time, so that edits within a second count and no cache is left beside it."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _module_of(file: Path) -> str:
    return f"interpkit_file_{file.stem}"


def import_file(path: Path, name: str) -> ModuleType:
    """Import a file as the module ``name``; it may import the modules beside it."""
    spec = importlib.util.spec_from_loader(name, _Uncached(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))  # for modules beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


# ------------------------------------------------------------------------------------------- tracing

_short = reprlib.Repr()
_short.maxother = _short.maxstring = 60


def _trace_call(hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
    for implementation in implementations:
        words = ", ".join(f"{name}={' '.join(_short.repr(value).split())}" for name, value in arguments.items())
        sys.stderr.write(f"plugin {implementation.plugin_name}: {hook}({words})\n")


def _trace_result(
    outcome: pluggy.Result[Any], hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
) -> None:
    for implementation in implementations:
        error = outcome.exception
        result = f"raised {error!r}" if error is not None else f"returned {_short.repr(outcome.get_result())}"
        sys.stderr.write(f"plugin {implementation.plugin_name}: {hook} {result}\n")
