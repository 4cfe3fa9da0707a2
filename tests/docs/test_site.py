"""The site as a whole: nothing public is missing from the reference, no page is lost, no link is dead."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

import interpkit
from interpkit import testing
from interpkit.cli import app
from interpkit.plugins import hookspecs
from interpkit.plugins.discovery import installed

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SITE = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
PUBLIC = sorted({*interpkit.__all__, *(f"testing.{name}" for name in testing.__all__)})
HOOKS = [
    name for name, function in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(function, "interpkit_spec")
]
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|mnt)/|C:\\Users")


def generated() -> ModuleType:
    """Return the extension that makes the reference."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("generated", DOCS / "_extensions" / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> Iterator[tuple[str, Any]]:
    """Return every command of the command line, each with the words that call it."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}")

    return walk(typer.main.get_command(app), "interpkit")


# ------------------------------------------------------------------------------------------ the reference


def read(*pages: str) -> str:
    return "\n".join((DOCS / "reference" / page).read_text("utf-8") for page in pages)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_stands_in_the_reference(name: str) -> None:
    assert re.search(rf"(?<![\w.])(interpkit\.)?{re.escape(name)}(?![\w.])", read("python.md", "testing.md"))


@pytest.fixture(scope="module")
def tested() -> set[str]:
    """Return all words of the tests but those of this folder, which names everything."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "docs"]
    return {word for path in files for word in re.findall(r"\w+", path.read_text("utf-8"))}


@pytest.mark.parametrize("name", [*PUBLIC, *HOOKS])
def test_each_public_name_and_hook_is_named_in_a_test(name: str, tested: set[str]) -> None:
    assert name.rpartition(".")[2] in tested, f"no test names {name}: write one"


def test_each_hook_stands_in_the_reference() -> None:
    assert HOOKS
    assert "<!-- generated: hooks -->" in read("hooks.md")
    said = generated().hooks()
    assert re.findall(r"^## (\w+)$", said, re.MULTILINE) == [name for name in vars(hookspecs) if name in HOOKS]
    assert all(f"autofunction:: interpkit.plugins.hookspecs.{name}\n" in said for name in HOOKS)


def test_each_command_and_option_stands_in_the_reference_with_its_help() -> None:
    assert "<!-- generated: commands -->" in read("command-line.md")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", generated().commands(), re.MULTILINE | re.DOTALL))
    missing = []
    for path, command in commands():
        section = sections.pop(path)
        for parameter in command.params:
            for words in (*parameter.opts, *parameter.secondary_opts):
                shown = words if words.startswith("-") else parameter.get_help_record(typer.Context(command))[0]
                row = re.search(
                    rf"^\| `[^`|]*{re.escape(shown)}(?![\w-]).*\| (.*) \|$", section.replace(r"\|", "|"), re.MULTILINE
                )
                if row is None or not row[1].strip():
                    missing.append(f"{path} {words}")
    assert missing == []
    assert sections == {}


def test_each_bundled_component_and_option_stands_in_the_reference() -> None:
    assert "<!-- generated: components -->" in read("components.md")
    maker = generated()
    said, owners = maker.components(), maker.bundled()
    for entry in installed().registry.entries():
        if entry.owner in owners:
            assert f"\n### {entry.name}\n" in said
            for option in getattr(getattr(entry.item, "Options", None), "model_fields", {}):
                assert f"`{entry.name}.{option}`" in said


# ---------------------------------------------------------------------------------------------- the pages


def listed(page: str) -> list[str]:
    """Return the pages in a page's tables of contents."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    found: list[str] = []
    for body in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in body.splitlines():
            if line and not line.startswith(":"):
                place = (DOCS / page).parent
                found += [p.relative_to(DOCS).with_suffix("").as_posix() for p in sorted(place.glob(f"{line}.md"))] or [
                    line
                ]
    return found


def test_each_page_is_reached_from_the_index() -> None:
    reached, todo = set(), ["index"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            todo += listed(page)
    assert reached == SITE


def links(page: Path) -> Iterator[str]:
    """Return the links and images of a page."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8")):
        for child in token.children or ():
            yield from (str(child.attrs[key]) for key in ("href", "src") if key in child.attrs)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    tokens = MarkdownIt("commonmark").parse(page.read_text("utf-8"))
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_each_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        place = page if not path else (page.parent / path).resolve()
        made = place.is_file() and "<!-- generated:" in place.read_text("utf-8", "ignore")
        if not place.exists() or (anchor and not made and anchor not in anchors(place)):
            dead.append(link)
    assert dead == []


def test_each_figure_of_the_overview_of_results_stands_on_the_page_it_links_to() -> None:
    overview = (DOCS / "results.md").read_text("utf-8")
    rows = re.findall(r"^\| \[.+?\]\((results/[\w-]+\.md).*?\) \| (.+) \|$", overview, re.MULTILINE)
    figure = r"(?<![\d.])\d*[./]\d+"
    measured = {page: set(re.findall(figure, (DOCS / page).read_text("utf-8"))) for page, _ in rows}
    assert len(measured) == len(list((DOCS / "results").glob("*.md")))
    assert [
        (page, found) for page, text in rows for found in re.findall(figure, text) if found not in measured[page]
    ] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_page_names_a_place_on_somebodys_machine(page: Path) -> None:
    assert MACHINE.findall(page.read_text("utf-8")) == []
