"""Generates reference pages from the code: names, hooks, checks, commands, components and the recipe.

Each line ``<!-- generated: FUNCTION WORDS -->`` in a page is replaced by the Markdown that the function returns for the
words.
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
    "audit": "Audits",
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
    """Return a docstring as a MyST block of reStructuredText."""
    return f"```{{eval-rst}}\n{google(inspect.cleandoc(docstring))}\n```"


def google(docstring: str) -> str:
    """Convert a Google-style docstring to reStructuredText."""
    return str(GoogleDocstring(_starred(docstring), NAPOLEON))


def _starred(text: str) -> str:
    """Escape the star of ``(B, *input_shape)``, which would otherwise start emphasis."""
    return re.sub(r"(?<=[(, ])\*(?=[a-z_]+\b(?!\*))", r"\\*", text)


# ------------------------------------------------------------------------------------------------ names


def names(*public: str) -> str:
    """Return the documentation of public names; ``testing.NAME`` is a name of the conformance kit."""
    return "\n".join(["```{eval-rst}", ".. currentmodule:: interpkit", "", *map(_autodoc, public), "```"])


def _autodoc(name: str) -> str:
    item = operator.attrgetter(name)(interpkit)
    if inspect.isclass(item) and issubclass(item, Exception):
        return f".. autoexception:: interpkit.{name}"
    if inspect.isclass(item):
        model = issubclass(item, pydantic.BaseModel)  # its fields are documented in tables
        hidden = ", ".join(["Options", "model_config", *item.model_fields] if model else ["Options"])
        return f".. autoclass:: interpkit.{name}{'()' * model}\n   :members:\n   :exclude-members: {hidden}\n"
    return f".. auto{'function' if callable(item) else 'data'}:: interpkit.{name}"


# ------------------------------------------------------------------------------------------------ hooks


def hooks() -> str:
    """Return one section per hook, with its signature."""
    from interpkit.plugins import hookspecs

    parts = []
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if hasattr(function, f"{hookspecs.NAMESPACE}_spec"):
            rst = f".. autofunction:: interpkit.plugins.hookspecs.{name}"
            parts.append((inspect.getsourcelines(function)[1], f"## {name}\n\n```{{eval-rst}}\n{rst}\n```"))
    return "\n\n".join(text for _, text in sorted(parts))


# ----------------------------------------------------------------------------------------------- checks


def checks() -> str:
    """Return one section per kind of component, with the name and requirement of each check."""
    from interpkit.testing.checks import COMPONENTS, checks_of_kind

    parts = []
    for kind in (*COMPONENTS, "loader", "target"):
        rows = [(f"`{check.name}`", f"{escaped(check.promise)}.") for check in checks_of_kind(kind)]
        parts += [f"### {kind.capitalize()}", table(("check", "requirement"), rows)]
    return "\n\n".join(parts)


# --------------------------------------------------------------------------------------------- commands


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and all its subcommands, each with the words that call it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


def commands() -> str:
    """Return one section per command of the command line, generated from its help."""
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
                usage, help_ = record
                title = getattr(parameter, "rich_help_panel", None) or "Arguments and options"
                panels.setdefault(title, []).append((f"`{usage}`", escaped(help_)))
        sections += [f"{title}:\n\n{table(('option', 'meaning'), rows)}" for title, rows in panels.items()]
    return "\n\n".join(sections)


def _help(text: str) -> str:
    """Return a command's help with its example as a code block."""
    prose, example, command = inspect.cleandoc(text).partition("Example: ")
    return escaped(prose) + (f"\n```sh\n{command}\n```" if example else "")


def escaped(text: str) -> str:
    """Escape the characters that Markdown would read as markup."""
    return re.sub(r"([*_<\[\]])", r"\\\1", text)


# ------------------------------------------------------------------------------------------- components


def bundled() -> set[str]:
    """Return the names of the bundled plugins and of the core."""
    points = importlib.metadata.distribution(DISTRIBUTION).entry_points
    return {"interpkit", *(point.name for point in points if point.group == "interpkit")}


def components() -> str:
    """Return one section per bundled component, with its docstring and its options."""
    from interpkit.plugins.discovery import installed

    owners, parts = bundled(), []
    for kind, title in KIND_TITLES.items():
        entries = [entry for entry in installed().registry.entries(kind) if entry.owner in owners]
        if entries:
            parts.append(f"## {title}")
            parts += [_component(entry) for entry in entries]
    return "\n\n".join(parts)


def _component(entry: Any) -> str:
    described = describing.component(entry)
    heading = f"### {entry.name}\n\n*From the plugin `{entry.owner}`.*"
    if entry.kind == "preset":
        return f"{heading} {described['help']}\n\n```toml\n{tomli_w.dumps(described['recipe'])}```"
    parts = [heading, restructured(described["help"])]
    if described["options"]:
        parts.append(options_table(described["options"], f"{entry.name}."))
    if names := described.get("names"):
        shown = ", ".join(f"`{entry.name}:{name}`" for name in names[:8])
        parts.append(f"Names: {shown}{', ...' if names[8:] else '.'}")
    return "\n\n".join(parts)


def options_table(options: Iterable[dict[str, Any]], prefix: str = "") -> str:
    """Return a table of options in the format of `interpkit plugins show --json`."""
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
    """Return one section for the top-level keys of the recipe and one for each of its fixed tables."""
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
    """Replace the marks of a page by the generated Markdown."""
    source[0] = MARK.sub(lambda mark: globals()[mark[1]](*mark[2].split()), source[0])


def read_docstring(app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring for autodoc as napoleon does, except that a colon in an attribute's is not read as a type."""
    text = "\n".join(lines)
    lines[:] = (_starred(text) if kind in ("attribute", "property") else google(text)).splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the two handlers to Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True}
