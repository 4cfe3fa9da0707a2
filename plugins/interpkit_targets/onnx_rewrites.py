"""Rewrite an ONNX graph, without changing what it computes, into operators that the converter to PyTorch knows.

Functions that return nothing change the graph in place. The converted graph is compared with onnxruntime on the
original one, so that a mistake here ends in a refusal.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnx.shape_inference

LARGEST_WINDOW = 1024
"""The most pixels that a window of an ONNX operation may have, or move, or add at a side."""
WINDOW = ("kernel_shape", "pads", "strides", "dilations", "output_padding", "output_shape")
SAME_SIZE = ("Identity", "DequantizeLinear", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators whose output is at most as large as their inputs, computed beforehand where these are constants."""
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sqrt", "Concat", "Slice", "Gather", "Shape", "ConstantOfShape")
"""Likewise, but only for a few numbers, such as shapes."""
FEW = 1024
SAME_SHAPE = ("GroupNormalization", "RMSNormalization", "Gelu", "Mish", "Swish")
"""Operators that keep the shape, but at which shape inference ends: onnx defines them as functions."""
OWN = {"Identity": "Alias", "Slice": "Cut"}
"""Operators that are always converted by a converter of our own, and its name."""
WINDOWED = ("Conv", "MaxPool", "AveragePool")


def rewrite(graph: Any, image: Sequence[int], *, any_batch: bool = False) -> Any:
    """Return a rewritten copy of a model.

    Args:
        graph: an ONNX model with one input.
        image: the shape of an image, without the batch.
        any_batch: let the graph accept any batch size, although it states one.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    for number, node in enumerate(model.graph.node):
        while node.input and not node.input[-1]:  # optional, and left out
            del node.input[-1]
        if node.op_type == "Clip" and len(node.input) == 3 and not node.input[1]:  # the converter looks for a minimum
            node.input[1] = f"(lowest {number})"
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), node.input[1]))
        # The converter takes an input that is left out for an output that is.
        node.output[:] = [name or f"(unused {number}.{i})" for i, name in enumerate(node.output)]
    lift_constants(model)
    give_outputs_their_own_nodes(model.graph)
    name_nodes(model.graph)
    fold_constants(model)
    state_input_shape(model, image)
    infer_shapes(model)
    sizes = known_sizes(model.graph)
    for node in model.graph.node:
        if node.op_type in WINDOWED:
            state_pads(node, sizes)
        elif node.op_type == "Reshape":
            plain_reshape(model.graph, node, sizes if any_batch else {})
    if any_batch:
        free_batch(model)
    own_operators(model)
    return model


def graph_inputs(graph: Any) -> list[Any]:
    """Return the inputs of a model that are not weights."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in weights]


def all_tensors(graph: Any) -> Iterator[Any]:
    """Yield the weights of a graph or function and the tensors in its nodes' attributes, and of the graphs in these."""
    sparse = [] if isinstance(graph, onnx.FunctionProto) else [*graph.sparse_initializer]
    yield from () if isinstance(graph, onnx.FunctionProto) else graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from all_tensors(inner)
    for each in sparse:
        yield from (each.values, each.indices)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def set_attributes(node: Any, **values: Any) -> None:
    """Replace attributes of a node; None removes one."""
    kept = [attribute for attribute in node.attribute if attribute.name not in values]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in values.items() if v is not None)


def known_sizes(graph: Any) -> dict[str, list[int]]:
    """Return the shapes of the values in a graph whose rank is known, by name; 0 stands for an unknown side."""
    values = [*graph.input, *graph.value_info, *graph.output]
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return {v.name: sizes_of(v) for v in values if v.type.tensor_type.HasField("shape")} | weights


