"""Reference data as labeled images in [0, 1]: an .npz, a CSV, one folder per class, or a torchvision data set."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interpkit.errors import UsageError, listed, setting
from interpkit.io.atomic import digest, to_path
from interpkit.io.picture_files import PICTURE_ENDINGS, channels_first, decode, pictures_in
from interpkit.io.tables import feature_columns, labels_of, numbers_of, pictures_of, read_table

log = logging.getLogger("interpkit")

MAX_NUMBERS = 2_000_000_000
"""Most values in all images together: 8 GB as float32."""
MAX_BYTES = 4 * MAX_NUMBERS
"""Most bytes of an array in a file; a larger one is refused before it is read."""
BOMB_BYTES, BOMB_RATIO = 100_000_000, 200
"""An array is refused as a decompression bomb if it is larger than BOMB_BYTES and BOMB_RATIO times its packed size."""
TORCHVISION = "torchvision:"
SIZE_BEFORE = re.compile(r" from \d+ x \d+")
"""In a note of `decode`: what differs from picture to picture."""
DATA_ENDINGS = (".npz", ".csv", ".tsv")
KEYS = (
    ("x_{}", "y_{}"),
    ("{}_images", "{}_labels"),
    ("images", "labels"),
    ("X", "y"),
    ("x", "y"),
    ("data", "target"),
    ("data", "labels"),
)
"""Names of the images and labels in an .npz, with {} for the split; the first pair that exists is used."""
FEATURE_NAMES = "feature_names"
"""Name of the array of column names in an .npz of vectors, as scikit-learn calls it."""


@dataclass(frozen=True)
class LabelledImages:
    """Reference images.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1], or vectors (N, D) with the values of the file.
        labels: (N,) int64.
        columns: the names of the D features of vectors, if the file states them.
    """

    images: Tensor
    labels: Tensor
    columns: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Return the hex digest of the images and labels, which does not depend on the file's format or place."""
        return digest({"images": self.images, "labels": self.labels})


def load_data(
    spec: str,
    input_shape: tuple[int, ...],
    class_names: Sequence[str] = (),
    crop_pct: float | None = None,
    *,
    download: bool = True,
) -> LabelledImages:
    """Load reference data.

    Args:
        spec: an ``.npz`` with ``x_test, y_test`` or ``test_images, test_labels`` (``FILE.npz:train`` for another
            split), ``images, labels`` or ``X, y``, and for vectors ``feature_names``; a ``.csv`` with the columns image
            (a path) and label, or label and one number for each of a classifier's inputs; a folder with one folder per
            class, by name or number; or ``torchvision:NAME``, which may download (``torchvision:NAME:train`` for the
            training split).
        input_shape: the classifier's input shape. Arrays of another size are refused; pictures are resized with a
            warning. Signals (C, L) and volumes (C, D, H, W) become vectors.
        class_names: the classifier's class names, for labels and folders given by name.
        crop_pct: the share of a larger picture's shorter side that remains; see `TargetOptions`.
        download: download ``torchvision:NAME`` if the folder ``data`` here does not have it.

    Raises:
        UsageError: the data cannot be read, or do not fit the classifier.

    Example:
        >>> import numpy as np
        >>> from interpkit import load_data
        >>> images = np.zeros((5, 28, 28), dtype=np.uint8)
        >>> np.savez("digits.npz", images=images, labels=[0, 1, 2, 3, 4])
        >>> data = load_data("digits.npz", input_shape=(1, 28, 28))
        >>> data.images.shape, data.labels
        (torch.Size([5, 1, 28, 28]), tensor([0, 1, 2, 3, 4]))
    """
    try:
        path, split = path_and_split(spec)
        is_folder = bool(spec) and to_path(path).is_dir()
    except OSError as error:  # the name is too long
        raise UsageError(f"{spec[:100]}... cannot be read: {error.strerror}.") from error
    ending = path.suffix.lower()
    arrays: tuple[np.ndarray, ...]
    if spec.startswith(TORCHVISION):
        arrays = read_torchvision(spec.removeprefix(TORCHVISION), download)
    elif ending == ".npz":
        arrays = read_npz(path, split)
    elif ending in DATA_ENDINGS:
        arrays = _csv(path, class_names, input_shape, crop_pct)
    elif is_folder:
        arrays = _folder(path, class_names, input_shape, crop_pct)
    else:
        raise UsageError(
            f"{spec!r} is not reference data: pass an .npz, a .csv, a folder with one folder per class, or "
            f"torchvision:NAME."
        )
    x, y, *names = arrays
    images, labels = to_images(spec, x, input_shape), _labels(spec, (x, y), class_names)
    if len(input_shape) not in (1, 3):
        images, input_shape = images.flatten(1), (math.prod(input_shape),)
    columns = [str(name) for part in names if images.shape[1:] == (part.size,) for name in part.flat]
    return checked(LabelledImages(images, labels, tuple(columns)), spec, input_shape, class_names)


