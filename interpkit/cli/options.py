"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import csv
import functools
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from interpkit.errors import UsageError, setting

if TYPE_CHECKING:
    from interpkit.config.recipe import Fact
    from interpkit.interfaces.targets import Target
    from interpkit.runs.folder import Run

_FILE = "About the classifier, if its file does not say"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="File or folder of the classifier.", show_default=False)]
PluginFile = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Plugin file to load, such as one that the run used; repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
Source = Annotated[
    Path, typer.Argument(metavar="RUN|MODEL", help="Run folder, or classifier file.", show_default=False)
]
RunsModel = Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the run's classifier, if it has moved.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Random seed.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Device: auto, cpu, cuda, mps, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Arch = Annotated[
    str | None, typer.Option(help="Architecture as FAMILY:NAME, e.g. torchvision:resnet18.", rich_help_panel=_FILE)
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load a file that can run code (.pt2, TorchScript).", rich_help_panel=_FILE)
]
"""For commands on a run, where the rest is known: code runs only if it is named again."""
OF_A_RUN = ("arch", "trust")
"""Target flags that a run needs again; its recipe holds the others."""


class _PlainFlags:
    """Shows no type beside a flag that takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with an empty type for such flags."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the class that this is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_PlainFlags, TyperCommand):
    """A command."""


class Group(_PlainFlags, TyperGroup):
    """A group of commands."""


def load_plugin_files(paths: list[Path] | None) -> None:
    """Load the plugin files that the user named.

    Raises:
        PluginError: one is missing or broken.
        UsageError: one is not a file of Python.
    """
    from interpkit.plugins.discovery import installed

    for path in paths or []:
        if path.suffix != ".py":
            raise UsageError(
                f"--plugin requires a plugin file FILE.py here, not {path}: installed plugins are loaded anyway."
            )
        installed().add_file(path)


class TargetCommand(Command):
    """A command with a flag for each fact of `interpkit.TargetOptions`; their values are its context's ``obj``.

    The flags are made when they are first needed, because importing their declaration takes a while.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = vars(self).pop("params")

    @functools.cached_property
    def params(self) -> list[Any]:  # type: ignore[override]  # an attribute there
        """The command's own parameters, then the flags."""
        return [*self._own, *_target_flags().params]

    def invoke(self, ctx: Any) -> Any:
        """Run the command with ``ctx.obj``, a dict in the shape of a recipe's ``[target]``."""
        flags = _target_flags()
        ctx.obj = flags.callback(**{flag.name: ctx.params.pop(flag.name) for flag in flags.params})
        return super().invoke(ctx)


@functools.cache
def _target_flags() -> Any:
    """Return a command with only the flags, whose callback reads their values."""
    from interpkit.config.recipe import target_facts  # pydantic takes a while to import

    facts = [fact for fact in target_facts() if fact.flag]

    def read(**typed: Any) -> dict[str, Any]:
        return {
            fact.name: READERS[fact.type](fact.flag, typed[fact.name]) if fact.type in READERS else typed[fact.name]
            for fact in facts
            if typed[fact.name] not in (None, [])
        }

    read.__signature__ = inspect.Signature([_parameter(fact) for fact in facts])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(read)
    return typer.main.get_command(app)


