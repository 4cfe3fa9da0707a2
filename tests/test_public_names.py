"""Plugins stand on public ground: those that ship with interpkit import what a third party can, and no more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import interpkit

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("plugins", "examples") for path in (ROOT / part).rglob("*.py"))


def trespasses(source: str, public: set[str]) -> Iterator[str]:
    """Yield each use of interpkit that goes beyond its public names, as ``line: what``."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    imports = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names = {alias.asname or alias.name for alias in imports if alias.name == "interpkit"}
    for node in nodes:
        used: list[str] = []
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names if alias.name.startswith("interpkit.")]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            if node.module == "interpkit":
                used = [alias.name for alias in node.names if alias.name not in public]
            elif node.module.startswith("interpkit."):
                used = [node.module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            used = [node.attr] if node.attr not in public else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            constants = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            used = [name for name in constants if name.startswith("interpkit.")]
        yield from (f"{node.lineno}: {what}" for what in used)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_and_examples_use_public_names_alone(path: Path) -> None:
    public = set(interpkit.__all__) | ({"testing"} if "tests" in path.parts[len(ROOT.parts) :] else set())
    assert list(trespasses(path.read_text("utf-8"), public)) == []


def test_every_bundled_plugin_and_the_third_party_one_were_read() -> None:
    read = {path.parent.name for path in SOURCES}
    assert {folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists()} <= read
    assert "interpkit_infogan" in read


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import interpkit.runs.folder", ["1: interpkit.runs.folder"]),
        ("import interpkit.runs.folder as runs", ["1: interpkit.runs.folder"]),
        ("from interpkit.inversion.loop import train", ["1: interpkit.inversion.loop"]),
        ("def f():\n    from interpkit.runs.folder import Run", ["2: interpkit.runs.folder"]),
        ("from interpkit import Target, runs", ["1: runs"]),
        ("from interpkit import testing", ["1: testing"]),
        ("import interpkit as ik\nik.plugins.installed()", ["2: plugins"]),
        ("import interpkit\ninterpkit._version", ["2: _version"]),
        ("import importlib\nimportlib.import_module('interpkit.runs.folder')", ["2: interpkit.runs.folder"]),
        ("__import__('interpkit.runs.folder')", ["1: interpkit.runs.folder"]),
        ("import interpkit\nfrom interpkit import Target\nfrom interpkit_losses.variety import Spread", []),
        ("from .runs import Run\nfrom . import runs\ninterpkit.Options", []),
        ("import interpkit\ninterpkit.Options\ninterpkit.load_target('model')", []),
    ],
)
def test_a_trespass_is_seen(source: str, found: list[str]) -> None:
    assert list(trespasses(source, set(interpkit.__all__))) == found
