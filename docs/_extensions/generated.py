"""The parts of the reference that the code itself says: names, hooks, commands, components and the recipe.

A page has a line ``<!-- generated: FUNCTION WORDS -->``; it is replaced by the Markdown that the function returns for
the words.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic
import tomli_w
import typer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import interpkit
import interpkit.testing
from interpkit.cli import describing
from interpkit.errors import DISTRIBUTION

MARK = re.compile(r"^<!-- generated: (\w+)((?:\s+[\w.]+)*)\s*-->$", re.MULTILINE)
KIND_TITLES = {
    "conditioner": "Conditioners",
    "generator": "Generators",
    "loss": "Losses",
    "inverter": "Inverters",
    "metric": "Metrics",
    "attribution": "Attributions",
    "loader": "Loaders",
    "architectures": "Architectures",
    "preset": "Presets",
}
NAPOLEON = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
Table = Iterable[tuple[str, ...]]


def table(heads: tuple[str, ...], rows: Table) -> str:
    """Return a Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def restructured(docstring: str) -> str:
    """Return a docstring as a block that is read as reStructuredText."""
    return f"```{{eval-rst}}\n{google(inspect.cleandoc(docstring))}\n```"


def google(docstring: str) -> str:
    """Return a docstring in Google's style as reStructuredText."""
    return str(GoogleDocstring(_starred(docstring), NAPOLEON))


def _starred(text: str) -> str:
    """Return a docstring in which ``(B, *input_shape)`` is no start of emphasis."""
    return re.sub(r"(?<=[(, ])\*(?=[a-z_]+\b(?!\*))", r"\\*", text)


# ------------------------------------------------------------------------------------------------ names


def names(*public: str) -> str:
    """Return what the docstrings of public names say; ``testing.NAME`` is one of the conformance kit."""
    return "\n".join(["```{eval-rst}", ".. currentmodule:: interpkit", "", *map(_autodoc, public), "```"])


def _autodoc(name: str) -> str:
    item = operator.attrgetter(name)(interpkit)
    if inspect.isclass(item) and issubclass(item, Exception):
        return f".. autoexception:: interpkit.{name}"
    if inspect.isclass(item):
        model = issubclass(item, pydantic.BaseModel)  # its fields have tables of their own
        hidden = ", ".join(["Options", "model_config", *item.model_fields] if model else ["Options"])
        return f".. autoclass:: interpkit.{name}{'()' * model}\n   :members:\n   :exclude-members: {hidden}\n"
    return f".. auto{'function' if callable(item) else 'data'}:: interpkit.{name}"


# ------------------------------------------------------------------------------------------------ hooks


def hooks() -> str:
    """Return a section for each hook, with its exact signature."""
    from interpkit.plugins import hookspecs

    parts = []
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if hasattr(function, f"{hookspecs.NAMESPACE}_spec"):
            rst = f".. autofunction:: interpkit.plugins.hookspecs.{name}"
            parts.append((inspect.getsourcelines(function)[1], f"## {name}\n\n```{{eval-rst}}\n{rst}\n```"))
    return "\n\n".join(text for _, text in sorted(parts))


# ----------------------------------------------------------------------------------------------- checks


def checks() -> str:
    """Return a section for each kind with its checks: name and promise."""
    from interpkit.testing.checks import COMPONENTS, checks_of_kind

    parts = []
    for kind in (*COMPONENTS, "loader", "target"):
        rows = [(f"`{check.name}`", f"{escaped(check.promise)}.") for check in checks_of_kind(kind)]
        parts += [f"### Of a {kind}".replace("a a", "an a").replace("a i", "an i"), table(("check", "promise"), rows)]
    return "\n\n".join(parts)


# --------------------------------------------------------------------------------------------- commands


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Return a command and those under it, each with the words that call it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


