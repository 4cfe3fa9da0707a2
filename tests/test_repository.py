"""The files that GitHub and other tools read: they parse, and they agree with the project's own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PARSED = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


def read(*parts: str) -> Any:
    return yaml.safe_load(ROOT.joinpath(*parts).read_text("utf-8"))


@pytest.mark.parametrize("path", PARSED, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_is_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_the_workflow_tests_the_pythons_of_the_noxfile() -> None:
    named = re.search(r"^PYTHONS = \((.*)\)$", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    assert named is not None
    jobs = read(".github", "workflows", "ci.yml")["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == re.findall(r'"(.+?)"', named[1])
    assert set(jobs) >= {"tests", "lint", "docs", "wheel"}


def test_each_target_of_make_in_the_workflow_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    steps = [step for job in read(".github", "workflows", "ci.yml")["jobs"].values() for step in job["steps"]]
    lines = [shlex.split(line) for step in steps for line in step.get("run", "").splitlines()]
    named = {word for words in lines if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named >= {"setup", "lint", "docs"} and named <= targets


def test_each_issue_form_asks_something_with_labels_and_distinct_ids() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text("utf-8"))
        asked = [element for element in form["body"] if element["type"] != "markdown"]
        ids = [element["id"] for element in asked]
        assert form["name"] and form["description"] and form["labels"]
        assert ids and len(set(ids)) == len(ids) and all(element["attributes"]["label"] for element in asked)


def test_the_hooks_before_a_commit_are_tools_of_make_lint() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = {hook["id"]: hook["entry"].split() for hook in repository["hooks"]}
    assert {"ruff", "ruff-format", "mypy", "import-linter", "prose"} <= set(entries)
    lint = (ROOT / "Makefile").read_text("utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for name in ("ruff", "ruff-format", "mypy", "import-linter"):
        assert entries[name][0].replace(".venv/bin", "$(BIN)") in lint
    assert (ROOT / entries["prose"][1]).is_file()


def test_the_citation_has_what_the_format_requires_and_names_the_paper() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["title"] in (ROOT / "README.md").read_text("utf-8")
    assert [author["family-names"] for author in paper["authors"]] == ["Suhail", "Sethi"]
