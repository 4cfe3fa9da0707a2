"""Heads of several layers and first layers of other channels, put into an architecture, are read from the weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from interpkit import ModelError, fill_architecture, load_target, pack_target


def two(into: int, between: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, 8), between or nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))


def resnet(head: nn.Module | None = None, channels: int = 3) -> nn.Module:
    net = models.resnet18(num_classes=5)
    if head is not None:
        net.fc = head
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return net


def mobilenet(change: Callable[[Any], None]) -> nn.Module:
    net = models.mobilenet_v3_small()
    change(net)
    return net


def named() -> nn.Sequential:
    layers = {"fc1": nn.Linear(512, 8), "act": nn.GELU(), "fc2": nn.Linear(8, 5)}
    return nn.Sequential(OrderedDict(layers))


def normed() -> nn.Sequential:
    norm = nn.BatchNorm1d(8)
    norm.running_mean = torch.rand(8)
    return nn.Sequential(nn.Dropout(), nn.Linear(512, 8), norm, nn.SiLU(), nn.Dropout(), nn.Linear(8, 5))


def inner(net: Any) -> None:
    net.classifier[3] = two(1024, nn.Tanh())


def outer(net: Any) -> None:
    net.classifier = two(576, nn.LeakyReLU())


KINDS: dict[str, tuple[Callable[[], nn.Module], str, str | None, int]] = {
    "two layers": (lambda: resnet(two(512)), "resnet18", "relu", 3),
    "two layers by name": (lambda: resnet(named()), "resnet18", "gelu", 3),
    "a batch norm between": (lambda: resnet(normed()), "resnet18", "silu", 3),
    "no activation": (lambda: resnet(two(512, nn.Identity())), "resnet18", "none", 3),
    "in place of a layer of a sequence": (lambda: mobilenet(inner), "mobilenet_v3_small", "tanh", 3),
    "in place of a sequence": (lambda: mobilenet(outer), "mobilenet_v3_small", "leaky_relu", 3),
    "gray": (lambda: resnet(channels=1), "resnet18", None, 1),
    "four bands and two layers": (lambda: resnet(two(512), channels=4), "resnet18", "relu", 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_layers_give_the_logits_of_the_network_that_was_saved(kind: str) -> None:
    make, arch, activation, channels = KINDS[kind]
    torch.manual_seed(0)
    net, images = make().eval(), torch.rand(2, channels, 32, 32)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    arguments: Mapping[str, Any] = {"head_activation": activation} if activation else {}
    notes: list[str] = []
    module, said = fill_architecture(f"torchvision:{arch}", arguments, state, notes=notes)
    with torch.no_grad():
        assert torch.equal(module.eval()(images), net(images))
    assert dict(arguments).items() <= said.items()
    assert any("by their sizes" in note for note in notes)


def test_the_activation_of_a_head_is_asked_for(tmp_path: Path) -> None:
    net = resnet(two(512))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    facts: dict[str, Any] = {"arch": "torchvision:resnet18", "input_shape": (3, 32, 32)}
    with pytest.raises(ModelError, match=r"fc\.0: 512 to 8, fc\.3: 8 to 5.*arch_args={'head_activation': 'relu'}"):
        load_target(tmp_path / "net.pth", **facts)
    with pytest.raises(ModelError, match=r"Name it"):
        load_target(tmp_path / "net.pth", **facts, arch_args={"head_activation": "swoosh"})
    target = load_target(tmp_path / "net.pth", **facts, arch_args={"head_activation": "relu"})
    packed = load_target(pack_target(target, tmp_path / "net.safetensors"))  # needs nothing said
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(packed(images), target(images))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (nn.Sequential(nn.Linear(512, 8), nn.PReLU(), nn.Linear(8, 5)), r"fc\.0, fc\.1, fc\.2 in the place of fc"),
        (nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 5)), "in the place"),
        (nn.Linear(512, 5), "head_activation is for a head of several layers"),
    ],
)
def test_a_head_that_the_activation_does_not_complete_is_refused(head: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fill_architecture("torchvision:resnet18", {"head_activation": "relu"}, resnet(head).state_dict())


def test_the_stride_of_other_kernels_is_not_guessed() -> None:
    net = models.resnet18(num_classes=5)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    with pytest.raises(ModelError, match=r"Weights do not tell the stride of conv1\.weight"):
        fill_architecture("torchvision:resnet18", {}, net.state_dict())
