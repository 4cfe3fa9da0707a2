"""A classifier's safetensors file: its weights, and in the metadata all that it takes to run it.

Metadata keys (safetensors holds strings only, so lists are JSON): ``format`` = "pt", ``interpkit.schema`` = "1",
``interpkit.architecture`` (FAMILY:NAME), ``.arch_args``, ``.input_shape``, ``.num_classes``, ``.mean``, ``.std``,
``.input_range``, ``.class_names``, and the words ``.layout``, ``.channel_order``, ``.output``, ``.feature_layer``. The
architecture is looked up among the registered ones; nothing is imported
or run because a file says so.
"""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from interpkit.errors import ModelError, UsageError
from interpkit.files import write_atomically
from interpkit.interfaces import Target
from interpkit.recipe import TargetOptions, validated

SCHEMA = 1
PREFIX = "interpkit."
ONNX_GRAPH = "onnx:graph"
"""The architecture of a file whose one tensor, `ONNX_TENSOR`, is the bytes of an ONNX graph."""
ONNX_TENSOR = "onnx"
_JSON = ("arch_args", "input_shape", "num_classes", "mean", "std", "input_range", "class_names")
_WORDS = ("layout", "channel_order", "output", "feature_layer")


def save_target(
    module: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    input_shape: Sequence[int],
    arch_args: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write a classifier as one self-describing file that ``interpkit invert`` takes with no flags.

    Args:
        module: the trained classifier, built as ``architecture`` with ``arch_args`` says.
        path: ends in .safetensors.
        architecture: FAMILY:NAME of a registered architecture, e.g. ``torchvision:resnet18``.
        input_shape: as in `wrap`.
        arch_args: JSON values.
        facts: as in `wrap`: ``mean``, ``std``, ``input_range``, ``class_names``, ``layout``, ``output``, ...

    Raises:
        UsageError: the architecture is not registered, or builds other tensors than the module's.
        ModelError: the module is no classifier of such images.
    """
    from interpkit.loading import build_architecture, mismatch
    from interpkit.target import wrap

    target = wrap(module, input_shape, **facts)
    arguments = dict(arch_args or {})
    try:
        expected = build_architecture(architecture, arguments, meta=True).state_dict()
    except ModelError as error:
        raise UsageError(str(error)) from error
    difference = mismatch(expected, module.state_dict())
    if difference:
        raise UsageError(f"{architecture} with {arguments} is not what the module is: {difference}")
    named = {"arch": architecture, "arch_args": arguments}
    return _write(Path(path), dict(module.state_dict()), target.description.model_copy(update=named))


def pack_target(target: Target, path: str | Path) -> Path:
    """Write a loaded target as one self-describing file, whatever it was loaded from.

    One of a registered architecture is written as such. Anything else (ONNX, the user's own code, TorchScript, an
    exported program) is written as an ONNX graph from images in [0, 1] to logits, which takes ``interpkit[onnx]``:
    a graph is data, so that whoever loads the file runs no code of it.

    Args:
        target: from `load_target`.
        path: ends in .safetensors.

    Raises:
        ModelError: it cannot be exported.
    """
    facts = target.description
    if facts.arch is not None and not facts.runs_code and facts.arch != ONNX_GRAPH:
        return _write(Path(path), _weights(target), facts)
    if importlib.util.find_spec("onnx") is None:
        raise ModelError("packing this classifier takes the package onnx: pip install 'interpkit[onnx]'.")
    channels = target.input_shape[0]
    plain = {"mean": [0.0] * channels, "std": [1.0] * channels, "input_range": (0.0, 1.0), "output": "logits"}
    update: dict[str, Any] = {
        **plain,
        "arch": ONNX_GRAPH,
        "arch_args": {},
        "layout": None,
        "channel_order": None,
        "trust": False,
    }
    graph = export_graph(target)
    tensor = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    return _write(Path(path), {ONNX_TENSOR: tensor}, facts.model_copy(update={**update, "feature_layer": None}))


def _weights(target: Target) -> dict[str, Tensor]:
    module = target.module
    assert isinstance(module, nn.Module)
    return dict(module.state_dict())


class _Opaque(nn.Module):
    """Hides a target from the exporter, which would call methods that exported programs refuse."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = (target,)

    def forward(self, images: Tensor) -> Tensor:
        return self._target[0](images)  # type: ignore[no-any-return]


def export_graph(target: Target) -> bytes:
    """Return a target as an ONNX graph from images (B, *input_shape) in [0, 1] to logits (B, n).

    Raises:
        ModelError: it holds something that ONNX has no operation for.
    """
    buffer = io.BytesIO()
    one_by_one = "batch" in target.sources
    example = torch.rand(1 if one_by_one else 2, *target.input_shape)
    try:
        with warnings.catch_warnings(), target.frozen(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns of itself; the newer one takes one more package
            scripted = any(isinstance(module, torch.jit.ScriptModule) for module in target.modules())
            torch.onnx.export(
                torch.jit.trace(target, example, check_trace=False) if scripted else _Opaque(target),
                (example,),
                buffer,  # type: ignore[arg-type]  # a legacy exporter writes to a file object as well
                dynamo=False,
                opset_version=13,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes=None if one_by_one else {"images": {0: "batch"}, "logits": {0: "batch"}},
            )
    except Exception as error:  # the exporter's own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{target.name} cannot be packed: it does not go into ONNX: {reason[:300]}") from error
    return buffer.getvalue()


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
    write_atomically(path, safetensors.torch.save(whole, metadata))
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
            f"pip install --upgrade interpkit"
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
