"""Conversion between [0, 1] and the units of a target's inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interpkit
from interpkit.interfaces.targets import family_of


def test_vectors_are_converted_to_their_units_and_back() -> None:
    target = interpkit.wrap(nn.Linear(2, 3), (2,), input_range=[(0.0, 10.0), (-1.0, 1.0)])
    unit, units = torch.tensor([[0.5, 0.25]]), torch.tensor([[5.0, -0.5]])
    assert torch.equal(target.from_unit(unit), units) and torch.equal(target.to_unit(units), unit)


def test_images_are_kept_in_unit_range_whatever_the_input_range() -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), input_range=(0.0, 255.0))
    images = torch.tensor([[[[0.0, 1.0], [0.5, 0.2]]]])
    assert target.to_unit(images) is images and target.from_unit(images) is images
    eight_bits = torch.tensor([[[[255, 51]]]], dtype=torch.uint8)
    assert torch.equal(target.to_unit(eight_bits), torch.tensor([[[[1.0, 0.2]]]]))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("timm:resnet50.a1_in1k", "torchvision:resnet18", "torchvision:wide_resnet50_2", "ResNet"), "resnet"),
        (("timm:tf_efficientnet_lite0", "efficientnet-lite1", "py:net.py:EfficientNet"), "efficientnet"),
        (("timm:mobilenetv3_large_100", "torchvision:mobilenet_v3_large"), "mobilenet"),
        (("transformers:vit", "timm:vit_tiny_patch16_224", "ViTForImageClassification"), "vit"),
        (("", "onnx:graph", "py:my.py:Net", "Sequential", "GraphModule", "3d"), ""),
    ],
)
def test_the_family_is_the_architectures_name_without_its_size(names: tuple[str, ...], family: str) -> None:
    assert {family_of(name) for name in names} == {family}


def test_a_targets_family_is_that_of_its_architecture_or_else_of_its_class() -> None:
    class ConvNeXt(nn.Linear): ...

    target = interpkit.wrap(ConvNeXt(2, 3), (2,))
    assert target.family == "convnext"
    target.description = target.description.model_copy(update={"arch": "torchvision:swin_t"})
    assert target.family == "swin"
