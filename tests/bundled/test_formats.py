"""Classifiers in every common file format load with the logits of the original module."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import pytest
import safetensors
import safetensors.torch
import timm
import timm.models
import torch
import torchvision
import transformers
from interpkit_targets import user_code
from interpkit_targets.architectures import SmallCNN
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import ModelError, Target, UsageError, load_target
from interpkit.cli import app
from interpkit.errors import in_shell

ARGUMENTS: dict[str, Any] = {
    "input_shape": [1, 12, 12],
    "num_classes": 3,
    "widths": [4],
    "hidden": 8,
    "batch_norm": True,
}
TINY_RUN = ["--plugin", "vecmat", "--set", "upconv.width=4", "--set", "upconv.min_width=4"]
TINY_RUN += ["--batch-size", "4", "--steps", "2", "--device", "cpu", "--precision", "fp32"]

NETS = '''
"""Networks of a user's own."""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden: int = 6, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, hidden, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Channelled(nn.Module):
    """Accepts channels last, and returns probabilities in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return {"logits": self.net(x.permute(0, 3, 1, 2)).softmax(1)}


class Mixin(Net, PyTorchModelHubMixin):
    pass


class Boxed(nn.Module):
    """Its own names begin with Lightning's prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, x):
        return self.model(x)


def make(width: int, classes: int) -> nn.Module:
    return Net(hidden=width, num_classes=classes)


def nothing() -> None:
    return None
