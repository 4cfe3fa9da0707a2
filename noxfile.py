"""The tests on every supported Python, and on the oldest release of every dependency: ``nox``; see CONTRIBUTING.md."""

from __future__ import annotations

import tomllib
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROJECT = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]

nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests with what pip takes today: ``nox -s tests-3.13 -- tests/io``."""
    session.install("--editable", ".[all,test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["--numprocesses", "auto", "--dist", "loadfile"]))


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run them with the lower bound of every dependency and extra that pyproject.toml names."""
    extras = PROJECT["optional-dependencies"]
    names = extras["all"][0].partition("[")[2].rstrip("]").split(",")
    bounds = [*PROJECT["dependencies"], *(bound for name in names for bound in extras[name])]
    constraints = Path(session.create_tmp(), "oldest.txt")
    constraints.write_text("\n".join(bound.replace(">=", "==") for bound in bounds), "utf-8")
    session.install("--editable", ".[all,test]", "--constraint", str(constraints))
    # Old releases call what newer ones of their own dependencies deprecate.
    calm = ("-W", "ignore::DeprecationWarning")
    session.run("python", "-m", "pytest", *calm, *(session.posargs or ["--numprocesses", "auto", "--dist", "loadfile"]))
