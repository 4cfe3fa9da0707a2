"""Loaders of classifiers that bring their own graph: ONNX (data), and TorchScript and .pt2 (which may run code)."""

from __future__ import annotations

import importlib
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interpkit import ONNX_GRAPH, ONNX_TENSOR, Loader, ModelError, Target, TargetOptions, make_target
from interpkit_targets import examples, formats
from interpkit_targets.architectures import need

CHANNELS = (1, 3, 4)
OLDER_OPSET = 17
WINDOW = ("kernel_shape", "pads", "strides", "dilations", "output_padding", "output_shape")
LARGEST_WINDOW = 1024
"""The most pixels that a window of an ONNX operation may have, or move, or add at a side."""


class Reshaped(nn.Module):
    """A module that takes images in its own shape: reshapes (B, ...) to (B, *shape) before it."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        """Reshape and run."""
        return self.module(x.reshape(-1, *self.shape))


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

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Convert the graph, compare both numerically, see that gradients flow; see `Loader.load`."""
        return load_graph(path, path.read_bytes(), options, dict.fromkeys(options.said(), "given"))


def load_packed(path: Path, tensors: Mapping[str, Tensor], written: TargetOptions, options: TargetOptions) -> Target:
    """Load an ONNX graph that `interpkit.pack_target` put into a safetensors file."""
    tensor = tensors.get(ONNX_TENSOR)
    if tensor is None or tensor.dtype != torch.uint8:
        raise ModelError(f"{path} is said to hold an ONNX graph, and does not.")
    facts, sources = written.overlaid(options, "the file's metadata")
    return load_graph(path, tensor.numpy().tobytes(), facts, sources, arch=ONNX_GRAPH)


def load_graph(path: Path, content: bytes, facts: TargetOptions, sources: dict[str, str], **recorded: Any) -> Target:
    """Convert a graph, compare both numerically, see that gradients flow.

    Raises:
        ModelError: the graph is invalid, an operation has no converter, or the two outputs differ.
    """
    graph = read_graph(path, content)
    taken = input_shape(graph, path)
    module = convert(graph, path)
    if facts.input_shape is None:
        guessed, layout = guess_layout(taken, facts.layout)
        facts = facts.model_copy(update={"input_shape": guessed, "layout": layout})
        sources["input_shape"] = f"the graph's input {list(taken)}"
        if layout is not None:
            sources.setdefault("layout", f"found: the graph's input is {list(taken)}")
    shape = facts.input_shape
    assert shape is not None
    if math.prod(shape) != math.prod(taken):
        raise ModelError(
            f"{path} takes {list(taken)}, {math.prod(taken)} numbers per image; --input-shape "
            f"{','.join(map(str, shape))} has {math.prod(shape)}."
        )
    nhwc = len(shape) == 3 and taken == (*shape[1:], shape[0])
    if nhwc and taken != shape:
        facts = facts.model_copy(update={"layout": "nhwc"})
        sources["layout"] = f"found: the graph's input is {list(taken)}"
    elif taken != shape:
        module = Reshaped(module, taken)
        facts = facts.model_copy(update={"layout": "nchw"}) if len(shape) == 3 else facts
        sources["layout"] = f"found: reshaped to the graph's input {list(taken)}"
    target = make_target(module, path.stem, facts, sources, **recorded)
    check_against_runtime(target, module, graph, taken, path)
    check_gradient(target, path)
    return target


def read_graph(path: Path, content: bytes) -> Any:
    """Read and check an ONNX file; weights in other files are refused.

    Raises:
        ModelError: it is torn, invalid, too large, refers to other files, or has windows that would fill the memory.
    """
    onnx = need("onnx", "onnx")
    try:
        graph = onnx.load_model_from_string(content)
        external = [t.name for t in all_tensors(graph.graph) if t.data_location == onnx.TensorProto.EXTERNAL]
        if not external:
            onnx.checker.check_model(graph)
    except Exception as error:  # protobuf and the checker have kinds of their own
        raise ModelError(f"{path} is not a valid ONNX graph: {str(error).splitlines()[0][:200]}") from error
    if external:
        raise ModelError(f"{path} keeps weights in other files ({external[0]}, ...); save it as one file.")
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name in WINDOW and any(abs(size) > LARGEST_WINDOW for size in attribute.ints):
                raise ModelError(
                    f"{path} has a {node.op_type} with {attribute.name} {list(attribute.ints)[:8]}; up to "
                    f"{LARGEST_WINDOW} pixels are taken."
                )
    lift_constants(graph.graph)
    return graph


def all_tensors(graph: Any) -> Iterator[Any]:
    """Yield the weights of a graph and the tensors in its nodes' attributes, and of the graphs in these."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from all_tensors(inner)


def lift_constants(graph: Any) -> None:
    """Make weights of the constant nodes, in place: the converter looks for a layer's weights there alone."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def disarm_names(graph: Any) -> None:
    """Leave nothing in the nodes' names, in place, that ends a string: torch.fx writes them into code that it runs."""
    for node in graph.node:
        node.name = re.sub(r"[^\w/:. -]", "_", node.name)


