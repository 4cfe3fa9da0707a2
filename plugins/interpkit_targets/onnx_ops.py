"""Converters of ONNX operators that onnx2torch lacks; importing this module registers them.

An operator's newer version is converted like the newest one that onnx2torch knows, if the node uses nothing new: most
versions only add data types. Whatever is converted is compared with onnxruntime afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
from onnx2torch.node_converters.registry import _CONVERTER_REGISTRY as KNOWN
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import Tensor, nn

Converter = Callable[[OnnxNode, OnnxGraph], OperationConverterResult]

INTEGERS = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}
"""The ranges of the types that images and features are quantized to."""
LATEST = onnx.defs.onnx_opset_version()
ALL_VERSIONS = range(1, LATEST + 1)
PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


class Function(nn.Module):
    """A function of tensors as a layer, with options."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        return self.function(*inputs, **self.options)

    def extra_repr(self) -> str:
        """Return the function's name."""
        return getattr(self.function, "__name__", "")


class Quantize(nn.Module):
    """Rounds to whole numbers, which stay floating-point: clamp(round(x / scale) + zero point).

    The gradient passes the rounding as if it were not there (a straight-through estimator): its own is zero.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.bounds = bounds

    def forward(self, x: Tensor) -> Tensor:
        """Return whole numbers in floating point."""
        steps = x / self.scale
        return (steps + (steps.round() - steps).detach() + self.zero).clamp(*self.bounds)


class Dequantize(nn.Module):
    """(x - zero point) * scale."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers that were quantized, rounded."""
        return (x.to(self.scale.dtype) - self.zero) * self.scale


def converts(operator: str, versions: Sequence[int] = ALL_VERSIONS) -> Callable[[Converter], Converter]:
    """Register a converter for those versions of an operator that onnx2torch does not convert."""

    def register(converter: Converter) -> Converter:
        for version in versions:
            if ("", operator, version) not in KNOWN:
                add_converter(operation_type=operator, version=version)(converter)
        return converter

    return register


def layer(node: OnnxNode, module: nn.Module, inputs: int | None = None) -> OperationConverterResult:
    """Return a module that stands for a node, called with the node's first inputs."""
    return OperationConverterResult(module, OnnxMapping(tuple(node.input_values[:inputs]), node.output_values))


def constant(node: OnnxNode, graph: OnnxGraph, index: int) -> Tensor | None:
    """Return the constant value of an input, or None if the node does not have it.

    Raises:
        NotImplementedError: it is computed.
    """
    name = node.input_values[index] if index < len(node.input_values) else ""
    if name and name not in graph.initializers:
        raise NotImplementedError(f"{node.operation_type} needs a constant {name!r}")
    return graph.initializers[name].to_torch() if name else None


def newer_versions() -> None:
    """Convert newer versions of known operators like the newest that onnx2torch knows."""
    schemas = {(s.domain, s.name, s.since_version): s for s in onnx.defs.get_all_schemas_with_history()}
    newest: dict[str, int] = {}
    for domain, operator, version in KNOWN:
        if domain == "":
            newest[operator] = max(version, newest.get(operator, 0))
    for (domain, operator, version), schema in schemas.items():
        if domain == "" and version > newest.get(operator, version):
            older = schemas["", operator, newest[operator]]
            add_converter(operation_type=operator, version=version)(functools.partial(like_older, older, schema))