'''


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make host name lookups fail."""

    def connect(*_: Any) -> None:
        raise AssertionError("somebody reaches for the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the module with the code in NETS, written to formats_nets.py in the test's folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "formats_nets.py").write_text(NETS, "utf-8")
    before = set(sys.modules)
    module = __import__("formats_nets")
    yield module
    for name in set(sys.modules) - before:
        if name.startswith("formats_"):
            del sys.modules[name]


def seeded_module(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a module with random weights and batch norm buffers, whose logits differ between images."""
    torch.manual_seed(seed)
    module = make().eval()
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.data.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.data.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            buffer.data.fill_(7)
    return module


def cnn(seed: int = 0) -> nn.Module:
    return seeded_module(lambda: SmallCNN(**ARGUMENTS), seed)


def logits_of(target: Target, images: Tensor) -> Tensor:
    with target.frozen(), torch.no_grad():
        return target(images)


def assert_like(target: Target, module: Callable[[Tensor], Tensor], atol: float = 1e-5) -> None:
    """Check that a target has the logits of a module, and that these are not constant."""
    images = torch.rand(4, *target.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = module(images)
    assert theirs.std(0).max() > 1e-4
    assert torch.allclose(logits_of(target, images), theirs, atol=atol), (logits_of(target, images), theirs)


def refusal(path: Path, **options: Any) -> str:
    with in_shell(), pytest.raises(ModelError) as caught:
        load_target(path, **options)
    return str(caught.value)


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: str | Path) -> Result:
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fails(code: int, words: str, *arguments: str | Path) -> None:
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, result.output
    assert message.count("error:") == 1 and "Traceback" not in message and "fault of interpkit" not in message
    assert re.search(words, message), message


def write_config(folder: Path, config: Any, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config), "utf-8")
    return folder


def export_onnx(
    module: nn.Module, path: Path, shape: tuple[int, ...], *, dynamic: bool = True, opset: int | None = 13
) -> Path:
    """Export with the older exporter, ignoring its deprecation warning; ``opset`` defaults to the exporter's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"input": {0: "n"}} if dynamic else None
        example = torch.rand(2 if dynamic else 1, *shape)
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            dynamic_axes=axes,
        )
    return path


class LastChannels(nn.Module):
    """Accepts (B, H, W, C)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.permute(0, 3, 1, 2))


class Column(nn.Module):
    """Accepts one image as a column, (1, D, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(1, 144))


def tiny_vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl", 3: "elk"},
        label2id={"cat": 0, "dog": 1, "owl": 2, "elk": 3},
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def save_vit(vit: Any, folder: Path, processor: Mapping[str, Any] | None = None) -> Path:
    """Save a ViT as transformers does."""
    vit.save_pretrained(folder)
    if processor is not None:
        write_config(folder, processor, "preprocessor_config.json")
    return folder


@dataclass
class Kind:
    """A classifier on disk.

    Attributes:
        path: its file or folder.
        module: images in [0, 1] -> logits, or what differs from them by a softmax.
        options: what it takes to load it.
        graph: whether it is packed as a graph.
    """

    path: Path
    module: Callable[[Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    graph: bool = False

    @property
    def flags(self) -> list[str]:
        """The options, as the user types them."""
        flags = []
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            if name == "arch_args":
                flags += [word for key, item in value.items() for word in ("--arch-arg", f"{key}={item}")]
            elif value is True:
                flags.append(flag)
            else:
                flags += [flag, value if isinstance(value, str) else ",".join(map(str, value))]
        return flags


def make_bare(folder: Path, nets: Any) -> Kind:
    path = folder / "bare.safetensors"
    module = cnn()
    safetensors.torch.save_file(module.state_dict(), path)
    arguments = ARGUMENTS | {"batch_norm": "true"}
    return Kind(path, module, {"arch": "interpkit:cnn", "arch_args": arguments, "input_shape": [1, 12, 12]})


def make_checkpoint(folder: Path, nets: Any) -> Kind:
    module = seeded_module(lambda: torchvision.models.squeezenet1_1(num_classes=7))
    torch.save({"state_dict": module.state_dict()}, folder / "net.pth")
    options = {"arch": "torchvision:squeezenet1_1", "input_shape": [3, 32, 32], "mean": [0.5], "std": [0.25]}
    return Kind(folder / "net.pth", lambda x: module((x - 0.5) / 0.25), options)


def make_timm(folder: Path, nets: Any) -> Kind:
    module = seeded_module(lambda: timm.create_model("test_resnet", num_classes=5))
    timm.models.save_for_hf(module, str(folder / "timm"), safe_serialization=True)
    mean, std = (torch.tensor(module.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return Kind(folder / "timm", lambda x: module((x - mean) / std))


def make_transformers(folder: Path, nets: Any) -> Kind:
    vit = tiny_vit()
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255}
    return Kind(save_vit(vit, folder / "vit", processor), lambda x: vit((x - 0.5) / 0.25).logits)


def make_user_code(folder: Path, nets: Any) -> Kind:
    module = seeded_module(nets.Net)
    torch.save(module.state_dict(), folder / "net.pt")
    options = {"arch": f"py:{folder}/formats_nets.py:Net", "input_shape": [3, 8, 8], "std": [0.5]}
    return Kind(folder / "net.pt", lambda x: module(x / 0.5), options, graph=True)


def make_mixin(folder: Path, nets: Any) -> Kind:
    module = seeded_module(lambda: nets.Mixin(hidden=5, num_classes=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the model card
        module.save_pretrained(folder / "mixin")
    options = {"arch": "py:formats_nets:Mixin", "input_shape": [3, 8, 8]}
    return Kind(folder / "mixin", module, options, graph=True)


def make_onnx(folder: Path, nets: Any) -> Kind:
    module = cnn()
    return Kind(export_onnx(module, folder / "net.onnx", (1, 12, 12)), module, graph=True)


def make_onnx_nhwc(folder: Path, nets: Any) -> Kind:
    module = seeded_module(nets.Net)
    return Kind(export_onnx(LastChannels(module), folder / "nhwc.onnx", (8, 10, 3)), module, graph=True)


def make_onnx_column(folder: Path, nets: Any) -> Kind:
    module = seeded_module(Column)
    path = export_onnx(module, folder / "column.onnx", (144, 1), dynamic=False)
    return Kind(path, lambda x: torch.cat([module(row) for row in x]), {"input_shape": [1, 12, 12]}, graph=True)


def make_torchscript(folder: Path, nets: Any) -> Kind:
    module = seeded_module(nets.Net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(module, torch.rand(2, 3, 8, 8)).save(str(folder / "script.pt"))
    return Kind(folder / "script.pt", module, {"input_shape": [3, 8, 8], "trust": True}, graph=True)


def make_exported(folder: Path, nets: Any) -> Kind:
    module = seeded_module(nets.Net)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "program.pt2")
    return Kind(folder / "program.pt2", module, {"input_shape": [3, 8, 8], "trust": True}, graph=True)


KINDS: dict[str, Callable[[Path, Any], Kind]] = {
    "bare safetensors": make_bare,
    "checkpoint": make_checkpoint,
    "timm": make_timm,
    "transformers": make_transformers,
    "user code": make_user_code,
    "mixin": make_mixin,
    "onnx": make_onnx,
    "onnx nhwc": make_onnx_nhwc,
    "onnx column": make_onnx_column,
    "torchscript": make_torchscript,
    "exported program": make_exported,
}
every_kind = pytest.mark.parametrize("name", list(KINDS))
torch_warns = pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit|isinstance).*")


# ------------------------------------------------------------------------------------- each kind, and packed


@every_kind
@torch_warns
def test_every_format_loads_with_the_logits_of_the_original_module(name: str, tmp_path: Path, nets: Any) -> None:
    kind = KINDS[name](tmp_path, nets)
    options = dict(kind.options)
    if "arch_args" in options:
        options["arch_args"] = ARGUMENTS
    target = load_target(kind.path, **options)
    assert_like(target, kind.module)
    assert target.origin == kind.path.resolve()
    assert set(kind.options) - {"trust", "arch", "arch_args"} <= {k for k, v in target.sources.items() if v == "given"}


@every_kind
@torch_warns
def test_every_format_is_packed_into_a_file_that_loads_without_flags(name: str, tmp_path: Path, nets: Any) -> None:
    kind = KINDS[name](tmp_path, nets)
    packed = tmp_path / "packed" / "it.safetensors"
    if name == "exported program" and torch.__version__ < "2.7":  # its exporter has no symbolic sizes
        fails(3, "ONNX cannot express it", "pack", kind.path, *kind.flags, "--out", packed)
        return
    result = succeeds("pack", kind.path, *kind.flags, "--out", packed)
    assert result.stdout == f"{packed}\n"
    content = packed.read_bytes()
    assert b"py:" not in content and b"formats_nets" not in content
    with safetensors.safe_open(packed, "pt") as file:
        metadata = dict(file.metadata())
    assert (metadata["interpkit.architecture"] == "onnx:graph") == kind.graph
    original = load_target(kind.path, **{**kind.options, **({"arch_args": ARGUMENTS} if "bare" in name else {})})
    again = load_target(packed)
    assert_like(again, lambda images: logits_of(original, images), atol=1e-3)
    assert again.class_names == original.class_names and again.input_shape == original.input_shape


def test_pack_does_not_overwrite_a_file_unless_forced(tmp_path: Path, nets: Any) -> None:
    kind = make_bare(tmp_path, nets)
    packed = tmp_path / "packed.safetensors"
    packed.write_bytes(b"precious")
    fails(2, "--force", "pack", kind.path, *kind.flags, "--out", packed)
    assert packed.read_bytes() == b"precious"
    succeeds("pack", kind.path, *kind.flags, "--out", packed, "--force")
    assert_like(load_target(packed), kind.module)
    fails(2, "safetensors", "pack", kind.path, *kind.flags, "--out", tmp_path / "packed.pt")


def test_a_packed_file_can_be_packed_again(tmp_path: Path, nets: Any) -> None:
    kind = make_user_code(tmp_path, nets)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    succeeds("pack", kind.path, *kind.flags, "--out", once)
    succeeds("pack", once, "--out", twice)
    assert_like(load_target(twice), kind.module, atol=1e-3)


def test_packing_keeps_names_and_the_facts_of_the_preprocessing(tmp_path: Path, nets: Any) -> None:
    kind = make_transformers(tmp_path, nets)
    succeeds("pack", kind.path, "--out", tmp_path / "vit.safetensors")
    target = load_target(tmp_path / "vit.safetensors")
    assert target.class_names == ["cat", "dog", "owl", "elk"]
    assert target.description.mean == [0.5] * 3 and target.description.std == [0.25] * 3


# --------------------------------------------------------------------------------------------- state dicts


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "list": lambda state: [state],
    "tuple": lambda state: (state,),
    "wrapped twice": lambda state: {"state_dict": {"model": state}},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "both, the other way": prefixed("_orig_mod.module."),
    "wrapped and prefixed": lambda state: {"model": prefixed("_orig_mod.")(state), "epoch": 1},
}


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt"])
def test_a_state_dict_is_found_inside_any_wrapper(wrapping: str, suffix: str, tmp_path: Path) -> None:
    module = cnn()
    path = tmp_path / f"net{suffix}"
    torch.save(WRAPPINGS[wrapping](module.state_dict()), path)
    assert_like(load_target(path, arch="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12)), module)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_removed_in_safetensors_too(prefix: str, tmp_path: Path) -> None:
    module = cnn()
    safetensors.torch.save_file(prefixed(prefix)(module.state_dict()), tmp_path / "net.safetensors")
    options = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    assert_like(load_target(tmp_path / "net.safetensors", **options), module)


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_one_of_several_networks_is_chosen_by_its_key_and_remembered(key: str, tmp_path: Path) -> None:
    networks = {"student": cnn(0), "teacher": cnn(1)}
    path = tmp_path / "net.pth"
    torch.save({"nets": {name: module.state_dict() for name, module in networks.items()}}, path)
    options: dict[str, Any] = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    assert "nets.student, nets.teacher" in refusal(path, **options)
    target = load_target(path, weights_key=f"nets.{key}", **options)
    assert_like(target, networks[key])
    assert target.description.weights_key == f"nets.{key}"
    assert_like(load_target(path, **target.description.said()), networks[key])
    packed = interpkit.pack_target(target, tmp_path / "packed.safetensors")
    assert_like(load_target(packed, weights_key=f"nets.{key}"), networks[key])  # as a run of the checkpoint would


def test_inspect_shows_the_key_of_the_weights_and_what_was_ignored(tmp_path: Path) -> None:
    named = {f"model._orig_mod.{name}": tensor for name, tensor in cnn().state_dict().items()}
    torch.save({"state_dict": {**named, "loss_fn.weight": torch.ones(3)}, "args": Mapping}, tmp_path / "best.pth.tar")
    flags = ["--arch", "interpkit:cnn", "--input-shape", "1,12,12"]
    flags += [word for name, value in ARGUMENTS.items() for word in ("--arch-arg", f"{name}={json.dumps(value)}")]
    shown = " ".join(succeeds("inspect", tmp_path / "best.pth.tar", *flags).stdout.replace("\u2502", "").split())
    assert "under state_dict.model._orig_mod" in shown and "beside state_dict.loss_fn" in shown
    options: dict[str, Any] = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    target = load_target(tmp_path / "best.pth.tar", **options)
    assert target.name == "best"


def test_weights_that_older_libraries_saved_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = torchvision.models.densenet121(num_classes=3).eval()
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): t for k, t in dense.state_dict().items()}
    torch.save({k: t for k, t in state.items() if "num_batches_tracked" not in k}, tmp_path / "dense.pth")
    target = load_target(tmp_path / "dense.pth", arch="torchvision:densenet121", input_shape=(3, 32, 32))
    assert_like(target, dense, atol=1e-4)
    assert "renamed features.denseblock1.denselayer1.norm.1.weight" in target.sources["weights"]


@pytest.mark.parametrize(("averaged", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model")])
def test_averaged_weights_take_precedence(averaged: str, plain: str, tmp_path: Path) -> None:
    module, other = cnn(0), cnn(1)
    torch.save({plain: other.state_dict(), averaged: module.state_dict()}, tmp_path / "net.pth")
    options = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    target = load_target(tmp_path / "net.pth", **options)
    assert_like(target, module)
    with pytest.raises(AssertionError):
        assert_like(target, other)


def lightning(state: Mapping[str, Tensor]) -> dict[str, Any]:
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    return {"state_dict": named, "epoch": 2, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1}}


def test_lightnings_prefix_is_removed_for_the_users_own_code(tmp_path: Path, nets: Any) -> None:
    module = seeded_module(nets.Net)
    torch.save(lightning(module.state_dict()), tmp_path / "net.ckpt")
    assert_like(load_target(tmp_path / "net.ckpt", arch="py:formats_nets:Net", input_shape=(3, 8, 8)), module)


def test_lightnings_prefix_is_removed_for_a_registered_architecture(tmp_path: Path) -> None:
    module = cnn()
    torch.save(lightning(module.state_dict()), tmp_path / "net.ckpt")
    options = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    assert_like(load_target(tmp_path / "net.ckpt", **options), module)


def test_a_prefix_of_the_networks_own_names_is_kept(tmp_path: Path, nets: Any) -> None:
    module = seeded_module(nets.Boxed)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    assert_like(load_target(tmp_path / "net.pt", arch="py:formats_nets:Boxed", input_shape=(3, 8, 8)), module)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_number_stored_as_a_list_of_one_is_accepted(suffix: str, tmp_path: Path) -> None:
    module = cnn()
    state = {name: t.reshape(1) if t.dim() == 0 else t for name, t in module.state_dict().items()}
    assert any(name.endswith("num_batches_tracked") and t.shape == (1,) for name, t in state.items())
    path = tmp_path / f"net{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    assert_like(load_target(path, arch="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12)), module)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_head_of_another_width_is_found_without_flags(name: str, tmp_path: Path) -> None:
    module = seeded_module(lambda: torchvision.models.get_model(name, num_classes=7))
    torch.save(module.state_dict(), tmp_path / "net.pth")
    target = load_target(tmp_path / "net.pth", arch=f"torchvision:{name}", input_shape=(3, 32, 32))
    assert target.num_classes == 7 and target.description.arch_args == {"num_classes": 7}
    assert_like(target, module, atol=1e-4)


def test_an_option_that_weights_do_not_show_is_asked_for_unless_it_is_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, sizes = tmp_path / "net.pth", {"num_classes": 7, "aux_logits": False}
    torch.save(torchvision.models.googlenet(**sizes, init_weights=False).state_dict(), path)
    stated = {**sizes, "transform_input": True}
    load_target(path, arch="torchvision:googlenet", arch_args=stated, input_shape=(3, 32, 32))
    assert "transform_input" not in caplog.text
    load_target(path, arch="torchvision:googlenet", input_shape=(3, 32, 32))
    assert caplog.text.count("State arch_args={'transform_input': True}, or false.") == 1


def test_weights_that_do_not_fit_are_listed_with_the_nearest_architecture(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), path)
    message = refusal(path, arch="torchvision:resnet34", input_shape=(3, 32, 32))
    assert "missing: layer1.2." in message and "in all)" in message
    assert "--arch torchvision:resnet18" in message
    assert load_target(path, arch="torchvision:resnet18", input_shape=(3, 32, 32)).num_classes == 7
    fails(3, "--arch torchvision:resnet18", "inspect", path, "--arch", "torchvision:resnet34", "--input-shape", "3,8,8")


def test_weights_that_do_not_fit_are_listed_as_missing_unexpected_or_misshapen(tmp_path: Path) -> None:
    state = cnn().state_dict()
    del state["0.weight"]
    state |= {"stranger": torch.zeros(2), "1.weight": torch.zeros(9)}
    torch.save(state, tmp_path / "net.pt")
    options = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    message = refusal(tmp_path / "net.pt", **options)
    assert "missing: 0.weight" in message and "unexpected: stranger" in message
    assert "of another shape: 1.weight ([9], expected [4])" in message


def test_a_head_of_another_width_than_the_user_states_does_not_fit(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "net.pth")
    options = {"arch": "torchvision:squeezenet1_1", "arch_args": {"num_classes": 6}, "input_shape": (3, 32, 32)}
    assert "of another shape: classifier.1.weight" in refusal(tmp_path / "net.pth", **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load_and_give_single_precision_logits(dtype: torch.dtype, tmp_path: Path) -> None:
    module = cnn().to(dtype)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "net.safetensors")
    options = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "input_shape": (1, 12, 12)}
    target = load_target(tmp_path / "net.safetensors", **options)
    images = torch.rand(3, 1, 12, 12, requires_grad=True)
    with target.frozen():
        logits = target(images)
        logits.sum().backward()
    assert logits.dtype == torch.float32 and images.grad is not None and images.grad.abs().sum() > 0
    assert torch.allclose(logits, module(images.to(dtype)).float(), atol=1e-2)


def test_the_error_for_a_checkpoint_without_an_architecture_names_the_flags(tmp_path: Path) -> None:
    torch.save(cnn().state_dict(), tmp_path / "net.pt")
    message = refusal(tmp_path / "net.pt")
    assert "--arch" in message and "--input-shape" in message
    torch.save({"epoch": 3}, tmp_path / "net.pt")
    assert "no state dict" in refusal(tmp_path / "net.pt", arch="interpkit:cnn", input_shape=(1, 12, 12))


# --------------------------------------------------------------------------------------------- user's code


@pytest.mark.parametrize("form", ["file", "module", "package"])
def test_the_users_own_code_is_named_by_file_or_by_module(form: str, tmp_path: Path, nets: Any) -> None:
    package = tmp_path / "formats_package"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / "inner.py").write_text(NETS, "utf-8")
    module = seeded_module(lambda: nets.make(9, 5))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    place = {"file": f"{tmp_path}/formats_nets.py", "module": "formats_nets", "package": "formats_package.inner"}[form]
    flags = ["--arch", f"py:{place}:make", "--arch-arg", "width=9", "--arch-arg", "classes=5", "--input-shape", "3,8,8"]
    shown = json.loads(succeeds("inspect", tmp_path / "net.pt", *flags, "--json").stdout)
    assert shown["resolved"]["arch_args"]["value"] == {"width": 9, "classes": 5}
    arguments = {"width": 9, "classes": 5}
    target = load_target(tmp_path / "net.pt", arch=f"py:{place}:make", arch_args=arguments, input_shape=(3, 8, 8))
    assert_like(target, module)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("py:formats_nets:nothing", "not an nn.Module"),
        ("py:formats_nets:Nett", "no class or function 'Nett'"),
        ("py:formats_nets:torch", "no class or function 'torch'"),
        ("py:formats_nowhere:Net", "cannot import formats_nowhere"),
        ("py:nowhere/net.py:Net", "there is no file"),
        ("py:formats_nets", "py:package.module:factory"),
        ("py:formats_nets:", "py:package.module:factory"),
        ("py:formats_nets:make", "width"),
        ("py:formats_broken:Net", "RuntimeError: broken on purpose"),
    ],
)
def test_code_that_cannot_be_imported_gives_one_message(spec: str, words: str, tmp_path: Path, nets: Any) -> None:
    (tmp_path / "formats_broken.py").write_text("raise RuntimeError('broken on purpose')", "utf-8")
    torch.save(seeded_module(nets.Net).state_dict(), tmp_path / "net.pt")
    fails(3, re.escape(words), "inspect", tmp_path / "net.pt", "--arch", spec, "--input-shape", "3,8,8")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path, nets: Any) -> None:
    """They are separate modules, also for code that looks up its module by name, such as a dataclass or a pickle."""
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = NETS + f"\nWIDTH = {number}\n\ndef wide():\n    import sys\n"
        text += "    return Net(hidden=sys.modules[Net.__module__].WIDTH)\n"
        (folder / "formats_twins.py").write_text(text, "utf-8")
        torch.save(seeded_module(lambda: nets.Net(hidden=number)).state_dict(), folder / "net.pt")  # noqa: B023
    before = set(sys.modules)
    widths = []
    try:
        for number in (1, 2):
            path = tmp_path / str(number)
            target = load_target(path / "net.pt", arch=f"py:{path}/formats_twins.py:wide", input_shape=(3, 8, 8))
            widths.append(target.module.conv.out_channels)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    assert widths == [1, 2]


def test_a_file_named_like_an_installed_package_does_not_replace_it(tmp_path: Path, nets: Any) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "timm.py").write_text(NETS, "utf-8")
    torch.save(seeded_module(nets.Net).state_dict(), tmp_path / "net.pt")
    load_target(tmp_path / "net.pt", arch=f"py:{tmp_path}/code/timm.py:Net", input_shape=(3, 8, 8))
    assert sys.modules["timm"] is timm


def test_the_mixins_arguments_come_from_the_config_unless_the_user_overrides_them(tmp_path: Path, nets: Any) -> None:
    kind = make_mixin(tmp_path, nets)
    assert json.loads((kind.path / "config.json").read_text("utf-8"))["hidden"] == 5
    for path in (kind.path, kind.path / "model.safetensors"):
        options = {"arch": f"py:{tmp_path}/formats_nets.py:Mixin", "input_shape": [3, 8, 8]}
        if path.is_dir():
            assert_like(load_target(path, **options), kind.module)
    assert "--arch py:" in refusal(kind.path)
    assert "conv.weight" in refusal(kind.path, **options, arch_args={"hidden": 6})
    assert issubclass(nets.Mixin, huggingface_hub.PyTorchModelHubMixin)


def test_the_mixins_config_also_applies_to_its_weights_file(tmp_path: Path, nets: Any) -> None:
    kind = make_mixin(tmp_path, nets)
    assert_like(load_target(kind.path / "model.safetensors", **kind.options), kind.module)


# ---------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("layout", ["current", "legacy"])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("named", ["folder", "weights"])
def test_a_timm_folder_of_either_layout_loads_without_flags(
    layout: str, weights: str, named: str, tmp_path: Path
) -> None:
    module = seeded_module(lambda: timm.create_model("test_resnet", num_classes=5))
    pretrained = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 32, 32], "num_classes": 5}
    names = "label_names" if layout == "current" else "labels"
    config: dict[str, Any] = {"architecture": "test_resnet", "num_classes": 5, names: list("abcde")}
    config |= {"num_features": module.num_features, "pretrained_cfg": pretrained} if layout == "current" else pretrained
    folder = write_config(tmp_path / "net", config)
    if weights.endswith(".bin"):
        torch.save(module.state_dict(), folder / weights)
    else:
        safetensors.torch.save_file(module.state_dict(), folder / weights)
    target = load_target(folder if named == "folder" else folder / weights)
    mean, std = (torch.tensor(pretrained[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert_like(target, lambda x: module((x - mean) / std))
    assert target.input_shape == (3, 32, 32) and target.class_names == list("abcde")
    assert target.sources["mean"] == target.sources["input_shape"] == "its config.json"


def test_a_named_weights_file_is_not_replaced_by_another_of_its_folder(tmp_path: Path) -> None:
    module = seeded_module(lambda: timm.create_model("test_resnet", num_classes=5))
    folder = write_config(
        tmp_path / "net", {"architecture": "test_resnet", "num_classes": 5, "input_size": [3, 32, 32]}
    )
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    assert load_target(folder / "model.safetensors").num_classes == 5
    with pytest.raises(ModelError, match=r"stands beside model\.safetensors, which would be read in its place"):
        load_target(folder / "pytorch_model.bin")


def test_a_timm_name_may_have_its_tag_and_the_channels_are_read_from_the_weights(tmp_path: Path) -> None:
    net = seeded_module(lambda: timm.create_model("test_resnet", num_classes=3, in_chans=1))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for name in ("test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"):
        target = load_target(tmp_path / "net.pth", arch=f"timm:{name}", input_shape=(1, 32, 32))
        assert target.description.arch_args == {"num_classes": 3, "in_chans": 1}
        assert_like(target, net, atol=1e-4)


def test_a_timm_network_that_transformers_saved_is_read(tmp_path: Path) -> None:
    net = seeded_module(lambda: timm.create_model("test_resnet", num_classes=3))
    names = ["cat", "dog", "owl"]
    settings = {"architecture": "test_resnet", "model_type": "timm_wrapper", "num_classes": 3, "label_names": names}
    folder = write_config(tmp_path / "net", {**settings, "pretrained_cfg": {"input_size": [3, 32, 32]}})
    safetensors.torch.save_file(prefixed("timm_model.")(net.state_dict()), folder / "model.safetensors")
    target = load_target(folder)
    assert target.class_names == names
    assert_like(target, net, atol=1e-4)


def test_a_timm_folders_tag_and_arguments_are_used_unless_the_user_overrides_them(tmp_path: Path) -> None:
    module = seeded_module(lambda: timm.create_model("test_vit", num_classes=2, img_size=32, global_pool="avg"))
    config = {
        "architecture": "test_vit.r160_in1k",
        "num_classes": 2,
        "global_pool": "avg",
        "model_args": {"img_size": 32},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]},
    }
    folder = write_config(tmp_path / "net", config)
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    target = load_target(folder, mean=[0.25], class_names=["no", "yes"])
    assert_like(target, lambda x: module((x - 0.25) / 0.5))
    assert target.sources["mean"] == "given" and target.class_names == ["no", "yes"]


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "net", {"architecture": "test_resnet", "input_size": [3, 32, 32]})
    assert "model.safetensors" in refusal(folder)
    write_config(folder, {"weight_map": {}}, "model.safetensors.index.json")
    assert "split" in refusal(folder)


# -------------------------------------------------------------------------------------------- transformers


def test_a_transformers_folder_has_labels_and_preprocessing(tmp_path: Path) -> None:
    vit = tiny_vit()
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255}
    folder = save_vit(vit, tmp_path / "vit", processor | {"do_rescale": True, "do_normalize": True})
    mean, std = (torch.tensor(processor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    for path in (folder, folder / "model.safetensors"):
        target = load_target(path)
        assert_like(target, lambda x: vit((x - mean) / std).logits)
        assert target.class_names == ["cat", "dog", "owl", "elk"] and target.input_shape == (3, 16, 16)
        assert target.name == "vit"
        assert target.description.input_range == (0.0, 1.0)
        assert target.sources["class_names"] == target.sources["std"] == "its config.json"


def binary_vit(folder: Path, **facts: Any) -> Path:
    """Save a ViT with one output and further config entries."""
    config = tiny_vit().config
    sizes = {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    sizes |= {"intermediate_size": 16, "image_size": 16, "patch_size": 8, "num_labels": 1}
    module = seeded_module(lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)))
    save_vit(module, folder)
    write_config(folder, json.loads((folder / "config.json").read_text()) | facts)
    return folder


def test_a_single_output_of_transformers_means_its_label_or_not(tmp_path: Path) -> None:
    target = load_target(binary_vit(tmp_path / "binary"))
    assert target.class_names == ["not LABEL_0", "LABEL_0"] and target.num_classes == 2
    named = load_target(binary_vit(tmp_path / "named", id2label={"0": "tumor"}))
    assert named.class_names == ["not tumor", "tumor"]


def test_a_regression_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a regression .*-\(value - centers\) \*\* 2"):
        load_target(binary_vit(tmp_path / "age", problem_type="regression"))


def test_a_config_can_state_that_labels_do_not_exclude_each_other(tmp_path: Path) -> None:
    vit = tiny_vit()
    vit.config.problem_type = "multi_label_classification"
    target, images = load_target(save_vit(vit, tmp_path / "vit")), torch.rand(3, 3, 16, 16)
    assert target.multi_label and target.sources["output"] == "its config.json"
    torch.testing.assert_close(target.probabilities(target(images)), vit(images).logits.sigmoid())
    assert not load_target(tmp_path / "vit", output="logits").multi_label  # the user's option takes precedence


@pytest.mark.parametrize(
    ("processor", "shown"),
    [
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [64] * 3}, lambda x: (255 * x - 127.5) / 64),
        ({"do_normalize": False, "image_mean": [9] * 3, "image_std": [9] * 3}, lambda x: x),
        ({"rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3}, lambda x: 2 * x - 1),
        (None, lambda x: x),
    ],
    ids=["0 to 255", "not normalized", "0 to 2", "no processor"],
)
def test_the_steps_of_the_image_processor_are_applied(
    processor: dict[str, Any] | None, shown: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    vit = tiny_vit()
    target = load_target(save_vit(vit, tmp_path / "vit", processor))
    assert_like(target, lambda x: vit(shown(x)).logits, atol=1e-4)
    black, white = target.low.item(), target.high.item()
    assert (black, white) == (0.0, {"0 to 255": 255.0}.get("", white))
    if processor and processor.get("do_rescale") is False:
        assert white == 255.0


def test_more_than_ten_labels_are_sorted_by_number(tmp_path: Path) -> None:
    config = tiny_vit().config
    names = [f"name {i}" for i in range(12)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    vit = transformers.ViTForImageClassification(config).eval()
    folder = save_vit(vit, tmp_path / "vit")
    text = json.loads((folder / "config.json").read_text("utf-8"))
    text["id2label"] = dict(sorted(text["id2label"].items()))  # "0", "1", "10", "11", "2": as JSON may have them
    write_config(folder, text)
    assert load_target(folder).class_names == names


def test_a_model_that_is_not_an_image_classifier_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_vit(tiny_vit(), tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_config(folder, config | {"architectures": ["ViTForMaskedImageModeling"]})
    assert "ViTForMaskedImageModeling" in refusal(folder)


def test_a_convolutional_model_of_transformers_loads_too(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    module = seeded_module(lambda: transformers.ResNetForImageClassification(config))
    module.save_pretrained(tmp_path / "net")
    processor = {"size": {"height": 20, "width": 24}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_config(tmp_path / "net", processor, "preprocessor_config.json")
    target = load_target(tmp_path / "net")
    assert target.input_shape == (3, 20, 24)
    assert_like(target, lambda x: module(2 * x - 1).logits)


def test_a_transformers_folder_may_have_split_weights(tmp_path: Path) -> None:
    vit = tiny_vit()
    folder = save_vit(vit, tmp_path / "vit")
    whole = load_target(folder)
    (folder / "model.safetensors").unlink()
    vit.save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_like(load_target(folder), lambda images: logits_of(whole, images))
    assert_like(load_target(next(folder.glob("*.safetensors"))), lambda images: logits_of(whole, images))


@pytest.mark.parametrize("name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_a_model_type_that_has_several_classifiers_loads_the_one_that_the_config_names(
    name: str, tmp_path: Path
) -> None:
    config = transformers.DeiTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
        initializer_range=0.5,
    )
    module = seeded_module(lambda: getattr(transformers, name)(config))
    target = load_target(save_vit(module, tmp_path / "deit"))
    assert_like(target, lambda x: module(x).logits)


# ---------------------------------------------------------------------------------------------------- ONNX


def test_an_onnx_graphs_shape_and_layout_are_found(tmp_path: Path, nets: Any) -> None:
    target = load_target(make_onnx(tmp_path, nets).path)
    assert target.input_shape == (1, 12, 12) and target.description.layout == "nchw"
    target = load_target(make_onnx_nhwc(tmp_path, nets).path)
    assert target.input_shape == (3, 8, 10) and target.description.layout == "nhwc"
    assert "[8, 10, 3]" in target.sources["layout"]


def test_an_onnx_graph_with_column_inputs_is_for_vectors_unless_the_user_states_images(
    tmp_path: Path, nets: Any
) -> None:
    kind = make_onnx_column(tmp_path, nets)
    vectors = load_target(kind.path)
    assert vectors.input_shape == (144,)
    assert_like(vectors, lambda x: kind.module(x.reshape(-1, 1, 12, 12)))
    assert load_target(kind.path, **kind.options).input_shape == (1, 12, 12)
    assert "144 numbers" in refusal(kind.path, input_shape=(1, 12, 13))


def test_weights_stored_as_constants_in_an_onnx_graph_are_found(tmp_path: Path, nets: Any) -> None:
    kind = make_onnx(tmp_path, nets)
    graph = onnx.load(kind.path)
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.graph.initializer
    ]
    assert len(constants) >= 6
    del graph.graph.initializer[:]
    nodes = [*constants, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.save(graph, tmp_path / "constants.onnx")
    assert_like(load_target(tmp_path / "constants.onnx"), kind.module)


def test_an_onnx_graph_that_ends_in_a_softmax_yields_equivalent_logits(tmp_path: Path) -> None:
    module = cnn()
    path = export_onnx(nn.Sequential(module, nn.Softmax(1)).eval(), tmp_path / "net.onnx", (1, 12, 12))
    target = load_target(path)
    assert target.description.output == "probs"
    assert_like(target, lambda x: module(x).log_softmax(1), atol=1e-4)


def test_an_onnx_graph_of_the_exporters_default_version_loads(tmp_path: Path, nets: Any) -> None:
    module = seeded_module(nets.Net)
    path = export_onnx(module, tmp_path / "net.onnx", (3, 8, 8), opset=None)
    assert onnx.load(path).opset_import[0].version >= 17
    assert_like(load_target(path), module)


# ----------------------------------------------------------------------------- files that may run their own code


@pytest.mark.parametrize("make", [make_torchscript, make_exported], ids=["torchscript", "exported program"])
@torch_warns
def test_a_file_that_may_run_code_is_refused_until_it_is_trusted(
    make: Callable[[Path, Any], Kind], tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = make(tmp_path, nets)

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    with monkeypatch.context() as patch:
        patch.setattr("torch.jit.load", loads)
        patch.setattr("torch.export.load", loads)
        fails(3, "--trust", "inspect", kind.path, "--input-shape", "3,8,8")
        fails(3, "--trust", "invert", kind.path, *TINY_RUN, "--out", tmp_path / "run")
        fails(3, "--input-shape", "inspect", kind.path, "--trust")
    assert not (tmp_path / "run").exists()
    target = load_target(kind.path, **kind.options)
    assert_like(target, kind.module)
    assert target.description.trust


@pytest.mark.parametrize(
    "make", [make_torchscript, make_exported, make_onnx], ids=["torchscript", "exported program", "onnx"]
)
@torch_warns
def test_what_builds_a_network_for_weights_is_refused_for_a_file_with_its_own_graph(
    make: Callable[[Path, Any], Kind], tmp_path: Path, nets: Any
) -> None:
    kind = make(tmp_path, nets)
    named: dict[str, Any] = {"arch": "torchvision:resnet18", "arch_args": {"num_classes": 3}, "weights_key": "ema"}
    for name, value in named.items():
        flag = "arch.arg" if name == "arch_args" else name.replace("_", ".")
        with pytest.raises(UsageError, match=f"brings its own graph: leave out .*{flag}"):
            load_target(kind.path, **{**kind.options, name: value})
    with pytest.raises(UsageError, match=r"brings its own graph: leave out .*arch and .*weights.key"):
        load_target(kind.path, **{**kind.options, "arch": "torchvision:resnet18", "weights_key": "ema"})


def test_a_packed_graph_accepts_the_name_of_its_own_architecture_alone(tmp_path: Path) -> None:
    target = interpkit.wrap(seeded_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3))), (1, 4, 4))
    path = interpkit.pack_target(target, tmp_path / "net.safetensors")
    assert_like(load_target(path, arch="onnx:graph"), target)
    with pytest.raises(UsageError, match="brings its own graph"):
        load_target(path, arch="torchvision:resnet18")


# ----------------------------------------------------------------------------------------------- missing extras


@pytest.mark.parametrize(
    ("package", "extra", "kind"),
    [
        ("timm", "timm", "timm"),
        ("transformers", "transformers", "transformers"),
        ("onnx", "onnx", "onnx"),
        ("onnx2torch", "onnx", "onnx"),
        ("onnxruntime", "onnx", "onnx"),
    ],
)
def test_a_format_whose_package_is_missing_names_the_extra(
    package: str, extra: str, kind: str, tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = KINDS[kind](tmp_path, nets)
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(made.path)
    assert interpkit.install_extra(extra) in message and package in message
    fails(3, re.escape(interpkit.install_extra(extra)), "inspect", made.path)


def test_packing_a_graph_without_onnx_names_the_extra(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = make_user_code(tmp_path, nets)
    monkeypatch.setitem(sys.modules, "onnx", None)
    fails(
        3,
        re.escape(interpkit.install_extra("onnx")),
        "pack",
        kind.path,
        *kind.flags,
        "--out",
        tmp_path / "packed.safetensors",
    )
    assert not (tmp_path / "packed.safetensors").exists()


def test_formats_that_need_no_extra_load_without_any(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [make_bare(tmp_path, nets), make_user_code(tmp_path, nets)]
    for package in ("timm", "transformers", "onnx", "onnx2torch", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    for kind in kinds:
        options = kind.options | ({"arch_args": ARGUMENTS} if "arch_args" in kind.options else {})
        assert_like(load_target(kind.path, **options), kind.module)


# ----------------------------------------------------------------------------------------------------- vectors

RANGES = ((0.0, 10.0), (-5.0, 5.0), (100.0, 101.0), (0.0, 1.0))


def table(tmp_path: Path) -> tuple[Path, list[str]]:
    """Write a classifier of table rows; return its file and the options needed to load it."""
    code = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    (tmp_path / "formats_table.py").write_text(code, "utf-8")
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), tmp_path / "table.pt")
    ranges = ";".join(f"{lo},{hi}" for lo, hi in RANGES)
    flags = ["--arch", f"py:{tmp_path}/formats_table.py:net", "--input-shape", "4", "--input-range", ranges]
    return tmp_path / "table.pt", flags


def test_a_classifier_of_table_rows_is_inverted_within_the_ranges_of_its_features(tmp_path: Path) -> None:
    path, flags = table(tmp_path)
    out = tmp_path / "run"
    small = ["--generator", "dense", "--set", "dense.widths=[16]", "--steps", "3", "--batch-size", "8"]
    succeeds("invert", path, "--plugin", "vecmat", *small, "--device", "cpu", *flags, "--out", out)
    inputs = safetensors.torch.load_file(out / "samples.safetensors")["inputs"]
    low, high = torch.tensor(RANGES).T
    assert inputs.shape == (300, 4) and inputs.dtype == torch.float32
    assert (inputs >= low).all() and (inputs <= high).all()
    share = (inputs - low) / (high - low)
    assert (share.std(0) > 1e-3).all() and (share.mean(0) - 0.5).abs().max() < 0.4
    assert not (out / "samples.png").exists()


def test_rows_of_a_table_are_reference_data_in_their_own_units(tmp_path: Path) -> None:
    path, flags = table(tmp_path)
    low, high = torch.tensor(RANGES).T
    rows = low + (high - low) * torch.rand(40, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net.load_state_dict(torch.load(path, weights_only=True))
    labels = net(rows).argmax(1)
    np.savez(tmp_path / "rows.npz", x_test=rows.numpy(), y_test=labels.numpy())
    shown = succeeds("inspect", path, *flags, "--reference", tmp_path / "rows.npz", "--json")
    assert json.loads(shown.stdout)["accuracy"] == 1.0


# ----------------------------------------------------------------------------------------------- reference data


def judged(target: Target) -> tuple[Tensor, Tensor]:
    """Return 8-bit images and the classes that the target predicts, one in four of them wrong."""
    images = torch.randint(0, 256, (40, *target.input_shape), generator=torch.Generator().manual_seed(2))
    labels = logits_of(target, images.float() / 255).argmax(1)
    labels[::4] = (labels[::4] + 1) % target.num_classes
    return images.to(torch.uint8), labels


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x_train", "y_train"), ("images", "labels")])
def test_inspect_shows_the_accuracy_on_reference_data(
    names: tuple[str, str], tmp_path: Path, tiny_model: Path, tiny_target: Target
) -> None:
    images, labels = judged(tiny_target)
    np.savez(tmp_path / "data.npz", **{names[0]: images[:, 0].numpy(), names[1]: labels.numpy()})
    data = f"{tmp_path}/data.npz" + (":train" if "train" in names[0] else "")
    text = succeeds("inspect", tiny_model, "--reference", data)
    assert f"accuracy on {data}: 75.00%" in text.stdout
    shown = json.loads(succeeds("inspect", tiny_model, "--reference", data, "--json").stdout)
    assert shown["accuracy"] == 0.75
    assert "accuracy" not in json.loads(succeeds("inspect", tiny_model, "--json").stdout)


def test_an_accuracy_at_chance_level_is_reported(tmp_path: Path, tiny_model: Path, tiny_target: Target) -> None:
    images, labels = judged(tiny_target)
    np.savez(tmp_path / "data.npz", images=images.numpy(), labels=(labels + 1).remainder(3).numpy())
    result = succeeds("inspect", tiny_model, "--reference", tmp_path / "data.npz")
    assert "chance" in result.stderr and "--mean" in result.stderr


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0.7 else -super().forward(x)


class Determinant(nn.Linear):
    """A classifier by a determinant, for which ONNX has an operation and the converter none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.linalg.det(x))


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: Branching(4, 3), (4,), "apart from its own.*torch.where"),
        (lambda: Determinant(1, 3), (1, 5, 5), "its graph cannot be converted to PyTorch: its operation Det"),
    ],
)
def test_a_graph_that_differs_from_its_classifier_or_cannot_be_read_again_is_not_written(
    make: Any, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    target = interpkit.wrap(make(), shape)
    with pytest.raises(ModelError, match=words):
        interpkit.pack_target(target, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_graph_keeps_the_crop_and_does_not_claim_a_mean_color(tmp_path: Path) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2), mean=0.5, std=0.5, crop_pct=1.0)
    packed = load_target(interpkit.pack_target(target, tmp_path / "net.safetensors"))
    assert packed.description.crop_pct == 1.0
    with pytest.raises(UsageError, match="the mean color of net is not known"):
        interpkit.attribute(packed, torch.rand(1, 3, 2, 2), [0], baseline="mean", device="cpu")


def test_the_accuracy_of_a_good_binary_classifier_is_not_reported_as_chance(tmp_path: Path) -> None:
    brighter = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    brighter[1].load_state_dict({"weight": torch.tensor([[-1.0] * 4, [1.0] * 4]), "bias": torch.tensor([4.0, -4.0])})
    model = interpkit.pack_target(interpkit.wrap(brighter, (1, 2, 2), std=0.5), tmp_path / "brighter.safetensors")
    images, labels = np.repeat([[[50, 50], [50, 50]], [[200, 200], [200, 200]]], 5, 0), np.arange(10) // 5
    labels[0] = 1
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    result = succeeds("inspect", model, "--reference", tmp_path / "data.npz")
    assert "90.00%" in result.stdout and "chance" not in result.stderr


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_folder_with_one_subfolder_per_class_is_reference_data(
    by: str, tmp_path: Path, tiny_model: Path, tiny_target: Target
) -> None:
    images, labels = judged(tiny_target)
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = tmp_path / "data" / (tiny_target.class_names[label] if by == "name" else str(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{i}.png")
    shown = json.loads(succeeds("inspect", tiny_model, "--reference", tmp_path / "data", "--json").stdout)
    assert shown["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_test": np.zeros((4, 13, 12), np.uint8), "y_test": np.zeros(4, int)}, "the classifier takes"),
        ({"x_test": np.zeros((4, 12, 12, 3), np.uint8), "y_test": np.zeros(4, int)}, "the classifier takes"),
        ({"x_test": np.zeros((4, 144), np.uint8), "y_test": np.zeros(4, int)}, "the classifier takes"),
        ({"x_test": np.zeros((4, 12, 12), np.uint8), "y_test": np.zeros(3, int)}, "label for each"),
        ({"x_test": np.zeros((4, 12, 12), np.uint8), "y_test": np.full(4, 0.5)}, "one integer label for each"),
        ({"x_test": np.zeros((0, 12, 12), np.uint8), "y_test": np.zeros(0, int)}, "label"),
        ({"x": np.zeros((4, 12, 12), np.uint8)}, "x_test"),
        ({"x_test": np.array([{}] * 4, dtype=object), "y_test": np.zeros(4, int)}, "npz"),
        ({"x_test": np.full((4, 12, 12), "a"), "y_test": np.zeros(4, int)}, "npz"),
        ({"x_test": np.zeros((4, 12, 12), complex), "y_test": np.zeros(4, int)}, "npz"),
    ],
    ids=["size", "channels", "vectors", "labels", "no whole labels", "empty", "names", "objects", "text", "complex"],
)
def test_reference_data_that_do_not_fit_end_with_2(
    arrays: dict[str, Any], words: str, tmp_path: Path, tiny_model: Path
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    fails(2, words, "inspect", tiny_model, "--reference", tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no pictures"),
        (lambda folder: (folder / "nobody").mkdir(), "no class is named 'nobody'"),
        (lambda folder: (folder / "7").mkdir(), "class"),
        (lambda folder: _text(folder / "0" / "a.png"), "not a readable image"),
    ],
    ids=["empty", "unknown name", "unknown number", "no picture"],
)
def test_a_folder_that_does_not_fit_ends_with_2(
    make: Callable[[Path], Any], words: str, tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    fails(2, words, "inspect", tiny_model, "--reference", folder)


def test_an_unknown_class_number_ends_with_2(tmp_path: Path, tiny_model: Path) -> None:
    _picture(tmp_path / "data" / "7" / "a.png", (12, 12))
    fails(2, "7", "inspect", tiny_model, "--reference", tmp_path / "data")
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 12, 12), np.uint8), labels=np.array([0, -1]))
    fails(2, "-1", "inspect", tiny_model, "--reference", tmp_path / "data.npz")


def _picture(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def _text(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("a picture, really", "utf-8")


# ------------------------------------------------------------------------------------------------ invert, sample


@pytest.mark.parametrize("name", ["timm", "transformers", "onnx", "user code", "mixin", "torchscript"])
@torch_warns
def test_every_format_is_inverted_and_sampled_from_the_command_line(name: str, tmp_path: Path, nets: Any) -> None:
    kind = KINDS[name](tmp_path, nets)
    out = tmp_path / "run"
    flags = [*kind.flags, *(["--input-shape", "3,32,32"] if name == "timm" else [])]
    result = succeeds("invert", kind.path, *TINY_RUN, *flags, "--out", out)
    assert result.stdout.splitlines()[-2:] == [str(out / "samples.png"), str(out / "report.html")]
    again = [*(["--arch", kind.options["arch"]] if "arch" in kind.options else [])]
    again += ["--trust"] if "trust" in kind.options else []
    succeeds("sample", out, *again, "--per-class", "1", "--out", tmp_path / "more.safetensors")
    samples = safetensors.torch.load_file(tmp_path / "more.safetensors")
    assert len(samples["images"]) == len(samples["labels"].unique()) == len(samples["labels"])


def test_a_run_loads_the_users_own_code_if_this_user_has_typed_its_name(tmp_path: Path, nets: Any) -> None:
    kind = make_user_code(tmp_path, nets)
    out = tmp_path / "run"
    succeeds("invert", kind.path, *TINY_RUN, *kind.flags, "--out", out)
    succeeds("sample", out, "--per-class", "1")
    assert interpkit.load_inversion(out).target.description.arch == kind.options["arch"]
    succeeds("invert", kind.path, "--out", out, "--resume", "--steps", "3")


def run_made_elsewhere(tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Kind, Path]:
    """Return a user's own code and a run with it, which this user has not typed."""
    kind, out = make_user_code(tmp_path, nets), tmp_path / "run"
    succeeds("invert", kind.path, *TINY_RUN, *kind.flags, "--out", out)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
    return kind, out


def test_a_run_made_elsewhere_loads_code_only_when_its_name_is_typed(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, out = run_made_elsewhere(tmp_path, nets, monkeypatch)
    before = sorted(out.iterdir())

    def found(spec: str) -> None:
        raise AssertionError(f"{spec} was looked up because a file names it")

    with monkeypatch.context() as patch:
        patch.setattr("interpkit_targets.user_code.find_factory", found)
        fails(3, "--arch py:", "sample", out, "--per-class", "1")
        with pytest.raises(ModelError, match="arch='py:"):
            interpkit.load_inversion(out)
        fails(2, "[Tt]ype it again", "invert", kind.path, "--out", out, "--resume", "--steps", "3")
    assert sorted(out.iterdir()) == before
    succeeds("sample", out, "--arch", kind.options["arch"], "--per-class", "1")
    succeeds("sample", out, "--per-class", "1", "--out", tmp_path / "again.safetensors")  # remembered now


def test_trust_in_a_file_lets_no_code_run_that_a_run_names(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, out = run_made_elsewhere(tmp_path, nets, monkeypatch)
    recipe = (out / "recipe.toml").read_text("utf-8")
    (out / "recipe.toml").write_text(recipe.replace("\ntrust = false", "\ntrust = true", 1), "utf-8")
    assert "\ntrust = true" in (out / "recipe.toml").read_text("utf-8")
    fails(3, "--arch py:", "sample", out, "--per-class", "1", "--trust")
    succeeds("sample", out, "--per-class", "1", "--trust", "--arch", kind.options["arch"])


@pytest.mark.parametrize("listed", [False, True])
def test_code_is_loaded_without_changing_what_python_imports_from_where(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text("import own_helper\nfrom torch.nn import Flatten as Net\n")
    (tmp_path / "own_helper.py").write_text("")
    monkeypatch.setattr("sys.path", [*[str(tmp_path)] * listed, *sys.path])
    before = list(sys.path)
    user_code.find_factory(f"py:{tmp_path / 'own_net.py'}:Net")
    assert sys.path == before


@pytest.mark.parametrize("changed", ["code", "helper", "arguments", "classifier", "record"])
def test_typed_code_is_forgotten_when_anything_about_it_changes(
    changed: str, tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"helper_of_{changed}"  # Python imports a name once
    state, code, helper = (tmp_path / name for name in ("state", "own/net.py", f"own/{module}.py"))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    kind = make_user_code(tmp_path, nets)
    code.parent.mkdir()
    helper.write_text("")
    code.write_text(f"import {module}\n" + (tmp_path / "formats_nets.py").read_text("utf-8"), "utf-8")
    out, arch = tmp_path / "run", f"py:{code}:Net"
    flags = ["--arch", arch, "--input-shape", "3,8,8", "--std", "0.5"]
    succeeds("invert", kind.path, *TINY_RUN, *flags, "--out", out)
    again = ["sample", out, "--per-class", "1"]
    succeeds(*again)
    if changed in ("code", "helper"):
        place = {"code": code, "helper": helper}[changed]
        place.write_text(place.read_text("utf-8") + "\n# changed\n", "utf-8")
        fails(3, f"{place} has changed since you typed it.*--arch py:", *again)
        return
    if changed == "arguments":
        recipe = (out / "recipe.toml").read_text("utf-8")
        changed_recipe = recipe.replace("[target.arch_args]", "[target.arch_args]\nother = 3")
        (out / "recipe.toml").write_text(changed_recipe, "utf-8")
    elif changed == "classifier":
        torch.save({name: 2 * t for name, t in torch.load(kind.path).items()}, tmp_path / "other.pt")
        again += ["--model", tmp_path / "other.pt"]
    else:
        (record,) = state.rglob("*.json")
        record.write_text("{")
    fails(3, "a file cannot have it run.*--arch py:", *again)


@pytest.mark.parametrize("how", ["link", "module"])
def test_a_run_cannot_substitute_other_code_under_a_typed_name(
    how: str, tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's folder has a link to the typed code, with files next to it that the code or Python would import."""
    helper, theirs, code = f"beside_{how}", tmp_path / "theirs", tmp_path / "own" / "net.py"
    kind = make_user_code(tmp_path, nets)
    for folder, content in ((code.parent, ""), (theirs, f"open({str(tmp_path / 'marker')!r}, 'w')")):
        folder.mkdir()
        (folder / f"{helper}.py").write_text(content, "utf-8")
    code.write_text(f"import {helper}\n" + (tmp_path / "formats_nets.py").read_text("utf-8"), "utf-8")
    out = tmp_path / "run"
    flags = ["--arch", f"py:{code}:Net", "--input-shape", "3,8,8", "--std", "0.5"]
    succeeds("invert", kind.path, *TINY_RUN, *flags, "--out", out)
    link = theirs / ("net.py" if how == "link" else helper)
    link.symlink_to(code)
    recipe = (out / "recipe.toml").read_text("utf-8")
    place = str(link) if how == "link" else link.name
    (out / "recipe.toml").write_text(recipe.replace(f"py:{code}", f"py:{place}"), "utf-8")
    monkeypatch.delitem(sys.modules, helper)
    monkeypatch.chdir(theirs)
    again = ["sample", out, "--per-class", "1"]
    if how == "link":
        succeeds(*again)
    else:
        fails(3, "a file cannot have it run", *again)
    assert not (tmp_path / "marker").exists()


@torch_warns
def test_a_run_of_a_trusted_file_is_sampled_only_when_trust_is_typed_again(tmp_path: Path, nets: Any) -> None:
    kind = make_torchscript(tmp_path, nets)
    out = tmp_path / "run"
    succeeds("invert", kind.path, *TINY_RUN, *kind.flags, "--out", out)
    fails(3, "--trust", "sample", out, "--per-class", "1")
    succeeds("sample", out, "--trust", "--per-class", "1")


@pytest.mark.parametrize("name", ["user code", "torchscript"])
@torch_warns
def test_a_recipe_that_records_code_loads_it_only_when_its_name_is_typed_again(
    name: str, tmp_path: Path, nets: Any
) -> None:
    kind = KINDS[name](tmp_path, nets)
    first, second = tmp_path / "first", tmp_path / "second"
    succeeds("invert", kind.path, *TINY_RUN, *kind.flags, "--out", first)
    recipe = (first / "recipe.toml").read_text("utf-8")
    assert ("py:" in recipe) if name == "user code" else ("trust = true" in recipe)
    flags = ["--config", first / "recipe.toml", "--out", second]
    fails(2, "[Tt]ype it again", "invert", kind.path, *flags)
    assert not second.exists()
    again = ["--arch", kind.options["arch"]] if name == "user code" else ["--trust"]
    succeeds("invert", kind.path, *flags, *again)
    assert (second / "samples.png").exists()
