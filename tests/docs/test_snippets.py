"""Every snippet of the README, CONTRIBUTING and the pages is executed, page by page, in order.

What a block is, its language says: ``python`` runs in the page's namespace, ``sh`` line by line, through the command
line's own code in this process; ``text`` is output, and compared where it is an error. A block whose first line is the
name of a file in a comment is that file. A block under ``<!-- not run: REASON -->`` is not run. The page's folder holds
what ``<!-- needs: ... -->`` names; see conftest.py. Steps, samples and widths are cut: the pages show real ones.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from interpkit.api import audit, concepts
from interpkit.attribution import dictionaries, export, faithfulness
from interpkit.cli import app
from interpkit.evaluation import scoring
from interpkit.inversion import interpolation
from interpkit.plugins import assembly
from interpkit.plugins.discovery import Plugins, installed
from interpkit.testing import toy_models

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "sh", "text", "toml", "json", "yaml"}
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
NEEDS = re.compile(r"<!-- needs: (.+?) -->", re.DOTALL)
"""The two marks are comments on lines of their own."""
FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
STEPS, BATCH, WIDTH, SAMPLES = 3, 16, 8, 12
AUDITED = 20
AUDIT = {"steps": STEPS, "starts": 2, "images": BATCH, "goal": 0.0}  # in so few steps, any change will do
MOST_NOT_RUN = 20


@dataclass(frozen=True)
class Block:
    """One block of a page, from the line on that it stands at."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, but for Sphinx's own directives."""
    found, before = [], ""
    for token in MarkdownIt("commonmark").parse(page.read_text("utf-8")):
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            assert token.map is not None
            reason = NOT_RUN.search(before)
            found.append(Block(token.info.strip(), token.content, token.map[0] + 2, reason[1] if reason else None))
        if token.content or token.type == "fence":
            before = token.content if token.type == "html_block" else ""
    return found


def needs(page: Path) -> list[str]:
    """Return what a page needs, in order."""
    comments = [t.content for t in MarkdownIt("commonmark").parse(page.read_text("utf-8")) if t.type == "html_block"]
    return [name for comment in comments for names in NEEDS.findall(comment) for name in names.split()]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ------------------------------------------------------------------------------------- running a page