def commands() -> str:
    """Return a section for each command of the command line, from its own help."""
    from interpkit.cli import app

    sections = []
    for path, command in walk(typer.main.get_command(app), "interpkit"):
        context = typer.Context(command, info_name=path)
        usage = command.get_usage(context).removeprefix("Usage: ")
        sections.append(f"## {path}\n\n```text\n{usage}\n```\n\n{_help(command.help or '')}")
        panels: dict[str, list[tuple[str, ...]]] = {}
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None:
                words, help_ = record
                title = getattr(parameter, "rich_help_panel", None) or "Arguments and options"
                panels.setdefault(title, []).append((f"`{words}`", escaped(help_)))
        sections += [f"{title}:\n\n{table(('option', 'meaning'), rows)}" for title, rows in panels.items()]
    return "\n\n".join(sections)


def _help(text: str) -> str:
    """Return a command's help, its example as a block."""
    prose, example, command = inspect.cleandoc(text).partition("Example: ")
    return escaped(prose) + (f"\n```sh\n{command}\n```" if example else "")


def escaped(text: str) -> str:
    """Return plain text in which Markdown finds no markup."""
    return re.sub(r"([*_<\[\]])", r"\\\1", text)


# ------------------------------------------------------------------------------------------- components


def bundled() -> set[str]:
    """Return the names of the plugins that come with interpkit, and of the core."""
    points = importlib.metadata.distribution(DISTRIBUTION).entry_points
    return {"interpkit", *(point.name for point in points if point.group == "interpkit")}


def components() -> str:
    """Return a section for each bundled component: what its docstring says, and its options."""
    from interpkit.plugins.discovery import installed

    owners, parts = bundled(), []
    for kind, title in KIND_TITLES.items():
        entries = [entry for entry in installed().registry.entries(kind) if entry.owner in owners]
        if entries:
            parts.append(f"## {title}")
            parts += [_component(entry) for entry in entries]
    return "\n\n".join(parts)


def _component(entry: Any) -> str:
    said = describing.component(entry)
    heading = f"### {entry.name}\n\n*From the plugin `{entry.owner}`.*"
    if entry.kind == "preset":
        return f"{heading} {said['help']}\n\n```toml\n{tomli_w.dumps(said['recipe'])}```"
    parts = [heading, restructured(said["help"])]
    if said["options"]:
        parts.append(options_table(said["options"], f"{entry.name}."))
    if names := said.get("names"):
        shown = ", ".join(f"`{entry.name}:{name}`" for name in names[:8])
        parts.append(f"Names: {shown}{', ...' if names[8:] else '.'}")
    return "\n\n".join(parts)


def options_table(options: Iterable[dict[str, Any]], prefix: str = "") -> str:
    """Return the table of options as `interpkit plugins show --json` tells them."""
    rows = [
        (
            f"`{prefix}{option['name']}`",
            ", ".join(filter(None, (f"`{option['type']}`", option["limits"]))),
            "required" if option["required"] else f"`{option['default']}`",
            escaped(option["help"]),
        )
        for option in options
    ]
    return table(("option", "type", "default", "meaning"), rows)


# ----------------------------------------------------------------------------------------------- recipe


def recipe() -> str:
    """Return the tables of the recipe: its own keys, and those of its fixed tables."""
    from interpkit.config import recipe

    tables = {
        "Top level": recipe.Recipe,
        "`[optimizer]`": recipe.Optimizer,
        "`[sampling]`": recipe.Sampling,
        "`[target]`": recipe.TargetOptions,
    }
    parts = []
    for name, model in tables.items():
        options = [describing.option(field, info) for field, info in model.model_fields.items()]
        options = [option for option in options if not ("recipe." in option["type"] or _is_table(option["default"]))]
        parts += [f"## {name}", restructured(model.__doc__ or ""), options_table(options)]
    return "\n\n".join(parts)


def _is_table(default: Any) -> bool:
    return isinstance(default, pydantic.BaseModel)


# ------------------------------------------------------------------------------------------------ Sphinx


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace a page's marks by what they stand for."""
    source[0] = MARK.sub(lambda mark: globals()[mark[1]](*mark[2].split()), source[0])


def read_docstring(app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Read a docstring for autodoc, as napoleon does; but one of an attribute is a sentence, its colon no type."""
    text = "\n".join(lines)
    lines[:] = (_starred(text) if kind in ("attribute", "property") else google(text)).splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Have marks replaced as pages are read."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True}
