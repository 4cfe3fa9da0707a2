"""Saved classifiers load unchanged, and anything wrong with a file is refused with one readable message."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from interpkit_targets.architectures import SmallCNN
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, UsageError, load_target, save_target
from interpkit.errors import in_shell, upgrade

ARGUMENTS: dict[str, Any] = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
Modest = Callable[[], AbstractContextManager[None]]


def small_cnn(**arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return SmallCNN(**(ARGUMENTS | arguments)).eval()


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


class Spoiled:
    """A valid classifier file, to be rewritten with something wrong in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "spoiled.safetensors"
        save_target(
            small_cnn(), self.path, architecture="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12), mean=0.3
        )
        self.metadata, self.tensors = metadata_of(self.path), safetensors.torch.load(self.path.read_bytes())

    def with_bytes(self, change: Callable[[bytes], bytes]) -> Path:
        self.path.write_bytes(change(self.path.read_bytes()))
        return self.path

    def with_tensors(self, tensors: dict[str, Tensor]) -> Path:
        self.path.write_bytes(safetensors.torch.save(tensors, self.metadata))
        return self.path

    def with_facts(self, **facts: Any) -> Path:
        """Write changed metadata: strings unchanged, other values as JSON; None removes an entry."""
        metadata = dict(self.metadata)
        for name, value in facts.items():
            metadata.pop(f"interpkit.{name}", None)
            if value is not None:
                metadata[f"interpkit.{name}"] = value if isinstance(value, str) else json.dumps(value)
        self.path.write_bytes(safetensors.torch.save(self.tensors, metadata))
        return self.path


@pytest.fixture
def spoiled(tmp_path: Path) -> Spoiled:
    return Spoiled(tmp_path)


def refusal(path: Path) -> str:
    """Return the message of the file's refusal; any other exception fails the test."""
    with in_shell(), pytest.raises(ModelError) as caught:
        load_target(path)
    assert caught.value.exit_code == 3
    return str(caught.value)


# ------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize(
    "arguments",
    [{}, {"batch_norm": True, "widths": [4, 6]}, {"group_norm": True, "widths": [4, 6]}],
    ids=["plain", "batch-norm", "group-norm"],
)
def test_a_saved_reference_net_loads_with_equal_logits(arguments: dict[str, Any], tmp_path: Path) -> None:
    module = small_cnn(**arguments)
    path = save_target(
        module,
        tmp_path / "net.safetensors",
        architecture="interpkit:cnn",
        arch_args=ARGUMENTS | arguments,
        input_shape=(1, 12, 12),
        mean=[0.25],
        std=[0.5],
        input_range=(0.0, 2.0),
        class_names=["cat", "dog", "owl"],
    )
    target = load_target(path)
    images = torch.rand(5, 1, 12, 12)
    with target.frozen():
        assert torch.equal(target(images), module((2 * images - 0.25) / 0.5))
    assert (target.name, target.num_classes, target.input_shape) == ("net", 3, (1, 12, 12))
    assert target.class_names == ["cat", "dog", "owl"] and target.origin == path.resolve()


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "regnet_y_400mf"])
def test_a_saved_torchvision_model_loads_with_equal_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    path = save_target(
        module,
        tmp_path / "net.safetensors",
        architecture=f"torchvision:{name}",
        arch_args={"num_classes": 10},
        input_shape=(3, 32, 32),
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
    )
    target = load_target(path)
    images = torch.rand(2, 3, 32, 32)
    scaled = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with target.frozen():
        assert torch.allclose(target(images), module(scaled), atol=1e-5)
    assert target.num_classes == 10


def test_the_file_has_all_facts_needed_to_run_it(tmp_path: Path) -> None:
    path = save_target(
        small_cnn(),
        tmp_path / "net.safetensors",
        architecture="interpkit:cnn",
        arch_args=ARGUMENTS,
        input_shape=(1, 12, 12),
        mean=0.25,
        std=0.5,
        class_names=["a", "b", "c"],
    )
    written = {
        "format": "pt",
        "interpkit.schema": "1",
        "interpkit.architecture": "interpkit:cnn",
        "interpkit.arch_args": json.dumps(ARGUMENTS),
        "interpkit.input_shape": "[1, 12, 12]",
        "interpkit.num_classes": "3",
        "interpkit.mean": "[0.25]",
        "interpkit.std": "[0.5]",
        "interpkit.input_range": "[0.0, 1.0]",
        "interpkit.class_names": '["a", "b", "c"]',
    }
    assert written.items() <= metadata_of(path).items()


