"""Loaders of classifiers that bring their own graph: ONNX (data), and TorchScript and .pt2 (which may run code)."""

from __future__ import annotations

import importlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpkit import (
    ONNX_GRAPH,
    ONNX_TENSOR,
    Loader,
    ModelError,
    Target,
    TargetOptions,
    UsageError,
    make_target,
    setting,
)
from interpkit_targets import examples, formats
from interpkit_targets.architectures import need


class OnnxLoader(Loader):
    """An ONNX graph, converted to PyTorch and checked against onnxruntime; the extra ``onnx``.

    Example:
        >>> import torch
        >>> from interpkit import load_target
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> batch = {"images": {0: "batch"}}
        >>> torch.onnx.export(
        ...     net, (torch.zeros(2, 1, 8, 8),), "net.onnx", input_names=["images"], dynamic_axes=batch, dynamo=False
        ... )
        >>> load_target("net.onnx").input_shape
        (1, 8, 8)
    """

    name = "onnx"
    help = ".onnx, converted and checked against onnxruntime"
    example = staticmethod(examples.onnx_file)

    def accepts(self, path: Path) -> bool:
        """Say whether it is a graph, whatever its name."""
        return formats.kind_of(path) == "onnx"

    def files(self, path: Path) -> list[Path]:
        """Return the graph and the files beside it that hold its weights; see `Loader.files`."""
        try:
            beside = onnx_graphs().weights_beside(path)
        except Exception:  # not a graph, or a package is missing, as `load` reports
            return [path]
        return [path, *(path.parent / name for name in beside)]

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Convert the graph and compare both numerically; see `Loader.load`."""
        given = dict.fromkeys(options.said(), "given")
        target: Target = onnx_graphs().load_graph(path, path.read_bytes(), options, given)
        _check_graph(path, options)
        return target


def load_packed(path: Path, tensors: Mapping[str, Tensor], written: TargetOptions, options: TargetOptions) -> Target:
    """Load an ONNX graph that `interpkit.pack_target` put into a safetensors file."""
    tensor = tensors.get(ONNX_TENSOR)
    if tensor is None or tensor.dtype != torch.uint8:
        raise ModelError(f"{path} is said to hold an ONNX graph, and does not.")
    _check_graph(path, options)
    facts, sources = written.overlaid(options, "the file's metadata")
    content = tensor.numpy().tobytes()
    target: Target = onnx_graphs().load_graph(path, content, facts, sources, arch=ONNX_GRAPH)
    return target


def onnx_graphs() -> Any:
    """Return the module that reads ONNX graphs, which imports the packages of the extra ``onnx``."""
    for package in ("onnx", "onnx2torch", "onnxruntime"):
        need(package, "onnx")
    return importlib.import_module("interpkit_targets.onnx_graphs")


class TorchScriptLoader(Loader):
    """A TorchScript archive; loading one can run code, so only with ``--trust``.

    Example:
        >>> import torch
        >>> from interpkit import load_target
        >>> torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(2, 4)).save("net.pt")
        >>> load_target("net.pt", input_shape=(4,), trust=True).num_classes
        3
    """

    name = "torchscript"
    help = "TorchScript (.pt, .pth, .ts, .jit), with --trust and --input-shape"
    example = staticmethod(examples.torchscript_file)

    def accepts(self, path: Path) -> bool:
        """Say whether it is such an archive."""
        return formats.kind_of(path) == "torchscript"

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load the archive; see `Loader.load`."""
        return load_trusted(path, options, "TorchScript", lambda: torch.jit.load(path, map_location="cpu").eval())


class ExportedProgramLoader(Loader):
    """A program saved by `torch.export.save`; loading one can run code, so only with ``--trust``.

    Example:
        >>> import torch
        >>> from interpkit import load_target
        >>> batch = torch.export.Dim("batch")
        >>> program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
        >>> torch.export.save(program, "net.pt2")
        >>> load_target("net.pt2", input_shape=(4,), trust=True).num_classes
        3
    """

    name = "exported-program"
    help = ".pt2, with --trust and --input-shape"
    example = staticmethod(examples.exported_program)

    def accepts(self, path: Path) -> bool:
        """Say whether it is such a program, whatever its name."""
        return formats.kind_of(path) == "exported program"

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load the program; see `Loader.load`."""
        return load_trusted(path, options, "an exported program", lambda: torch.export.load(path).module())


def load_trusted(path: Path, options: TargetOptions, what: str, load: Any) -> Target:
    """Load what may run code, if the user says that it may.

    Raises:
        ModelError: it is not trusted, or cannot be loaded.
        UsageError: the user names an architecture, and the file has its own.
    """
    if not options.trust:
        raise ModelError(
            f"{path} is {what}, and loading it can run code that is in it. If you trust it, add {setting('trust')}."
        )
    if options.input_shape is None:
        raise ModelError(f"{path} does not say its input shape. Add {setting('input_shape', 'C,H,W')}.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} cannot be loaded as {what}: it is not a complete archive.")
    importlib.import_module("torchvision")  # its operators, which such a file may use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated: the user has one all the same
            module: nn.Module = load()
    except Exception as error:  # whatever is in it raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be loaded as {what}: {reason[:200]}") from error
    _check_graph(path, options)
    sources = dict.fromkeys(options.said(), "given")
    return make_target(module, path.stem, options, sources, trust=True)


def _check_graph(path: Path, options: TargetOptions) -> None:
    """Raise a `UsageError` if the user names what builds a network for weights: the file has its own graph."""
    named = {"arch": options.arch, "arch_arg": options.arch_args, "weights_key": options.weights_key}
    given = [setting(name, None) for name, value in named.items() if value and value != ONNX_GRAPH]  # of a run
    if given:
        raise UsageError(f"{path} brings its own graph: leave out what has no effect on it, {' and '.join(given)}.")