class Reader:
    """Does what a page says, in its folder."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page = page
        self.monkeypatch = monkeypatch
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.folder = Path.cwd()
        self.site = self.folder / "site-packages"
        monkeypatch.syspath_prepend(self.folder)

    def follow(self) -> None:
        """Run the blocks one after another; an error that the page shows must be the one that comes."""
        todo = [block for block in blocks(self.page) if not block.not_run]
        for block, after in zip(todo, [*todo[1:], None], strict=True):
            shown = after.text if after is not None and after.text.startswith("error:") else None
            place = f"{name_of(self.page)}:{block.line}"
            if written := FILE.match(block.text):
                path = Path(written[1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, "utf-8")
            elif block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.text, str(self.page), "exec"), self.names)  # noqa: S102
            elif block.language == "sh":
                lines = [line for line in block.text.replace("\\\n", " ").splitlines() if shlex.split(line, True)]
                for line in lines:
                    self.run(line, place, shown if line is lines[-1] else None)

    def run(self, line: str, place: str, shown: str | None) -> None:
        """Run one line of a shell; with ``shown``, it must fail with this error."""
        words = shlex.split(line, comments=True)
        with self.monkeypatch.context() as variables:
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                variables.setenv(name, value)
            program, *arguments = words
            if program == "interpkit":
                self.forget()  # a command is a process of its own
                result = CliRunner().invoke(app, arguments)
                told = f"{place}: {line}\nexit code {result.exit_code}\n{result.output}"
                assert (result.exit_code != 0) == (shown is not None), told
                if shown is not None:
                    assert alike(shown, result.stderr), f"{told}\nThe page shows:\n{shown}"
                return
        assert shown is None, f"{place}: only an error of interpkit itself can be compared"
        getattr(self, f"run_{program}")(arguments)

    def run_rm(self, arguments: list[str]) -> None:
        shutil.rmtree(arguments[-1])

    def run_python(self, arguments: list[str]) -> None:
        script, *rest = arguments
        self.monkeypatch.setattr(sys, "argv", [script, *rest])
        runpy.run_path(script, run_name="__main__")

    def run_pip(self, arguments: list[str]) -> None:
        """Install a folder, editable or not, into a place of the page's own, or take a package out of it."""
        if arguments[0] == "uninstall":
            for path in self.site.glob(f"*{arguments[-1].replace('-', '_')}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        subprocess.run([*command, "--target", str(self.site), arguments[-1]], check=True)
        self.monkeypatch.syspath_prepend(self.site)
        if "-e" in arguments:
            self.monkeypatch.syspath_prepend(Path(arguments[-1]).absolute())

    def run_pytest(self, arguments: list[str]) -> None:
        self.forget()
        assert pytest.main([*arguments, "-p", "no:cacheprovider"]) == 0

    def forget(self) -> None:
        """Forget the modules that the page has brought, and the plugins that were found."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(self.folder)):
                del sys.modules[name]
        importlib.invalidate_caches()
        installed.cache_clear()


def alike(shown: str, said: str) -> bool:
    """Say whether a message is the one that is shown: ``...`` stands for anything, and lines may break anywhere."""
    shown, said = " ".join(shown.split()), " ".join(said.split())
    return re.search(".*?".join(map(re.escape, shown.split("..."))), said) is not None


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what takes long: steps, images a step, samples, the pictures of the report, the checks of attributions."""
    resolve, sample_size, chosen = assembly.resolve, scoring.sample_size, audit._chosen
    inverted = audit._inverted

    def shorter(*arguments: Any) -> Any:
        recipe = resolve(*arguments)
        least = max(BATCH, 2 * recipe.generators)
        update: dict[str, Any] = {"steps": min(recipe.steps, STEPS), "batch_size": min(recipe.batch_size, least)}
        if recipe.generator is not None and "min_width" in recipe.generator.options:
            update["generator"] = recipe.generator.model_copy(update={"width": WIDTH, "min_width": WIDTH})
        return recipe.model_copy(update=update)

    def fewer(inversion: Any) -> dict[str, Any]:
        return {
            key: min(value, SAMPLES * (1 if key == "per_class" else 10))
            for key, value in sample_size(inversion).items()
        }

    def quick(*arguments: Any) -> Any:
        tests = chosen(*arguments)
        for test in tests.values():
            known = test.options.model_dump()
            few = {name: min(known[name], most) for name, most in AUDIT.items() if name in known}
            test.options = test.options.model_copy(update=few)
        return tests

    def recognized(*arguments: Any) -> Any:
        """Take enough steps for samples that the classifier tells apart."""
        with monkeypatch.context() as steps:
            steps.setattr(assembly, "resolve", lambda *them: resolve(*them).model_copy(update={"steps": AUDITED}))
            return inverted(*arguments)

    monkeypatch.setattr(audit, "_chosen", quick)
    monkeypatch.setattr(audit, "_inverted", recognized)
    monkeypatch.setattr(assembly, "resolve", shorter)
    monkeypatch.setattr(scoring, "sample_size", fewer)
    monkeypatch.setattr(interpolation, "FRAMES", 2)
    monkeypatch.setattr(export, "PER_CLASS", 1)
    monkeypatch.setattr(export, "CHECKED", 2)
    monkeypatch.setattr(dictionaries, "STEPS", {"topk": 20, "nmf": 2})
    monkeypatch.setattr(concepts, "SHOWN", 2)
    monkeypatch.setitem(dictionaries.LATENTS, "topk", 16)
    monkeypatch.setitem(dictionaries.LATENTS, "nmf", 8)
    monkeypatch.setattr(faithfulness, "DRAWS", 2)
    # Kept once made, and a short one is not for the tests after these.
    monkeypatch.setattr(toy_models, "_tiny_inversion", toy_models._tiny_inversion.__wrapped__)


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    provide: Callable[[str, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    """Return a reader of the page ``request.param``, in a folder with what the page needs."""
    page: Path = request.param
    for name in needs(page):
        provide(name, tmp_path)
    request.getfixturevalue("cut")  # not what was prepared: that is what a reader would have
    monkeypatch.chdir(tmp_path)
    reader = Reader(page, monkeypatch)
    yield reader
    reader.forget()
    plt.close("all")


RUN = [page for page in PAGES if any(not block.not_run for block in blocks(page))]


@pytest.mark.parametrize("reader", RUN, ids=name_of, indirect=True)
def test_the_page_does_what_it_says(reader: Reader) -> None:
    reader.follow()


COMPONENTS = [
    block.text
    for block in blocks(ROOT / "docs" / "how-to" / "write-each-kind-of-plugin.md")
    if FILE.match(block.text) and "def register" in block.text
]


@pytest.mark.parametrize("source", COMPONENTS, ids=[text.split()[1] for text in COMPONENTS])
def test_each_component_of_the_how_to_satisfies_its_contract(source: str, plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / source.split()[1]
    path.write_text(source, "utf-8")
    result = CliRunner().invoke(app, ["plugins", "check", str(path)])
    assert result.exit_code == 0 and " kept" in result.stdout, result.output


def test_the_how_to_has_a_component_of_each_kind() -> None:
    bases = {base for text in COMPONENTS for base in re.findall(r"\(interpkit\.(\w+)\):", text)} - {"Options"}
    names = ("Conditioner", "Generator", "InversionLoss", "Loader", "Metric", "Attribution", "Inverter", "Audit")
    assert bases == {*names, "Inversion"}


# ------------------------------------------------------------------------------------ what pages may have


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_block_says_what_it_is(page: Path) -> None:
    assert [(block.line, block.language) for block in blocks(page) if block.language not in LANGUAGES] == []


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    reasons = [(name_of(page), block.line, block.not_run) for page in PAGES for block in blocks(page) if block.not_run]
    assert len(reasons) <= MOST_NOT_RUN, reasons
    assert all(len(reason.split()) >= 3 for _, _, reason in reasons), reasons


def test_every_error_under_troubleshooting_is_compared() -> None:
    found = blocks(ROOT / "docs" / "troubleshooting.md")
    assert not any(block.not_run for block in found)
    errors = [i for i, block in enumerate(found) if block.text.startswith("error:")]
    assert errors and all(found[i - 1].language == "sh" for i in errors)


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        ("error: no x.", "error: no x.", True),
        ("error: no ... in ...", "error: no y in\n  z", True),
        ("error: no x.", "error: no y.", False),
        ("error: a (b)", "error: a b", False),
    ],
)
def test_messages_are_compared_to_the_letter_but_for_dots(shown: str, said: str, same: bool) -> None:
    assert alike(shown, said) == same
