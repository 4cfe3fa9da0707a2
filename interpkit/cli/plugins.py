"""``interpkit plugins``: what is installed, and what it offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, describing, options, plugins_check
from interpkit.scaffold.kinds import KINDS, Kind

app = typer.Typer(no_args_is_help=True, help="The installed plugins.")
app.command("check")(plugins_check.check)


@app.command("list")
def list_(json_: options.Json = False) -> None:
    """List the plugins that were found, what each provides, and whether it works.

    --no-plugin NAME leaves a plugin out, and so does INTERPKIT_LOAD_PLUGINS, a list of those to load.
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
    console.out.print(table)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Of a plugin, or of a component; or a plugin's file.", show_default=False)
    ],
    json_: options.Json = False,
) -> None:
    """Show a plugin, or a component with its options: type, default, limits and help."""
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


@app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Of the plugin and of its component, e.g. my-loss.", show_default=False),
    ],
    kind: Annotated[Kind, typer.Option(help="What it provides.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write; ./NAME by default.", show_default=False)
    ] = None,
) -> None:
    """Write the package of a new plugin: a component that works, with its tests, ready to be changed."""
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