def path_and_split(spec: str) -> tuple[Path, str]:
    """Split FILE.npz:SPLIT into path and split; a colon anywhere else belongs to the path."""
    head, _, tail = spec.rpartition(":")
    return (Path(head), tail) if head.lower().endswith(".npz") and not Path(spec).exists() else (Path(spec), "")


def read_picture(file: Path, input_shape: tuple[int, ...], crop_pct: float | None = None) -> np.ndarray:
    """Return a picture's pixels, (H, W) or (H, W, C) uint8, and log how it was converted; see `decode`."""
    pixels, notes = decode(file, input_shape, crop_pct)
    for note in notes:
        log.warning("%s %s.", file, note)
    return pixels


def check_range(what: str, low: float, high: float) -> None:
    """Refuse images whose least and largest values are not in [0, 1], but for rounding, or not numbers."""
    if not (low >= -0.001 and high <= 1.001):
        raise UsageError(f"{what} has images from {low:g} to {high:g}: pass uint8, or float in [0, 1].")


def checked(
    data: LabelledImages, what: str, input_shape: tuple[int, ...], class_names: Sequence[str] = ()
) -> LabelledImages:
    """Return the data unchanged if they fit a classifier.

    Args:
        data: images and labels.
        what: name of the data in an error message.
        input_shape: the classifier's input shape.
        class_names: the classifier's class names; if omitted, labels are not checked.

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
        raise UsageError(f"{what} has images of {images.dtype} and labels of {labels.dtype}: use float32 and int64.")
    low, high = images.min().item(), images.max().item()
    if images.dim() == 4:
        check_range(what, low, high)
    if not images.isfinite().all():
        raise UsageError(f"{what} has values that are not finite.")
    wrong = labels[(labels < 0) | (labels >= len(class_names))] if class_names else labels[:0]
    if len(wrong):
        raise UsageError(
            f"{what} has the label {int(wrong[0])}; the classifier's are 0 to {len(class_names) - 1}. It must be of "
            f"the same classes, in the same order."
        )
    return data


def refuse_shared(images: Tensor, others: Tensor, what: str, of: str) -> None:
    """Check that images (N, ...) in [0, 1] are not among others, to 8 bits; a few may be, such as blank ones.

    Vectors (N, D) are compared exactly, and not if many of them are equal, as in a table of categories.

    Raises:
        UsageError: more than one in 20 is.
    """
    exact = images.dim() == 2
    both = [some.float().cpu() if exact else (some.cpu() * 255).round().to(torch.uint8) for some in (images, others)]
    keys = [{image.numpy().tobytes() for image in some} for some in both]
    if exact and len(keys[0]) < len(images) / 2:
        return
    shared = len(keys[0] & keys[1])
    if shared > len(keys[0]) / 20:
        raise UsageError(
            f"{shared:,} of the {len(keys[0]):,} different images of {what} are among {of}. Name other data for one of "
            f"them (FILE.npz:train and FILE.npz:test are the splits of a file)."
        )


def read_npz(path: Path, split: str, *, labeled: bool = True) -> tuple[np.ndarray, ...]:
    """Return images, labels and any names of features; if not ``labeled``, images alone, which may have no labels."""
    if path.exists() and not zipfile.is_zipfile(path):
        example = f"numpy.savez({path.name!r}, images=..., labels=...)"
        raise UsageError(f"{path} is not a complete .npz: write one with {example}.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pairs = [(x.format(split or "test"), y.format(split or "test")) for x, y in KEYS]
            accepted: list[tuple[str, ...]] = [*pairs] if labeled else [(x,) for x, _ in pairs]
            names = next((names for names in accepted if set(names) <= set(arrays.files)), None)
            if names is None:
                wanted = f"{' and '.join(accepted[0])}, or {' and '.join(accepted[1])}, or {' and '.join(accepted[2])}"
                other = "train" if (split or "test") == "test" else "test"
                there = any({x.format(other), y.format(other)} <= set(arrays.files) for x, y in KEYS)
                hint = f" For its other images, name {path}:{other}." if there else ""
                raise UsageError(f"{path} has {listed(arrays.files)}; it needs {wanted}.{hint}")
            if split and not any(split in name for name in names):
                log.warning("%s has no split %r: using its %s.", path, split, " and ".join(names))
            used = [*names, *({FEATURE_NAMES} & {*arrays.files} if labeled else ())]
            for name in used:
                check_member(path, arrays.zip, f"{name}.npy")
            return tuple(arrays[name] for name in used)
    except (UsageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}.") from error
    except Exception as error:  # zipfile, its four compressions and numpy's header each raise their own kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} cannot be read as .npz: {reason[:300]}.") from error


def check_member(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Check the size of an array before memory is allocated for it.

    Raises:
        UsageError: it is too large or compressed too strongly, or its header does not match its content.
    """
    info = archive.getinfo(name)
    if info.file_size > MAX_BYTES:
        raise _too_many(path)
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise UsageError(
            f"{path}: {name} unpacks {info.compress_size:,} bytes to {info.file_size:,}, like a "
            f"decompression bomb. If you wrote it yourself, save it uncompressed with numpy.savez."
        )
    with archive.open(info) as member:
        major, _ = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(member)
        if kind.hasobject:
            raise UsageError(
                f"{path}: {name} holds Python objects, which only a pickle can hold. Save it as numbers or text: "
                f"numpy.array(..., dtype=str)."
            )
        if math.prod(shape) * kind.itemsize != info.file_size - member.tell() or min(shape, default=0) < 0:
            raise UsageError(f"{path}: {name} claims to be {kind} {shape}, but holds something else.")


