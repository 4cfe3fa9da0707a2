"""A classifier's safetensors file: its weights, and in the metadata all that it takes to run it.

Metadata keys (safetensors holds strings only, so lists are JSON): ``format`` = "pt", ``interpkit.schema`` = "1",
``interpkit.architecture`` (FAMILY:NAME), ``.arch_args``, ``.input_shape``, ``.num_classes``, ``.mean``, ``.std``,
``.input_range``, ``.class_names``, and the words ``.layout``, ``.channel_order``, ``.output``, ``.feature_layer``. The
architecture is looked up among the registered ones; nothing is imported
or run because a file says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from interpkit.config.recipe import TargetOptions, validated
from interpkit.errors import ModelError, UsageError, upgrade
from interpkit.io.atomic import write_tensors

SCHEMA = 1
PREFIX = "interpkit."
ONNX_GRAPH = "onnx:graph"
"""The architecture of a file whose one tensor, `ONNX_TENSOR`, is the bytes of an ONNX graph."""
ONNX_TENSOR = "onnx"
_JSON = ("arch_args", "input_shape", "num_classes", "mean", "std", "input_range", "class_names")
_WORDS = ("layout", "channel_order", "output", "feature_layer")


def _write(path: Path, tensors: Mapping[str, Tensor], facts: TargetOptions) -> Path:
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a classifier's file ends in .safetensors.")
    metadata = {"format": "pt", f"{PREFIX}schema": str(SCHEMA), f"{PREFIX}architecture": str(facts.arch)}
    values = facts.model_dump(mode="json")
    metadata |= {f"{PREFIX}{name}": json.dumps(values[name]) for name in _JSON if values[name] is not None}
    metadata |= {f"{PREFIX}{name}": str(values[name]) for name in _WORDS if values[name] is not None}
    # Tied weights are stored once under each name: safetensors refuses shared memory.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, whole, metadata)
    return path


def read_target_file(path: Path) -> tuple[dict[str, Tensor], TargetOptions]:
    """Read a safetensors file: its tensors, and what its metadata says of the classifier (maybe nothing).

    Raises:
        ModelError: it is missing, truncated, not safetensors, or its metadata is not of the form above.

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
    except Exception as error:  # of safetensors, and of types that this torch has not
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} is not a whole safetensors file: {reason}.") from error
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
    facts: dict[str, Any] = {"arch": metadata.get(f"{PREFIX}architecture")}
    facts |= {name: metadata[PREFIX + name] for name in _WORDS if PREFIX + name in metadata}
    for name in _JSON:
        text = metadata.get(PREFIX + name)
        if text is not None:
            try:
                facts[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ModelError(f"{path}: its metadata {PREFIX}{name} is not JSON: {text[:80]!r}.") from error
    try:
        return validated(TargetOptions, facts, f"{path}: its metadata")
    except UsageError as error:
        raise ModelError(str(error)) from error
