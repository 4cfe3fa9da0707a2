"""One picture file as the pixels that a classifier of a certain size receives."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from interpkit.errors import UsageError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""What may stand in such a file: Pillow knows formats that start other programs."""
PICTURE_ENDINGS = (*IMAGE_ENDINGS, ".npy")
DARK = 4096
"""16-bit pictures that never reach this are probably of 12 bits or fewer."""
PHOTO_SIDE = 128
USUAL_CROP = 0.875
"""The share that classifiers of photos, whose inputs are at least as large as the first, usually see (224 of 256)."""


class OtherSizeError(UsageError):
    """Pictures have another size than the classifier's, and are only resized on request."""


def usual_crop(input_shape: tuple[int, ...]) -> float:
    """Return what `TargetOptions.crop_pct` is taken for where nothing states it, for images (C, H, W)."""
    return USUAL_CROP if min(input_shape[1:]) >= PHOTO_SIDE else 1.0


def pictures_in(folder: str) -> list[Path]:
    """Return the pictures that lie directly in a folder, sorted; none if it is not a folder."""
    inside = Path(folder).iterdir() if os.path.isdir(folder) else ()
    return sorted(file for file in inside if file.suffix.lower() in PICTURE_ENDINGS and file.is_file())


def covering(input_shape: tuple[int, ...], crop_pct: float | None) -> str:
    """Return to what size a picture is resized, and cropped, in words."""
    share, sides = crop_pct or usual_crop(input_shape), input_shape[:0:-1]
    cover, cropped = (" x ".join(str(round(side / part)) for side in sides) for part in (share, 1.0))
    return f"to cover {cover} pixels, and cropped at the center" + (f" to {cropped}" if cover != cropped else "")


def fitted(picture: Image.Image, input_shape: tuple[int, ...], crop_pct: float | None) -> Image.Image:
    """Return a picture resized to cover a classifier's input (C, H, W), and cropped at the center; see `covering`."""
    hidden = (1 - (crop_pct or usual_crop(input_shape))) / 2
    height, width = input_shape[1:]
    return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC, bleed=hidden)


def decode(
    file: Path, input_shape: tuple[int, ...], crop_pct: float | None = None, *, resize: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Return a picture as a classifier receives it, and what had to be done to it.

    A photo is turned upright by its EXIF orientation. Of 16 bits, white is 65,535; of floats it is 1. Transparent
    pixels are laid on white. A picture of another size is resized (bicubic, antialiased) and cropped at the center: of
    its shorter side the share ``crop_pct`` remains. An ``.npy`` holds (C, H, W) uint8 of any number of channels.

    Args:
        file: the picture.
        input_shape: (C, H, W); anything but an ``.npy`` needs one or three channels.
        crop_pct: in (0, 1]; `usual_crop` if None.
        resize: whether a picture of another size is resized, or refused.

    Returns:
        (H, W) or (H, W, C) uint8, and notes, each the rest of a sentence that begins with the picture.

    Raises:
        OtherSizeError: it has another size, and ``resize`` is not set.
        UsageError: it cannot be read, does not fit the classifier, or what its numbers mean is not known.
    """
    if not os.path.isfile(file):  # a pipe, say, which would never end; of a name that is too long Path.is_file raises
        raise UsageError(f"there is no file {file}.")
    if file.suffix.lower() == ".npy" and len(input_shape) == 3:
        return _array(file, input_shape), []
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise UsageError(f"{file} is a picture, and the classifier takes {input_shape}: give an .npz.")
    channels, height, width = input_shape
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=IMAGE_FORMATS) as opened:
                if opened.format in ("TIFF", "PNG", "WEBP") and _has_more(opened):
                    notes.append("has several frames, of which the first is read")
                picture = _opaque(file, _in_8_bits(file, ImageOps.exif_transpose(opened), notes), notes)
                picture = picture.convert("L" if channels == 1 else "RGB")
    except (UsageError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            f"{file} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are read. Save a smaller copy of it."
        ) from error
    except Exception as error:  # decoders have many kinds
        raise UsageError(f"{file} is not a readable image: {error}.") from error
    if picture.size != (width, height):
        before = " x ".join(map(str, picture.size))
        if not resize:
            raise OtherSizeError(f"{file} has pictures of {before}; the classifier takes {input_shape}.")
        notes.append(f"is resized from {before} {covering(input_shape, crop_pct)}")
        picture = fitted(picture, input_shape, crop_pct)
    return np.array(picture), notes


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """Return pixels, (H, W) or (H, W, C), as (C, H, W)."""
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def _array(file: Path, input_shape: tuple[int, ...]) -> np.ndarray:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)  # as large as the file, whatever its header claims
    except Exception as error:  # numpy has many kinds
        raise UsageError(f"{file} is not a readable .npy: {str(error).splitlines()[0][:300]}.") from error
    if values.dtype != np.uint8 or values.shape != input_shape:
        raise UsageError(
            f"{file} holds {values.dtype} {values.shape}; an image of this classifier is uint8 {input_shape}. Save it "
            f"in that form, or give an .npz with images, as float in [0, 1], and labels."
        )
    return np.array(values[0] if len(values) == 1 else np.moveaxis(values, 0, 2))


def _has_more(picture: Image.Image) -> bool:
    try:
        picture.seek(1)
    except EOFError:
        return False
    picture.seek(0)
    return True


def _in_8_bits(file: Path, picture: Image.Image, notes: list[str]) -> Image.Image:
    """Return a picture of 16 or 32 bits in 8 bits, and any other as it is."""
    if picture.mode[0] not in "IF":
        return picture
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 1):  # true of NaN too
            raise UsageError(
                f"{file} holds floats from {low:g} to {high:g}, and what is white is not known. Divide them so that "
                f"black is 0 and white is 1, or save it in 8 or 16 bits."
            )
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if low < 0 or high > 65_535 or (picture.mode == "I" and 0 < high <= 255):
        raise UsageError(
            f"{file} holds whole numbers of 32 bits from {low} to {high}, and what is white is not known. Save it in 8 "
            f"or 16 bits."
        )
    if 0 < high < DARK:
        notes.append("is nearly black, as white is 65,535 in 16 bits; scale its values up if they have fewer bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _opaque(file: Path, picture: Image.Image, notes: list[str]) -> Image.Image:
    """Return a picture without transparency: on white, unless nothing but the transparency shows what is on it."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    pixels = np.asarray(picture)
    colors, alpha = pixels[..., :3], pixels[..., 3]
    if (alpha < 255).any():
        visible = colors[alpha > 0]
        if not len(visible) or (visible == visible[0]).all():
            raise UsageError(
                f"{file} is drawn in one color on a transparent ground, and the ground decides what the classifier "
                f"receives. Put it on that of the training images: PIL.Image.alpha_composite(PIL.Image.new('RGBA', "
                f"picture.size, 'white'), picture.convert('RGBA')).convert('RGB')."
            )
        notes.append("has transparent pixels, which are laid on white")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
