"""The commands that errors tell the user to type, which depend on where interpkit is imported from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import interpkit
from interpkit import errors

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let the package lie in a folder with a space in its name; return the folder."""
    root = tmp_path / "my work"
    (root / "interpkit").mkdir(parents=True)
    monkeypatch.setattr(errors, "__file__", str(root / "interpkit" / "errors.py"))
    return root


def test_the_name_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == errors.DISTRIBUTION
    own = [bound for extra in ("all", "dev") for bound in project["optional-dependencies"][extra]]
    assert all(bound.startswith(f"{errors.DISTRIBUTION}[") for bound in own)


def test_from_a_wheel_pip_installs_the_distribution(installed_in: Path) -> None:
    assert interpkit.install_extra("onnx") == "pip install 'network-inversion[onnx]'"
    assert errors.upgrade() == "pip install --upgrade network-inversion"


@pytest.mark.parametrize("content", ['[project]\nname = "another"\n', "[tool]\n", "not TOML"])
def test_a_wheel_in_the_folder_of_another_project_is_not_a_clone(installed_in: Path, content: str) -> None:
    (installed_in / "pyproject.toml").write_text(content, "utf-8")
    assert interpkit.install_extra("onnx") == "pip install 'network-inversion[onnx]'"


def test_from_a_clone_pip_installs_the_clone(installed_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed_in / "pyproject.toml").write_text(f'[project]\nname = "{errors.DISTRIBUTION}"\n', "utf-8")
    assert interpkit.install_extra("onnx") == f"pip install -e '{installed_in}[onnx]'"
    assert errors.upgrade() == f"git -C '{installed_in}' pull"
    monkeypatch.chdir(installed_in)
    assert interpkit.install_extra("onnx") == "pip install -e '.[onnx]'"


def test_these_tests_run_from_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert interpkit.install_extra("timm") == "pip install -e '.[timm]'"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n too wide\nor too high"), "too wide"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
    ids=repr,
)
def test_the_first_line_of_an_error_says_something(error: Exception, line: str) -> None:
    assert errors.first_line(error) == line
