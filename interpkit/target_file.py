"""A classifier's safetensors file: its weights, and in the metadata all that it takes to run it.

Metadata keys (safetensors holds strings only, so lists are JSON): ``format`` = "pt", ``interpkit.schema`` = "1",
``interpkit.architecture`` (FAMILY:NAME), ``.arch_args``, ``.input_shape``, ``.num_classes``, ``.mean``, ``.std``,
``.input_range``, ``.class_names``. The architecture is looked up among the registered ones; nothing is imported
or run because a file says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from interpkit.errors import ModelError, UsageError
from interpkit.files import write_atomically
from interpkit.recipe import TargetOptions, validated

SCHEMA = 1
PREFIX = "interpkit."
_LISTS = ("arch_args", "input_shape", "mean", "std", "input_range", "class_names")


def save_target(
    module: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    input_shape: Sequence[int],
    arch_args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
    input_range: tuple[float, float] = (0.0, 1.0),
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a classifier as one self-describing file that ``interpkit invert`` takes with no flags.

    Args:
        module: the trained classifier, built as ``architecture`` with ``arch_args`` says.
        path: ends in .safetensors.
        architecture: FAMILY:NAME of a registered architecture, e.g. ``torchvision:resnet18``.
        input_shape: as in `wrap`.
        arch_args: JSON values.
        mean: as in `wrap`.
        std: as in `wrap`.
        input_range: as in `wrap`.
        class_names: as in `wrap`.

    Raises:
        UsageError: the architecture is not registered, or builds other tensors than the module's.
        ModelError: the module is no classifier of such images.
    """
    from interpkit.loading import build_architecture, mismatch
    from interpkit.target import wrap

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a classifier's file ends in .safetensors.")
    target = wrap(module, input_shape, mean=mean, std=std, input_range=input_range, class_names=class_names)
    # Tied weights are stored once under each name: safetensors refuses shared memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    arguments = dict(arch_args or {})
    skeleton = build_architecture(architecture, arguments, meta=True)
    difference = mismatch(skeleton.state_dict(), tensors)
    if difference:
        raise UsageError(f"{architecture} with {arguments} is not what the module is: {difference}")
    facts = target.description.model_dump(include={*_LISTS, "num_classes"}) | {"arch_args": arguments}
    metadata = {"format": "pt", f"{PREFIX}schema": str(SCHEMA), f"{PREFIX}architecture": architecture}
    metadata |= {f"{PREFIX}{name}": json.dumps(value) for name, value in facts.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return path


def read_target_file(path: Path) -> tuple[dict[str, Tensor], TargetOptions]:
    """Read a safetensors file: its tensors, and what its metadata says of the classifier (maybe nothing).

    Raises:
        ModelError: it is missing, truncated, not safetensors, or its metadata is not of the form above.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}.") from error
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} is not a whole safetensors file: {reason}.") from error
    return tensors, _parse(path, metadata)


def _parse(path: Path, metadata: Mapping[str, str]) -> TargetOptions:
    schema = metadata.get(f"{PREFIX}schema")
    if schema is None:
        return TargetOptions()
    if schema != str(SCHEMA):
        raise ModelError(f"{path} has interpkit schema {schema!r}; this interpkit reads {SCHEMA}. Update interpkit.")
    facts: dict[str, Any] = {"arch": metadata.get(f"{PREFIX}architecture")}
    for name in (*_LISTS, "num_classes"):
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
