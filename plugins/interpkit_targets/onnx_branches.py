"""Replace each `If` of an ONNX graph, whose condition depends on no image, by the branch that is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from interpkit_targets.onnx_rewrites import drop_dead_nodes, graph_inputs, sizes_of, state_input_shape

FROM_SHAPES = ("Shape", "Size")
"""Operators that read no values."""


def settled(graph: Any, image: Sequence[int]) -> Any:
    """Return a copy of a model with the branches that are taken for every image; others are left to the converter.

    Args:
        graph: an ONNX model with one input.
        image: the shape of an image, without the batch.
    """
    if not any(node.op_type == "If" for node in graph.graph.node):
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    state_input_shape(model, image)
    number = 0
    while found := next(_decided(model), None):
        place, node, taken = found
        name = "then_branch" if taken else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
        own = [tensor.name for tensor in branch.initializer] + [o for inner in branch.node for o in inner.output]
        _rename(branch, {old: f"{old} (branch {number})" for old in own if old})
        results = zip(branch.output, node.output, strict=True)
        model.graph.initializer.extend(branch.initializer)
        copies = [onnx.helper.make_node("Identity", [value.name], [output]) for value, output in results]
        nodes = [*model.graph.node[:place], *branch.node, *copies, *model.graph.node[place + 1 :]]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        number += 1
    drop_dead_nodes(model.graph)
    return model


def _decided(model: Any) -> Iterator[tuple[int, Any, bool]]:
    """Yield the place of each If that can be decided, the node and its condition."""
    for place, node in enumerate(model.graph.node):
        condition = _condition(model, node) if node.op_type == "If" else None
        if condition is not None:
            yield place, node, condition


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)


def _condition(model: Any, node: Any) -> bool | None:
    """Return the condition of an If, or None if it is not the same for every image, or cannot be computed."""
    producers = {name: node for node in model.graph.node for name in node.output}
    images = {value.name for value in graph_inputs(model)}
    todo, needed = [node.input[0]], set()
    while todo:
        name = todo.pop()
        maker = producers.get(name)
        if name in images or (maker is not None and any(attribute.HasField("g") for attribute in maker.attribute)):
            return None
        if name not in needed and maker is not None and maker.op_type not in FROM_SHAPES:
            todo += [each for each in maker.input if each]
        needed.add(name)
    return _computed(model, node.input[0])


def _computed(model: Any, name: str) -> bool | None:
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.output[:]
    alone.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None))
    drop_dead_nodes(alone.graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    (value,) = graph_inputs(alone)
    batch, *image = sizes_of(value)
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    try:
        session = onnxruntime.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = {
            bool(np.all(session.run(None, {value.name: np.zeros((count, *image), kind)})[0]))
            for count in ([batch] if batch else [1, 2, 3])
        }
    except Exception:  # onnxruntime's own
        return None
    return found.pop() if len(found) == 1 else None
