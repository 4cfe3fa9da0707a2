"""``interpkit plugins``: what is installed, and what it offers."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from interpkit.cli import console, options
from interpkit.errors import PluginError, did_you_mean, listed

app = typer.Typer(no_args_is_help=True, help="The installed plugins.")


@app.command("list")
def list_(json_: options.Json = False) -> None:
    """List the plugins that were found, what each provides, and whether it works."""
    from rich.table import Table

    from interpkit.plugins import installed

    found = installed().found.values()
    if json_:
        rows = [
            {
                "name": p.name,
                "version": p.version,
                "provides": p.provides,
                "status": p.status,
                "error": p.error,
            }
            for p in found
        ]
        console.print_json(rows)
        return
    table = Table("plugin", "version", "provides", "status")
    for plugin in found:
        provides = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items())
        table.add_row(plugin.name, plugin.version, provides, plugin.error or plugin.status)
    console.out.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Of a plugin, or of a component.", show_default=False)],
) -> None:
    """Show a plugin, or a component with its options: type, default and help."""
    from interpkit.plugins import installed

    plugins = installed()
    plugins.raise_if_broken(name)
    entries = [e for e in plugins.registry.entries() if name in (e.owner, e.name, f"{e.owner}:{e.name}")]
    if not entries:
        known = {*plugins.found, *(e.name for e in plugins.registry.entries())}
        raise PluginError(
            f"there is no plugin or component {name!r}.{did_you_mean(name, known)} Plugins: {listed(plugins.found)}."
        )
    for entry in entries:
        _show_entry(entry)


def _show_entry(entry: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    cls = entry.item if inspect.isclass(entry.item) else type(entry.item)
    console.out.print(f"[bold]{entry.name}[/]  {entry.kind}, from the plugin {entry.owner}", highlight=False)
    if entry.kind == "preset":
        console.out.print(f"{escape(entry.item.help)}\n", highlight=False)
        import tomli_w

        console.out.out(tomli_w.dumps(dict(entry.item.layer)), highlight=False)
        return
    console.out.print(f"{escape(inspect.getdoc(cls) or '')}\n", highlight=False)
    fields = getattr(getattr(cls, "Options", None), "model_fields", {})
    if not fields:
        return
    table = Table("option", "type", "default", "")
    for option, info in fields.items():
        kind = getattr(info.annotation, "__name__", None) if not hasattr(info.annotation, "__args__") else None
        kind = kind or str(info.annotation).replace("typing.", "").replace("NoneType", "None")
        default = "required" if info.is_required() else str(info.default)
        limits = ", ".join(str(limit) for limit in info.metadata)
        table.add_row(
            f"{entry.name}.{option}",
            escape(kind),
            escape(default),
            escape(f"{info.description or ''} {limits}".strip()),
        )
    console.out.print(table)
    console.out.print(f"source: {inspect.getsourcefile(cls)}\n", highlight=False)
