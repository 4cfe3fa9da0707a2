"""The command line. Nothing here or in the commands' modules imports torch before a command runs."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import itertools
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from interpkit import _version
from interpkit.cli import console, options
from interpkit.cli.signals import INTERRUPTED, on_stop
from interpkit.errors import InterpkitError, PluginError, RunError, in_shell, listed
from interpkit.runtime import torchrun

PLUGIN_COMMANDS = "interpkit.commands"


def _plugin_command(name: str) -> importlib.metadata.EntryPoint | None:
    """Return the plugins' command of this name, if there is one; a `PluginError` if there are several."""
    points = importlib.metadata.entry_points(group=PLUGIN_COMMANDS, name=name)
    found = {point.value: point for point in points}
    if len(found) > 1:
        owners = sorted(f"{point.dist.name} ({value})" if point.dist else value for value, point in found.items())
        raise PluginError(f"several packages have a command {name!r}: {listed(owners)}. Uninstall all but one of them.")
    return next(iter(found.values()), None)


class Commands(options.Group):
    """Turns errors into messages and exit codes, and finds plugins' commands on demand."""

    debug = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept ``--debug`` and ``--no-plugin NAME`` anywhere on the line."""
        self.debug = "--debug" in args
        words = iter([arg for arg in args if arg != "--debug"])
        first: list[str] = []
        rest: list[str] = []
        for word in words:
            if word == "--no-plugin":
                first += [word, *itertools.islice(words, 1)]
            else:
                (first if word.startswith("--no-plugin=") else rest).append(word)
        return super().parse_args(ctx, first + rest)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return interpkit's own command, else a plugin's, imported only now."""
        command = super().get_command(ctx, cmd_name)
        point = None if command else _plugin_command(cmd_name)
        if point is None:
            return command
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"the command {cmd_name!r} ({point.value}) is broken: {error!r}") from error
        return typer.main.get_command(loaded) if isinstance(loaded, typer.Typer) else loaded

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error prints one message, and a traceback only with ``--debug``."""
        try:
            with on_stop(signal.default_int_handler), in_shell(), _processes():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if self.debug:
                raise
            console.note("interrupted")
            raise typer.Exit(INTERRUPTED) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except InterpkitError as error:
            if self.debug:
                raise
            if torchrun.RANK == 0 or isinstance(error, PluginError | RunError):  # others are the same on all processes
                console.error(f"{error}{_hint(error)}")
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if self.debug:
                raise
            full = " Free some space, or choose another place." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            console.error(f"{error.filename or 'a file'}: {error.strerror or error}.{full}")
            raise typer.Exit(1) from error
        except Exception as error:
            if self.debug or type(error).__module__.startswith(("typer.", "click.")):
                raise
            if _is_out_of_memory(error):
                console.error("out of memory. Stop other programs here, ask for fewer images, or use another --device.")
                raise typer.Exit(1) from error
            fault = _plugin_fault(error)
            if fault is not None:
                console.error(f"{fault}. --debug shows the traceback.")
                raise typer.Exit(PluginError.exit_code) from error
            console.error(
                f"{type(error).__name__}: {error}. This is a bug in interpkit or in a plugin; --debug shows where."
            )
            raise typer.Exit(1) from error


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, of which only the first prints anything but errors."""
    if torchrun.WORLD_SIZE == 1:
        yield
        return
    from interpkit.runtime.distributed import processes

    if torchrun.RANK > 0:
        logging.disable()
    with processes(), console.silent(torchrun.RANK > 0):
        yield


def _hint(error: InterpkitError) -> str:
    """Return how to find out more, if the error comes from a plugin's code."""
    cause: BaseException | None = error
    while isinstance(cause, InterpkitError):
        cause = cause.__cause__
    return " --debug shows the traceback." if cause is not None and isinstance(error, PluginError) else ""


def _plugin_fault(error: Exception) -> PluginError | None:
    """Return an error that names the plugin whose code raised this one, if plugins were loaded at all."""
    plugins = sys.modules.get("interpkit.plugins.discovery")
    return plugins.installed().blame(error) if plugins and plugins.installed.cache_info().currsize else None


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from interpkit.runtime.devices import is_out_of_memory

    return is_out_of_memory(error)


app = typer.Typer(
    cls=Commands,
    name="interpkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Show what your classifier has learned a class looks like, and how varied the images are that it accepts.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out.print(_version.__version__)
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    no_plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Plugin not to load; repeatable, anywhere on the line."),
    ] = None,
) -> None:
    logging.basicConfig(handlers=[console.LogHandler()], format="%(message)s", level=logging.WARNING)
    logging.getLogger("interpkit").setLevel(logging.INFO)  # how long a run will take
    if no_plugin:
        from interpkit.plugins.discovery import leaving_out

        ctx.with_resource(leaving_out(no_plugin))


def _add_commands() -> None:
    from interpkit.cli import (
        attribute,
        audit,
        classify,
        compare,
        concepts,
        counterfactual,
        distill,
        evaluate,
        harden,
        inspect,
        invert,
        pack,
        plugins,
        reconstruct,
        report,
        sample,
    )

    for command in (
        invert.invert,
        sample.sample,
        evaluate.evaluate,
        report.report,
        attribute.attribute,
        compare.compare,
        inspect.inspect,
        classify.classify,
        counterfactual.counterfactual,
        reconstruct.reconstruct,
        concepts.concepts,
        audit.audit,
        distill.distill,
        harden.harden,
        pack.pack,
    ):
        about_target = command in (
            *(invert.invert, attribute.attribute, inspect.inspect, classify.classify),
            *(counterfactual.counterfactual, concepts.concepts, audit.audit, harden.harden, pack.pack),
        )
        app.command(command.__name__, cls=options.TargetCommand if about_target else options.Command)(
            console.alone_on_stdout(command)
        )
    app.add_typer(plugins.app, name="plugins")


_add_commands()


def main() -> None:
    """Run the command line; characters that stdout has no code for are printed as escapes, as stderr prints them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="interpkit")
