"""A small classifier in each format, for `interpkit.testing`: see `interpkit.Loader.example`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from interpkit import TargetOptions, build_architecture, save_target
from interpkit_targets.architectures import need

SHAPE = (1, 12, 12)
ARCHITECTURE = "interpkit:cnn"
ARGUMENTS: dict[str, Any] = {"input_shape": list(SHAPE), "num_classes": 3, "widths": [4], "hidden": 8}
CODE = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__(nn.Flatten(), nn.Linear(144, hidden), nn.Tanh(), nn.Linear(hidden, 3))
"""


def small_net() -> nn.Module:
    """Return a small network, the same each time."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return build_architecture(ARCHITECTURE, ARGUMENTS).eval()


def safetensors_file(folder: Path) -> Path:
    """Write a self-describing file."""
    path = folder / "net.safetensors"
    return save_target(small_net(), path, architecture=ARCHITECTURE, arch_args=ARGUMENTS, input_shape=SHAPE, std=0.5)


def checkpoint(folder: Path) -> tuple[Path, TargetOptions]:
    """Write a state dict, of which the user says the rest."""
    torch.save({"state_dict": small_net().state_dict()}, folder / "net.pt")
    return folder / "net.pt", TargetOptions(arch=ARCHITECTURE, arch_args=ARGUMENTS, input_shape=SHAPE)


def timm_folder(folder: Path) -> Path:
    """Write the smallest of timm's models, as timm does."""
    timm = need("timm", "timm")
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        module = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(module, str(folder / "timm"), safe_serialization=True)
    return folder / "timm"


def transformers_folder(folder: Path) -> Path:
    """Write a small vision transformer, as transformers does."""
    transformers = need("transformers", "transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {0: "cat", 1: "dog", 2: "owl"}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, id2label=names, initializer_range=0.5)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        transformers.ViTForImageClassification(config).eval().save_pretrained(folder / "vit")
    return folder / "vit"


def hub_mixin_folder(folder: Path) -> tuple[Path, TargetOptions]:
    """Write what `PyTorchModelHubMixin` saves, and the user's code that it is of."""
    (folder / "net.py").write_text(CODE, "utf-8")
    saved = folder / "mixin"
    saved.mkdir()
    (saved / "config.json").write_text(json.dumps({"hidden": 5}), "utf-8")
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.Tanh(), nn.Linear(5, 3))
    safetensors.torch.save_file(module.state_dict(), saved / "model.safetensors")
    return saved, TargetOptions(arch=f"py:{folder}/net.py:Net", input_shape=SHAPE)


def onnx_file(folder: Path) -> Path:
    """Write an ONNX graph."""
    need("onnx", "onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter warns of itself; the newer one takes one more package
        torch.onnx.export(
            small_net(),
            (torch.zeros(2, *SHAPE),),
            str(folder / "net.onnx"),
            dynamo=False,
            opset_version=13,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
        )
    return folder / "net.onnx"


def torchscript_file(folder: Path) -> tuple[Path, TargetOptions]:
    """Write a TorchScript archive, of which the user says the shape, and that it may be run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.trace(small_net(), torch.zeros(2, *SHAPE)).save(str(folder / "net.pt"))
    return folder / "net.pt", TargetOptions(input_shape=SHAPE, trust=True)


def exported_program(folder: Path) -> tuple[Path, TargetOptions]:
    """Write an exported program, of which the user says the shape, and that it may be run."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(small_net(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2", TargetOptions(input_shape=SHAPE, trust=True)