def test_weights_without_metadata_load_with_the_two_flags_that_the_refusal_names(tmp_path: Path) -> None:
    module = small_cnn()
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    message = refusal(path)
    assert "--arch" in message and "--input-shape" in message
    target = load_target(path, arch="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12))
    images = torch.rand(2, 1, 12, 12)
    with target.frozen():
        assert torch.equal(target(images), module(images))


def test_the_users_facts_take_precedence_over_the_files(spoiled: Spoiled) -> None:
    target = load_target(spoiled.path, mean=[0.9], class_names=["x", "y", "z"])
    assert target.description.mean == [0.9] and target.class_names == ["x", "y", "z"]
    assert target.sources["mean"] == "given" and target.sources["std"] == "the file's metadata"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architecture": "interpkit:cnn", "arch_args": ARGUMENTS | {"hidden": 9}}, "7.weight"),
        ({"arch_args": ARGUMENTS | {"batch_norm": True}}, "missing"),
    ],
)
def test_saving_under_the_wrong_architecture_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"architecture": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    with pytest.raises(UsageError, match=word):
        save_target(small_cnn(), tmp_path / "net.safetensors", **(arguments | changes))
    with pytest.raises(UsageError, match="safetensors"):
        save_target(small_cnn(), tmp_path / "net.pt", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_saving_with_arguments_of_another_function_of_the_same_weights_is_refused(tmp_path: Path) -> None:
    net = small_cnn()
    net[1] = torch.nn.ReLU()
    path, state = tmp_path / "net.safetensors", torch.get_rng_state()
    with pytest.raises(UsageError, match=r"fits the module's weights, but its logits are up to .* apart"):
        save_target(net, path, architecture="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12))
    assert list(tmp_path.iterdir()) == [] and torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------- no file of ours


def test_a_missing_file_is_refused_with_a_similar_name(spoiled: Spoiled) -> None:
    message = refusal(spoiled.path.with_name("spoild.safetensors"))
    assert "spoild.safetensors" in message and "Did you mean 'spoiled.safetensors'" in message


@pytest.mark.parametrize("kind", ["folder", "other suffix"])
def test_a_file_without_a_loader_is_refused_with_the_known_formats(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("net.safetensors" if kind == "folder" else "net.weights")
    path.mkdir() if kind == "folder" else path.write_bytes(b"weights")
    assert ".safetensors" in refusal(path).replace(str(path), "")


@pytest.mark.parametrize(
    "change",
    [
        lambda good: b"",
        lambda good: b"PK\x03\x04 this is a zip file, or was one" * 10,
        lambda good: good[:-10],
        lambda good: good[:40],
        lambda good: (2**62).to_bytes(8, "little") + good[8:],
        lambda good: good + b"more",
        lambda good: good[:8] + b"\xff" * 20 + good[28:],
    ],
    ids=["empty", "zip", "truncated", "half a header", "huge header", "too long", "garbled header"],
)
def test_an_incomplete_safetensors_file_is_refused(change: Callable[[bytes], bytes], spoiled: Spoiled) -> None:
    path = spoiled.with_bytes(change)
    message = refusal(path)
    assert str(path) in message and "not a complete safetensors file" in message


# ------------------------------------------------------------------------------------------ the architecture


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("interpkit:cnm", "Did you mean 'cnn'"),
        ("torchvision:resnet19", "resnet18"),
        ("torchvision:", "alexnet"),
        ("torchvision:list_models", "torchvision has"),
        ("nobody:knows", "Registered: bnn"),
        ("py:os.system", "not a registered one"),
        ("os:system", "not a registered one"),
        ("targets:torchvision:resnet18", "targets:torchvision:resnet18"),
        ("", "Registered: bnn"),
    ],
)
def test_only_a_registered_architecture_is_built(spec: str, word: str, spoiled: Spoiled) -> None:
    assert word in refusal(spoiled.with_facts(architecture=spec))


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("weights", "the argument 'weights'"),
        ("weights_backbone", "the argument 'weights_backbone'"),
        ("progress", "the argument 'progress'"),
        ("pretrained", "unexpected"),
    ],
)
def test_an_argument_that_might_download_weights_is_refused(
    argument: str, word: str, spoiled: Spoiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("a file started a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    path = spoiled.with_facts(architecture="torchvision:squeezenet1_1", arch_args={argument: "DEFAULT"})
    message = refusal(path)
    assert argument in message and word in message


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("squeezenet1_1", {"num_classes": "ten"}),
        ("squeezenet1_1", {"num_classes": -1}),
        ("squeezenet1_1", {"depth": 3}),
        ("resnet18", {"norm_layer": "os.system"}),
        ("resnet18", {"replace_stride_with_dilation": {"a": 1, "b": 2, "c": 3}}),
        ("vit_b_16", {"image_size": 7}),
        ("vit_b_16", {"conv_stem_configs": [1]}),
        ("maxvit_t", {"input_size": [7]}),
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**9, 1]]}),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else case,
)
def test_arguments_that_a_torchvision_model_does_not_accept_are_refused(
    name: str, arguments: dict[str, Any], spoiled: Spoiled, modest: Modest
) -> None:
    path = spoiled.with_facts(architecture=f"torchvision:{name}", arch_args=arguments)
    with modest():
        assert f"torchvision:{name}" in refusal(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 10**9},
        {"num_classes": 99_999},
        {"num_classes": 1},
        {"hidden": 10**12},
        {"hidden": 65_536},
        {"hidden": -1},
        {"hidden": [8]},
        {"widths": [10**6, 10**6]},
        {"widths": [10**12]},
        {"widths": [10**30]},
        {"widths": [-4]},
        {"widths": [0]},
        {"widths": []},
        {"widths": [4] * 9},
        {"widths": "4"},
        {"input_shape": [1, 10**9, 10**9]},
        {"input_shape": [1, 10**30, 12]},
        {"input_shape": [1, -12, 12]},
        {"input_shape": [12, 12]},
        {"dropout": 1.0},
        {"unheard_of": 1},
        {"self": 1},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_absurd_arguments_are_refused_before_memory_is_allocated(
    arguments: dict[str, Any], spoiled: Spoiled, modest: Modest
) -> None:
    path = spoiled.with_facts(arch_args=ARGUMENTS | arguments)
    with modest():
        message = refusal(path)
    assert "interpkit:cnn" in message and next(iter(arguments)) in message


