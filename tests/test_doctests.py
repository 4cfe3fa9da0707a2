"""Every example in a docstring runs as it stands, pasted into a fresh Python, and every bundled component has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import interpkit
from interpkit import testing
from interpkit.errors import DISTRIBUTION
from interpkit.plugins.discovery import Plugins

ROOT = Path(__file__).parent.parent
BUNDLED = [point for point in entry_points(group="interpkit") if point.dist and point.dist.name == DISTRIBUTION]
COMPONENTS = {
    f"{entry.kind} {entry.name}": entry.item if inspect.isclass(entry.item) else type(entry.item)
    for entry in Plugins(BUNDLED).registry.entries()
    if entry.kind != "preset"
}
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (interpkit, testing)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
LIKE_CHECK = "it is called as testing.check is"
WITHOUT = {
    "loader hub-mixin": "it loads a class from a module of the user's own",
    "interpkit.testing.check_attribution": LIKE_CHECK,
    "interpkit.testing.check_audit": LIKE_CHECK,
    "interpkit.testing.check_conditioner": LIKE_CHECK,
    "interpkit.testing.check_generator": LIKE_CHECK,
    "interpkit.testing.check_inverter": LIKE_CHECK,
    "interpkit.testing.check_loader": LIKE_CHECK,
    "interpkit.testing.check_loss": LIKE_CHECK,
    "interpkit.testing.check_metric": LIKE_CHECK,
    "interpkit.testing.check_target": LIKE_CHECK,
}
"""What needs no example, each with the reason."""
EXTRAS = {
    "Evolution": "cma",
    "OnnxLoader": "onnx2torch",
    "TimmFolderLoader": "timm",
    "TimmModels": "timm",
    "TransformersFolderLoader": "transformers",
    "TransformersModels": "transformers",
}
"""Packages of extras, by the class whose example is skipped where the package is not installed."""


def examples() -> Iterator[doctest.DocTest]:
    """Yield the examples of every docstring in interpkit/ and plugins/."""
    for folder in (ROOT / "interpkit", ROOT / "plugins"):
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text("utf-8"):
                parts = path.relative_to(ROOT if folder.name == "interpkit" else folder).with_suffix("").parts
                module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
                yield from (found for found in doctest.DocTestFinder().find(module) if found.examples)


def has_example(item: Any) -> bool:
    return bool(doctest.DocTestParser().get_examples(item.__doc__ or ""))


def run(example: doctest.DocTest) -> str:
    """Run an example in an empty namespace and return the report of what differs; empty if nothing does."""
    report = io.StringIO()
    example.globs = {"__name__": "__main__"}
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.write)
    return report.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the formats' own libraries
@pytest.mark.parametrize("example", [pytest.param(found, id=found.name) for found in examples()])
def test_example(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(doctest.OPTIONFLAGS_BY_NAME["SKIP"] in line.options for line in example.examples)
    if package := EXTRAS.get(example.name.rpartition(".")[2]):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    report = run(example)
    assert not report, report


@pytest.mark.parametrize("name", [*COMPONENTS, *FUNCTIONS])
def test_each_component_and_function_has_an_example(name: str) -> None:
    if has_example((COMPONENTS | FUNCTIONS)[name]) == (name in WITHOUT):
        pytest.fail(f"{name} needs an example in its docstring, or a reason in WITHOUT; and not both.")


def test_the_list_of_exceptions_is_short_and_up_to_date() -> None:
    assert all(WITHOUT.values())
    assert WITHOUT.keys() <= (COMPONENTS | FUNCTIONS).keys()
    assert len(WITHOUT) <= 12


def test_a_wrong_or_missing_example_is_noticed() -> None:
    def example_of(docstring: str) -> doctest.DocTest:
        return doctest.DocTestParser().get_doctest(docstring, {"torch": None}, "planted", None, 0)

    assert run(example_of(">>> 1 + 1\n2\n")) == ""
    assert "Expected:\n    3" in run(example_of(">>> 1 + 1\n3\n"))
    assert "NameError" in run(example_of(">>> torch.zeros(2)\n"))  # nothing is imported for an example

    class Bare:
        """A component without an example."""

    assert not has_example(Bare)
    Bare.__doc__ = "A component.\n\n    Example:\n        >>> 1 + 1\n        2\n"
    assert has_example(Bare)