def sizes_of(value: Any) -> list[int]:
    """Return the stated shape of an input or output; 0 stands for a side that is left open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def too_large(graph: Any) -> tuple[str, str, list[int]] | None:
    """Return the operator, attribute and sizes of a window that would fill the memory, if there is one."""
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name in WINDOW and any(abs(size) > LARGEST_WINDOW for size in attribute.ints):
                return node.op_type, attribute.name, list(attribute.ints)[:8]
    return None


def keep_scores(model: Any) -> None:
    """Drop outputs other than the scores of all classes (a label, the largest scores) and what leads only to them.

    scikit-learn's ZipMap, which turns probabilities into dictionaries, becomes the identity.
    """
    floats = {getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")}
    zipped = set()
    for node in model.graph.node:
        if node.op_type == "ZipMap":
            zipped.update(node.output)
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    for value in model.graph.output:
        if value.name in zipped:
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
    largest = {name for node in model.graph.node if node.op_type == "TopK" for name in node.output}
    scores = [value for value in model.graph.output if value.type.tensor_type.elem_type in floats]
    kept = [value for value in scores if value.name not in largest]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    drop_dead_nodes(model.graph)


def class_names(model: Any) -> list[str] | None:
    """Return the labels of the classes that a ZipMap states, or the table in which a graph looks up the label."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ZipMap":
            labels: list[Any] = next(iter(attributes(node).values()), [])
        elif node.op_type == "ArrayFeatureExtractor" and node.input[0] in tables:
            labels = onnx.numpy_helper.to_array(tables[node.input[0]]).ravel().tolist()
        else:
            continue
        return [label.decode() if isinstance(label, bytes) else str(label) for label in labels] or None
    return None


def written_out(model: Any) -> int:
    """Return the number of nodes that a model has once each call of a function of its own is replaced by its nodes."""
    bodies = {(function.domain, function.name, function.overload): function.node for function in model.functions}

    @functools.cache
    def size(*function: str) -> int:
        return count(bodies[function]) if function in bodies else 1

    def count(nodes: Any) -> int:
        inner = (g.node for node in nodes for each in node.attribute for g in (each.g, *each.graphs))
        return sum(size(node.domain, node.op_type, node.overload) for node in nodes) + sum(map(count, inner))

    return count(model.graph.node)


def make_single(model: Any) -> None:
    """Turn doubles into single precision, which suffices for a classifier and which every device computes."""
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for tensor in all_tensors(model.graph):
        if tensor.data_type == double:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f"), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == double:
            value.type.tensor_type.elem_type = single
    for node in model.graph.node:
        if node.op_type == "Cast" and not node.domain and attributes(node)["to"] == double:
            set_attributes(node, to=single)


def give_outputs_their_own_nodes(graph: Any) -> None:
    """Add an identity for each output: of a node with several the converter would return all, and each node once."""
    shared = any(len(node.output) > 1 and graph.output[0].name in node.output for node in graph.node)
    if shared or len(graph.output) > 1:
        for value in graph.output:
            name = value.name
            value.name = f"{name} (output)"
            graph.node.append(onnx.helper.make_node("Identity", [name], [value.name], f"output {name}"))


def drop_dead_nodes(graph: Any) -> None:
    """Drop the nodes on which no output depends."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    wanted.update(name for inside in inner.node for name in inside.input)
                    wanted.update(value.name for value in inner.output)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def lift_constants(model: Any) -> None:
    """Make weights of the constant nodes: the converter looks for a layer's weights there alone."""
    kept = []
    for node in model.graph.node:
        values = attributes(node) if node.op_type == "Constant" else {}
        name, value = next(iter(values.items()), ("", None))
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            value = onnx.numpy_helper.from_array(np.array(value, np.int64 if "int" in name else np.float32))
        elif name != "value":
            kept.append(node)
            continue
        model.graph.initializer.add().CopyFrom(value)
        model.graph.initializer[-1].name = node.output[0]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def name_nodes(graph: Any) -> None:
    """Give each node the name that its layer is to have, by itself or numbered, whatever is rewritten later.

    torch.fx writes the names into code that it runs, so nothing that ends a string is left in them.
    """
    count: Counter[str] = Counter()
    for node in graph.node:
        name = re.sub(r"[^\w/:. -]", "_", node.name or node.op_type)
        layer = name.replace(".", "/").lstrip("/")  # to the converter /a.b and a/b are one
        node.name = f"{name}_{count[layer]}" if count[layer] else name
        count[layer] += 1


