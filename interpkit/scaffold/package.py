"""Write the files of a plugin's package by its name and kind, from the templates here."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from interpkit import _version
from interpkit.errors import DISTRIBUTION, UsageError
from interpkit.plugins.discovery import installed
from interpkit.scaffold import names
from interpkit.scaffold.kinds import KINDS, Kind


def write(name: str, kind: Kind, folder: Path) -> Path:
    """Write the package of a plugin and its component, both named ``my-loss``, say.

    A name that is invalid or taken, and a folder that exists or cannot be written, are a `UsageError`.
    """
    names.check(name)
    if folder.exists() or folder.is_symlink():
        inside = shlex.quote(str(folder / name)) if folder.is_dir() and not (folder / name).exists() else "FOLDER"
        raise UsageError(f"{folder} exists, and nothing is overwritten. Name a new folder, e.g. --out {inside}.")
    files = render(name, kind)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(folder, error) from error
        raise
    return folder


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {folder}: {error.strerror}. Name another place with --out FOLDER.")


def render(name: str, kind: Kind) -> dict[str, str]:
    """Return the text of each file of the package, by its path in the package's folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("interpkit.scaffold"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    package, facts = names.package_of(name), KINDS[kind]
    words = {
        "name": name,
        "kind": kind.value,
        "package": package,
        "cls": class_name(name, facts.base),
        "distribution": DISTRIBUTION,
        "version": _version.__version__,
        "summary": facts.summary,
        "use": facts.use.format(name=name, preset=installed().complete_preset()),
    }
    templates = {
        "README.md": "shared/README.md.jinja",
        "LICENSE": "shared/LICENSE",
        "pyproject.toml": "shared/pyproject.toml.jinja",
        ".gitignore": "shared/gitignore.jinja",
        ".github/workflows/test.yml": "shared/test.yml.jinja",
        f"{package}/__init__.py": "shared/__init__.py.jinja",
        f"{package}/{kind}.py": f"{kind}/component.py.jinja",
        f"tests/test_{package.removeprefix('interpkit_')}.py": f"{kind}/test.py.jinja",
    }
    return {path: environment.get_template(template).render(words) for path, template in templates.items()}


def class_name(name: str, base: str) -> str:
    """Return the name of the component's class: ``my-loss`` -> ``MyLoss``, ``margin`` -> ``MarginLoss``."""
    camel = "".join(word.capitalize() for word in name.replace("-", "_").split("_"))
    return camel if camel.endswith(base) else f"{camel}{base}"