def _folder(
    folder: Path, class_names: Sequence[str], input_shape: tuple[int, ...], crop_pct: float | None
) -> tuple[np.ndarray, np.ndarray]:
    files, labels = [], []
    places = sorted(p for p in folder.iterdir() if p.is_dir())
    numbered = (folder / "classes.json").is_file() and all(place.name.isdecimal() for place in places)
    # Where `interpkit sample` wrote the folders, their names are numbers, also where classes have numbers for names.
    own_labels = labels_of([place.name for place in places], () if numbered else class_names, folder)
    for place, label in zip(places, own_labels.tolist(), strict=True):
        own = sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURE_ENDINGS)
        files += own
        labels += [label] * len(own)
    if not files:
        beside = len(pictures_in(str(folder)))
        found = f"its pictures lie directly in it ({beside:,})" if beside else "it has no pictures"
        raise UsageError(f"{folder} needs one folder per class, by the class's name or number; {found}.")
    return read_pictures(folder, files, input_shape, crop_pct), np.asarray(labels)


def _csv(
    path: Path, class_names: Sequence[str], input_shape: tuple[int, ...], crop_pct: float | None
) -> tuple[np.ndarray, ...]:
    header, rows = read_table(path)
    pictures = pictures_of(path, header, rows)
    if pictures is None:
        images, names = numbers_of(path, header, rows, input_shape)
        return images, labels_of(names, class_names, path), np.array([*feature_columns(header).values()])
    labels = labels_of([name for _, name in pictures], class_names, path)  # first, because it is fast
    return read_pictures(path, [file for file, _ in pictures], input_shape, crop_pct), labels


def read_pictures(
    source: Path, files: Iterable[Path], input_shape: tuple[int, ...], crop_pct: float | None, *, resize: bool = True
) -> np.ndarray:
    """Read pictures, (N, C, H, W) uint8, and log each kind of conversion once, with the number of pictures."""
    images, numbers = [], 0
    done: Counter[str] = Counter()
    for file in files:
        pixels, notes = decode(file, input_shape, crop_pct, resize=resize)
        images.append(channels_first(pixels))
        done.update(SIZE_BEFORE.sub("", note) for note in notes)
        numbers += pixels.size
        if numbers > MAX_NUMBERS:
            raise _too_many(source)
    for note, count in done.items():
        log.warning("%s: %d of its %d pictures: each %s.", source, count, len(images), note)
    return np.stack(images)


