"""Pictures of any depth, mode and size are converted for a classifier, with a note of each change, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from interpkit import UsageError
from interpkit.io.datasets import read_picture
from interpkit.io.picture_files import decode

GRAY, COLOR = (1, 6, 8), (3, 6, 8)
RAMP = (np.arange(48) * 5).reshape(6, 8).astype(np.uint8)
WHITE = "has transparent pixels, which are laid on white"


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("16 bits.png", RAMP.astype(np.uint16) * 257),
        ("16 bits.tif", RAMP.astype(np.uint16) * 257),
        ("32 bits.tif", RAMP.astype(np.int32) * 257),
        ("floats.tif", (RAMP / 255).astype(np.float32)),
        ("gray and opaque.png", Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (8, 6), 255)))),
        ("palette.png", Image.fromarray(RAMP).convert("P")),
    ],
)
def test_pictures_of_every_depth_are_identical(name: str, pixels: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / name, pixels)
    found, notes = decode(path, GRAY)
    assert np.array_equal(found, RAMP) and notes == []
    assert np.array_equal(decode(path, COLOR)[0], np.stack([RAMP] * 3, axis=2))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.new("CMYK", (8, 6), (0, 255, 255, 0)))
    assert np.array_equal(decode(path, COLOR)[0][0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (RAMP.astype(np.float32), "floats from 0 to 235"),
        (np.full((6, 8), np.nan, np.float32), "floats from nan to nan"),
        (RAMP.astype(np.int32), "32 bits from 0 to 235"),
        (RAMP.astype(np.int32) - 5, "32 bits from -5"),
        (RAMP.astype(np.int32) * 65536, "32 bits from 0 to 15400960"),
    ],
)
def test_pixels_with_an_unknown_white_level_are_refused(pixels: np.ndarray, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words + r".*what is white is not known\. .*(Save|save) it"):
        decode(saved(tmp_path / "a.tif", pixels), GRAY)


def test_twelve_bit_pixels_in_sixteen_bits_cause_a_warning(tmp_path: Path) -> None:
    _, (note,) = decode(saved(tmp_path / "a.png", RAMP.astype(np.uint16) * 17), GRAY)
    assert "nearly black, as white is 65,535" in note
    assert decode(saved(tmp_path / "b.png", np.zeros((6, 8), np.uint16)), GRAY)[1] == []


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[..., 0], pixels[:, :4, 3] = RAMP, 255
    found, notes = decode(saved(tmp_path / "a.png", pixels), COLOR)
    assert np.array_equal(found[:, :4, 0], RAMP[:, :4]) and (found[:, 4:] == 255).all() and notes == [WHITE]
    palette = Image.fromarray(RAMP).convert("P")
    found, notes = decode(saved(tmp_path / "b.png", palette, transparency=int(RAMP[0, 0])), GRAY)
    assert found[0, 0] == 255 and np.array_equal(found[1:], RAMP[1:]) and notes == [WHITE]


def test_a_drawing_only_in_the_alpha_channel_is_refused(tmp_path: Path) -> None:
    for mode in ("RGBA", "LA"):
        picture = Image.new(mode, (8, 6))
        picture.putalpha(Image.fromarray(RAMP))
        with pytest.raises(UsageError, match=r"one color on a transparent ground.*alpha_composite"):
            decode(saved(tmp_path / "a.png", picture), GRAY)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top is at the right
    path = saved(tmp_path / "a.png", RAMP, exif=exif)
    assert np.array_equal(decode(path, (1, 8, 6))[0], np.rot90(RAMP, -1))


def test_a_photo_of_another_size_is_scaled_by_its_shorter_side_and_cropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.zeros((12, 40), np.uint8)
    wide[:, 12:28] = 200  # the center, which is 16 wide once 12 rows are 12 rows
    found = read_picture(saved(tmp_path / "wide.png", wide), (1, 6, 8))
    assert found.shape == (6, 8) and (found[:, 2:-2] == 200).all()
    assert "wide.png is resized from 40 x 12 to cover 8 x 6 pixels, and cropped at the center." in caplog.text
    checks = (np.indices((60, 80)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(read_picture(saved(tmp_path / "checks.png", checks), GRAY).astype(int) - 127).max() < 8  # antialiased


@pytest.mark.parametrize(("stated", "cover"), [(0.875, 96), (0.7, 120), (1.0, 84)])
def test_a_photo_is_resized_and_cropped_as_torchvision_does(stated: float, cover: int, tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))
    found, (note,) = decode(saved(tmp_path / "wide.png", photo), (3, 84, 84), stated)
    resized = transforms.Resize(cover, transforms.InterpolationMode.BICUBIC)(photo)
    expected = np.array(transforms.CenterCrop(84)(resized))
    assert abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert note.startswith(f"is resized from 320 x 240 to cover {cover} x {cover} pixels, and cropped at the center")
    assert note.endswith("to 84 x 84") == (stated < 1)


def test_large_inputs_are_taken_for_crops_and_small_ones_for_whole_pictures(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", RAMP)
    assert np.array_equal(decode(path, (1, 224, 224))[0], decode(path, (1, 224, 224), 0.875)[0])
    assert np.array_equal(decode(path, (1, 32, 32))[0], decode(path, (1, 32, 32), 1.0)[0])


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "large.png", RAMP)
    for most in (40, 10):  # Pillow warns of more than that, and raises at twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(UsageError, match=rf"large.png has more than the {most} pixels.*Save a smaller copy"):
            decode(path, GRAY)


def test_only_the_first_of_several_frames_is_read_and_the_note_says_so(tmp_path: Path) -> None:
    others = [Image.fromarray(255 - RAMP)]
    found, notes = decode(saved(tmp_path / "a.tif", RAMP, save_all=True, append_images=others), GRAY)
    assert np.array_equal(found, RAMP) and notes == ["has several frames, of which the first is read"]