def graph_inputs(graph: Any) -> list[Any]:
    """Return the inputs that are not weights."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in weights]


def input_shape(graph: Any, path: Path) -> tuple[int, ...]:
    """Return the shape that the graph takes, without the batch.

    Raises:
        ModelError: it has several inputs, or a side that it does not state.
    """
    inputs = graph_inputs(graph)
    if len(inputs) != 1:
        raise ModelError(f"{path} takes {len(inputs)} inputs; a classifier of images takes one.")
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) < 2 or not all(1 <= dim <= 1_000_000 for dim in dims[1:]) or math.prod(dims[1:]) > 100_000_000:
        raise ModelError(f"{path} does not state the shape of an image: its input is {dims}.")
    return tuple(dims[1:])


def guess_layout(taken: tuple[int, ...], layout: str | None) -> tuple[tuple[int, ...], str | None]:
    """Return the shape of an image and the layout, by where the channels stand."""
    if len(taken) != 3:
        return (math.prod(taken),), None
    last = layout == "nhwc" or (layout is None and taken[0] not in CHANNELS and taken[2] in CHANNELS)
    return ((taken[2], *taken[:2]), "nhwc") if last else (taken, "nchw")


def convert(graph: Any, path: Path) -> nn.Module:
    """Convert an ONNX graph to a module.

    Raises:
        ModelError: an operation has no converter.
    """
    onnx2torch = need("onnx2torch", "onnx")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.fx and numpy, about the converter's own code
            disarm_names(graph.graph)
            try:
                module: nn.Module = onnx2torch.convert(graph)
            except NotImplementedError:  # no converter for the newest operators: try them in an older form
                older = importlib.import_module("onnx.version_converter").convert_version(graph, OLDER_OPSET)
                lift_constants(older.graph)
                disarm_names(older.graph)
                module = onnx2torch.convert(older)
    except Exception as error:  # the converter has many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        operations = sorted({node.op_type for node in graph.graph.node})
        raise ModelError(
            f"{path} cannot be converted to PyTorch: {reason} Its operations: {', '.join(operations)[:300]}."
        ) from error
    return module.eval()


def check_against_runtime(target: Target, module: nn.Module, graph: Any, taken: tuple[int, ...], path: Path) -> None:
    """Compare the converted module with onnxruntime on random inputs.

    Raises:
        ModelError: they differ.
    """
    runtime = need("onnxruntime", "onnx")
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = runtime.InferenceSession(graph.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
        kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
        inputs = np.random.default_rng(0).random((4, *taken)).astype(kind)
        name = session.get_inputs()[0].name
        theirs = np.concatenate([session.run(None, {name: row[None]})[0].reshape(1, -1) for row in inputs])
    except Exception as error:  # onnxruntime's own
        raise ModelError(f"onnxruntime cannot run {path}: {str(error).splitlines()[0][:200]}") from error
    graph_module = module.module if isinstance(module, Reshaped) else module
    with target.frozen(), torch.no_grad():
        rows = [graph_module(torch.from_numpy(row[None])) for row in inputs]
        ours = torch.cat([(row[0] if isinstance(row, tuple | list) else row).reshape(1, -1) for row in rows])
    if ours.shape != theirs.shape or not np.allclose(ours.float().numpy(), theirs, rtol=1e-2, atol=1e-3):
        raise ModelError(
            f"{path}: the converted network gives other numbers than onnxruntime (up to "
            f"{np.abs(ours.numpy() - theirs).max():.3g} apart), so it is not used."
        )


def check_gradient(target: Target, path: Path) -> None:
    """See that the logits have a gradient with respect to some image: black, nearly black, gray, white or noise.

    Raises:
        ModelError: they have none.
    """
    levels = torch.tensor([0.0, 0.005, 0.1, 0.5, 1.0]).view(-1, *(1,) * len(target.input_shape))
    images = torch.cat([levels.expand(-1, *target.input_shape), torch.rand(5, *target.input_shape)]).requires_grad_()
    with target.frozen():
        logits = target(images)
        if logits.requires_grad:
            (logits * torch.randn_like(logits)).sum().backward()
    if images.grad is None or not images.grad.any():
        raise ModelError(f"{path}: no gradient flows from its logits to the image, so it cannot be inverted.")


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
    """
    if not options.trust:
        raise ModelError(f"{path} is {what}, and loading it can run code that is in it. If you trust it, add --trust.")
    if options.input_shape is None:
        raise ModelError(f"{path} does not say its input shape. Add --input-shape C,H,W.")
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
    sources = dict.fromkeys(options.said(), "given")
    return make_target(module, path.stem, options, sources, trust=True)
