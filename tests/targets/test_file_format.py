"""The classifier's file: reading returns exactly what was written, and errors name what cannot be written or read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from interpkit import ModelError, TargetOptions, UsageError, load_target, pack_target, save_target, wrap
from interpkit.plugins.architectures import build_architecture
from interpkit.plugins.packing import OPSET, export_graph
from interpkit.targets.file_format import read_target_file

ARGUMENTS: dict[str, Any] = {"input_shape": [3, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
FACTS: dict[str, Any] = {
    "mean": [0.5, 0.25, 0.75],
    "std": [0.5, 1.0, 2.0],
    "input_range": (0.0, 2.0),
    "class_names": ["a", "ä", "c"],
    "layout": "nchw",
    "channel_order": "bgr",
    "output": "logits",
    "feature_layer": "3",
}


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return build_architecture("interpkit:cnn", ARGUMENTS).eval()


def saved(path: Path, module: nn.Module | None = None, **changes: Any) -> Path:
    given = {"architecture": "interpkit:cnn", "input_shape": (3, 12, 12), "arch_args": ARGUMENTS} | changes
    return save_target(net() if module is None else module, path, **given)


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_all_facts_about_a_classifier_survive_saving(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "net.safetensors"
    assert saved(path, **FACTS) == path
    tensors, facts = read_target_file(path)
    assert {name: getattr(facts, name) for name in FACTS} == FACTS
    assert (facts.arch, facts.arch_args) == ("interpkit:cnn", ARGUMENTS)
    assert list(facts.input_shape or []) == [3, 12, 12] and facts.num_classes == 3
    state = net().state_dict()
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)
    metadata = metadata_of(path)
    assert metadata["format"] == "pt" and metadata["interpkit.schema"] == "1"
    assert json.loads(metadata["interpkit.class_names"]) == ["a", "ä", "c"] and metadata["interpkit.output"] == "logits"


def test_tied_and_strided_weights_are_written_whole(tmp_path: Path) -> None:
    module = net()
    parameters = dict(module.named_parameters())
    weight = next(p for p in parameters.values() if p.dim() == 2)
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous() and weight.requires_grad
    tensors, _ = read_target_file(saved(tmp_path / "net.safetensors", module))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "interpkit:nothing"}, "interpkit:nothing"),
        ({"architecture": "nothing:cnn"}, "nothing"),
        (
            {"arch_args": ARGUMENTS | {"hidden": 9}},
            r"interpkit:cnn with .*'hidden': 9.* does not match the module: .*shape",
        ),
        ({"arch_args": ARGUMENTS | {"widths": [4, 4]}}, r"does not match the module: .*missing"),
        ({"arch_args": None}, r"interpkit:cnn"),
        ({"path": "net.pt"}, r"net.pt: the name of a classifier's file must end in .safetensors"),
    ],
    ids=["architecture", "family", "shape", "missing", "no arguments", "ending"],
)
def test_a_file_that_would_not_load_is_not_written(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        saved(tmp_path / changes.pop("path", "net.safetensors"), **changes)
    assert list(tmp_path.iterdir()) == []


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def test_tensors_without_metadata_have_no_facts_about_the_classifier(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"interpkit.mean": "[0.5]"}):
        tensors, facts = read_target_file(write(tmp_path / "a.safetensors", {"a": torch.ones(2)}, metadata))
        assert tensors["a"].tolist() == [1, 1] and facts == TargetOptions()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"schema": "2"}, "has interpkit schema '2'; this interpkit reads 1. If a newer one wrote it: (pip|git) "),
        ({"schema": "1", "mean": "[0.5"}, r"its metadata interpkit.mean is not JSON: '\[0.5'"),
        ({"schema": "1", "mean": "[" * 100_000}, r"interpkit.mean is not JSON: '\[{80}'\."),
        ({"schema": "1", "mean": '["a"]'}, r"a.safetensors: its metadata.* mean"),
        ({"schema": "1", "layout": "sideways"}, r"a.safetensors: its metadata.* layout"),
    ],
    ids=["schema", "torn", "deep", "word for a number", "unknown word"],
)
def test_metadata_of_another_form_is_refused_by_name(metadata: dict[str, str], words: str, tmp_path: Path) -> None:
    named = {f"interpkit.{name}": value for name, value in metadata.items()}
    with pytest.raises(ModelError, match=words):
        read_target_file(write(tmp_path / "a.safetensors", {"a": torch.ones(2)}, named))


def test_a_missing_or_truncated_file_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match=r"there is no file .*a.safetensors"):
        read_target_file(path)
    write(path, {"a": torch.ones(2)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"a.safetensors is not a complete safetensors file: \S.*") as torn:
        read_target_file(path)
    assert "\n" not in str(torn.value)


# ---------------------------------------------------------------------------------------------------- packing


def test_a_registered_architecture_is_packed_as_such(tmp_path: Path) -> None:
    target = load_target(saved(tmp_path / "net.safetensors", **FACTS))
    path = pack_target(target, tmp_path / "packed.safetensors")
    (tensors, facts), (were, written) = read_target_file(path), read_target_file(tmp_path / "net.safetensors")
    assert facts == written and tensors.keys() == were.keys()


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore::DeprecationWarning")  # the converter's own
def test_anything_else_is_packed_as_a_graph_from_images_to_logits(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    facts = {"mean": [1.0, 2, 3], "std": [0.5, 1, 2], "channel_order": "bgr", "class_names": ["no", "yes"]}
    target = wrap(module, (3, 2, 2), **facts, feature_layer="1:in")
    path = pack_target(target, tmp_path / "packed.safetensors")
    tensors, written = read_target_file(path)
    assert list(tensors) == ["onnx"] and tensors["onnx"].dtype == torch.uint8
    assert written.arch == "onnx:graph" and written.arch_args == {}
    # The graph accepts images in [0, 1], whatever the module expects.
    assert (written.mean, written.std, written.input_range) == ([0.0] * 3, [1.0] * 3, (0.0, 1.0))
    assert (written.layout, written.channel_order, written.feature_layer) == (None, None, None)
    assert (written.output, written.class_names) == ("logits", ["no", "yes"])
    packed, images = load_target(path), torch.rand(5, 3, 2, 2)
    with target.frozen(), packed.frozen(), torch.no_grad():
        torch.testing.assert_close(packed(images), target(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore::DeprecationWarning")  # the converter's own
def test_packing_leaves_torchs_random_state_alone(tmp_path: Path) -> None:
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    before = torch.get_rng_state()
    pack_target(target, tmp_path / "packed.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore::DeprecationWarning")  # the converter's own
@pytest.mark.parametrize("output", ["probs", "log_probs", "neg_log_probs", "sigmoid"])
def test_a_graph_of_probabilities_returns_their_logarithms_and_is_known_to(output: str, tmp_path: Path) -> None:
    class Negative(nn.LogSoftmax):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    lasts = {
        "probs": nn.Softmax(1),
        "log_probs": nn.LogSoftmax(1),
        "neg_log_probs": Negative(1),
        "sigmoid": nn.Sigmoid(),
    }
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), lasts[output]), (3, 2, 2), output=output)
    packed, images = load_target(pack_target(target, tmp_path / "packed.safetensors")), torch.rand(5, 3, 2, 2)
    assert packed.description.output == ("sigmoid_logits" if output == "sigmoid" else "log_probs")
    with target.frozen(), packed.frozen(), torch.no_grad():
        torch.testing.assert_close(packed(images), target(images), rtol=1e-4, atol=1e-5)


def test_a_graph_names_its_input_and_output_and_accepts_any_number_of_images() -> None:
    import onnx

    graph = onnx.load_from_string(export_graph(wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))))
    assert [opset.version for opset in graph.opset_import] == [OPSET]
    shapes = {
        end.name: [size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim]
        for end in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 2, 2], "logits": ["batch", 2]}


class Unknown(nn.Module):
    """Uses an operation that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1(x.flatten(1)[:, :3])


