"""``interpkit plugins``: the installed plugins, and new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, describing, options, plugins_check, tables
from interpkit.scaffold.kinds import KINDS, Kind

app = typer.Typer(cls=options.Group, no_args_is_help=True, help="List, show, check and create plugins.")
app.command("check", cls=options.Command)(plugins_check.check)


@app.command("list", cls=options.Command)
def list_(json_: options.Json = False) -> None:
    """List the installed plugins, what each provides, and whether it works.

    --no-plugin NAME skips a plugin; INTERPKIT_LOAD_PLUGINS=NAME,NAME loads only those.
    """
    from rich.table import Table

    from interpkit.plugins.discovery import installed

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
        why = f": {plugin.error}" if plugin.error else f" by {plugin.left_out}" if plugin.left_out else ""
        status = plugin.status + why
        table.add_row(plugin.name, plugin.version, provides, status)
    tables.show(table)


@app.command(cls=options.Command)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of a plugin or of a component, or a plugin file.", show_default=False
        ),
    ],
    json_: options.Json = False,
) -> None:
    """Show a plugin, or a component with the type, default, limits and meaning of each option."""
    plugin, entries = describing.named(name)
    components = [describing.component(entry) for entry in entries]
    if json_:
        shown = describing.plugin(plugin) if plugin else {}
        console.print_json(shown | {"components": components})
        return
    if plugin is not None:
        describing.print_plugin(describing.plugin(plugin))
    for component in components:
        describing.print_component(component)


@app.command(cls=options.Command)
def new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the plugin and of its component, e.g. my-loss.", show_default=False
        ),
    ],
    kind: Annotated[Kind, typer.Option(help="Kind of component that the plugin provides.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write (default: ./NAME).", show_default=False)
    ] = None,
) -> None:
    """Create the package of a new plugin: a working component with its tests, ready to change."""
    import shlex

    from interpkit.plugins.discovery import installed
    from interpkit.scaffold import package

    folder = package.write(name, kind, Path(name) if out is None else out)
    console.out.out(str(folder))
    commands = (
        f"cd {shlex.quote(str(folder))}",
        "pip install -e '.[test]'",
        "pytest",
        f"interpkit plugins check {name}",
        KINDS[kind].use.format(name=name, preset=installed().complete_preset()),
    )
    console.note("\n".join(["Next:", *(f"  {command}" for command in commands)]))
