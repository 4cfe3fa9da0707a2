"""ONNX graphs from current exporters and from `pack` load with the outputs of onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx2torch
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import interpkit
from interpkit import ModelError, Target, UsageError, load_target, pack_target, wrap
from interpkit.errors import in_shell

Node = helper.make_node
Outputs = dict[str, tuple[int, Sequence[Any]]]
RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return (RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


KERNEL, HEAD = weights(8, 3, 3, 3), weights(8, 5)
CONSTANTS: dict[str, Any] = {"k": KERNEL, "w": HEAD}
AFTER = [
    Node("Relu", ["c"], ["r"]),
    Node("GlobalAveragePool", ["r"], ["p"]),
    Node("Flatten", ["p"], ["f"]),
    Node("MatMul", ["f", "w"], ["y"]),
]


def net(image: str = "x", **attributes: Any) -> list[Any]:
    """Return the nodes of a classifier with input (3, H, W) and 5 classes."""
    return [Node("Conv", [image, "k"], ["c"], **attributes), *AFTER]


def write(
    path: Path,
    nodes: list[Any],
    constants: dict[str, Any] | None = None,
    shape: Sequence[Any] | None = ("N", 3, 15, 15),
    *,
    kind: int = TensorProto.FLOAT,
    outputs: Outputs | None = None,
    opset: int = 13,
) -> Path:
    values = {**CONSTANTS, **(constants or {})}
    used = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    returned = outputs or {"y": (TensorProto.FLOAT, ["N", 5])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, *value) for name, value in returned.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in used],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def numbers_of(path: Path, images: np.ndarray[Any, Any], output: str = "y") -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run([output], {"x": image[None]})[0] for image in images]
    return np.concatenate(parts)


def assert_like_onnxruntime(target: Target, path: Path, output: str = "y") -> None:
    images = torch.rand(3, *target.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(target(images), torch.from_numpy(numbers_of(path, images.numpy(), output)))


def refusal(path: Path, **options: Any) -> str:
    with in_shell(), pytest.raises(ModelError) as caught:
        load_target(path, **options)
    return str(caught.value)


def count(target: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in target.modules())


# ------------------------------------------------------------------------------------- what the exporter writes now


def test_an_optional_input_with_an_empty_name_may_be_absent(tmp_path: Path) -> None:
    nodes = [net()[0], Node("Clip", ["c", "least", ""], ["l"]), Node("Relu", ["l"], ["r"]), *AFTER[1:]]
    path = write(tmp_path / "net.onnx", nodes, {"least": np.float32(0.1)})
    assert_like_onnxruntime(load_target(path), path)


@pytest.mark.parametrize("location", ["net.onnx.data", "net.onnx_data"])
def test_weights_in_a_file_named_like_the_graph_are_read(location: str, tmp_path: Path) -> None:
    graph = onnx.load(write(tmp_path / "one.onnx", net()))
    onnx.save(graph, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location=location)
    assert (tmp_path / location).is_file()
    assert_like_onnxruntime(load_target(tmp_path / "net.onnx"), tmp_path / "one.onnx")


def test_weights_in_another_or_a_missing_file_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net())
    options = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(onnx.load(path), path, location="net.onnx.data", **options)
    data = (tmp_path / "net.onnx.data").rename(tmp_path / "secret")
    assert "which is missing" in refusal(path) and "external_data=False" in refusal(path)
    (tmp_path / "net.onnx.data").symlink_to(data)
    assert "in other files" in refusal(path)
    path.rename(tmp_path / "renamed.onnx")
    assert "begin with 'renamed'" in refusal(tmp_path / "renamed.onnx")


def test_a_run_is_not_resumed_with_other_weights_beside_the_graph(tmp_path: Path) -> None:
    path, run = write(tmp_path / "net.onnx", net()), tmp_path / "run"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="net.onnx.data")
    interpkit.invert(path, ["vecmat"], out=run, steps=1, batch_size=4)
    data = tmp_path / "net.onnx.data"
    assert interpkit.load_inversion(run).target.num_classes == 5
    data.write_bytes(data.read_bytes()[::-1])
    with pytest.raises(ModelError, match="is not what it was"):
        interpkit.load_inversion(run)


def test_a_reshape_that_allows_zeros_but_has_none_loads(tmp_path: Path) -> None:
    nodes = [
        Node("Shape", ["x"], ["n"], start=0, end=1),
        Node("Concat", ["n", "rest"], ["s"], axis=0),
        Node("Reshape", ["x", "s"], ["f"], allowzero=1),
        Node("Reshape", ["f", "constant"], ["g"], allowzero=1),
        Node("Gemm", ["g", "v"], ["y"], transB=1),
    ]
    constants = {"rest": np.array([675]), "constant": np.array([-1, 675]), "v": weights(5, 675)}
    path = write(tmp_path / "net.onnx", nodes, constants, opset=20)
    assert_like_onnxruntime(load_target(path), path)


def test_a_default_export_loads(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.rand(1, 3, 8, 8),), tmp_path / "net.onnx", verbose=False)
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(load_target(tmp_path / "net.onnx")(images), module(images))


# ------------------------------------------------------------------------------------------------ shapes and sizes


@pytest.mark.parametrize("shape", [("N", 3, "h", "w"), ("N", "c", "h", "w"), ("N", "h", "w", 3)], ids=str)
def test_dynamic_sides_of_a_graph_are_stated_by_the_user(shape: Sequence[Any], tmp_path: Path) -> None:
    last = shape[-1] == 3
    nodes = [Node("Transpose", ["x"], ["z"], perm=[0, 3, 1, 2]), *net("z")] if last else net()
    path = write(tmp_path / "net.onnx", nodes, shape=shape)
    target = load_target(path, input_shape=(3, 9, 12))
    images = torch.rand(2, 3, 9, 12)
    given = images.permute(0, 2, 3, 1) if last else images
    torch.testing.assert_close(target(images), torch.from_numpy(numbers_of(path, given.numpy())))
    assert "Add --input-shape C,H,W" in refusal(path)


def test_a_shape_that_does_not_fit_the_stated_sides_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), shape=("N", 3, "h", "w"))
    assert "takes ['N', 3, 'h', 'w'], which --input-shape 1,9,9 does not fit" in refusal(path, input_shape=(1, 9, 9))


@pytest.mark.parametrize("swapped", [(3, 15, 9), (15, 9, 3), (3, 5, 27)], ids=str)
def test_a_shape_that_would_mix_up_the_pixels_is_refused(swapped: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), shape=("N", 3, 9, 15))
    message = refusal(path, input_shape=swapped)
    assert "would mix up their pixels" in message and "use --input-shape 3,9,15" in message


def test_sides_of_one_and_flat_pixels_are_reshaped(tmp_path: Path) -> None:
    nodes = [Node("Flatten", ["x"], ["f"]), Node("MatMul", ["f", "v"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, {"v": weights(27, 5)}, shape=("N", 3, 9, 1))
    images = torch.rand(2, 27)
    expected = torch.from_numpy(numbers_of(path, images.view(2, 3, 9, 1).numpy()))
    for shape in ((27,), (3, 9), (3, 1, 9), (3, 3, 3)):  # joining or splitting sides keeps the order of the pixels
        target = load_target(path, input_shape=shape)
        torch.testing.assert_close(target(images.view(2, *target.input_shape)), expected)


@pytest.mark.parametrize(
    ("sides", "shape", "words"),
    [
        ((9, 9, 13), (13, 9, 9), "read as height, width, channels. If that is wrong, add layout='nchw'"),
        ((9, 9, 2), (2, 9, 9), "read as height, width, channels. If that is wrong, add layout='nchw'"),
        ((9, 8, 13), (9, 8, 13), "read as channels, height, width. If that is wrong, add layout='nhwc'"),
        ((13, 9, 9), (13, 9, 9), ""),
        ((9, 8, 3), (3, 9, 8), ""),
    ],
)
def test_channels_of_any_number_are_found_where_images_are_square_and_doubts_are_reported(
    sides: tuple[int, ...], shape: tuple[int, ...], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [Node("Flatten", ["x"], ["f"]), Node("MatMul", ["f", "v"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, {"v": weights(int(np.prod(sides)), 5)}, shape=("N", *sides))
    with caplog.at_level(logging.WARNING, "interpkit"):
        assert load_target(path).input_shape == shape
    assert words in caplog.text and ("read as" in caplog.text) == bool(words)
    assert load_target(path, layout="nchw").input_shape == sides


def test_flat_pixels_have_the_layout_that_the_user_states(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [Node("MatMul", ["x", "v"], ["y"])], {"v": weights(60, 5)}, shape=("N", 60))
    images = torch.rand(2, 3, 4, 5)
    for layout, rows in (("nchw", images), ("nhwc", images.permute(0, 2, 3, 1)), ("flat", images)):
        target = load_target(path, input_shape=(3, 4, 5), layout=layout)
        expected = torch.from_numpy(numbers_of(path, rows.flatten(1).numpy()))
        torch.testing.assert_close(target(images), expected)
        assert (target.description.layout, target.sources["layout"]) == (layout, "given")


@pytest.mark.parametrize("strides", [[1, 1], [2, 2], [3, 2]], ids=str)
@pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_padding_becomes_explicit_sizes(how: str, strides: list[int], tmp_path: Path) -> None:
    window = {"kernel_shape": [2, 3], "strides": strides, "auto_pad": how}
    nodes = [
        Node("Conv", ["x", "k"], ["c"], auto_pad=how, strides=strides),
        Node("MaxPool", ["c"], ["m"], **window),
        Node("AveragePool", ["m"], ["a"], **window | {"strides": [1, 1], "kernel_shape": [2, 2]}),
        Node("GlobalAveragePool", ["a"], ["p"]),
        *AFTER[2:],
    ]
    path = write(tmp_path / "net.onnx", nodes, shape=("N", 3, 19, 18))
    assert_like_onnxruntime(load_target(path), path)


def test_padding_of_a_huge_window_is_refused(tmp_path: Path) -> None:
    window = {"kernel_shape": [1000, 1000], "strides": [1, 1], "dilations": [9, 9]}
    nodes = [net()[0], Node("MaxPool", ["c"], ["r"], auto_pad="SAME_UPPER", **window), *AFTER[1:]]
    assert "up to 1024 pixels" in refusal(write(tmp_path / "net.onnx", nodes))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_graph_of_a_fixed_batch_size_accepts_any(batch: int, tmp_path: Path) -> None:
    nodes = [
        Node("Reshape", ["x", "s"], ["t"]),
        Node("Concat", ["token", "t"], ["u"], axis=1),
        Node("MatMul", ["u", "v"], ["z"]),
        Node("Reshape", ["z", "flat"], ["y"]),
    ]
    token = np.repeat(weights(1, 1, 5), batch, 0)
    constants = {"s": np.array([batch, 3, 5]), "token": token, "v": weights(5, 5), "flat": np.array([batch, 20])}
    outputs: Outputs = {"y": (TensorProto.FLOAT, [batch, 20])}
    path = write(tmp_path / "net.onnx", nodes, constants, (batch, 3, 1, 5), outputs=outputs)
    target = load_target(path)
    assert "batch" not in target.sources
    images = torch.rand(batch, 3, 1, 5)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {"x": images.numpy()})[0])
    torch.testing.assert_close(target(torch.cat([images, images[:1]])), torch.cat([expected, expected[:1]]))


@pytest.mark.parametrize("statistic", ["ReduceMax", "ReduceMin", "ReduceMean"])
def test_a_graph_that_subtracts_a_statistic_of_the_whole_batch_runs_on_one_image_at_a_time(
    statistic: str, tmp_path: Path
) -> None:
    nodes = [Node(statistic, ["x"], ["m"], keepdims=0), Node("Sub", ["x", "m"], ["z"]), *net("z")]
    path = write(tmp_path / "net.onnx", nodes, shape=(1, 3, 15, 15))
    target = load_target(path)
    images = torch.rand(3, 3, 15, 15) * torch.tensor([0.2, 1.0, 0.5]).view(3, 1, 1, 1) + 0.1
    torch.testing.assert_close(target(images), torch.from_numpy(numbers_of(path, images.numpy())))


def test_a_fixed_batch_size_that_matters_is_refused_with_what_to_do(tmp_path: Path) -> None:
    nodes = [Node("Add", ["x", "each"], ["z"]), *net("z")]
    constants = {"each": RANDOM.random((2, 3, 15, 15)).astype("f")}
    path = write(tmp_path / "net.onnx", nodes, constants, (2, 3, 15, 15))
    assert "accepts 2 images at a time" in refusal(path) and "free batch size" in refusal(path)


def test_an_input_of_unknown_rank_takes_the_shape_that_the_user_states(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), shape=None)
    assert "its input is of unknown shape. Add --input-shape C,H,W" in refusal(path)
    target = load_target(path, input_shape=(3, 15, 15))
    assert target.input_shape == (3, 15, 15)
    assert_like_onnxruntime(target, path)


def test_free_channels_are_stated_by_the_user(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), shape=("N", "C", "H", "W"))
    assert "its input is ['N', 'C', 'H', 'W']. Add --input-shape C,H,W" in refusal(path)
    assert load_target(path, input_shape=(3, 15, 15)).num_classes == 5


# --------------------------------------------------------------------------------------------------- types of numbers


def test_a_uint8_input_has_the_range_of_bytes(tmp_path: Path) -> None:
    nodes = [Node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), *net("z")]
    path = write(tmp_path / "net.onnx", nodes, kind=TensorProto.UINT8)
    target = load_target(path)
    assert target.description.input_range == (0, 255)
    assert target.sources["input_range"] == "found: the graph's input is bytes"
    pixels = RANDOM.integers(0, 256, (2, 3, 15, 15)).astype(np.uint8)
    images = (torch.from_numpy(pixels) / 255).requires_grad_()
    logits = target(images)
    torch.testing.assert_close(logits, torch.from_numpy(numbers_of(path, pixels)), rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert images.grad is not None and images.grad.any()
    assert load_target(path, input_range=(0, 1)).description.input_range == (0, 1)


def test_an_int8_input_has_the_range_of_signed_bytes(tmp_path: Path) -> None:
    nodes = [Node("Cast", ["x"], ["a"], to=TensorProto.FLOAT), Node("Add", ["a", "o"], ["z"]), *net("z")]
    path = write(tmp_path / "net.onnx", nodes, {"o": np.float32(128)}, kind=TensorProto.INT8)
    target = load_target(path)
    assert target.description.input_range == (-128, 127)
    pixels = RANDOM.integers(-128, 128, (2, 3, 15, 15)).astype(np.int8)
    expected = torch.from_numpy(numbers_of(path, pixels))
    torch.testing.assert_close(target((torch.from_numpy(pixels) + 128.0) / 255), expected, rtol=1e-4, atol=1e-4)


def test_larger_whole_numbers_require_a_range(tmp_path: Path) -> None:
    nodes = [Node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), *net("z")]
    path = write(tmp_path / "net.onnx", nodes, kind=TensorProto.INT32)
    assert "takes whole numbers (int32)" in refusal(path) and "Add --input-range LO,HI" in refusal(path)
    assert load_target(path, input_range=(0, 1023)).description.input_range == (0, 1023)


def test_a_graph_is_compared_with_onnxruntime_over_the_stated_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bend = [Node("Sub", ["x", "two"], ["s"]), Node("Relu", ["s"], ["b"]), Node("Add", ["x", "b"], ["z"])]
    path = write(tmp_path / "net.onnx", [*bend, *net("z")], {"two": np.float32(2)})
    straight = onnx2torch.convert(onnx.load(write(tmp_path / "straight.onnx", net())))
    monkeypatch.setattr(onnx2torch, "convert", lambda graph: straight)
    assert load_target(path).num_classes == 5
    assert "other numbers than onnxruntime" in refusal(path, input_range=(0, 255))


@pytest.mark.parametrize("all_double", [False, True])
def test_an_input_of_doubles_is_computed_in_single_precision(all_double: bool, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 15, 15)
    expected = F.conv2d(images, torch.from_numpy(KERNEL)).relu().mean((2, 3)) @ torch.from_numpy(HEAD)
    if all_double:
        doubles = {"k": KERNEL.astype("d"), "w": HEAD.astype("d")}
        outputs: Outputs = {"y": (TensorProto.DOUBLE, ["N", 5])}
        path = write(tmp_path / "net.onnx", net(), doubles, kind=TensorProto.DOUBLE, outputs=outputs)
    else:
        nodes = [Node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), *net("z")]
        path = write(tmp_path / "net.onnx", nodes, kind=TensorProto.DOUBLE)
    torch.testing.assert_close(load_target(path)(images), expected)


def test_a_quantized_graph_has_gradients_through_its_roundings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        Node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        Node("DequantizeLinear", ["xq", "sx", "zx"], ["z"]),
        Node("DequantizeLinear", ["kq", "sk"], ["k"], axis=0),
        Node("Conv", ["z", "k"], ["c"]),
        Node("Relu", ["c"], ["r"]),
        Node("QuantizeLinear", ["r", "sr", "zr"], ["rq"]),
        Node("MaxPool", ["rq"], ["m"], kernel_shape=[2, 2]),
        Node("DequantizeLinear", ["m", "sr", "zr"], ["rd"]),
        Node("GlobalAveragePool", ["rd"], ["p"]),
        *AFTER[2:],
    ]
    constants = {
        "sx": np.float32(1 / 255), "zx": np.uint8(3), "kq": (KERNEL * 100).astype(np.int8),
        "sk": RANDOM.uniform(0.01, 0.02, 8).astype("f"), "sr": np.float32(0.02), "zr": np.uint8(0),
    }  # fmt: skip
    path = write(tmp_path / "net.onnx", nodes, constants)
    with caplog.at_level(logging.WARNING, "interpkit"):
        target = load_target(path)
    assert "net.onnx is quantized: gradients pass its 2 roundings" in caplog.text
    assert not target.no_gradient and count(target, nn.Conv2d) == 1
    images = torch.rand(3, 3, 15, 15)
    torch.testing.assert_close(target(images), torch.from_numpy(numbers_of(path, images.numpy())), rtol=0, atol=0.02)


# ------------------------------------------------------------------------------------------------------- outputs

FEATURES_FIRST: Outputs = {"f": (TensorProto.FLOAT, ["N", 8]), "y": (TensorProto.FLOAT, ["N", 5])}


def test_features_are_not_mistaken_for_class_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), outputs=FEATURES_FIRST)
    target = load_target(path)
    assert target.num_classes == 5 and "f (6, 8)" in target.sources["output_name"]
    assert_like_onnxruntime(target, path)
    assert load_target(path, output_name="f").num_classes == 8
    assert load_target(path, output_index=0).num_classes == 8


def test_of_the_outputs_label_and_probabilities_the_probabilities_are_used(tmp_path: Path) -> None:
    nodes = [
        *net(),
        Node("Softmax", ["y"], ["q"], axis=1),
        Node("ArgMax", ["q"], ["label"], axis=1, keepdims=0),
        Node("ZipMap", ["q"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[3, 4, 5, 6, 7]),
    ]
    path = write(tmp_path / "net.onnx", nodes, outputs={"label": (TensorProto.INT64, ["N"])})
    graph = onnx.load(path)
    one = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    graph.graph.output.append(helper.make_value_info("scores", helper.make_sequence_type_proto(one)))
    onnx.save(graph, tmp_path / "zipped.onnx")
    target = load_target(tmp_path / "zipped.onnx")
    assert target.num_classes == 5 and target.description.output == "probs"
    assert target.class_names == ["3", "4", "5", "6", "7"] and target.sources["class_names"] == "the graph's labels"
    assert load_target(tmp_path / "zipped.onnx", class_names=list("abcde")).class_names == list("abcde")
    assert "returns no scores, but label" in refusal(path)


def test_the_table_in_which_a_graph_looks_up_its_label_names_the_classes(tmp_path: Path) -> None:
    nodes = [
        *net(),
        Node("ArgMax", ["y"], ["i"], axis=1),
        Node("ArrayFeatureExtractor", ["labels", "i"], ["label"], domain="ai.onnx.ml"),
    ]
    outputs = {"label": (TensorProto.STRING, [1, "N"]), "y": (TensorProto.FLOAT, ["N", 5])}
    labels = np.array(["ant", "bee", "cat", "dog", "eel"], object)
    target = load_target(write(tmp_path / "net.onnx", nodes, {"labels": labels}, outputs=outputs))
    assert target.class_names == ["ant", "bee", "cat", "dog", "eel"]


def test_top_k_scores_are_not_mistaken_for_the_scores_of_all_classes(tmp_path: Path) -> None:
    nodes = [*net(), Node("TopK", ["y", "two"], ["values", "indices"])]
    outputs = {"values": (TensorProto.FLOAT, ["N", 2]), "indices": (TensorProto.INT64, ["N", 2])}
    path = write(tmp_path / "net.onnx", nodes, {"two": np.array([2])}, outputs=outputs)
    assert "the largest scores alone" in refusal(path)


def test_the_second_output_of_an_operator_is_not_mistaken_for_its_first(tmp_path: Path) -> None:
    nodes = [*net()[:-1], Node("MatMul", ["f", "v"], ["z"]), Node("Split", ["z", "sizes"], ["other", "y"], axis=1)]
    path = write(tmp_path / "net.onnx", nodes, {"v": weights(8, 8), "sizes": np.array([3, 5])})
    assert_like_onnxruntime(load_target(path), path)


# ----------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("axes", [None, [2, 3], [-1, -2]], ids=str)
def test_padding_of_any_axes_is_converted(axes: list[int] | None, mode: str, tmp_path: Path) -> None:
    sizes = [0, 0, 1, 2, 0, 0, 3, 1] if axes is None else [1, 2, 3, 1]
    inputs = ["x", "sizes", *(["", "axes"] if axes else [])]
    constants = {"sizes": np.array(sizes), "axes": np.array(axes or [])}
    nodes = [Node("Pad", inputs, ["z"], mode=mode), *net("z")]
    path = write(tmp_path / "net.onnx", nodes, constants, opset=18 if mode != "wrap" else 19)
    assert_like_onnxruntime(load_target(path), path)


OPERATORS: dict[str, tuple[int, list[Any], dict[str, Any]]] = {
    "GroupNormalization": (21, [Node("GroupNormalization", ["c", "s", "b"], ["r"], num_groups=2)],
                           {"s": weights(8), "b": weights(8)}),
    "Gelu and Mish": (20, [Node("Gelu", ["c"], ["g"], approximate="tanh"), Node("Mish", ["g"], ["r"])], {}),
    "LpNormalization": (22, [Node("LpNormalization", ["c"], ["r"], axis=1, p=2)], {}),
    "reductions": (20, [
        Node("ReduceMax", ["c", "a"], ["m"]), Node("ReduceMean", ["c", "a"], ["n"]), Node("Add", ["m", "n"], ["r"]),
    ], {"a": np.array([-1, 2])}),
    "Resize": (19, [Node("Resize", ["c", "", "s"], ["r"], mode="linear", antialias=0)],
               {"s": np.array([1, 1, 2, 2], "f")}),
    "Upsample": (9, [Node("Upsample", ["c", "s"], ["r"], mode="nearest")], {"s": np.array([1, 1, 2, 3], "f")}),
    "old BatchNormalization": (7, [Node("BatchNormalization", ["c", "s", "s", "s", "s"], ["r"])],
                               {"s": np.abs(weights(8)) + 1}),
    "Slice": (13, [Node("Slice", ["c", "from", "to", "along", "by"], ["r"])],
              {"from": np.array([-2, 9]), "to": np.array([-99, 2]), "along": np.array([-1, 2]),
               "by": np.array([-1, -2])}),
    "old Slice": (9, [Node("Slice", ["c"], ["r"], starts=[1, 0], ends=[-1, 9], axes=[2, 3])], {}),
    "OneHot": (11, [
        Node("ArgMax", ["c"], ["i"], axis=1, keepdims=0), Node("OneHot", ["i", "depth", "values"], ["h"], axis=1),
        Node("Mul", ["c", "h"], ["r"]),
    ], {"depth": np.array(8), "values": np.array([-1, 3], "f")}),
    "ThresholdedRelu": (10, [Node("ThresholdedRelu", ["c"], ["r"], alpha=0.3)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_old_and_new_versions_are_converted(name: str, tmp_path: Path) -> None:
    opset, nodes, constants = OPERATORS[name]
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"onnx {onnx.__version__} does not have opset {opset}")
    path = write(tmp_path / "net.onnx", [*net()[:1], *nodes, *AFTER[1:]], constants, opset=opset)
    assert_like_onnxruntime(load_target(path), path)


class Sequence1d(nn.Module):
    """A classifier of signals (3, 20) by a recurrent layer, of whose states either the last or the final ones count."""

    def __init__(self, kind: type[nn.RNNBase], last: bool, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.head, self.last = nn.Linear(4 * (1 + self.rnn.bidirectional), 5), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, states = self.rnn(x.transpose(1, 2))
        h = states[0] if isinstance(states, tuple) else states
        logits: torch.Tensor = self.head(y[:, -1] if self.last else torch.cat([*h[-1 - self.rnn.bidirectional :]], 1))
        return logits


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"nonlinearity": "relu"}], ids=str
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_converted_and_packed(
    kind: type[nn.RNNBase], options: dict[str, Any], last: bool, tmp_path: Path
) -> None:
    if "nonlinearity" in options and kind is not nn.RNN:
        return
    net, images = seeded(lambda: Sequence1d(kind, last, **options)), torch.rand(4, 60)
    target = wrap(net, (3, 20))
    packed = interpkit.load_target(interpkit.pack_target(target, tmp_path / "net.safetensors"))
    torch.testing.assert_close(packed(images), target(images))
    assert not packed.no_gradient and count(packed, kind) == options.get("num_layers", 1)


def test_a_recurrent_layer_backwards_is_converted_and_one_with_lengths_is_not(tmp_path: Path) -> None:
    one = {
        "w": weights(1, 16, 3),
        "r": weights(1, 16, 4),
        "b": weights(1, 32),
        "v": weights(4, 5),
        "l": np.array([7], "i"),
    }
    for inputs in (["t", "w", "r", "b"], ["t", "w", "r", "b", "l"]):
        nodes = [
            Node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
            Node("LSTM", inputs, ["", "h"], hidden_size=4, direction="reverse"),
            Node("Squeeze", ["h", "zero"], ["s"]),
            Node("MatMul", ["s", "v"], ["y"]),
        ]
        path = write(tmp_path / "net.onnx", nodes, {**one, "zero": np.array([0])}, shape=(1, 3, 20), opset=14)
        if "l" in inputs:
            assert "LSTM with lengths" in refusal(path, input_shape=(3, 20))
        else:
            target = load_target(path, input_shape=(3, 20))
            images = torch.rand(3, 3, 20)
            torch.testing.assert_close(target(images.flatten(1)), torch.from_numpy(numbers_of(path, images.numpy())))


def branches(condition: str) -> list[Any]:
    """Return a classifier that takes the positive or the negative part of its features, by an If."""

    def part(*nodes: Any) -> Any:
        return helper.make_graph(list(nodes), "part", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)])

    positive, negative = part(Node("Relu", ["c"], ["o"])), part(Node("Neg", ["c"], ["m"]), Node("Relu", ["m"], ["o"]))
    taken = Node("If", [condition], ["r"], then_branch=positive, else_branch=negative)
    return [taken, *AFTER[1:]]


@pytest.mark.parametrize("side", [12, 13])
@pytest.mark.parametrize("by", ["constant", "shape"])
def test_a_branch_that_every_image_takes_is_converted(by: str, side: int, tmp_path: Path) -> None:
    size = [Node("Shape", ["c"], ["s"]), Node("Gather", ["s", "two"], ["g"]), Node("Equal", ["g", "side"], ["q"])]
    nodes = [*net()[:1], *size, *branches("q" if by == "shape" else "yes")]
    constants = {"two": np.array(2), "side": np.array(side), "yes": np.array(side == 13)}
    path = write(tmp_path / "net.onnx", nodes, constants)
    assert_like_onnxruntime(load_target(path), path)


def test_a_branch_that_depends_on_the_image_is_refused(tmp_path: Path) -> None:
    nodes = [
        *net()[:1],
        Node("ReduceMean", ["x"], ["g"], keepdims=0),
        Node("Greater", ["g", "half"], ["q"]),
        *branches("q"),
    ]
    message = refusal(write(tmp_path / "net.onnx", nodes, {"half": np.float32(0.5)}))
    assert "its operation If" in message and "depends on the image's values" in message


def test_a_graph_of_whole_numbers_is_refused_with_the_graph_to_use(tmp_path: Path) -> None:
    nodes = [
        *net()[:-1],
        Node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]),
        Node("MatMulInteger", ["q", "wq", "z"], ["i"]),
        Node("Cast", ["i"], ["j"], to=TensorProto.FLOAT),
        Node("Mul", ["j", "s"], ["y"]),
    ]
    message = refusal(write(tmp_path / "net.onnx", nodes, {"wq": (HEAD * 100).astype(np.int8)}))
    assert "Use the graph from before it was quantized" in message


def test_names_that_differ_by_a_dot_or_slash_are_told_apart(tmp_path: Path) -> None:
    nodes = net()
    for node, name in zip(nodes, ("a.b", "/a/b", "a/b", "a_b", "/a.b"), strict=True):
        node.name = name
    path = write(tmp_path / "net.onnx", nodes)
    assert_like_onnxruntime(load_target(path), path)


def test_an_operation_without_a_converter_is_named_instead_of_a_librarys_assertion(tmp_path: Path) -> None:
    nodes = [Node("Pad", ["x", "sizes"], ["z"]), *net("z")[:-1], Node("Hardmax", ["f"], ["h"])]
    nodes.append(Node("MatMul", ["h", "w"], ["y"]))
    message = refusal(write(tmp_path / "net.onnx", nodes, {"sizes": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, opset=18))
    assert "its operation Hardmax (opset 13) has no converter" in message
    assert "assert" not in message.lower() and "cpp" not in message and ".h:" not in message


def test_layers_keep_the_names_of_their_nodes_after_folding(tmp_path: Path) -> None:
    nodes = [
        Node("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2]),
        Node("Transpose", ["kt"], ["k"], perm=[3, 2, 1, 0]),
        Node("Transpose", ["a"], ["z"], perm=[0, 1, 3, 2]),
        *net("z")[:-1],
        Node("MatMul", ["f", "w"], ["y"], name="head.out"),
    ]
    path = write(tmp_path / "net.onnx", nodes, {"kt": KERNEL.T.copy()})
    target = load_target(path)
    layers = list(target.layers())
    assert "Transpose" in layers and "Transpose_2" in layers and "Transpose_1" not in layers
    assert target.feature_layer == "head/out:in"
    assert_like_onnxruntime(target, path)


# ---------------------------------------------------------------------------------------------------------- pack


class Normed(nn.Module):
    """Has layers that exporters merge or rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.norm = nn.BatchNorm2d(8)
        self.tokens = nn.Linear(8, 16)
        self.attention = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(self.norm(self.body(x)).flatten(2).transpose(1, 2))
        return self.head(self.attention(tokens).mean(1))


