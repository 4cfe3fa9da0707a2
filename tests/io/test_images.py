"""Image files keep every channel, and a grid that cannot show all of them says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from interpkit.io.datasets import load_data
from interpkit.io.images import MOST_PIXELS, composite, grid, left_out, save_images, save_panel, to_picture


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


def gray(classes: int, per_class: int, side: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return images that are one gray each, another of each class, with their labels and the classes' names."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = (labels % 50 + 100).to(torch.uint8)[:, None, None, None].expand(-1, 1, side, side)
    return images, labels, [f"class {label}" for label in range(classes)]


@pytest.mark.parametrize("side", [8, 28, 64, 224])
@pytest.mark.parametrize(("classes", "per_class"), [(50, 1), (50, 2), (20, 5), (7, 3), (47, 10)])
def test_a_grid_of_any_number_of_classes_fits_a_screen(classes: int, per_class: int, side: int) -> None:
    picture = grid(*gray(classes, per_class, side))
    assert picture.height <= 1.6 * picture.width and picture.width <= 2.2 * picture.height


def test_a_class_of_a_grid_stands_whole_beside_the_next() -> None:
    values = np.array(grid(*gray(20, 5, 224)))[..., 0]
    assert [value for value in values[24 + 100, 100::226] if value < 200][:10] == [100] * 5 + [101] * 5
    assert {100, 101, 119} <= set(values.flatten().tolist())
    assert (values[:24] < 100).any()  # the names, above pictures that have the room
    assert not (values[26 : 26 + 220] < 100).any()


def test_a_grid_of_many_classes_says_how_to_draw_the_next_ones() -> None:
    assert left_out(list(range(50))) == ""
    told = "the first 50 of 1,000 classes; sample the run for a grid of others, e.g. 50-99"
    assert left_out(list(range(1000))) == told
    assert "51 classes" in left_out(list(range(51))) and "e.g. 50-50" in left_out(list(range(51)))
    assert "e.g. 100,102,104,…" in left_out(list(range(0, 400, 2)))
    all_, first = (grid(*gray(classes, 1, 8)) for classes in (50, 51))
    assert first.height == all_.height + 24


@pytest.mark.parametrize(("rows", "caption"), [(50, "words"), (51, "words; the first 50 of 51")])
def test_a_panel_says_how_many_of_its_rows_it_draws(
    rows: int, caption: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []

    def drawn(shown: Sequence[object], words: Sequence[str]) -> Image.Image:
        captions.extend(words)
        assert len(shown) == 50
        return Image.new("L", (8, 8))

    monkeypatch.setattr("interpkit.io.images._drawn", drawn)
    save_panel([(f"row {row}", [Image.new("L", (8, 8))]) for row in range(rows)], "words", tmp_path / "panel.png")
    assert captions == [caption]


def test_a_grid_of_many_large_pictures_is_drawn_smaller() -> None:
    picture = grid(*gray(50, 10, 224))
    assert picture.width * picture.height < 1.3 * MOST_PIXELS and picture.width > 10 * 100


def test_a_name_is_cut_to_the_width_of_its_pictures() -> None:
    images, labels, _ = gray(2, 1, 224)
    long, short = (np.array(grid(images, labels, [name * 60, "b"])) for name in ("W", "a"))
    assert long.shape == short.shape
    assert (long[:24, 226:236] == 255).all()  # nothing runs into the next class
