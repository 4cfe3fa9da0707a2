"""The core knows no bundled plugin: no string in `interpkit` names a component, preset or figure of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpkit.plugins.discovery import installed

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "interpkit"
SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".jinja", ".html", ".js"))

ALLOWED = {
    "predictions": "what a classifier answers",
    "decoder": "a network from answers to pictures",
    "alignment": "how things stand in a row",
    "generator": "a kind of component, and the default inverter of a recipe",
    "conditioner": "a kind of component",
    "label": "what a class is called in files and tables",
    "vector": "a part of a condition",
    "matrix": "English, of a confusion matrix",
    "dense": "English, of layers",
    "kl": "the divergence that every run's metrics.json has",
    "cosine": "the measure by which class evidence is compared",
    "spread": "English, of a distribution",
    "statistics": "English, of batch norms",
    "boundary": "English, of classes",
    "min": "English, of minimum, and a function",
    "prior": "English, of a distribution",
    "score": "English",
    "constrained": "a layout of matplotlib",
    "pixels": "English, of images",
    "precision": "a field of the recipe",
    "reference": "the option --reference of evaluate",
    "canaries": "the option --canaries of evaluate",
    "ood": "the option --ood of evaluate",
    "confidence": "a column of the tables of samples",
    "rejected": "English",
    "activation": "English, of layers",
    "excite": "English, of units",
    "evaluators": "the option --evaluator of evaluate, and its entry in files",
    "agreement": "English, of two maps",
    "occlusion": "English",
    "kept": "English",
    "clean": "English",
    "chance": "English",
    "student": "English, of the classifier that distill trains",
    "labels": "a field of the recipe",
    "logits": "what a classifier returns",
    "accuracy": "English",
    "target_accuracy": "a figure that distill prints",
    "fidelity": "likewise",
    "rank": "English, of a process",
    "relative": "English, of errors and paths",
    "checkpoint": "a file of a run",
    "safetensors": "the library and its files",
    "torchvision": "the library, and its data sets",
    "onnx": "the library and its files",
    "captum": "the library",
    "torchscript": "the format of torch",
    "losses": "a table of the recipe",
    "metrics": "a file of a run",
    "targets": "the plural of target",
    "baselines": "English, of attributions",
    "interpkit": "the package",
    "mean": "English",
    "noise": "English",
    "robustness": "in the title of a paper",
    "audit": "a kind of component, and a command",
    "margin": "English, of logits",
    "p_value": "a key of audit.json",
    "photo": "English, of pictures",
    "ensemble": "several generators as one",
}
"""Names of bundled components that are words of the core's own, each with the reason."""

FIGURES = re.compile(r"[a-z][a-z0-9_]*")


def bundled_names() -> set[str]:
    """Return the names of the bundled components, presets and plugins, and of the figures that metrics describe."""
    entries = list(installed().registry.entries())
    names = {entry.name for entry in entries} | {entry.owner for entry in entries}
    for entry in entries:
        for pattern in getattr(entry.item, "describe", {}):
            names |= set(FIGURES.findall(pattern.replace("\\.", " ")))
    return names - {"count"}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a source file but its docstrings, whose examples show users what is bundled."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    tree = ast.parse(text)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def found(text: str, names: set[str]) -> set[str]:
    """Return the names that stand in a text as words of their own."""
    return set(re.findall(r"(?<![\w-])[a-z][a-z0-9_-]*(?![\w-])", text)) & names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_string_of_the_core_names_what_is_bundled(path: Path) -> None:
    names = bundled_names() - ALLOWED.keys()
    hits = [f"{line}: {sorted(hit)}" for line, text in strings(path) if (hit := found(text, names))]
    assert hits == []


def test_a_name_in_a_string_is_found() -> None:
    names = bundled_names()
    assert found("try --preset training-like over it", names) == {"training-like"}
    assert found("the key excess_vendi, or vecmats", names) == {"excess_vendi"}
    assert {"vecmat", "integrated-gradients", "duplicates", "coverage", "upconv"} <= names - ALLOWED.keys()


def test_each_allowed_word_is_the_name_of_something_bundled() -> None:
    plugins = set(installed().found)
    assert set(ALLOWED) <= bundled_names() | plugins | {"conditioner", "interpkit"}