def fold_constants(model: Any) -> None:
    """Compute what can be computed without an image and stays small, such as weights kept as bytes, or shapes."""
    inputs = {value.name for value in model.graph.input}
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}
    kept = []
    for node in model.graph.node:
        tensors = [weights[name] for name in node.input if name in weights]
        constant = bool(tensors) and len(tensors) == sum(map(bool, node.input)) and not node.domain
        tensor = computed(node, tensors, model.opset_import) if constant and stays_small(node, tensors) else None
        if tensor is None:
            kept.append(node)
        else:
            weights[tensor.name] = tensor
            model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def stays_small(node: Any, tensors: Sequence[Any]) -> bool:
    """Return whether a node computes no more numbers from constants than these have, or just a few."""
    few = node.op_type in ARITHMETIC and all(math.prod(tensor.dims) <= FEW for tensor in tensors)
    if few and node.op_type == "ConstantOfShape":
        return bool(0 <= math.prod(onnx.numpy_helper.to_array(tensors[0]).tolist()) <= FEW)
    return few or node.op_type in SAME_SIZE


def computed(node: Any, tensors: Sequence[Any], opsets: Sequence[Any]) -> Any | None:
    """Return what a node computes from constants; None if that is not possible, which the converter reports."""
    if node.op_type == "DequantizeLinear":
        opsets = [onnx.helper.make_opsetid("", 21)]  # the oldest that the evaluator knows with a scale per channel
    alone = onnx.helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=node.output[0])], tensors)
    try:
        run = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=opsets))
        return onnx.numpy_helper.from_array(np.asarray(run.run(None, {})[0]), node.output[0])  # type: ignore[index]
    except Exception:  # the evaluator's own
        return None


def state_input_shape(model: Any, image: Sequence[int]) -> None:
    """Write the shape of an image into the input, which may leave it open."""
    (value,) = graph_inputs(model)
    dims = value.type.tensor_type.shape.dim
    while len(dims) < 1 + len(image):
        dims.add()
    for dim, size in zip(dims[1:], image, strict=True):
        dim.dim_value = size


def infer_shapes(model: Any) -> None:
    """Write the shape of each value into the graph, as far as it can be inferred."""
    simpler = onnx.ModelProto()
    simpler.CopyFrom(model)
    del simpler.graph.value_info[:]
    for node in simpler.graph.node:
        if node.op_type in SAME_SHAPE:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    known = onnx.shape_inference.infer_shapes(simpler, data_prop=True).graph
    for field, inferred in ((model.graph.value_info, known.value_info), (model.graph.output, known.output)):
        del field[:]
        field.extend(inferred)