def read_torchvision(name: str, download: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of a torchvision data set, which may be downloaded if ``download``."""
    import torchvision

    name, _, split = name.partition(":")
    if split not in ("", "test", "train"):
        raise UsageError(f"torchvision:{name}:{split}: the split is train or test.")
    known = {n.lower(): n for n in ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN")}
    if name.lower() not in known:
        raise UsageError(f"torchvision:{name} is not one of {listed(known.values())}.")
    asked = {"root": "data", "download": download}
    make = getattr(torchvision.datasets, known[name.lower()])
    try:
        if name.lower() == "svhn":
            data = make(split=split or "test", **asked)
            return data.data.transpose(0, 2, 3, 1), data.labels
        data = make(train=split == "train", **asked)
    except (OSError, RuntimeError) as error:
        if not download:
            raise UsageError(
                f"torchvision:{name} is not in the folder data here, and what a file records is not downloaded. To "
                f"download it, name it yourself: {setting('data', f'torchvision:{name}')}, or in Python "
                f"load_data('torchvision:{name}', SHAPE)."
            ) from error
        raise UsageError(f"torchvision:{name} cannot be downloaded: {' '.join(str(error).split())[:300]}.") from error
    return np.asarray(data.data), np.asarray(data.targets)


def arranged(x: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """Return images with their axes in the order of a classifier's."""
    if len(input_shape) == 3 and x.ndim == 3:
        x = x[..., None]
    if len(input_shape) in (2, 4) and input_shape[0] == 1 and x.shape[1:] == input_shape[1:]:
        x = x[:, None]
    if len(input_shape) == 3 and x.ndim == 4 and x.shape[1:] != input_shape:
        channels_last = x.shape[3] == input_shape[0] or x.shape[3] < x.shape[1]
        x = np.moveaxis(x, 3, 1) if channels_last else x
    return x


def to_images(spec: str, x: np.ndarray, input_shape: tuple[int, ...]) -> Tensor:
    """Return images as float32, (N, *input_shape).

    Raises:
        UsageError: they do not have that shape, cannot be pixel values, or are too many.
    """
    given, x = x, arranged(x, input_shape)
    if x.size > MAX_NUMBERS:
        raise _too_many(spec)
    if x.shape[1:] != input_shape:
        raise UsageError(
            f"{spec} has images of shape {x.shape[1:]}; the classifier takes {input_shape}. "
            f"{_remedy(given, x.shape[1:], input_shape)}"
        )
    if x.dtype.kind not in "uifb":
        raise UsageError(f"{spec} has images of {x.dtype}, which cannot be pixel values.")
    if x.dtype == np.uint8 and len(input_shape) == 3:
        if x.max(initial=0) == 1:
            log.warning("%s has only the bytes 0 and 1, which are almost black. If 1 is white, multiply by 255.", spec)
        return torch.from_numpy(np.ascontiguousarray(x)) / 255
    with np.errstate(over="ignore"):  # values that overflow float32 are refused later as not finite
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _remedy(given: np.ndarray, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(shape) == len(wanted) == 3 and shape[0] != wanted[0]:
        also = "" if shape[1:] == wanted[1:] else ", and resize them"
        back = "" if given.dtype.kind == "f" else f'.astype("{given.dtype}")'
        gray = f"images.mean({1 if given.shape[1:] == shape else -1}){back}"
        how = {1: f": {gray}", 3: " if that is what it was trained on"}
        channels = "1 channel" if wanted[0] == 1 else f"{wanted[0]} channels"
        return f"Give them {channels} instead of {shape[0]}{how.get(wanted[0], '')}{also}."
    return "Resize them first." if len(shape) == len(wanted) else "Give them the classifier's axes first."


def _too_many(spec: str | Path) -> UsageError:
    return UsageError(
        f"{spec} has more images than interpkit reads into memory ({MAX_BYTES / 1e9:g} GB as 32-bit numbers). "
        f"Keep a few hundred per class."
    )


def _labels(spec: str, arrays: tuple[np.ndarray, np.ndarray], class_names: Sequence[str]) -> Tensor:
    """Return labels (N,) int64 from whole numbers of any type, names, a column (N, 1), or one-hot rows (N, n)."""
    x, y = arrays
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "buif" and ((y == 1).sum(1) == 1).all() and ((y == 0) | (y == 1)).all():
        y = y.argmax(1)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind == "U" and y.ndim == 1:
        y = labels_of(y.tolist(), class_names, spec)
    whole = y.dtype.kind in "iub" or (y.dtype.kind == "f" and bool((np.isfinite(y) & (y == y.round())).all()))
    if y.shape != (len(x),) or not whole or not len(y):
        raise UsageError(f"{spec} needs one integer label for each of its {len(x)} images, not {y.dtype} {y.shape}.")
    return torch.from_numpy(y.astype(np.int64))
