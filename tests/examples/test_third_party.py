"""A third party's package, examples/interpkit-infogan: installed, listed, checked, used, and missed when it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "examples" / "interpkit-infogan"
VERSION = "0.1.0"
Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder of its own that the package is installed into, beside the interpkit that is there."""
    folder = install(PACKAGE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "interpkit_infogan",
        f"interpkit_infogan-{VERSION}.dist-info",
    ]
    return folder


@pytest.fixture(scope="module")
def run(
    interpkit_with: Callable[..., Any],
    tiny_model: Path,
    quick_flags: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run of the tiny classifier with the package's preset."""
    folder = tmp_path_factory.mktemp("runs") / "infogan"
    done = interpkit_with("invert", tiny_model, *quick_flags, "--plugin", "infogan", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_is_listed_and_shown(interpkit_with: Callable[..., Any], site: Path) -> None:
    done = interpkit_with("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    (listed,) = [row for row in json.loads(done.stdout) if row["name"] == "infogan"]
    assert (listed["version"], listed["status"], listed["error"]) == (VERSION, "ok", None)
    assert listed["provides"] == {"loss": ["infogan"], "preset": ["infogan"]}

    shown = interpkit_with("plugins", "show", "infogan")
    assert shown.returncode == 0, shown.stderr
    assert all(words in shown.stdout for words in ("infogan.codes", "mutual information", "weight = 0.5"))
    assert str(site) in shown.stdout.replace("\n", "")


def test_it_passes_the_check_from_the_shell(interpkit_with: Callable[..., Any]) -> None:
    done = interpkit_with("plugins", "check", "infogan", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["kind"], row["name"], row["broken"], row["waived"], row["unchecked"]) == ("loss", "infogan", [], {}, [])
    assert {"gradcheck", "two-processes", "converges"} <= set(row["kept"])


def test_a_run_with_it_has_its_term_and_names_it(run: Path) -> None:
    steps = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(isinstance(step["infogan"], float) for step in steps)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["plugins"]["infogan"]["version"] == VERSION
    assert manifest["presets"] == ["vecmat", "infogan"]
    assert "[losses.infogan]" in (run / "recipe.toml").read_text()
    assert (run / "report.html").exists()


def test_such_a_run_is_evaluated_and_says_which_package_it_needs_once_that_is_gone(
    interpkit_with: Callable[..., Any], run: Path
) -> None:
    done = interpkit_with("evaluate", run, "--json")
    assert done.returncode == 0, done.stderr
    assert "diversity" in json.loads(done.stdout)

    before = {path.name: path.read_bytes() for path in run.iterdir()}
    model = json.loads((run / "manifest.json").read_text())["model"]["path"]
    for arguments in (["evaluate", run], ["invert", model, "--out", run, "--resume"]):
        missed = interpkit_with(*arguments, gone=True)
        assert missed.returncode == 4, missed.stderr
        assert f"pip install interpkit-infogan=={VERSION}" in " ".join(missed.stderr.split())
        assert "Traceback" not in missed.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_its_own_tests_pass(python_path: str, run_python: Python) -> None:
    environment = {"PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=PACKAGE, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_this_process_never_had_it() -> None:
    assert "interpkit_infogan" not in sys.modules
