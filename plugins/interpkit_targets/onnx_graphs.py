"""Convert ONNX graphs to PyTorch and compare the result with onnxruntime; needs the extra ``onnx``."""

from __future__ import annotations

import itertools
import logging
import math
import operator
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx2torch
import onnxruntime
import torch
from torch import Tensor, nn

from interpkit import ModelError, Target, TargetOptions, make_target, setting
from interpkit_targets import (
    onnx_branches,
    onnx_ops,
    onnx_recurrent,  # noqa: F401  # registers its converters
    onnx_rewrites,
)

log = logging.getLogger("interpkit")
CHANNELS = (1, 3, 4)
ORDERS = {"nchw": ("channels, height, width", "nhwc"), "nhwc": ("height, width, channels", "nchw")}
"""What the sides of an image are in a layout, and the layout that it might have instead."""
OLDER_OPSET = 17
LARGEST_VALUE = 200_000_000
"""Numbers per image that a layer may return, as of architectures."""
ADVICE = (
    (
        re.compile("^Q[A-Z]|Integer|^DynamicQuantize|^Quantize"),
        "It is quantized to whole numbers, which have no gradient. Use the graph from before it was quantized (for "
        "onnxruntime's quantize_dynamic and quantize_static: the model_input), or quantize_static(..., "
        "quant_format=QuantFormat.QDQ)",
    ),
    (
        re.compile("^(If|Loop|Scan)$"),
        "What it computes depends on the image's values. Use the network that it was exported from, or export it by "
        "tracing (torch.onnx.export of the module itself, not of torch.jit.script(module))",
    ),
)
"""What to do about kinds of operations that cannot be converted."""
MOST_OPERATIONS = 100_000
MOST_TRIED = 10_000_000
"""Numbers in a batch on which a graph is tried."""


class Reshaped(nn.Module):
    """A module that takes images in its own shape: reshapes (B, ...) to (B, *shape) before it."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        """Reshape and run."""
        return self.module(x.reshape(-1, *self.shape))


def load_graph(path: Path, content: bytes, facts: TargetOptions, sources: dict[str, str], **recorded: Any) -> Target:
    """Convert a graph and compare both numerically.

    Raises:
        ModelError: the graph is invalid, an operation has no converter, or the two outputs differ.
    """
    graph, names = read_graph(path, content)
    if names and facts.class_names is None:
        facts = facts.model_copy(update={"class_names": names})
        sources["class_names"] = "the graph's labels"
    taken = input_shape(graph, path, facts)
    if facts.input_range is None and input_kind(graph).kind in "iu":
        facts = facts.model_copy(update={"input_range": range_of_bytes(graph, path)})
        sources["input_range"] = "found: the graph's input is bytes"
    ends = ends_of(facts)
    if not onnx_rewrites.sizes_of(onnx_rewrites.graph_inputs(graph)[0]):
        onnx_rewrites.state_input_shape(graph, taken)
    module = convert(graph, taken, path, ends)
    if facts.input_shape is None:
        guessed, layout = guess_layout(taken, facts.layout)
        if facts.layout is None and layout and taken[1] != taken[2] and not {taken[0], taken[2]} & {*CHANNELS}:
            order, other = ORDERS[layout]
            log.warning(
                "%s takes %s, read as %s. If that is wrong, add %s.",
                *(path.name, [*taken], order, setting("layout", other)),
            )
        facts = facts.model_copy(update={"input_shape": guessed, "layout": layout})
        sources["input_shape"] = f"the graph's input {list(taken)}"
        if layout is not None:
            sources.setdefault("layout", f"found: the graph's input is {list(taken)}")
    shape = facts.input_shape
    assert shape is not None
    if math.prod(shape) != math.prod(taken):
        raise ModelError(
            f"{path} takes {list(taken)}, {math.prod(taken)} numbers per image; {setting('input_shape', list(shape))} "
            f"has {math.prod(shape)}."
        )
    if len(shape) == 3 and taken == (*shape[1:], shape[0]) and taken != shape:
        facts = facts.model_copy(update={"layout": "nhwc"})
        sources["layout"] = f"found: the graph's input is {list(taken)}"
    elif taken != shape:
        given = (*shape[1:], shape[0]) if len(shape) == 3 and facts.layout == "nhwc" else shape
        refuse_other_sides(path, taken, given)
        module = Reshaped(module, taken)
        if len(shape) == 3 and facts.layout is None:
            facts = facts.model_copy(update={"layout": "nchw"})
        sources.setdefault("layout", f"found: reshaped to the graph's input {list(taken)}")
    target = make_target(module, path.stem, facts, sources, **recorded)
    roundings = sum(isinstance(layer, onnx_ops.Quantize) for layer in module.modules())
    check_against_runtime(target, module, graph, taken, path, ends, exact=not roundings)
    if roundings:
        log.warning("%s is quantized: gradients pass its %d roundings as if they were not there.", path.name, roundings)
    return target


def refuse_other_sides(path: Path, taken: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse to reshape images, other than by joining or splitting sides: that would mix up their pixels.

    Raises:
        ModelError: the graph takes images of other sides.
    """
    if not joins(taken, shape) and not joins(shape, taken):
        fitting = guess_layout(taken, None)[0]
        raise ModelError(
            f"{path} takes {list(taken)}, and images of {list(shape)} do not fit: reshaping would mix up their pixels. "
            f"Leave out {setting('input_shape', None)}, or use {setting('input_shape', list(fitting))}."
        )


