"""Pictures without labels: from all that `interpkit.load_data` reads, and from folders and files that have none."""

from __future__ import annotations

import logging
import math
from contextlib import suppress

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interpkit.errors import UsageError
from interpkit.io.datasets import (
    DATA_ENDINGS,
    TORCHVISION,
    LabelledImages,
    arranged,
    check_range,
    checked,
    path_and_split,
    read_npz,
    read_pictures,
    read_torchvision,
    to_images,
)
from interpkit.io.picture_files import OtherSizeError, channels_first, fitted, pictures_in
from interpkit.io.tables import numbers_of, pictures_of, read_table

log = logging.getLogger("interpkit")


def load_unlabeled(
    spec: str,
    input_shape: tuple[int, ...],
    *,
    resize: bool = False,
    crop_pct: float | None = None,
    download: bool = True,
) -> Tensor:
    """Load pictures, (N, *input_shape) float32, in [0, 1] or as vectors with the values of the file.

    Args:
        spec: as in `interpkit.load_data`, where labels may be missing and are not read; or a folder of pictures. The
            names of the folders inside it do not matter.
        input_shape: the classifier's input shape.
        resize: resize pictures of another size, crop them at the center, and give them as many channels.
        crop_pct: the share of a larger picture's shorter side that remains; see `interpkit.TargetOptions`.
        download: as in `interpkit.load_data`.

    Raises:
        OtherSizeError: they have another size, and ``resize`` is not set.
        UsageError: they cannot be read.
    """
    path, split = path_and_split(spec)
    if spec.startswith(TORCHVISION):
        x = read_torchvision(spec.removeprefix(TORCHVISION), download)[0]
    elif path.suffix.lower() == ".npz":
        (x,) = read_npz(path, split, labeled=False)
    elif path.suffix.lower() in DATA_ENDINGS:
        header, rows = read_table(path)
        found = pictures_of(path, header, rows)
        if found is None:
            with suppress(ValueError):  # names
                first = np.array([float(name) for name in header])
                even = len({*np.diff(first)}) == 1 and (first == first.round()).all()  # numbers of columns
                log.warning("%s: its first line is numbers, and read as %s", path, "names" if even else "data")
                rows = rows if even else [header, *rows]
            x, _ = numbers_of(path, header, rows, input_shape, labeled=False)
        else:
            x = read_pictures(path, [file for file, _ in found], input_shape, crop_pct, resize=resize)
    elif path.is_dir():
        folders = [path, *sorted(place for place in path.iterdir() if place.is_dir())]
        files = [file for place in folders for file in pictures_in(str(place))]
        if not files:
            raise UsageError(f"{path} has no pictures in it, nor in the folders directly inside it.")
        x = read_pictures(path, files, input_shape, crop_pct, resize=resize)
    else:
        raise UsageError(f"{spec!r} holds no pictures: pass an .npz, a .csv, a folder, or torchvision:NAME.")
    if len(input_shape) == 3 and x.ndim in (3, 4) and arranged(x, input_shape).shape[1:] != input_shape:
        if not resize:
            size = " x ".join(map(str, x.shape[1:]))
            raise OtherSizeError(f"{spec} has pictures of {size}; the classifier takes {input_shape}.")
        x = _resized(spec, x, input_shape, crop_pct)
    images = to_images(spec, x, input_shape)
    if len(input_shape) not in (1, 3):
        images, input_shape = images.flatten(1), (math.prod(input_shape),)
    return checked(LabelledImages(images, torch.zeros(len(images), dtype=torch.int64)), spec, input_shape).images


def _resized(spec: str, x: np.ndarray, input_shape: tuple[int, ...], crop_pct: float | None) -> np.ndarray:
    """Return pictures (N, H, W), or with their channels first or last, as (N, *input_shape) uint8."""
    if x.ndim == 4 and x.shape[3] not in (1, 3):
        x = np.moveaxis(x, 1, 3)
    if x.dtype != np.uint8:
        if x.size:
            check_range(spec, x.min(), x.max())
        x = (x.clip(0, 1) * 255).round().astype(np.uint8)
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]
    if input_shape[0] not in (1, 3) or x.shape[3:] not in ((), (3,)):
        raise UsageError(f"pictures of {x.shape[1:]} cannot be made into {input_shape}: both need 1 or 3 channels.")
    mode = "L" if input_shape[0] == 1 else "RGB"
    each = (fitted(Image.fromarray(picture).convert(mode), input_shape, crop_pct) for picture in x)
    return np.stack([channels_first(np.array(picture)) for picture in each])