def state_pads(node: Any, sizes: dict[str, list[int]]) -> None:
    """Replace ``auto_pad`` by the pads that it means for the size of the node's input."""
    stated = attributes(node)
    auto = stated.get("auto_pad", b"NOTSET").decode()
    kernel = stated.get("kernel_shape") or sizes.get(node.input[1], [])[2:]
    sides = sizes.get(node.input[0], [])[2:]
    if not auto.startswith("SAME") or len(sides) != len(kernel) or not all(sides):
        return
    ones = [1] * len(kernel)
    strides, dilations = stated.get("strides", ones), stated.get("dilations", ones)
    totals = [
        max((math.ceil(side / stride) - 1) * stride + (size - 1) * dilation + 1 - side, 0)
        for side, size, stride, dilation in zip(sides, kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    pads = less + more if auto == "SAME_UPPER" else more + less
    set_attributes(node, auto_pad=None, kernel_shape=kernel, pads=pads)


def plain_reshape(graph: Any, node: Any, sizes: dict[str, list[int]]) -> None:
    """Drop ``allowzero`` where no side is zero; with sizes, leave the first side open, which holds the batch."""
    shape = next((onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == node.input[1]), None)
    if shape is None or shape.all():
        set_attributes(node, allowzero=None)
    sides = sizes.get(node.output[0], [])
    if shape is not None and len(sides) > 1 and all(sides):
        tensor = onnx.numpy_helper.from_array(np.array([-1, *sides[1:]]), f"{node.output[0]} (shape)")
        graph.initializer.append(tensor)
        node.input[1] = tensor.name


def free_batch(model: Any) -> None:
    """Leave the first side of the input open, and repeat constants such as a class token for each image."""
    (value,) = graph_inputs(model)
    batch = sizes_of(value)[0]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    added: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "Expand" and node.input[1] in weights:
            shape = onnx.numpy_helper.to_array(weights[node.input[1]]).tolist()
            if len(shape) > 1 and shape[0] == batch:
                node.input[1] = batch_and(shape[1:], model.graph, added)
        elif node.op_type == "Concat" and attributes(node)["axis"] != 0:
            for i, name in enumerate(node.input):
                if name in weights and len(weights[name].dims) > 1 and weights[name].dims[0] == batch:
                    rows = onnx.numpy_helper.to_array(weights[name])
                    if (rows == rows[:1]).all():
                        one = onnx.numpy_helper.from_array(rows[:1], f"{name} (one)")
                        model.graph.initializer.append(one)
                        shape = batch_and(rows.shape[1:], model.graph, added)
                        node.input[i] = f"{node.name} {i} (each)"
                        added.append(onnx.helper.make_node("Expand", [one.name, shape], [node.input[i]]))
    if added:
        zero = onnx.numpy_helper.from_array(np.array([0]), "(zero)")
        model.graph.initializer.append(zero)
        added.insert(0, onnx.helper.make_node("Gather", ["(shape)", zero.name], ["(batch)"]))
        added.insert(0, onnx.helper.make_node("Shape", [value.name], ["(shape)"]))
    for i, node in enumerate(added):
        node.name = f"batch {i}"
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for known in (*model.graph.value_info, *model.graph.output):
        if sizes_of(known)[:1] == [batch]:
            known.type.tensor_type.shape.dim[0].dim_param = "batch"


def batch_and(sides: Sequence[int], graph: Any, nodes: list[Any]) -> str:
    """Add a node that computes a shape, the batch size and further sides; returns its output's name."""
    name = f"(batch, {', '.join(map(str, sides))})"
    if not any(name in node.output for node in nodes):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(sides, np.int64), f"{name} (rest)"))
        nodes.append(onnx.helper.make_node("Concat", ["(batch)", f"{name} (rest)"], [name], axis=0))
    return name


def own_operators(model: Any) -> None:
    """Rename the operators that `interpkit_targets.onnx_ops` converts otherwise than the converter does.

    A product with a matrix of weights becomes a linear layer, which can be watched. The converter does not know pooling
    that pads only one side, nor a layer norm over a size that shape inference does not find; it copies at an identity,
    and slices in a way that torch is about to read otherwise.
    """
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in OWN:
            node.op_type = OWN[node.op_type]
        elif node.op_type == "Split" and len(node.output) == 1:  # the converter would return a tuple
            node.op_type = "Alias"
            del node.input[1:], node.attribute[:]
        elif node.op_type == "AveragePool":
            pads = attributes(node).get("pads", [])
            if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
                node.op_type = "PaddedAveragePool"
        elif node.op_type == "LayerNormalization" and weights.get(node.input[1]) and len(node.output) == 1:
            node.op_type = "LayerNorm"
        elif node.op_type == "MatMul" and weights.get(node.input[1]) == 2 and node.input[0] not in weights:
            node.op_type = "Linear"
