"""The description of a plugin or component by ``interpkit plugins show``, as plain values and on the terminal."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from interpkit.cli import console, tables
from interpkit.errors import PluginError, did_you_mean, listed

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from interpkit.plugins.discovery import Plugin
    from interpkit.plugins.registry import Entry

LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of", "min_length": "length >="}


def named(name: str) -> tuple[Plugin | None, list[Entry]]:
    """Return the plugin of a name with its components, or None with the components of that name.

    Args:
        name: of a plugin or component, or a plugin file, which is loaded.

    Raises:
        PluginError: neither exists, or the plugin is broken or disabled.
    """
    from interpkit.plugins.discovery import installed, is_file

    plugins = installed()
    if is_file(name):
        name = plugins.add_file(Path(name)).name
    plugins.raise_if_broken(name)
    entries = [entry for entry in plugins.registry.entries() if name == entry.owner or entry.is_called(name)]
    if not entries and name not in plugins.found:
        known = {*plugins.found, *(entry.name for entry in plugins.registry.entries())}
        raise PluginError(
            f"there is no plugin or component {name!r}.{did_you_mean(name, known)} Plugins: {listed(plugins.found)}."
        )
    return plugins.found.get(name), entries


def plugin(found: Plugin) -> dict[str, Any]:
    """Return the description of a plugin."""
    return {
        "name": found.name,
        "version": found.version,
        "package": found.package,
        "source": found.source,
        "provides": found.provides,
        "hooks": found.hooks,
    }


def component(entry: Entry) -> dict[str, Any]:
    """Return the description of a component: summary, options and origin."""
    cls = entry.item if inspect.isclass(entry.item) else type(entry.item)
    said: dict[str, Any] = {"kind": entry.kind, "name": entry.name, "plugin": entry.owner}
    if entry.kind == "preset":
        return said | {"help": entry.item.help, "recipe": dict(entry.item.layer)}
    said["help"] = inspect.getdoc(cls) or ""
    if entry.kind == "architectures":
        said["names"] = list(entry.item.names())
    fields = getattr(getattr(cls, "Options", None), "model_fields", {})
    said["options"] = [option(name, info) for name, info in fields.items()]
    said["source"] = f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    return said


def option(name: str, info: FieldInfo) -> dict[str, Any]:
    """Return the description of an option."""
    plain = None if hasattr(info.annotation, "__args__") else getattr(info.annotation, "__name__", None)
    limits = [
        f"{words} {getattr(constraint, limit)}"
        for constraint in info.metadata
        for limit, words in LIMITS.items()
        if getattr(constraint, limit, None) is not None
    ]
    return {
        "name": name,
        "type": plain or str(info.annotation).replace("typing.", "").replace("NoneType", "None"),
        "required": info.is_required(),
        "default": None if info.is_required() else info.get_default(call_default_factory=True),
        "limits": ", ".join(limits),
        "help": info.description or "",
    }


def print_plugin(said: dict[str, Any]) -> None:
    """Print what `plugin` returns."""
    origin = f"{said['package']} {said['version']}".strip()
    said_of_it = "plugin" + (f", from the package {origin}" if origin else "")
    console.out.print(Text(said["name"], "bold"), f" {said_of_it}", highlight=False)
    provides = [f"{kind} {', '.join(names)}" for kind, names in said["provides"].items()]
    console.out.out(f"provides: {'; '.join(provides) or 'nothing'}", highlight=False)
    console.out.out(f"hooks:    {', '.join(said['hooks']) or 'none'}", highlight=False)
    console.out.out(f"source:   {said['source']}\n", highlight=False)


def print_component(said: dict[str, Any]) -> None:
    """Print what `component` returns."""
    import tomli_w
    from rich.table import Table

    console.out.print(Text(said["name"], "bold"), f" {said['kind']}, from the plugin {said['plugin']}", highlight=False)
    console.out.print(f"{said['help']}\n", highlight=False, markup=False)
    if said["kind"] == "preset":
        console.out.out(tomli_w.dumps(said["recipe"]), highlight=False)
        return
    if said.get("names"):
        console.out.print(", ".join(said["names"]) + "\n", highlight=False)
    if said["options"]:
        table = Table("option", "type", "default", "limits", "")
        for option in said["options"]:
            default = "required" if option["required"] else str(option["default"])
            cells = (f"{said['name']}.{option['name']}", option["type"], default, option["limits"], option["help"])
            table.add_row(*cells)
        tables.show(table)
    console.out.out(f"source: {said['source']}\n", highlight=False)
