"""What is uploaded: the wheel, built from the sdist, in a clean environment outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import interpkit

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = [Path(folder) for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
MOST_BYTES = 1_000_000
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, run_python: Run) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = run_python("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory, run_python: Run) -> Run:
    """Return a runner of the commands of an environment with the wheel and its dependencies, outside the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    base = {"base": str(folder), "platbase": str(folder)}
    scripts, site = (Path(sysconfig.get_path(kind, "venv", base)) for kind in ("scripts", "purelib"))
    # The dependencies are borrowed. A folder named in a .pth is searched, but its own .pth files are not obeyed: so the
    # repository, which an editable install names there, stays out.
    (site / "dependencies.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}), "utf-8"
    )
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = run_python("-m", "pip", "--python", folder, "install", *options, wheel)
    assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "INTERPKIT"))}

    def run(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [scripts / command, *map(str, arguments)],
            env={**environment, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def files_of(package: Path) -> set[str]:
    """Return the files of a package of the repository, as a wheel names them."""
    found = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to((ROOT / package).parent)) for path in found}


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == set().union(
        *map(files_of, PACKAGES)
    )  # so templates are in it; tests, docs, data are not
    assert {name for name in names if name.endswith(".html")} >= {"interpkit/report/templates/report.html"}
    assert any(name.endswith("/LICENSE") for name in metadata)
    assert wheel.stat().st_size < MOST_BYTES


def test_every_bundled_plugin_is_named_in_pyproject() -> None:
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert {path.name for path in PACKAGES} == {"interpkit", *folders}
    assert set(PROJECT["project"]["entry-points"]["interpkit"].values()) == folders


def test_the_sdist_holds_what_the_tests_and_docs_are_made_of_and_no_leftovers(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py", "examples/models/mnist.safetensors"} <= names
    assert "examples/interpkit-infogan/pyproject.toml" in names
    assert not {name.split("/")[0] for name in names} & {".venv", ".git", "runs", "build", "dist", ".mypy_cache"}
    assert not any("__pycache__" in name for name in names)


def test_the_environment_has_the_wheel_and_not_the_repository(clean: Run) -> None:
    code = "import sys, interpkit, interpkit_vecmat; print(interpkit.__file__, interpkit_vecmat.__file__, *sys.path)"
    done = clean(Path(sys.executable).name, "-c", code)
    assert done.returncode == 0, done.stderr
    *found, path = done.stdout.strip().split(" ", 2)
    assert not any(Path(file).is_relative_to(ROOT) for file in found)
    assert not {str(ROOT), str(ROOT / "plugins")} & set(path.split())


def test_version_and_plugins(clean: Run) -> None:
    version = clean("interpkit", "--version")
    assert (version.returncode, version.stdout.strip()) == (0, interpkit.__version__), version.stderr
    done = clean("interpkit", "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    for name in PROJECT["project"]["entry-points"]["interpkit"]:
        assert (rows[name]["status"], rows[name]["error"], rows[name]["version"]) == ("ok", None, interpkit.__version__)


def test_an_error_names_the_command_that_installs_an_extra_of_the_wheel(clean: Run) -> None:
    code = "import interpkit; print(interpkit.install_extra('onnx'))"
    done = clean(Path(sys.executable).name, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"pip install '{PROJECT['project']['name']}[onnx]'"


def test_a_plugin_is_begun_from_the_templates_in_the_wheel(clean: Run, tmp_path: Path) -> None:
    done = clean("interpkit", "plugins", "new", "mine", "--kind", "loss", "--out", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "pyproject.toml").exists()


def test_an_inversion_ends_with_its_report(clean: Run, tmp_path: Path) -> None:
    model = shutil.copy(ROOT / "examples" / "models" / "mnist_bn.safetensors", tmp_path / "mnist.safetensors")
    flags = ["--plugin", "vecmat", "--steps", "3", "--batch-size", "8", "--device", "cpu", "--out", tmp_path / "run"]
    done = clean("interpkit", "invert", model, *flags)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "mnist" in page and page.rstrip().endswith("</html>")
    assert "report.html could not be written" not in done.stderr