def like_older(older: Any, schema: Any, node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert a node like one of an older version.

    Raises:
        NotImplementedError: it uses what the older version does not have.
    """
    for attribute in node.proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        default = schema.attributes[attribute.name].default_value
        if attribute.name not in older.attributes and attribute.name not in ("saturate", "round_mode", "num_outputs"):
            plain = all(size == 1 for size in value) if attribute.name == "dilations" else None
            if not plain and (default.type == 0 or value != onnx.helper.get_attribute_value(default)):
                raise NotImplementedError(f"{node.operation_type} with {attribute.name} is not implemented")
    return get_converter(node.operation_type, older.since_version)(node, graph)


class Pad(nn.Module):
    """Pads (or crops, by negative sizes) the given axes, all by default."""

    def __init__(self, mode: str, value: float, axes: list[int] | None, sizes: list[int] | None) -> None:
        super().__init__()
        self.mode = mode
        self.value = value
        self.axes = axes
        self.sizes = sizes

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Pad by the constant sizes or by those that the graph computed: the starts, then the ends."""
        around = self.sizes if sizes is None else sizes.tolist()
        assert around is not None
        axes = range(x.dim()) if self.axes is None else [axis % x.dim() for axis in self.axes]
        sides = dict(zip(axes, zip(around[: len(axes)], around[len(axes) :], strict=True), strict=True))
        flat = [size for axis in reversed(range(x.dim())) for size in sides.get(axis, (0, 0))]
        if self.mode == "constant":
            return F.pad(x, flat, value=self.value)
        while len(flat) > 2 and flat[-2:] == [0, 0]:  # torch reflects the last axes alone
            del flat[-2:]
        return F.pad(x, flat, self.mode)


@converts("Pad", range(18, LATEST + 1))
def _pad(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode = PAD_MODES[node.attributes.get("mode", "constant")]
    value, axes = constant(node, graph, 2), constant(node, graph, 3)
    sizes = constant(node, graph, 1) if node.input_values[1] in graph.initializers else None
    listed = (None if numbers is None else numbers.tolist() for numbers in (axes, sizes))
    return layer(node, Pad(mode, 0.0 if value is None else value.item(), *listed), 2 if sizes is None else 1)


@converts("Alias")
def _alias(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert an identity without a copy, so that one sees which output is computed from which."""
    return layer(node, nn.Identity())


class Cut(nn.Module):
    """Cuts a part out of a tensor, by constant bounds or by those that the graph computed."""

    def __init__(self, bounds: list[list[int] | None]) -> None:
        super().__init__()
        self.bounds = bounds

    def forward(
        self,
        x: Tensor,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Cut along each axis; a step below zero goes from the end."""
        computed = (None if bound is None else bound.tolist() for bound in (starts, ends, axes, steps))
        first, last, along, by = (given or fixed for given, fixed in zip(computed, self.bounds, strict=True))
        assert first is not None and last is not None
        parts = [slice(None)] * x.dim()
        back = []
        for i, (start, end) in enumerate(zip(first, last, strict=True)):
            axis, step = along[i] % x.dim() if along else i, by[i] if by else 1
            if step < 0:
                back.append(axis)
                start, end, step = -start - 1, -end - 1, -step
            parts[axis] = slice(start, end, step)
        return (x.flip(back) if back else x)[tuple(parts)]


@converts("Cut")
def _cut(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert Slice, whose bounds are inputs, or attributes before opset 10."""
    given = [node.attributes.get(name) for name in ("starts", "ends", "axes", "steps")]
    if any(given):
        return layer(node, Cut(given))
    try:
        inputs = (constant(node, graph, i) for i in range(1, 5))
        return layer(node, Cut([None if bound is None else bound.tolist() for bound in inputs]), 1)
    except NotImplementedError:
        return layer(node, Cut([None] * 4))


@converts("Linear")
def _linear(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert a product with a matrix of weights, which `interpkit_targets.onnx_rewrites` renamed."""
    weight = constant(node, graph, 1)
    assert weight is not None
    module = nn.Linear(weight.shape[0], weight.shape[1], bias=False, device="meta")
    module.weight = nn.Parameter(weight.T.contiguous(), requires_grad=weight.is_floating_point())
    return layer(node, module, 1)


@converts("ReduceL1", range(18, LATEST + 1))
@converts("ReduceL2", range(18, LATEST + 1))
@converts("ReduceLogSum", range(18, LATEST + 1))
@converts("ReduceLogSumExp", range(18, LATEST + 1))
@converts("ReduceMax", range(18, LATEST + 1))
@converts("ReduceMean", range(18, LATEST + 1))
@converts("ReduceMin", range(18, LATEST + 1))
@converts("ReduceProd", range(18, LATEST + 1))
@converts("ReduceSumSquare", range(18, LATEST + 1))
def _reduce(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert a reduction whose axes are an input."""
    axes = constant(node, graph, 1)
    if axes is None and node.attributes.get("noop_with_empty_axes", 0):
        return layer(node, nn.Identity(), 1)
    rank = len(graph.value_info[node.input_values[0]].type.tensor_type.shape.dim)
    positive = None if axes is None else [axis % rank for axis in axes.tolist()]
    return layer(node, OnnxReduceStaticAxes(node.operation_type, positive, node.attributes.get("keepdims", 1)), 1)


@converts("QuantizeLinear")
@converts("DequantizeLinear")
def _quantize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert to and from whole numbers, which stay floating-point numbers in between."""
    scale, zero = constant(node, graph, 1), constant(node, graph, 2)
    if scale is None or node.attributes.get("block_size", 0):
        raise NotImplementedError(f"{node.operation_type} by blocks is not implemented")
    kind = node.attributes.get("output_dtype", 0) or onnx.TensorProto.UINT8
    if zero is not None:
        kind = graph.initializers[node.input_values[2]]._proto.data_type
    shape = graph.value_info[node.input_values[0]].type.tensor_type.shape.dim
    if scale.dim() == 1 and len(scale) > 1:
        axis = node.attributes.get("axis", 1) % len(shape)
        along = [-1 if i == axis else 1 for i in range(len(shape))]
        scale, zero = scale.view(along), None if zero is None else zero.view(along)
    offset = torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)
    if node.operation_type == "DequantizeLinear":
        return layer(node, Dequantize(scale, offset), 1)
    return layer(node, Quantize(scale, offset, INTEGERS[kind]), 1)


@converts("AffineGrid")
def _affine_grid(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    corners = bool(node.attributes.get("align_corners", 0))
    return layer(node, Function(lambda theta, size: F.affine_grid(theta, size.tolist(), align_corners=corners)))


@converts("GridSample")
def _grid_sample(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode = node.attributes.get("mode", "bilinear")
    options = {
        "mode": {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
        "padding_mode": node.attributes.get("padding_mode", "zeros"),
        "align_corners": bool(node.attributes.get("align_corners", 0)),
    }
    return layer(node, Function(F.grid_sample, **options))


@converts("PaddedAveragePool")
def _average_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert pooling that pads the start otherwise than the end."""
    given = node.attributes
    rank = len(given["kernel_shape"])
    if any(size != 1 for size in given.get("dilations", [])) or given.get("ceil_mode", 0):
        raise NotImplementedError("AveragePool with dilations or ceil_mode is not implemented")
    mean = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1](given["kernel_shape"], given.get("strides", [1] * rank))
    around = Pad("constant", 0.0, list(range(2, 2 + rank)), given["pads"])

    def pooled(x: Tensor) -> Tensor:
        sums: Tensor = mean(around(x))
        counts: Tensor = mean(around(torch.ones_like(x[:1])))
        return sums if given.get("count_include_pad", 0) else sums / counts

    return layer(node, Function(pooled))


@converts("Upsample")
def _upsample(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert what is now called Resize."""
    scales = constant(node, graph, 1)
    factors = node.attributes["scales"] if scales is None else scales.tolist()
    modes = {"nearest": "nearest", "linear": "bilinear"}
    mode = modes[node.attributes.get("mode", "nearest")]
    return layer(node, Function(F.interpolate, scale_factor=tuple(factors[2:]), mode=mode), 1)


@converts("GlobalMaxPool")
def _global_max_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, Function(lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)))


@converts("LpNormalization")
def _normalize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, Function(F.normalize, p=node.attributes.get("p", 2), dim=node.attributes.get("axis", -1)))


@converts("LayerNorm")
def _layer_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert LayerNormalization, which `interpkit_targets.onnx_rewrites` renamed."""
    weight, bias = constant(node, graph, 1), constant(node, graph, 2)
    assert weight is not None
    module = nn.LayerNorm(weight.shape, node.attributes.get("epsilon", 1e-5), bias=bias is not None)
    module.weight = nn.Parameter(weight)
    if bias is not None:
        module.bias = nn.Parameter(bias)
    return layer(node, module, 1)


@converts("GroupNormalization")
def _group_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert it with a weight per channel, or per group as before opset 21."""
    weight, bias = constant(node, graph, 1), constant(node, graph, 2)
    groups = node.attributes["num_groups"]
    channels = graph.value_info[node.input_values[0]].type.tensor_type.shape.dim[1].dim_value
    assert weight is not None and bias is not None
    module = nn.GroupNorm(groups, channels, node.attributes.get("epsilon", 1e-5))
    module.weight = nn.Parameter(weight.repeat_interleave(channels // len(weight)))
    module.bias = nn.Parameter(bias.repeat_interleave(channels // len(bias)))
    return layer(node, module, 1)


@converts("RMSNormalization")
def _rms_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    weight = constant(node, graph, 1)
    assert weight is not None
    module = nn.RMSNorm(weight.shape, node.attributes.get("epsilon", 1e-5))
    module.weight = nn.Parameter(weight)
    return layer(node, module, 1)


@converts("Attention")
def _attention(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert attention over (batch, heads, tokens, size), with an optional mask."""
    rank = len(graph.value_info[node.input_values[0]].type.tensor_type.shape.dim)
    plain = rank == 4 and len(node.output_values) == 1 and not any(node.input_values[4:])
    if not plain or node.attributes.get("softcap", 0.0) or node.attributes.get("qk_matmul_output_mode", 0):
        raise NotImplementedError("Attention with a cache, several outputs or flat heads is not implemented")
    options = {"is_causal": bool(node.attributes.get("is_causal", 0)), "scale": node.attributes.get("scale")}
    return layer(node, Function(F.scaled_dot_product_attention, **options), 4)


@converts("Trilu")
def _triangle(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    diagonal = constant(node, graph, 1)
    function = torch.triu if node.attributes.get("upper", 1) else torch.tril
    return layer(node, Function(function, diagonal=0 if diagonal is None else int(diagonal)), 1)


@converts("OneHot")
def _one_hot(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis", -1)

    def one_hot(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        places, size = indices.long(), int(depth)
        inside = (places >= -size) & (places < size)
        hot = F.one_hot(places % size, size).movedim(-1, axis) * inside.unsqueeze(axis)
        rows: Tensor = (values[0] + (values[1] - values[0]) * hot).to(values.dtype)
        return rows

    return layer(node, Function(one_hot))


@converts("CastLike")
def _cast_like(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, Function(lambda x, like: x.to(like.dtype)))


@converts("Gelu")
def _gelu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, nn.GELU(node.attributes.get("approximate", "none")))


@converts("Swish")
def _swish(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    alpha = node.attributes.get("alpha", 1.0)
    return layer(node, Function(lambda x: x * torch.sigmoid(alpha * x)))


@converts("ThresholdedRelu")
def _thresholded(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, nn.Threshold(node.attributes.get("alpha", 1.0), 0.0))


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Mish": F.mish,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}


@converts("Mish")
@converts("Sinh")
@converts("Cosh")
@converts("Asinh")
@converts("Acosh")
@converts("Atanh")
def _elementwise(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return layer(node, Function(ELEMENTWISE[node.operation_type]))


newer_versions()
