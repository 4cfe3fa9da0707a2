"""Reference data as labeled images in [0, 1]: an .npz, one folder per class, or a torchvision data set."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interpkit.errors import UsageError, listed
from interpkit.io.atomic import digest

MAX_NUMBERS = 2_000_000_000
"""In all images together: 8 GB as float32."""
MAX_BYTES = 4 * MAX_NUMBERS
"""Of a file's images; a larger file is not even read."""
BOMB_BYTES, BOMB_RATIO = 100_000_000, 200
"""An array of more bytes than this is not unpacked if it is so many times as large as what it is packed in."""
TORCHVISION = "torchvision:"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""What may stand in such a file: Pillow knows formats that start other programs."""


@dataclass(frozen=True)
class LabelledImages:
    """Reference images.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1], or vectors (N, D) as they stand in the file.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def sha256(self) -> str:
        """Return the hex digest of the images and labels: that of a copy is the same, in any format or place."""
        return digest({"images": self.images, "labels": self.labels})


def load_data(spec: str, input_shape: tuple[int, ...], class_names: Sequence[str] = ()) -> LabelledImages:
    """Load reference data.

    Args:
        spec: an ``.npz`` with ``x_test, y_test`` (``FILE.npz:train`` for ``x_train, y_train``) or ``images, labels``;
            a folder with one folder per class, by name or number; or ``torchvision:NAME``, which may download
            (``torchvision:NAME:train`` for the training split).
        input_shape: what the classifier takes; images of another size are refused.
        class_names: by which a folder's classes are known.

    Raises:
        UsageError: it cannot be read, or does not fit the classifier.

    Example:
        >>> import numpy as np
        >>> from interpkit import load_data
        >>> images = np.zeros((5, 28, 28), dtype=np.uint8)
        >>> np.savez("digits.npz", images=images, labels=[0, 1, 2, 3, 4])
        >>> data = load_data("digits.npz", input_shape=(1, 28, 28))
        >>> data.images.shape, data.labels
        (torch.Size([5, 1, 28, 28]), tensor([0, 1, 2, 3, 4]))
    """
    path, _, split = spec.partition(":")
    if spec.startswith(TORCHVISION):
        arrays = _torchvision(split)
    elif path.lower().endswith(".npz"):
        arrays = _npz(Path(path), split or "test")
    elif path and Path(path).is_dir():
        arrays = _folder(Path(path), class_names, input_shape)
    else:
        raise UsageError(
            f"{spec!r} is not reference data: give an .npz, a folder with one folder per class, or torchvision:NAME."
        )
    data = LabelledImages(_images(spec, arrays[0], input_shape), _labels(spec, arrays))
    return checked(data, spec, input_shape, class_names)


def checked(
    data: LabelledImages, what: str, input_shape: tuple[int, ...], class_names: Sequence[str] = ()
) -> LabelledImages:
    """Return the data if it fits a classifier.

    Args:
        data: images and labels.
        what: what to call it in an error.
        input_shape: what the classifier takes.
        class_names: the classifier's; any label passes if left out.

    Raises:
        UsageError: a shape, a value or a label does not fit.
    """
    images, labels = data.images, data.labels
    if tuple(images.shape[1:]) != input_shape or labels.shape != images.shape[:1] or not len(labels):
        raise UsageError(
            f"{what} has {tuple(images.shape)} images and {tuple(labels.shape)} labels; the classifier takes images "
            f"of {input_shape}, each with a label. Resize the images to the classifier's size first."
        )
    if images.dtype != torch.float32 or labels.dtype != torch.int64:
        raise UsageError(f"{what} has images of {images.dtype} and labels of {labels.dtype}: float32 and int64 it is.")
    low, high = images.min().item(), images.max().item()
    if images.dim() == 4 and not (low >= -0.001 and high <= 1.001):  # false of NaN too
        raise UsageError(f"{what} has images from {low:g} to {high:g}: give them as uint8, or as float in [0, 1].")
    if not images.isfinite().all():
        raise UsageError(f"{what} has values that are not finite.")
    wrong = labels[(labels < 0) | (labels >= len(class_names))] if class_names else labels[:0]
    if len(wrong):
        raise UsageError(
            f"{what} has the label {int(wrong[0])}; the classifier's are 0 to {len(class_names) - 1}. It must be of "
            f"the same classes, in the same order."
        )
    return data


def _npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    if path.exists() and not zipfile.is_zipfile(path):
        example = f"numpy.savez({path.name!r}, images=..., labels=...)"
        raise UsageError(f"{path} is not a complete .npz: write one by {example}.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = (f"x_{split}", f"y_{split}") if f"x_{split}" in arrays.files else ("images", "labels")
            if not set(names) <= set(arrays.files):
                raise UsageError(
                    f"{path} has {listed(arrays.files)}; it needs x_{split} and y_{split}, or images and labels."
                )
            for name in names:
                _check_member(path, arrays.zip, f"{name}.npy")
            return arrays[names[0]], arrays[names[1]]
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}.") from error
    except Exception as error:  # of zip, its four ways of packing, and numpy's header, each with kinds of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} cannot be read as .npz: {reason[:300]}.") from error


