"""``--arch py:...``: the user's own code, imported only because the user typed its name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from interpkit import ModelError, setting

PREFIX = "py:"


def find_factory(spec: str) -> Callable[..., nn.Module]:
    """Return what ``py:package.module:factory`` or ``py:path/to/file.py:Net`` names: a class or a function.

    Raises:
        ModelError: the file or module cannot be imported, or has no such name.
    """
    place, _, name = spec.removeprefix(PREFIX).rpartition(":")
    if not place or not name:
        raise ModelError(f"{setting('arch', spec)}: write py:package.module:factory, or py:path/to/file.py:Net.")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except Exception as error:  # whatever the user's module raises
        raise ModelError(f"{setting('arch', spec)}: cannot import {place}: {type(error).__name__}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ModelError(f"{setting('arch', spec)}: {place} has no class or function {name!r}.")
    found: Callable[..., nn.Module] = factory
    return found


def _import_file(path: Path) -> Any:
    path = path.resolve()  # what stands beside a link to it is not the user's code
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # two files, one stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _importable(path.parent):  # for what stands beside it
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _import_module(name: str) -> Any:
    with _importable(Path.cwd()):  # as `python -m` does
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Import also from a folder, after all others, unless it is among them."""
    if str(folder) in sys.path:
        yield
        return
    sys.path.append(str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have taken it out
            sys.path.remove(str(folder))


def build(spec: str, factory: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory that ``spec`` names.

    Raises:
        ModelError: it fails, or its result is not a module.
    """
    try:
        module = factory(**arguments)
    except Exception as error:  # whatever the user's code raises
        _, *inside = traceback.extract_tb(error.__traceback__)
        place = f" ({inside[-1].filename}, line {inside[-1].lineno})" if inside else ""  # else it was not even entered
        how = "" if inside or arguments else f" Arguments are given by {setting('arch_arg', 'NAME=VALUE')}."
        raise ModelError(
            f"{setting('arch', spec)} cannot be built with {arguments}: {type(error).__name__}: {error}{place}.{how}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{factory!r} returns {type(module).__name__}, not an nn.Module.")
    return module