def joins(sides: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Return whether joining neighbors among some sides leads to others, of the same product."""
    ends = set(itertools.accumulate(sides, operator.mul))
    return ends >= set(itertools.accumulate(others, operator.mul)) - {1}


def read_graph(path: Path, content: bytes) -> tuple[Any, list[str] | None]:
    """Read and check an ONNX file, with weights that stand beside it under its own name.

    Returns:
        the model, which returns scores alone, and the class names that it states.

    Raises:
        ModelError: it is torn, invalid, too large, refers to other files, or has windows that would fill the memory.
    """
    try:
        graph = onnx.load_model_from_string(content)
        read_weights_beside(graph, path)
        for value in graph.graph.input:
            if value.type.HasField("tensor_type"):  # runtimes accept an input without a shape, the checker does not
                value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(graph)
        operations = onnx_rewrites.written_out(graph)
        if operations > MOST_OPERATIONS:
            raise ModelError(
                f"{path} has {operations:,} operations once its functions are written out; up to {MOST_OPERATIONS:,} "
                "are taken."
            )
        outputs, names = [value.name for value in graph.graph.output], onnx_rewrites.class_names(graph)
        onnx_rewrites.make_single(graph)
        onnx_rewrites.keep_scores(graph)
    except ModelError:
        raise
    except Exception as error:  # protobuf and the checker have kinds of their own
        raise ModelError(f"{path} is not a valid ONNX graph: {str(error).splitlines()[0][:200]}") from error
    refuse_large_windows(graph, path)
    if not graph.graph.output:
        raise ModelError(
            f"{path} returns no scores, but {', '.join(outputs)}: whole numbers, text or the largest scores alone. "
            "Export it with the logits or probabilities of all classes."
        )
    return graph, names


def read_weights_beside(graph: Any, path: Path) -> None:
    """Read the weights that the exporter put into a file of their own, in place.

    Only NAME.onnx.data, NAME.onnx_data and the like beside NAME.onnx are read: a graph must not make us read any file.

    Raises:
        ModelError: the weights are in another file, or in none.
    """
    for tensor, place in external(graph):
        file = path.parent / place
        beside = may_read(path, place)
        if beside and not file.exists():
            found = f"which is missing. Put {place} beside it again, or export it"
        elif not beside or file.is_symlink() or not file.is_file():
            found = f"not its own. Only files beside it whose names begin with {path.stem!r} are read. Export it"
        else:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
            continue
        raise ModelError(
            f"{path} keeps weights in other files: {place!r}, {found} as one file: torch.onnx.export(..., "
            "external_data=False), or onnx.save(onnx.load(FILE), FILE)."
        )


def external(graph: Any) -> list[tuple[Any, str]]:
    """Return the tensors whose values are in other files, each with the file's name."""
    tensors = [tensor for part in (graph.graph, *graph.functions) for tensor in onnx_rewrites.all_tensors(part)]
    found = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    return [(t, next((entry.value for entry in t.external_data if entry.key == "location"), "")) for t in found]


def may_read(path: Path, place: str) -> bool:
    """Return whether a graph may name a file: of its own folder, under its own name; a packed graph may name none."""
    return Path(place).name == place and place.startswith(path.stem) and path.suffix != ".safetensors"


def weights_beside(path: Path) -> list[str]:
    """Return the names of the files in which a graph keeps weights."""
    places = {place for _, place in external(onnx.load_model_from_string(path.read_bytes()))}
    return sorted(place for place in places if may_read(path, place) and (path.parent / place).is_file())


def refuse_large_windows(graph: Any, path: Path) -> None:
    """Refuse windows and paddings that would fill the memory.

    Raises:
        ModelError: there is one.
    """
    found = onnx_rewrites.too_large(graph)
    if found:
        operator, attribute, sizes = found
        raise ModelError(
            f"{path} has a {operator} with {attribute} {sizes}; up to {onnx_rewrites.LARGEST_WINDOW} pixels are taken."
        )


def refuse_large_values(graph: Any, path: Path) -> None:
    """Refuse what is out of all proportion to an image, as far as its shape is known beforehand.

    Raises:
        ModelError: a value has too many numbers per image.
    """
    batch = fixed_batch(graph) or 1
    for value in (*graph.graph.value_info, *graph.graph.output):
        sides = onnx_rewrites.sizes_of(value)
        first = next(iter(sides), 0) or 1  # often the batch, and then open
        if first * math.prod(sides[1:]) > LARGEST_VALUE * batch:
            raise ModelError(f"{path} computes {sides} numbers at once; up to {LARGEST_VALUE:,} per image are taken.")


def fixed_batch(graph: Any) -> int:
    """Return the batch size that a graph states, 0 if any will do."""
    (value,) = onnx_rewrites.graph_inputs(graph)
    return (onnx_rewrites.sizes_of(value) or [0])[0]


def input_kind(graph: Any) -> np.dtype[Any]:
    """Return the type of number that a graph accepts."""
    (value,) = onnx_rewrites.graph_inputs(graph)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def range_of_bytes(graph: Any, path: Path) -> tuple[float, float]:
    """Return the values of black and white of a graph that takes bytes.

    Raises:
        ModelError: it takes larger whole numbers, whose range may be any.
    """
    kind = input_kind(graph)
    if kind.itemsize > 1:
        raise ModelError(
            f"{path} takes whole numbers ({kind}) and does not state their range. Add "
            f"{setting('input_range', 'LO,HI')} with the values of black and white, such as 0,255."
        )
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def ends_of(facts: TargetOptions) -> tuple[float, float]:
    """Return the least and the largest number that a graph receives, of all channels."""
    ends = [(end - m) / s for pair in facts.ranges for end in pair for m in facts.mean or [0] for s in facts.std or [1]]
    return min(ends), max(ends)


def input_shape(graph: Any, path: Path, facts: TargetOptions) -> tuple[int, ...]:
    """Return the shape that the graph takes, without the batch; the user states the sides that it leaves open.

    Raises:
        ModelError: it has several inputs, or a side that neither it nor the user states.
    """
    inputs = onnx_rewrites.graph_inputs(graph)
    if len(inputs) != 1:
        raise ModelError(f"{path} takes {len(inputs)} inputs; a classifier of images takes one.")
    if inputs[0].type.tensor_type.elem_type not in onnx.TensorProto.DataType.values()[1:]:
        raise ModelError(f"{path} does not take a tensor of numbers. A classifier of images takes one.")
    shown = [dim.dim_param or dim.dim_value or "?" for dim in inputs[0].type.tensor_type.shape.dim]
    dims, shape = tuple(onnx_rewrites.sizes_of(inputs[0])[1:]), facts.input_shape
    unknown = not shown  # not even how many sides there are
    if shape is not None and (unknown or 0 in dims):
        ways = {"nchw": shape, "nhwc": (*shape[1:], shape[0]), "flat": (math.prod(shape),)}
        tried = [ways[facts.layout]] if facts.layout else ways.values()
        fitting = [way for way in tried if unknown or fits(dims, way)]
        if not fitting:
            raise ModelError(
                f"{path} takes {shown}, which {setting('input_shape', list(shape))} does not fit. Change it to the "
                "channels, height and width that the graph was made for."
            )
        dims = fitting[0]
    if not dims or not all(1 <= dim <= 1_000_000 for dim in dims) or math.prod(dims) > 100_000_000:
        raise ModelError(
            f"{path} does not state the shape of an image: its input is {shown or 'of unknown shape'}. Add "
            f"{setting('input_shape', 'C,H,W')}."
        )
    return dims


def fits(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a shape has the sides that are stated; 0 stands for any."""
    return len(dims) == len(shape) and all(side in (0, size) for side, size in zip(dims, shape, strict=True))


def guess_layout(taken: tuple[int, ...], layout: str | None) -> tuple[tuple[int, ...], str | None]:
    """Return the shape of an image and the layout, by where the channels stand; an image is often square."""
    if len(taken) != 3:
        return (math.prod(taken),), None
    square = taken[0] == taken[1] != taken[2]
    last = layout == "nhwc" or (layout is None and taken[0] not in CHANNELS and (square or taken[2] in CHANNELS))
    return ((taken[2], *taken[:2]), "nhwc") if last else (taken, "nchw")


def convert(graph: Any, taken: tuple[int, ...], path: Path, ends: tuple[float, float]) -> nn.Module:
    """Convert an ONNX graph to a module, for any batch size if that is possible.

    Args:
        graph: an ONNX model with one input.
        taken: the shape of an image in it.
        path: for messages.
        ends: the least and the largest number in an image.

    Raises:
        ModelError: an operation has no converter.
    """
    batch = fixed_batch(graph)
    if batch and (batch + 2) * math.prod(taken) <= MOST_TRIED:
        try:
            module = to_torch(graph, taken, path, any_batch=True)
            images = torch.rand(batch + 2, *taken, generator=torch.Generator().manual_seed(0))
            images[2:] = 0.25 + 0.25 * images[2:]  # so that no statistic of the whole batch is that of these alone
            images = ends[0] + (ends[1] - ends[0]) * images
            with torch.no_grad():
                pairs = zip(outputs_of(module(images)), outputs_of(module(images[2:])), strict=True)
            if all(torch.allclose(among_more[2:], alone, rtol=1e-2, atol=1e-3) for among_more, alone in pairs):
                return module
        except Exception:  # whatever its operations raise for another batch size
            pass
    module = to_torch(graph, taken, path)
    if batch > 1:
        raise ModelError(
            f"{path} accepts {batch} images at a time, no more and no less. Export it with a free batch size "
            "(dynamic_shapes, or dynamic_axes in the older exporter), or for one image at a time."
        )
    if batch:  # it may run on several, and mix them
        module.register_forward_pre_hook(refuse_several)
    return module


def refuse_several(module: nn.Module, images: tuple[Any, ...]) -> None:
    """Raise a ValueError unless there is one image; a hook of modules."""
    if len(images[0]) != 1:
        raise ValueError("it takes one image at a time")


def to_torch(graph: Any, taken: tuple[int, ...], path: Path, *, any_batch: bool = False) -> nn.Module:
    """Convert a graph as it is, or as of an older opset if the converter knows only that.

    Returns:
        a module that returns the output, or several as a dict by name.

    Raises:
        ModelError: an operation has no converter.
    """
    try:
        settled = onnx_branches.settled(graph, taken)
        rewritten = onnx_rewrites.rewrite(settled, taken, any_batch=any_batch)
        refuse_large_windows(rewritten, path)
        refuse_large_values(rewritten, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.fx and numpy, about the converter's own code
            try:
                module = onnx2torch.convert(rewritten)
            except NotImplementedError:
                try:
                    other = onnx.version_converter.convert_version(settled, OLDER_OPSET)
                except Exception:  # an assertion in C++, or no adapter
                    other = None
                if other is None:
                    raise
                module = onnx2torch.convert(onnx_rewrites.rewrite(other, taken, any_batch=any_batch))
        adapt(module, [value.name for value in graph.graph.output], input_kind(graph))
    except ModelError:
        raise
    except Exception as error:  # the converter has many kinds
        found = re.search(r"operation_type='(.*?)', version=(\d+)", str(error))
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        advice = "Use the network that it was exported from, or export it without that operation"
        if found:
            reason = f"its operation {found[1]} (opset {found[2]}) has no converter"
            advice = next((words for kind, words in ADVICE if kind.search(found[1])), advice)
        raise ModelError(f"{path} cannot be converted to PyTorch: {reason}. {advice}.") from error
    converted: nn.Module = module.eval()
    return converted


def adapt(module: Any, names: list[str], kind: np.dtype[Any]) -> None:
    """Let a converted graph name its outputs, if it has several, and accept images in any precision, in place."""
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    if kind != np.float32:  # bytes and other whole numbers too come in floating point, so that a gradient passes
        dtype = torch.float16 if kind == np.float16 else torch.float32
        with module.graph.inserting_after(image):
            cast = module.graph.call_method("to", (image, dtype))
        image.replace_all_uses_with(cast, lambda node: node is not cast)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    if len(names) > 1:
        output.args = (dict(zip(names, output.args[0], strict=True)),)
    module.recompile()


def outputs_of(result: Any) -> list[Tensor]:
    """Return what a converted graph returns as a list, in the graph's order."""
    return list(result.values()) if isinstance(result, dict) else [result]


def check_against_runtime(
    target: Target,
    module: nn.Module,
    graph: Any,
    taken: tuple[int, ...],
    path: Path,
    ends: tuple[float, float],
    *,
    exact: bool,
) -> None:
    """Compare the converted module with onnxruntime on random inputs.

    Args:
        target: the target made of the module.
        module: the converted graph, or the same reshaped.
        graph: the graph that was converted.
        taken: the shape of an image in the graph.
        path: for messages.
        ends: the least and the largest number in an image.
        exact: the graph does not round: small differences cannot grow to a whole step.

    Raises:
        ModelError: they differ.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it rounds otherwise
    kind, batch = input_kind(graph), fixed_batch(graph) or 1
    random = np.random.default_rng(0)
    shape = (max(4 // batch, 1), batch, *taken)
    numbers = random.uniform(*ends, shape)
    if kind.kind in "iu":
        numbers = numbers.round().clip(np.iinfo(kind).min, np.iinfo(kind).max)
    inputs = numbers.astype(kind)
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        runs = [session.run(None, {session.get_inputs()[0].name: images}) for images in inputs]
    except Exception as error:  # onnxruntime's own
        raise ModelError(f"onnxruntime cannot run {path}: {str(error).splitlines()[0][:200]}") from error
    graph_module = module.module if isinstance(module, Reshaped) else module
    with target.frozen(), torch.no_grad():
        ours = [outputs_of(graph_module(torch.from_numpy(images.astype(np.float32)))) for images in inputs]
    for mine, theirs in zip(zip(*ours, strict=True), zip(*runs, strict=True), strict=True):
        found, expected = torch.cat(mine).float().numpy(), np.concatenate(theirs).astype(np.float32)
        spread = float(expected.std())
        rounding = 1e-6 + 1e-5 * float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        near = min(1e-3, 0.01 * spread) if exact and kind != np.float16 else 0.1 * spread
        if found.size != expected.size or not np.allclose(
            found.ravel(), expected.ravel(), rtol=1e-2, atol=near + rounding, equal_nan=True
        ):
            same_size = found.size == expected.size
            apart = np.abs(found.ravel() - expected.ravel()).max() if same_size else math.inf
            raise ModelError(
                f"{path}: the converted network gives other numbers than onnxruntime (up to {apart:.3g} apart), so it "
                "is not used."
            )
