"""Converters of the recurrent ONNX operators LSTM, GRU and RNN; importing this module registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import Tensor, nn

from interpkit_targets.onnx_ops import constant, converts

KINDS: dict[str, tuple[Callable[..., nn.RNNBase], list[int], list[str]]] = {
    "LSTM": (nn.LSTM, [0, 2, 3, 1], ["Sigmoid", "Tanh", "Tanh"]),
    "GRU": (nn.GRU, [1, 0, 2], ["Sigmoid", "Tanh"]),
    "RNN": (nn.RNN, [0], ["Tanh"]),
}
"""torch's layer, the places of its gates among those of ONNX, and the activations of both."""


class Recurrent(nn.Module):
    """A recurrent layer with the axes of ONNX: (T, B, I) to (T, directions, B, H), and the last states."""

    def __init__(self, layer: nn.RNNBase, outputs: int, backwards: bool) -> None:
        super().__init__()
        self.layer = layer
        self.outputs = outputs
        self.backwards = backwards

    def forward(
        self, x: Tensor, initial_h: Tensor | None = None, initial_c: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return as many of Y, Y_h and Y_c as the node has."""
        directions = 1 + self.layer.bidirectional
        zero = x.new_zeros(directions, x.shape[1], self.layer.hidden_size)
        h, c = (zero if state is None else state for state in (initial_h, initial_c))
        y, last = self.layer(x.flip(0) if self.backwards else x, (h, c) if isinstance(self.layer, nn.LSTM) else h)
        y = (y.flip(0) if self.backwards else y).unflatten(2, (directions, -1)).transpose(1, 2)
        found = (y, *(last if isinstance(last, tuple) else (last,)))
        return y if self.outputs == 1 else found[: self.outputs]


@converts("LSTM")
@converts("GRU")
@converts("RNN")
def _recurrent(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Convert a layer that runs over the whole sequence, with torch's activations."""
    kind, order, activations = KINDS[node.operation_type]
    given, inputs = node.attributes, [*node.input_values, *[""] * 8]
    w, r, b = (constant(node, graph, place) for place in (1, 2, 3))
    assert w is not None and r is not None
    directions, hidden = r.shape[0], r.shape[2]
    named = given.get("activations", activations * directions)
    relu = node.operation_type == "RNN" and named == ["Relu"] * directions
    plain = relu or named == activations * directions
    lengths = inputs[4] and constant(node, graph, 4)
    known = graph.value_info[inputs[0]].type.tensor_type.shape.dim
    whole = not isinstance(lengths, Tensor) or (len(known) > 0 and bool((lengths == known[0].dim_value).all()))
    options = given.get("clip", 0.0) or given.get("input_forget", 0) or given.get("layout", 0) or inputs[7]
    if not plain or not whole or options or (kind is nn.GRU and not given.get("linear_before_reset", 0)):
        raise NotImplementedError(
            f"{node.operation_type} with lengths, peepholes or attributes other than PyTorch's is not implemented"
        )
    extra: dict[str, Any] = {"nonlinearity": "relu"} if relu else {}
    layer = kind(w.shape[2], hidden, bias=b is not None, bidirectional=directions == 2, **extra)

    def gates(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.split(hidden)[place] for place in order])

    for direction, suffix in zip(range(directions), ("", "_reverse"), strict=False):
        parts = {"weight_ih_l0": w[direction], "weight_hh_l0": r[direction]}
        if b is not None:
            parts["bias_ih_l0"], parts["bias_hh_l0"] = b[direction].chunk(2)
        for name, tensor in parts.items():
            layer.get_parameter(name + suffix).data = gates(tensor)
    states = []
    for name in inputs[5:7]:
        zero = name in graph.initializers and not graph.initializers[name].to_torch().any()
        states.append("" if zero else name)
    module = Recurrent(layer, len(node.output_values), given.get("direction", "forward") == "reverse")
    return OperationConverterResult(module, OnnxMapping((inputs[0], *states), node.output_values))
