"""Image files keep every channel, and a grid that cannot show all of them says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interpkit.io.datasets import load_data
from interpkit.io.images import composite, grid, save_images, to_picture


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_written_images_are_read_with_every_channel(channels: int, tmp_path: Path) -> None:
    shape = (channels, 8, 9)
    images = torch.randint(256, (3, *shape), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1])
    save_images(images, labels, ["cat", "dog"], tmp_path)
    data = load_data(str(tmp_path), shape)
    assert torch.equal(data.images, images / 255) and torch.equal(data.labels, labels)
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".png" if channels in (1, 3) else ".npy"}


def test_a_grid_of_images_with_other_channels_states_which_are_drawn() -> None:
    assert composite(1) == composite(3) == ""
    assert composite(2) == "drawn: channels 1 and 2 of 2 as red and green"
    assert composite(13) == "drawn: channels 1, 2, 3 of 13 as RGB"
    image = torch.randint(256, (13, 8, 8), dtype=torch.uint8)
    assert np.array_equal(np.array(to_picture(image)), image[:3].permute(1, 2, 0).numpy())
    two = np.array(to_picture(image[:2]))
    assert np.array_equal(two[..., :2], image[:2].permute(1, 2, 0).numpy()) and not two[..., 2].any()
    plain, captioned = (grid(image[None, :n], torch.tensor([0]), ["cat"]) for n in (3, 13))
    assert captioned.height == plain.height + 24 and captioned.width > plain.width
