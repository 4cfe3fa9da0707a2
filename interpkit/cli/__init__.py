"""The command line. Nothing here or in the commands' modules imports torch before a command runs."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interpkit import _version
from interpkit.cli import console
from interpkit.errors import InterpkitError

PLUGIN_COMMANDS = "interpkit.commands"


def _plugin_commands() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=PLUGIN_COMMANDS)}


class Commands(TyperGroup):
    """Turns errors into messages and exit codes, and finds the commands of plugins when one is asked for."""

    debug = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands."""
        self.debug = "--debug" in args
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return interpkit's own command, else a plugin's, imported only now."""
        command = super().get_command(ctx, cmd_name)
        point = None if command else _plugin_commands().get(cmd_name)
        if point is None:
            return command
        try:
            loaded = point.load()
        except Exception as error:
            from interpkit.errors import PluginError

            raise PluginError(f"the command {cmd_name!r} ({point.value}) is broken: {error!r}") from error
        return typer.main.get_command(loaded) if isinstance(loaded, typer.Typer) else loaded

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error is one message, a traceback only with ``--debug``."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except InterpkitError as error:
            if self.debug:
                raise
            console.error(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if self.debug:
                raise
            console.error(f"{error.filename or 'a file'}: {error.strerror or error}.")
            raise typer.Exit(1) from error
        except Exception as error:
            if self.debug or type(error).__module__.startswith("typer."):
                raise
            console.error(
                f"{type(error).__name__}: {error}. This is a fault of interpkit or of a plugin; --debug shows where."
            )
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    name="interpkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What does your classifier think a class looks like, and how varied is what it accepts?",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out.print(_version.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)


def _add_commands() -> None:
    from interpkit.cli import attribute, compare, evaluate, inspect, invert, pack, plugins, report, sample

    app.command("invert")(invert.invert)
    app.command("sample")(sample.sample)
    app.command("evaluate")(evaluate.evaluate)
    app.command("report")(report.report)
    app.command("attribute")(attribute.attribute)
    app.command("compare")(compare.compare)
    app.command("inspect")(inspect.inspect)
    app.command("pack")(pack.pack)
    app.add_typer(plugins.app, name="plugins")


_add_commands()


def main() -> None:
    """Run the command line."""
    app(prog_name="interpkit")
