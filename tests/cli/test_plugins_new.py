"""`interpkit plugins new`: for each kind a package that installs, passes its own tests and is used, all untouched."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app
from interpkit.scaffold import names, package
from interpkit.scaffold.kinds import Kind

ROOT = Path(__file__).parents[2]
KINDS = list(Kind)
Packages = dict[Kind, Path]
Outcome = tuple[int, str, str]


def new(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plugins", "new", *map(str, arguments)])


def fails(words: str, *arguments: str | Path) -> None:
    """Run the command; it must end with 2 and one readable message that has the words."""
    result = new(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.search(words, message), message
    assert "Traceback" not in message and "fault of interpkit" not in message


def name_of(kind: Kind) -> str:
    return f"made-{kind}"


# ------------------------------------------------------------------------------- what is written, installed


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A package of each kind, as the command writes it."""
    place = tmp_path_factory.mktemp("packages")
    folders = {kind: place / name_of(kind) for kind in KINDS}
    for kind, folder in folders.items():
        result = new(name_of(kind), "--kind", kind, "--out", folder)
        assert (result.exit_code, result.stdout) == (0, f"{folder}\n"), result.stderr
    return folders


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, packages: Packages) -> Callable[..., Any]:
    """A runner of the Python of an environment that has all the packages besides all that ours has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    base = {"base": str(folder), "platbase": str(folder)}
    ours = sysconfig.get_path("purelib")
    link = Path(sysconfig.get_path("purelib", "venv", base)) / "ours.pth"
    link.write_text(f"import site; site.addsitedir({ours!r})")
    executable = Path(sysconfig.get_path("scripts", "venv", base)) / Path(sys.executable).name

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [str(executable), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)

    editable = [word for path in packages.values() for word in ("-e", str(path))]
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    installed = run("-m", "pip", "install", *flags, *editable)
    assert installed.returncode == 0, installed.stderr
    return run


COMMANDS = """
import json, sys
from typer.testing import CliRunner
from interpkit.cli import app
ended = [CliRunner().invoke(app, command) for command in json.load(sys.stdin)]
json.dump([(result.exit_code, result.stdout, result.stderr) for result in ended], sys.stdout)
"""


@pytest.fixture(scope="module")
def ended(
    python: Callable[..., Any], packages: Packages, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """How each command of the command line ended, by a name; one process runs them all, as torch takes long to come."""
    place = tmp_path_factory.mktemp("runs")
    quick = ["--steps", "3", "--batch-size", "8", "--device", "cpu", "--seed", "0"]
    over = ["--plugin", "vecmat", "--plugin"]
    flags: dict[Kind, list[str]] = {
        Kind.CONDITIONER: [*over, name_of(Kind.CONDITIONER)],
        Kind.GENERATOR: [*over, name_of(Kind.GENERATOR)],
        Kind.LOSS: [*over, name_of(Kind.LOSS)],
        Kind.TARGET: ["--plugin", "vecmat"],
        Kind.METRIC: ["--plugin", "vecmat"],
        Kind.ATTRIBUTION: ["--plugin", "vecmat"],
        Kind.AUDIT: ["--plugin", "vecmat"],
        Kind.INVERTER: ["--inverter", name_of(Kind.INVERTER)],
    }
    (written,) = re.findall(r'python -c "(.*)"', (packages[Kind.TARGET] / "README.md").read_text())
    example = place / python("-c", written, cwd=place).stdout.strip()
    commands: dict[str, list[str | Path]] = {"list": ["plugins", "list", "--json"]}
    for kind in KINDS:
        model = example if kind == Kind.TARGET else tiny_model
        commands[f"check {kind}"] = ["plugins", "check", name_of(kind)]
        commands[f"invert {kind}"] = ["invert", model, *flags[kind], *quick, "--out", place / kind]
    run = place / Kind.ATTRIBUTION
    commands["attribute"] = ["attribute", run, "--method", name_of(Kind.ATTRIBUTION), "--out", run / "maps"]
    audit = ["--test", name_of(Kind.AUDIT), "--per-class", "4", "--out", place / Kind.AUDIT / "audit"]
    commands["audit"] = ["audit", example, *audit]
    typed = json.dumps([list(map(str, command)) for command in commands.values()])
    done = python("-c", COMMANDS, input=typed)
    assert done.returncode == 0, done.stderr
    outcomes = {name: tuple(outcome) for name, outcome in zip(commands, json.loads(done.stdout), strict=True)}
    return {**outcomes, "place": (0, str(place), "")}


def test_the_packages_own_tests_pass_untouched(python: Callable[..., Any], packages: Packages) -> None:
    done = python("-m", "pytest", "-rA", "-W", "error", "-p", "no:cacheprovider", *packages.values())
    assert done.returncode == 0, done.stdout[-5000:]
    for kind in KINDS:
        kept = re.findall(rf"PASSED .*test_made_{kind}.py::test_satisfies_its_contract\[", done.stdout)
        assert len(kept) >= 5, (kind, done.stdout)
    assert "SKIPPED" not in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_plugins_list_shows_it(ended: dict[str, Outcome], kind: Kind) -> None:
    code, out, _ = ended["list"]
    row = next(row for row in json.loads(out) if row["name"] == name_of(kind))
    assert (code, row["version"], row["status"], row["error"]) == (0, "0.1.0", "ok", None)
    component = "loader" if kind == Kind.TARGET else kind
    assert row["provides"][component] == [name_of(kind)]
    used_by_preset = kind in (Kind.CONDITIONER, Kind.GENERATOR, Kind.LOSS, Kind.INVERTER)
    assert row["provides"].get("preset", []) == ([name_of(kind)] if used_by_preset else [])


@pytest.mark.parametrize("kind", KINDS)
def test_plugins_check_passes(ended: dict[str, Outcome], kind: Kind) -> None:
    code, out, err = ended[f"check {kind}"]
    assert code == 0, out + err
    assert name_of(kind) in out


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_used_from_invert(ended: dict[str, Outcome], kind: Kind) -> None:
    code, out, err = ended[f"invert {kind}"]
    assert code == 0, out + err
    run = Path(ended["place"][1]) / kind
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    name = name_of(kind)
    if kind in (Kind.CONDITIONER, Kind.GENERATOR, Kind.INVERTER):
        assert recipe[kind]["name"] == name
    elif kind == Kind.LOSS:
        assert recipe["losses"][name] == {"weight": 1.0, "margin": 5.0}
        last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
        assert last[name] > 0
    elif kind == Kind.TARGET:
        assert recipe["target"]["path"].endswith(f"example.{name}.json")
        assert recipe["target"]["class_names"][0] == "top left"
    elif kind == Kind.METRIC:
        assert 0 < metrics[name]["share"] < 1
        assert all(0 < row[name]["share"] < 1 for row in metrics["per_class"])
    elif kind == Kind.AUDIT:
        code, out, err = ended["audit"]
        assert code == 0, out + err
        record = json.loads((run / "audit" / "audit.json").read_text())
        assert all(0 < row["p_value"] <= 1 for row in record["tests"][name]["classes"])
    else:
        code, out, err = ended["attribute"]
        assert code == 0, out + err
        assert (run / "maps" / f"{name}.safetensors").exists() and (run / "maps" / f"{name}.png").exists()


# ---------------------------------------------------------------------------------------- the files themselves


def test_the_files_are_all_there(packages: Packages) -> None:
    for kind, folder in packages.items():
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {
            "README.md",
            "LICENSE",
            "pyproject.toml",
            ".gitignore",
            ".github/workflows/test.yml",
            f"interpkit_made_{kind}/__init__.py",
            f"interpkit_made_{kind}/{kind}.py",
            f"tests/test_made_{kind}.py",
        } <= files
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["entry-points"]["interpkit"] == {name_of(kind): f"interpkit_made_{kind}"}
        assert project["dependencies"] == [f"network-inversion>={interpkit.__version__}"]
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        for path in files:
            text = (folder / path).read_text() if not path.endswith((".pyc", ".so")) else ""
            assert "{%" not in text and (path.endswith(".yml") or "{{" not in text), path


@pytest.mark.parametrize(("kind", "most"), [(Kind.LOSS, 15), (Kind.CONDITIONER, 30)])
def test_a_component_takes_few_lines_of_its_own(kind: Kind, most: int) -> None:
    source = package.render("mine", kind)[f"interpkit_mine/{kind}.py"]
    (component,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    own = set(range(component.lineno, (component.end_lineno or 0) + 1))
    for node in ast.walk(component):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            own -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = source.splitlines()
    assert 5 < len([number for number in own if lines[number - 1].strip()]) <= most


@pytest.mark.skipif(shutil.which("ruff", path=sysconfig.get_path("scripts")) is None, reason="ruff is not installed")
@pytest.mark.parametrize("name", ["mine", "x" * 40], ids=["short", "long"])
def test_what_is_written_passes_the_rules_that_interpkit_keeps(tmp_path: Path, name: str) -> None:
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    for kind in KINDS:
        folder = package.write(name[: names.LONGEST], kind, tmp_path / kind)
        ours, theirs = (
            tomllib.loads((place / "pyproject.toml").read_text())["tool"]["ruff"] for place in (ROOT, folder)
        )
        assert {**theirs["lint"], "per-file-ignores": {}} == {**ours["lint"], "per-file-ignores": {}}
        assert theirs["line-length"] == ours["line-length"]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([ruff, *command, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------ the command


def test_a_new_plugin_prints_the_next_commands(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    done = run_python("-m", "interpkit", "plugins", "new", "my-loss", "--kind", "loss", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "my-loss\n"), done.stderr
    assert [line.strip() for line in done.stderr.splitlines()] == [
        "Next:",
        "cd my-loss",
        "pip install -e '.[test]'",
        "pytest",
        "interpkit plugins check my-loss",
        "interpkit invert MODEL --preset vecmat --preset my-loss",
    ]
    assert (tmp_path / "my-loss" / "interpkit_my_loss" / "loss.py").is_file()


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("my-loss", "MyLoss"), ("margin", "MarginLoss"), ("a_b-c", "ABCLoss"), ("inversion", "InversionLoss")],
)
def test_the_class_is_named_after_the_plugin(name: str, class_name: str) -> None:
    files = package.render(name, Kind.LOSS)
    assert f"class {class_name}(interpkit.InversionLoss):" in files[f"{names.package_of(name)}/loss.py"]


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("My Loss", "'my-loss'"),
        ("MyLoss", "'my-loss'"),
        ("2fast", "'fast'"),
        ("a--b", "'a-b'"),
        ("", "'my-plugin'"),
        ("ß", "'my-plugin'"),
        ("Torch", "'my-torch'"),
        ("x" * 37, f"'{'x' * 33}'"),
        ("plugins/my-loss", r"'my-loss'\. Name the folder with --out plugins/my-loss"),
        ("my plugins/my-loss", r"'my-loss'\. Name the folder with --out 'my plugins/my-loss'"),
        ("..\\my-loss", r"'my-loss'\. Name the folder with --out \.\./my-loss"),
    ],
)
def test_an_invalid_plugin_name_is_refused_with_a_suggestion(tmp_path: Path, name: str, suggested: str) -> None:
    fails(
        f"is not a valid plugin name. Use at most .* e.g. {suggested}", name, "--kind", "loss", "--out", tmp_path / "a"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vecmat", "it is an installed plugin"),
        ("ce", "the plugin 'losses' has a component of that name"),
        ("training-like", "the plugin 'robust' has a component of that name"),
        ("torch", "there is a Python package 'torch'"),
        ("json", "there is a Python package 'json'"),
        ("loss", "interpkit uses that word itself"),
        ("step", "interpkit uses that word itself"),
    ],
)
def test_a_taken_plugin_name_is_refused_with_a_suggestion(tmp_path: Path, name: str, why: str) -> None:
    fails(f"'{name}' is taken: {why}.*e.g. 'my-{name}'", name, "--kind", "loss", "--out", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_every_component_of_the_bundled_plugins_is_known_to_be_taken() -> None:
    from interpkit.plugins.discovery import installed

    entries = [entry for entry in installed().registry.entries() if entry.kind != "architectures"]
    assert len(entries) > 40
    assert [entry.name for entry in entries if names.taken(entry.name) is None] == []


@pytest.mark.parametrize("arguments", [["--kind", "los"], []], ids=["unknown", "missing"])
def test_an_unknown_kind_is_refused_with_those_that_there_are(tmp_path: Path, arguments: list[str]) -> None:
    result = new("mine", *arguments, "--out", tmp_path / "a")
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(kind in result.stderr for kind in KINDS)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    fails(f"{tmp_path} exists.* --out {tmp_path / 'mine'}", "mine", "--kind", "loss", "--out", tmp_path)
    for place in (file, link):
        fails(f"{place} exists", "mine", "--kind", "loss", "--out", place)
    assert file.read_text() == "mine" and link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "mine"
    fails(f"cannot write {place}: Not a directory. Name another place", "mine", "--kind", "loss", "--out", place)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def fill(path: Path, text: str, **options: Any) -> int:
        if path.name == "pyproject.toml":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    fails("cannot write .*: No space left on device", "mine", "--kind", "loss", "--out", tmp_path / "mine")
    assert not list(tmp_path.iterdir())