def test_absurd_arguments_of_a_torchvision_model_are_refused_before_memory_is_allocated(
    spoiled: Spoiled, modest: Modest
) -> None:
    path = spoiled.with_facts(architecture="torchvision:squeezenet1_1", arch_args={"num_classes": 10**9})
    with modest():
        assert "num_classes = 1000000000 is far too large" in refusal(path)
    path = spoiled.with_facts(architecture="torchvision:squeezenet1_1", arch_args={"num_classes": 900_000})
    with modest():
        assert "missing" in refusal(path)


def test_tensors_that_do_not_fit_are_named(spoiled: Spoiled) -> None:
    others = {name: tensor for name, tensor in spoiled.tensors.items() if name != "0.bias"}
    message = refusal(spoiled.with_tensors({**others, "2.bias": torch.zeros(7), "stranger": torch.zeros(1)}))
    assert "missing: 0.bias" in message and "unexpected: stranger" in message
    assert "2.bias ([7], expected [4])" in message


def test_broken_weights_are_refused(spoiled: Spoiled) -> None:
    message = refusal(spoiled.with_tensors({name: tensor * torch.nan for name, tensor in spoiled.tensors.items()}))
    assert "NaN" in message


# ---------------------------------------------------------------------------------------------- the metadata


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"architecture": None}, ["--arch"]),
        ({"input_shape": None}, ["--input-shape"]),
        ({"schema": "2"}, ["'2'", upgrade()]),
        ({"schema": "one"}, ["'one'"]),
        ({"input_shape": "[1, 12"}, ["input_shape", "JSON"]),
        ({"arch_args": "{'widths': [4]}"}, ["arch_args", "JSON"]),
        ({"arch_args": "[" * 100_000}, ["arch_args", "JSON"]),
        ({"arch_args": '{"hidden": ' + "9" * 5000 + "}"}, ["arch_args"]),
        ({"arch_args": [1, 2]}, ["arch_args"]),
        ({"num_classes": 7}, ["3 logits", "7"]),
        ({"num_classes": 10**9}, ["3 logits", "1000000000"]),
        ({"num_classes": 1}, ["num_classes"]),
        ({"num_classes": '"many"'}, ["num_classes"]),
        ({"input_shape": '"1,12,12"'}, ["input_shape"]),
        ({"input_shape": ["a", 12, 12]}, ["input_shape"]),
        ({"input_shape": [1.5, 12, 12]}, ["input_shape"]),
        ({"input_shape": {"height": 12}}, ["input_shape"]),
        ({"input_shape": []}, ["input_shape"]),
        ({"input_shape": [12, 12]}, ["input-shape"]),
        ({"input_shape": [1, 1, 12, 12]}, ["input-shape"]),
        ({"input_shape": [-1, 12, 12]}, ["input_shape"]),
        ({"input_shape": [1, 0, 12]}, ["input_shape"]),
        ({"input_shape": [3, 12, 12]}, ["3, 12, 12"]),
        ({"std": [-1.0]}, ["std"]),
        ({"std": [0.0]}, ["std"]),
        ({"std": "[NaN]"}, ["std"]),
        ({"std": "[Infinity]"}, ["std"]),
        ({"std": []}, ["std"]),
        ({"std": [0.5, 0.5, 0.5]}, ["std"]),
        ({"std": '"0.5"'}, ["std"]),
        ({"mean": "[NaN]"}, ["mean"]),
        ({"mean": [0.5] * 4}, ["mean"]),
        ({"input_range": [1, 0]}, ["input_range"]),
        ({"input_range": "[NaN, 1]"}, ["input_range"]),
        ({"input_range": "[0, Infinity]"}, ["input"]),
        ({"input_range": [0, 1, 2]}, ["input_range"]),
        ({"class_names": ["only one"]}, ["names"]),
        ({"class_names": [1, 2, 3]}, ["class_names"]),
        ({"class_names": {"a": 1}}, ["class_names"]),
    ],
    ids=lambda case: str(case)[:40],
)
def test_an_invalid_metadata_entry_is_named(facts: dict[str, Any], words: list[str], spoiled: Spoiled) -> None:
    message = refusal(spoiled.with_facts(**facts))
    assert all(word in message for word in words), message
    assert "Traceback" not in message and len(message) < 2000


@pytest.mark.parametrize(
    "shape",
    [[1, 10**9, 10**9], [1, 10**30, 12], [1, 60_000, 60_000], [10**18, 12, 12], [10**30, 12, 12], [10**18]],
    ids=str,
)
def test_an_absurd_input_shape_is_refused_before_memory_is_allocated(
    shape: list[int], spoiled: Spoiled, modest: Modest
) -> None:
    path = spoiled.with_facts(input_shape=shape)
    with modest():
        assert "shape" in refusal(path)


def test_missing_metadata_entries_get_their_defaults(spoiled: Spoiled) -> None:
    target = load_target(spoiled.with_facts(mean=None, std=None, input_range=None, class_names=None, num_classes=None))
    assert target.description.mean == [0.0] and target.description.input_range == (0.0, 1.0)
    assert target.class_names == ["0", "1", "2"]


def test_an_unknown_option_of_load_target_is_an_error_of_the_call_not_of_the_file(spoiled: Spoiled) -> None:
    with pytest.raises(UsageError, match="std"):
        load_target(spoiled.path, std=[-1.0])
    with pytest.raises(UsageError, match="Did you mean 'mean'"):
        interpkit.load_target(spoiled.path, maen=[0.5])