def test_an_operation_that_onnx_does_not_have_is_reported_in_one_line(tmp_path: Path) -> None:
    target = wrap(Unknown(), (1, 2, 2), name="bessel")
    with pytest.raises(ModelError, match=r"bessel cannot be packed: ONNX cannot express it: .*special_i1") as caught:
        export_graph(target)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ModelError, match="bessel"):
        pack_target(target, tmp_path / "packed.safetensors")
    assert list(tmp_path.iterdir()) == []


class CountsByLen(nn.Module):
    """Its exporter takes len(x) for a constant."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.view(len(x), -1))
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_graph_that_holds_for_one_image_is_packed_for_any_number(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    target = wrap(CountsByLen(dtype), (3, 2, 2))
    packed, images = load_target(pack_target(target, tmp_path / "packed.safetensors")), torch.rand(5, 3, 2, 2)
    with target.frozen(), packed.frozen(), torch.no_grad():
        torch.testing.assert_close(packed(images), target(images), rtol=2e-2, atol=2e-2)
    assert next(target.module.parameters()).dtype == dtype  # type: ignore[union-attr]


class Experts(nn.Module):
    """Each image goes to one of three experts, of which only those that are asked run."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        best = self.gate(20 * (x - 0.5)).argmax(1)
        out = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = (best == number).nonzero().squeeze(1)
            if len(rows):
                out[rows] = expert(x[rows])
        return out


def test_a_mixture_of_experts_is_not_packed_and_the_shape_is_not_blamed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"Experts cannot be packed.*choice of an expert.*torch\.where") as caught:
        pack_target(wrap(Experts(), (3, 2, 2)), tmp_path / "packed.safetensors")
    assert "input_shape" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
