"""Third-party packages of ``examples/``, installed beside the interpkit that is there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def python_path(site: Path) -> str:
    """Return the PYTHONPATH by which a process finds the package in ``site``, before what it has already."""
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., Any]) -> Callable[[Path], Path]:
    """Return an installer of a package: it returns the folder of its own that the package is in."""

    def into(package: Path) -> Path:
        folder = tmp_path_factory.mktemp("site")
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        done = run_python("-m", "pip", "install", *options, "--target", folder, package)
        assert done.returncode == 0, done.stderr
        return folder

    return into


@pytest.fixture(scope="module")
def interpkit_with(python_path: str, run_python: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a runner of the command line with the package in ``site``; with ``gone=True``, without it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # python -m looks for modules where it is run

    def run(*arguments: str | Path, gone: bool = False) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = run_python(
            "-m", "interpkit", *arguments, env={} if gone else {"PYTHONPATH": python_path}, cwd=elsewhere
        )
        return done

    return run