def _parameter(fact: Fact) -> inspect.Parameter:
    """Return the parameter of a function by which typer makes a fact's flag."""
    assert fact.flag is not None
    flag = typer.Option(fact.flag, metavar=fact.metavar, min=fact.minimum, help=fact.help, rich_help_panel=_FILE)
    kinds = {dict[str, Any]: list[str], tuple[str, ...]: list[str], list[str]: Path}
    kind = kinds.get(fact.type, str if fact.type in READERS else fact.type)
    annotation: Any = getitem(cast(Any, Annotated), (kind | None, flag))  # mypy takes Annotated[...] for a type
    return inspect.Parameter(fact.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _ranges(flag: str, text: str) -> list[Any]:
    """Read LO,HI, or LO,HI;LO,HI;... with one pair per feature."""
    pairs = [numbers(flag, part, float) or [] for part in text.split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"{flag} takes LO,HI (or LO,HI;LO,HI;... for the features of vectors), not {text!r}.")
    return pairs[0] if len(pairs) == 1 else pairs


def numbers(flag: str, text: str | None, kind: Callable[[str], Any]) -> list[Any] | None:
    """Read comma-separated numbers.

    Raises:
        UsageError: one is not a number.
    """
    if text is None:
        return None
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        word = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{flag} takes comma-separated {word}, not {text!r}.") from error


def classes(flag: str, text: str | None) -> list[int | str] | None:
    """Read comma-separated classes: numbers, ranges of them (``0-49``, with both ends) and names.

    A name that contains a comma stands in double quotes. `Target.class_number` tells numbers from names.

    Raises:
        UsageError: a part is empty, or a range is reversed.
    """
    if text is None:
        return None
    found: list[int | str] = []
    for part in next(csv.reader([text], skipinitialspace=True), [""]):
        ends = re.fullmatch(r"\s*(\d{1,6})\s*-\s*(\d{1,6})\s*", part)
        if not part.strip():
            raise UsageError(f"{flag} takes comma-separated classes, not {text!r}.")
        if ends is None:
            found.append(part.strip())
        elif int(ends[1]) > int(ends[2]):
            raise UsageError(f"{flag} {text}: a range begins with its smaller number: {ends[2]}-{ends[1]}.")
        else:
            found += range(int(ends[1]), int(ends[2]) + 1)
    return found


def pair(flag: str, text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value as TOML writes it (0.5, true, [1, 2]), comma-separated, or plain text.

    Raises:
        UsageError: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{flag} takes NAME=VALUE, not {text!r}.")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return [_value(part.strip()) for part in text.split(",")] if "," in text else text


def weight(text: str) -> tuple[str, float]:
    """Read NAME or NAME=WEIGHT.

    Raises:
        UsageError: the weight is not a number.
    """
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value) if equals else 1.0
    except ValueError as error:
        raise UsageError(f"--loss takes NAME or NAME=WEIGHT, not {text!r}.") from error


def lines(path: Path) -> list[str]:
    """Read a file with one name per line (or a JSON list of names, or an object of them by number).

    Raises:
        UsageError: it cannot be read.
    """
    from interpkit.io.strict_json import parse, read_text  # pydantic takes a while to import

    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}. Save it as UTF-8.") from error
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}: name one with one class name per line.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}.") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            names = parse(text)
            if isinstance(names, dict):  # by number, as in a config.json of transformers
                names = [names[str(number)] for number in range(len(names))]
            if not all(isinstance(name, str | int) for name in names):
                raise ValueError("a name is not a string")
            return [str(name) for name in names]
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"{path} does not list class names: {error}. Write one name per line in the order of the classes, or "
                f'{{"0": "cat", "1": "dog"}}.'
            ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def run_of(source: Path, model: Path | None, facts: Mapping[str, Any]) -> Run | None:
    """Return the run of a folder, or None if the source is a classifier.

    Args:
        source: a run folder or a classifier.
        model: the path of the run's classifier, if the user gave it.
        facts: what the user said about the classifier.

    Raises:
        UsageError: the user said what the run's recipe has already, or named a second classifier.
    """
    from interpkit.config.recipe import target_facts
    from interpkit.runs.folder import Run

    if (source / "manifest.json").is_file():
        for flag in sorted(str(fact.flag) for fact in target_facts() if fact.name in facts.keys() - set(OF_A_RUN)):
            raise UsageError(f"{flag} is in the run's recipe: leave it out, or name the model.")
        return Run.open(source)
    if model is not None:
        raise UsageError(f"--model belongs to a run, and {source} is a classifier: leave it out.")
    return None


def default_folder(kind: str, source: Path, target: Target, figures: str) -> Path:
    """Return the folder of a classifier's results, KIND/NAME, if the user named none.

    Args:
        kind: what the results are, such as ``audits``.
        source: the classifier's file or folder.
        target: the classifier.
        figures: the file that states the digest of the classifier whose results are there.

    Raises:
        UsageError: they are another classifier's.
    """
    from interpkit.io.strict_json import parse, read_text
    from interpkit.runs.manifest import weights_digest

    path = Path(os.path.abspath(source))
    place = Path(kind) / (path.name if path.is_dir() else path.stem)
    try:
        there = parse(read_text(place / figures))["classifier"]
    except (OSError, ValueError, LookupError, TypeError):  # nothing there, or of an older version
        return place
    if there and there != weights_digest(target):
        raise UsageError(
            f"{place} holds the results of another classifier called {place.name}: name another folder by "
            f"{setting('out', 'DIR')}, or this one to replace them ({setting('out', str(place))})."
        )
    return place


READERS: dict[Any, Callable[..., Any]] = {
    dict[str, Any]: lambda flag, texts: dict(pair(flag, text) for text in texts),
    tuple[int, ...]: functools.partial(numbers, kind=int),
    list[float]: functools.partial(numbers, kind=float),
    tuple[float, float] | list[tuple[float, float]]: _ranges,
    list[str]: lambda flag, path: lines(path),
    tuple[str, ...]: lambda flag, texts: tuple(texts),
}
"""How a flag is read, by the type of its fact; typer reads other types itself."""
