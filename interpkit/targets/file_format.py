"""A classifier's safetensors file: its weights, and metadata with everything needed to run it.

Metadata keys: ``format`` = "pt", ``interpkit.schema`` = "1", and ``interpkit.KEY`` for each fact of `TargetOptions`
that has a key (`interpkit.config.recipe.target_facts`). Words are stored unchanged and anything else as JSON, because
safetensors supports only strings. The architecture must be a registered one; a file cannot cause imports or run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from interpkit.config.recipe import TargetOptions, target_facts, validated
from interpkit.errors import ModelError, UsageError, first_line, upgrade
from interpkit.io.atomic import followed, to_path, write_tensors

SCHEMA = 1
PREFIX = "interpkit."
ONNX_GRAPH = "onnx:graph"
"""The architecture of a file whose only tensor, `ONNX_TENSOR`, contains the bytes of an ONNX graph."""
ONNX_TENSOR = "onnx"


def target_path(name: str | Path) -> Path:
    """Return the path of a classifier's file to write.

    Raises:
        UsageError: no file can have that name, or it does not end in .safetensors.
    """
    path = to_path(name)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the name of a classifier's file must end in .safetensors.")
    return path


def write_target_file(name: str | Path, tensors: Mapping[str, Tensor], facts: TargetOptions) -> Path:
    """Write a classifier's tensors and facts to a `target_path`; see the module's docstring."""
    path = target_path(name)
    metadata = {"format": "pt", f"{PREFIX}schema": str(SCHEMA)}
    values = facts.model_dump(mode="json", exclude_none=True)
    for fact in target_facts():
        if fact.key is not None and fact.name in values:
            value = values[fact.name]
            metadata[PREFIX + fact.key] = value if fact.is_word else json.dumps(value)
    # Tied weights are stored once under each name, as safetensors does not support shared memory.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(followed(path), whole, metadata)
    return path


def read_target_file(path: Path) -> tuple[dict[str, Tensor], TargetOptions]:
    """Read a safetensors file: its tensors, and the facts about the classifier in its metadata (possibly none).

    Raises:
        ModelError: the file is missing, truncated or not safetensors, or its metadata does not have the form above.

    Example:
        >>> from pathlib import Path
        >>> from interpkit import build_architecture, read_target_file, save_target
        >>> net, path = build_architecture("interpkit:cnn", {}), Path("net.safetensors")
        >>> save_target(net, path, architecture="interpkit:cnn", input_shape=(1, 28, 28), std=0.5).name
        'net.safetensors'
        >>> tensors, facts = read_target_file(path)
        >>> len(tensors), facts.arch, facts.std
        (12, 'interpkit:cnn', [0.5])
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}.") from error
    except Exception as error:  # from safetensors, or for dtypes that this torch does not have
        raise ModelError(f"{path} is not a complete safetensors file: {first_line(error)}.") from error
    return tensors, _parse(path, metadata)


def _parse(path: Path, metadata: Mapping[str, str]) -> TargetOptions:
    schema = metadata.get(f"{PREFIX}schema")
    if schema is None:
        return TargetOptions()
    if schema != str(SCHEMA):
        raise ModelError(
            f"{path} has interpkit schema {schema!r:.40}; this interpkit reads {SCHEMA}. If a newer one wrote it: "
            f"{upgrade()}"
        )
    facts: dict[str, Any] = {}
    for fact in target_facts():
        text = None if fact.key is None else metadata.get(PREFIX + fact.key)
        if text is not None:
            try:
                facts[fact.name] = text if fact.is_word else json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ModelError(f"{path}: its metadata {PREFIX}{fact.key} is not JSON: {text[:80]!r}.") from error
    try:
        return validated(TargetOptions, facts, f"{path}: its metadata")
    except UsageError as error:
        raise ModelError(str(error)) from error
