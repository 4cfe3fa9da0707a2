"""Classifier file -> Target, through the registered loaders and architectures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import ModelError, UsageError, did_you_mean, listed
from interpkit.interfaces import Architectures, Loader, Target
from interpkit.plugins import installed
from interpkit.recipe import TargetOptions, validated


def load_target(path: str | Path, **options: Any) -> Target:
    """Load a classifier from a file or folder.

    Args:
        path: in a format that one of the loaders takes (``interpkit plugins list`` names them).
        options: what the file does not say itself, or says wrongly: ``arch``, ``arch_args``, ``input_shape``,
            ``num_classes``, ``mean``, ``std``, ``input_range``, ``class_names``, ``feature_layer``.

    Raises:
        ModelError: it is missing, cannot be read, or was refused.
        UsageError: an option is unknown or out of range.
    """
    return load(Path(path), validated(TargetOptions, options, "load_target"))


def load(path: Path, options: TargetOptions) -> Target:
    """Load a classifier with validated options; see `load_target`."""
    registry = installed().registry
    if not path.exists():
        near = path.parent.glob("*") if path.parent.is_dir() else []
        raise ModelError(f"there is no file {path}.{did_you_mean(path.name, (p.name for p in near))}")
    loaders: list[Loader] = [entry.item for entry in registry.entries("loader")]
    loader = next((loader for loader in loaders if loader.accepts(path)), None)
    if loader is None:
        known = "; ".join(f"{loader.name} ({loader.help})" for loader in loaders)
        raise ModelError(f"{path} is in no format that interpkit reads. It reads: {known or 'none'}.")
    target = loader.load(path, options)
    target.origin = path.resolve()
    target.description = target.description.model_copy(update={"path": str(target.origin)})
    return target


def build_architecture(spec: str, arguments: Mapping[str, Any], *, meta: bool = False) -> nn.Module:
    """Build a registered architecture by FAMILY:NAME; with ``meta``, its shapes alone, without memory.

    Raises:
        ModelError: it is not registered, or the arguments do not fit it.
    """
    registry = installed().registry
    family_name, _, name = spec.partition(":")
    try:
        family: Architectures = registry.get("architectures", family_name)
    except UsageError as error:
        known = listed(f"{f}:..." for f in registry.names("architectures"))
        raise ModelError(f"the architecture {spec!r} is not a registered one. Registered: {known}.") from error
    if name not in family.names():
        raise ModelError(
            f"there is no architecture {spec!r}.{did_you_mean(name, family.names())} "
            f"{family_name} has: {listed(family.names())}."
        )
    try:
        with torch.device("meta" if meta else "cpu"):
            return family.build(name, arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise ModelError(f"{spec} cannot be built with {dict(arguments)}: {error}") from error


def fill_architecture(spec: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a registered architecture with the given weights.

    The shapes are compared before any memory is taken, so that no argument in a file can ask for more than
    the file itself holds.

    Raises:
        ModelError: the tensors do not fit; says which.
    """
    difference = mismatch(build_architecture(spec, arguments, meta=True).state_dict(), tensors)
    if difference:
        raise ModelError(f"the weights do not fit {spec} with {dict(arguments)}: {difference}")
    module = build_architecture(spec, arguments)
    module.load_state_dict(dict(tensors))
    return module


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], limit: int = 4) -> str:
    """Return a short account of how two state dicts differ in names and shapes; empty if they do not."""
    shapes = [
        f"{name} ({list(found[name].shape)}, expected {list(expected[name].shape)})"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    groups = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(f"{what}: {listed(names, limit)}" for what, names in groups.items() if names)
