"""``--arch py:...``: the user's own code, imported only because the user typed its name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from interpkit import ModelError

PREFIX = "py:"


def find_factory(spec: str) -> Callable[..., nn.Module]:
    """Return what ``py:package.module:factory`` or ``py:path/to/file.py:Net`` names: a class or a function.

    Raises:
        ModelError: the file or module cannot be imported, or has no such name.
    """
    place, _, name = spec.removeprefix(PREFIX).rpartition(":")
    if not place or not name:
        raise ModelError(f"--arch {spec}: write py:package.module:factory, or py:path/to/file.py:Net.")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except Exception as error:  # whatever the user's module raises
        raise ModelError(f"--arch {spec}: cannot import {place}: {type(error).__name__}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"--arch {spec}: {place} has no class or function {name!r}.")
    found: Callable[..., nn.Module] = factory
    return found


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.append(str(path.parent))  # for what stands beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import_module(name: str) -> Any:
    sys.path.append(str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(Path.cwd()))


def build(factory: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    """Call the factory.

    Raises:
        ModelError: what it returns is no module.
    """
    module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{factory!r} returns {type(module).__name__}, not an nn.Module.")
    return module