class Turned(nn.Module):
    """Rotates an image before it classifies it."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(3 * 36, 6)
        self.head = nn.Linear(3 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.turn(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = make().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module


def assert_packs(target: Target, folder: Path) -> Target:
    packed = load_target(pack_target(target, folder / "packed.safetensors"))
    images = torch.rand(3, *target.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(packed(images), target(images), rtol=1e-4, atol=1e-5)
    return packed


def test_pack_keeps_the_norms_and_linear_layers_of_the_users_code(tmp_path: Path) -> None:
    module = seeded(Normed)
    target = wrap(module, (3, 8, 8), mean=0.5, std=0.25)
    fast = torch.backends.mha.get_fastpath_enabled()
    packed = assert_packs(target, tmp_path)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    for kind, how_many in ((nn.BatchNorm2d, 2), (nn.Conv2d, 2), (nn.LayerNorm, 2)):
        assert count(target, kind) == count(packed, kind) == how_many
    assert count(packed, nn.Linear) >= 4  # tokens, two of the encoder, head; the projection may be another product
    means = [layer.running_mean for layer in packed.modules() if isinstance(layer, nn.BatchNorm2d)]
    torch.testing.assert_close(means, [module.body[1].running_mean, module.norm.running_mean])


def test_pack_keeps_the_batch_norms_of_a_graph(tmp_path: Path) -> None:
    constants = {name: np.abs(weights(8)) + 0.5 for name in ("a", "b", "m", "v")}
    nodes = [net()[0], Node("BatchNormalization", ["c", "a", "b", "m", "v"], ["n"]), Node("Relu", ["n"], ["r"])]
    target = load_target(write(tmp_path / "net.onnx", [*nodes, *AFTER[1:]], constants))
    assert count(target, nn.BatchNorm2d) == count(assert_packs(target, tmp_path), nn.BatchNorm2d) == 1


def test_pack_records_the_family_that_a_graph_does_not_show(tmp_path: Path) -> None:
    class TinyViT(nn.Sequential):
        """A classifier whose class tells its family."""

    target = wrap(TinyViT(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    packed = assert_packs(target, tmp_path)
    assert packed.family == target.family == "tinyvit"
    assert load_target(tmp_path / "packed.safetensors", family="ResNet").family == "resnet"
    assert assert_packs(wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)), tmp_path).family == ""


def test_a_network_that_samples_a_grid_is_packed(tmp_path: Path) -> None:
    assert_packs(wrap(seeded(Turned), (3, 6, 6)), tmp_path)


@pytest.mark.parametrize("size", [1, 3, (2, 5), (None, 4)])
def test_adaptive_pooling_to_any_size_is_packed(size: Any, tmp_path: Path) -> None:
    pool = F.adaptive_avg_pool2d
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.LazyLinear(3))
    )
    module(torch.zeros(1, 3, 9, 7))
    assert_packs(wrap(module, (3, 9, 7)), tmp_path)
    assert F.adaptive_avg_pool2d is pool


class Rounded(nn.Module):
    """A network that magnifies what rounding leaves of a flat image, in eager mode otherwise than in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        spread = (flat - flat.mean(1, keepdim=True)).std(1, keepdim=True)
        eps = 1e-7 if torch.onnx.is_in_onnx_export() else 1e-9
        first = torch.tensor([1.0, 0.0, 0.0])
        return self.linear((flat - 0.5) / (spread + 0.1)) + 5 * first * ((spread + eps) / 1e-7).clamp(max=1)


