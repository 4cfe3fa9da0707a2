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


def test_an_image_with_a_logit_that_is_nan_belongs_to_none_of_its_classes() -> None:
    target, nan = interpkit.wrap(nn.Identity(), (3,)), torch.nan
    logits = torch.tensor([[nan, 1.0, 0.0], [0.0, nan, 1.0], [nan] * 3, [0.0, 2.0, 1.0]])
    for label in range(3):
        labels = torch.full((4,), label)
        assert target.accepts(logits, labels).tolist() == [False, False, False, label == 1]
        assert (target.predictions(logits, labels) == labels).tolist() == [False, False, False, label == 1]


def named(*names: str) -> interpkit.Target:
    return interpkit.wrap(nn.Identity(), (len(names),), class_names=list(names))


@pytest.mark.parametrize(("label", "number"), [("Crane", 2), ("CRANE ", 2), ("T-shirt", 1), (0, 0), ("1", 1)])
def test_a_class_is_known_by_its_name_and_its_number(label: str | int, number: int) -> None:
    assert named("cat", "T-shirt", "Crane").class_number(label) == number


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("crane", r"2 classes are called 'crane': 0, 2\. Use their numbers"),
        ("crame", r"no class called 'crame'\. Did you mean 'crane' \(0\)"),
        ("zzz", r"no class called 'zzz'\. Its names are crane, T-shirt, crane"),
        (3, "there is no class 3; .* are 0 to 2"),
        ("-1", "there is no class -1; .* are 0 to 2"),
    ],
)
def test_a_class_that_does_not_exist_or_shares_its_name_is_refused(label: str | int, words: str) -> None:
    with pytest.raises(interpkit.UsageError, match=words):
        named("crane", "T-shirt", "crane").class_number(label)


def test_letters_of_both_cases_are_told_apart() -> None:
    letters = named("A", "B", "a")
    assert [letters.class_number(letter) for letter in ("A", "a", "b")] == [0, 2, 1]


def test_a_number_that_is_the_name_of_another_class_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    digits = named("3", "1", "2")
    assert [digits.class_number(label) for label in ("1", "2", 0)] == [1, 2, 0]
    assert not caplog.messages
    assert named("2", "1", "0").class_number("2") == 2
    assert caplog.messages[0].endswith("class 2 is called '0'. The class called '2' is number 0.")
    with pytest.raises(interpkit.UsageError, match=r"0 to 2\. The class called '3' is number 0"):
        digits.class_number("3")


def test_runs_and_samples_take_names_of_classes() -> None:
    target = interpkit.wrap(nn.Sequential(nn.Linear(4, 3)), (4,), class_names=["cat", "dog", "tench, Tinca tinca"])
    inversion = interpkit.invert(target, ["vecmat"], labels=["Tench, Tinca tinca", 0], steps=1, batch_size=4)
    assert inversion.recipe.labels == [2, 0]
    assert inversion.sample(1, labels=["cat"])[1].tolist() == [0]
    with pytest.raises(interpkit.UsageError, match="Did you mean 'dog'"):
        inversion.sample(1, labels=["dogs"])
