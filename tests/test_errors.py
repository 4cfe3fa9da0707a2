"""What errors tell the user to type: it depends on where interpkit is imported from, and on who reads the message."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import interpkit
from interpkit import errors
from interpkit.errors import command, in_shell, setting

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


@pytest.mark.parametrize(
    ("name", "value", "flag", "argument"),
    [
        ("batch_size", 140, "--batch-size 140", "batch_size=140"),
        ("resume", True, "--resume", "resume=True"),
        ("out", None, "--out", "out"),
        ("labels", [3, 5], "--labels 3,5", "labels=[3, 5]"),
        ("model", "PATH", "--model PATH", "model=PATH"),
        ("arch", "py:my net.py:Net", "--arch 'py:my net.py:Net'", "arch='py:my net.py:Net'"),
        ("preset", "vecmat", "--preset vecmat", "presets=['vecmat']"),
        ("loss", "NAME", "--loss NAME", "losses={NAME: 1.0}"),
        ("evaluator", "MODEL", "--evaluator MODEL", "evaluators=[MODEL]"),
        ("arch", "FAMILY:NAME", "--arch FAMILY:NAME", "arch='FAMILY:NAME'"),
        ("input_shape", "C,H,W", "--input-shape C,H,W", "input_shape=(C, H, W)"),
        ("optimizer.lr", 0.001, "--set optimizer.lr=0.001", "options={'optimizer.lr': 0.001}"),
        ("edges.data", "my data.npz", "--set 'edges.data=my data.npz'", "options={'edges.data': 'my data.npz'}"),
        ("optimizer.lr", None, "--set optimizer.lr", "options['optimizer.lr']"),
    ],
)
def test_setting_is_a_flag_in_the_shell_and_an_argument_in_python(
    name: str, value: object, flag: str, argument: str
) -> None:
    assert setting(name, value) == argument
    with in_shell():
        assert setting(name, value) == flag
    assert setting(name, value) == argument


def test_command_is_a_function_in_python() -> None:
    assert command("evaluate", "runs/1") == "interpkit.evaluate('runs/1')"
    assert command("report", "RUN") == "interpkit.write_report(RUN)"
    assert command("sample", "RUN") == "interpkit.load_inversion(RUN).sample()"
    with in_shell():
        assert command("report", "my runs/1") == "interpkit report 'my runs/1'"


def test_the_shell_is_left_when_a_block_raises() -> None:
    with pytest.raises(KeyError), in_shell():
        raise KeyError
    assert setting("resume") == "resume=True"


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SOURCES = [
    path
    for path in sorted((ROOT / "interpkit").rglob("*.py"))
    if path.relative_to(ROOT / "interpkit").parts[0] not in ("cli", "scaffold", "errors.py")
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_flag_of_the_command_line(path: Path) -> None:
    strings = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
    flags = {flag for text in strings if isinstance(text, str) for flag in FLAG.findall(text)}
    assert flags <= {"--upgrade", "--arch-arg", "--unit"}, "write errors.setting(...)"  # pip's, and declarations