def test_a_network_that_is_all_rounding_on_flat_images_is_packed(tmp_path: Path) -> None:
    assert pack_target(wrap(seeded(Rounded), (3, 2, 2)), tmp_path / "packed.safetensors").exists()


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs).squeeze()  # type: ignore[no-any-return]


@pytest.mark.parametrize("ranges", [None, (-3.0, 5.0), [(0.0, 1.0), (1.0, 20.0), (-3.0, 3.0), (0.0, 300.0)]])
def test_packed_vectors_keep_their_units_and_a_squeezed_logit(tmp_path: Path, ranges: Any) -> None:
    target = wrap(seeded(Squeezed), (4,), input_range=ranges)
    packed = load_target(pack_target(target, tmp_path / "packed.safetensors"))
    assert packed.description.ranges == target.description.ranges
    for inputs in (torch.rand(3, 4), torch.rand(1, 4)):
        torch.testing.assert_close(packed(inputs), target(inputs), rtol=1e-4, atol=1e-4)


class Clamped(nn.Module):
    """A network that limits its activations on one side, and on the other."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)[:, :4]
        return flat.clamp(max=0.6) - 2 * flat.flip(1).clamp(min=0.3)


def test_a_network_that_limits_one_side_is_packed(tmp_path: Path) -> None:
    assert_packs(wrap(Clamped(), (1, 3, 3)), tmp_path)


def test_a_packed_network_accepts_images_of_other_sizes_if_it_did_before(tmp_path: Path) -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    packed, larger = assert_packs(wrap(module, (3, 9, 7)), tmp_path), torch.rand(2, 3, 18, 15)
    torch.testing.assert_close(packed(larger), module(larger))


def test_one_of_several_outputs_is_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", net(), outputs=FEATURES_FIRST)
    assert assert_packs(load_target(path, output_name="f"), tmp_path).num_classes == 8


def test_a_network_that_draws_at_random_is_refused_for_that(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5))

    with pytest.raises(ModelError, match="draws at random in eval mode, so no graph returns the same"):
        pack_target(wrap(Noisy(12, 3), (12,)), tmp_path / "net.safetensors")


def test_a_failed_export_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Rare(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.special.i1(x))

    with pytest.raises(ModelError, match="ONNX cannot express it"):
        pack_target(wrap(Rare(4, 3), (4,)), tmp_path / "packed.safetensors")
    assert capfd.readouterr().out == ""


def test_the_name_of_a_packed_file_is_checked_before_the_graph_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpkit.plugins.packing.export_graph", lambda *_: pytest.fail("made"))
    with pytest.raises(UsageError, match=rf"{tmp_path}/p\.pt: the name of a classifier's file must end in"):
        pack_target(wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2)), tmp_path / "p.pt")
