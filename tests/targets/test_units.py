"""Units of a layer as the classes of a target."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import Target, Units, UsageError, units, wrap
from interpkit.targets.units import SHARE


class Halves(nn.Module):
    """A layer with two channels, the left and the right half of the image, and a third that is always 0."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        left, right = images[..., :half], images[..., half:]
        return torch.cat([left, right, torch.zeros_like(left)], 1)


@pytest.fixture
def halves() -> Target:
    net = nn.Sequential(Halves(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return wrap(net, input_shape=(1, 8, 8))


def test_a_unit_is_the_mean_of_its_channel_above_what_plausible_images_reach(halves: Target) -> None:
    read = Units(halves, ["0:1", "0:0"])
    bright = torch.zeros(1, 1, 8, 8)
    bright[..., :4] = 1.0  # the left half
    logits = read(halves.respond(bright, read.layers))
    assert logits.tolist() == [[pytest.approx(float(-(read.level / read.spread)[0])), logits[0, 1].item()]]
    assert logits[0, 1].item() == pytest.approx(float((1 - read.level[1]) / read.spread[1]), rel=1e-5)


def test_one_in_a_hundred_plausible_images_counts_as_the_units() -> None:
    target = wrap(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), input_shape=(3,))
    images = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1))
    accepted = units(target, ["0:0,2,4"])(images) > 0
    assert accepted.double().mean().item() == pytest.approx(1 - SHARE, abs=0.03)


def test_units_are_classes_that_do_not_exclude_each_other_and_keep_the_targets_layers(halves: Target) -> None:
    both = units(halves, ["0:0", "3:in:1"])
    assert (both.class_names, both.num_classes, both.multi_label) == (["0:0", "3:in:1"], 2, True)
    response, plain = both.respond(torch.rand(2, 1, 8, 8), ["1"]), halves.respond(torch.rand(2, 1, 8, 8), ["1"])
    assert response.features["1"].shape == plain.features["1"].shape and response.feature_layer == halves.feature_layer


def test_a_single_unit_is_a_class_and_its_opposite(halves: Target) -> None:
    images = torch.rand(5, 1, 8, 8)
    single, pair = units(halves, ["0:0"]), units(halves, ["0:0,1"])
    assert single.class_names == ["not 0:0", "0:0"] and not single.multi_label
    z = pair(images)[:, 0]
    torch.testing.assert_close(single(images), torch.stack([-z / 2, z / 2], 1))


def test_a_direction_is_a_weighted_sum_of_channels(halves: Target) -> None:
    images = torch.rand(5, 1, 8, 8)
    named = {"difference": ("0", torch.tensor([1.0, -1.0, 0.0]))}
    read = Units(halves, directions=named)
    features = halves.respond(images, ["0"]).features["0"].mean((2, 3))
    expected = (features[:, 0] - features[:, 1] - read.level) / read.spread
    torch.testing.assert_close(read(halves.respond(images, ["0"]))[:, 0], expected)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(6, 6), (2, 4, 6), "last"),
        (nn.Identity(), (2, 4, 6), "last"),  # tokens
        (nn.Conv1d(4, 4, 1), (2, 4, 6), "first"),
        (nn.LayerNorm(6), (2, 3, 5, 6), "last"),
        (nn.Conv2d(4, 4, 1), (2, 4, 3, 5), "first"),
    ],
    ids=["linear", "tokens", "conv1d", "channels last", "conv2d"],
)
def test_channels_are_found_where_the_kind_of_layer_has_them(
    layer: nn.Module, shape: tuple[int, ...], expected: str
) -> None:
    features = shape[1:]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(torch.Size(features).numel(), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.unflatten(1, features)).flatten(1))

    target = wrap(Net(), input_shape=(torch.Size(features).numel(),))
    channels = features[-1 if expected == "last" else 0]
    assert len(Units(target, [f"layer:{channels - 1}"]).names) == 1
    with pytest.raises(UsageError, match=f"has {channels} channels, 0 to {channels - 1}, not {channels}"):
        Units(target, [f"layer:{channels}"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["left"], r"a unit is LAYER:CHANNEL, such as 3:0 \(layers: 3 \(4,\), .*\), not 'left'"),
        (["0:x"], "a unit is LAYER:CHANNEL"),
        (["left:0"], "has no layer 'left'"),
        (["0:3"], "the layer '0' of Sequential has 3 channels, 0 to 2, not 3"),
        ([], "name at least one unit as LAYER:CHANNEL"),
    ],
)
def test_units_that_do_not_exist_are_refused_with_what_the_layer_has(
    halves: Target, names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        units(halves, names)


def test_a_direction_of_another_size_is_refused(halves: Target) -> None:
    with pytest.raises(UsageError, match=r"the direction 'edge' has the shape \(2,\).*3 channels, so it is \(3,\)"):
        Units(halves, directions={"edge": ("0", torch.ones(2))})


def test_a_unit_that_is_always_off_is_said(halves: Target, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "interpkit"):
        dead = units(halves, ["0:2,1"])
    assert "1 of 2 units are equally excited by all" in caplog.text and "0:2" in caplog.text
    assert dead(torch.rand(2, 1, 8, 8))[:, 0].tolist() == [0.0, 0.0]


def test_frozen_moves_the_units_with_the_target(halves: Target) -> None:
    both = units(halves, ["0:0,1"])
    with both.frozen("cpu"):
        assert not any(parameter.requires_grad for parameter in both.parameters())
    assert all(parameter.requires_grad for parameter in both.parameters())


def test_a_run_of_units_is_loaded_with_its_units(
    tiny_model: Path, tmp_path: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    layer = interpkit.load_target(tiny_model).feature_layer
    stated = {"units": [f"{layer}:0,1"]}
    made = interpkit.invert(tiny_model, out=tmp_path, target_options=stated, **quick(steps=2))
    again = interpkit.load_inversion(tmp_path)
    assert again.target.class_names == [f"{layer}:0", f"{layer}:1"] == made.target.class_names
    images = torch.rand(3, *made.target.input_shape)
    torch.testing.assert_close(again.target(images), made.target(images))


def test_units_are_not_packed(tiny_model: Path, tmp_path: Path) -> None:
    target = interpkit.load_target(tiny_model)
    with pytest.raises(UsageError, match=r"cannot be packed with units for its classes: leave out units=\["):
        interpkit.pack_target(units(target, [f"{target.feature_layer}:0"]), tmp_path / "packed.safetensors")