def _check_member(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """See that an array is as large as it says, before memory is taken for it.

    Raises:
        UsageError: it is too large, packed too tightly, or its header asks for other than what follows.
    """
    info = archive.getinfo(name)
    if info.file_size > MAX_BYTES:
        raise _too_many(path)
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise UsageError(
            f"{path}: {name} unpacks {info.compress_size:,} bytes to {info.file_size:,}, as a decompression bomb "
            f"does. If it is your own, write it by numpy.savez, unpacked."
        )
    with archive.open(info) as member:
        major, _ = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(member)
        if math.prod(shape) * kind.itemsize != info.file_size - member.tell() or min(shape, default=0) < 0:
            raise UsageError(f"{path}: {name} says that it is {kind} {shape}, and holds something else.")


def _folder(folder: Path, class_names: Sequence[str], input_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    known = {name: label for label, name in enumerate(class_names)}
    images, labels, numbers = [], [], 0
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        label = known.get(place.name, int(place.name) if place.name.isdecimal() else None)
        if label is None:
            raise UsageError(f"{place}: no class is named so. Classes: {listed(class_names)}.")
        for file in sorted(p for p in place.iterdir() if p.suffix.lower() in IMAGE_ENDINGS):
            images.append(read_picture(file, input_shape))
            labels.append(label)
            numbers += images[-1].size
            if numbers > MAX_NUMBERS:
                raise _too_many(folder)
    if not images:
        raise UsageError(f"{folder} has no images in it: it needs one folder per class.")
    return np.stack(images), np.asarray(labels)


def read_picture(file: Path, input_shape: tuple[int, ...]) -> np.ndarray:
    """Return a picture's pixels, (H, W) or (H, W, 3) uint8; of another size than the classifier's it is not decoded.

    Raises:
        UsageError: it cannot be read, or does not fit the classifier.
    """
    if not file.is_file():  # a pipe, say, which would never end
        raise UsageError(f"there is no file {file}.")
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise UsageError(f"{file} is a picture, and the classifier takes {input_shape}: give an .npz.")
    channels, height, width = input_shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which are not decoded, and of odd metadata
            with Image.open(file, formats=IMAGE_FORMATS) as picture:
                if picture.size == (width, height):
                    return np.array(picture.convert("L" if channels == 1 else "RGB"))
                size = picture.size
    except Exception as error:  # decoders have many kinds
        raise UsageError(f"{file} is not a readable image: {error}.") from error
    raise UsageError(
        f"{file} is {size[0]} x {size[1]} pixels; the classifier takes {width} x {height}, {channels} channels. "
        f"Resize it first."
    )


def _torchvision(name: str) -> tuple[np.ndarray, np.ndarray]:
    import torchvision

    name, _, split = name.partition(":")
    if split not in ("", "test", "train"):
        raise UsageError(f"torchvision:{name}:{split}: the split is train or test.")
    known = {n.lower(): n for n in ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN")}
    if name.lower() not in known:
        raise UsageError(f"torchvision:{name} is none of {listed(known.values())}.")
    make = getattr(torchvision.datasets, known[name.lower()])
    try:
        if name.lower() == "svhn":
            data = make("data", split or "test", download=True)
            return data.data.transpose(0, 2, 3, 1), data.labels
        data = make("data", train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"torchvision:{name} cannot be downloaded: {error}.") from error
    return np.asarray(data.data), np.asarray(data.targets)


def _images(spec: str, x: np.ndarray, input_shape: tuple[int, ...]) -> Tensor:
    if len(input_shape) == 3 and x.ndim == 3:
        x = x[..., None]
    if len(input_shape) == 3 and x.ndim == 4 and x.shape[1:] != input_shape:
        x = np.moveaxis(x, 3, 1)
    if x.size > MAX_NUMBERS:
        raise _too_many(spec)
    if x.shape[1:] != input_shape:
        raise UsageError(
            f"{spec} has images of shape {x.shape[1:]}; the classifier takes {input_shape}. Resize them first."
        )
    if x.dtype.kind not in "uifb":
        raise UsageError(f"{spec} has images of {x.dtype}, which cannot be pixel values.")
    if x.dtype == np.uint8 and len(input_shape) == 3:
        return torch.from_numpy(np.ascontiguousarray(x)) / 255
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _too_many(spec: str | Path) -> UsageError:
    return UsageError(
        f"{spec} has more images than are read into memory, {MAX_BYTES / 1e9:g} GB as 32-bit numbers. Keep some "
        f"hundred of each class."
    )


def _labels(spec: str, arrays: tuple[np.ndarray, np.ndarray]) -> Tensor:
    x, y = arrays
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise UsageError(
            f"{spec} needs a whole number as label for each of its {len(x)} images, not {y.dtype} {y.shape}."
        )
    return torch.from_numpy(y.astype(np.int64))
