"""Conversion between [0, 1] and the units of a target's inputs."""

from __future__ import annotations

import torch
from torch import nn

import interpkit


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
