"""`DataOptions` and `PictureOptions`: options for reading images, recorded so that a run can be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field, field_validator
from torch import Tensor

from interpkit.errors import UsageError, setting
from interpkit.interfaces.components import Options
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import TORCHVISION, LabelledImages, load_data, read_torchvision
from interpkit.io.picture_files import OtherSizeError
from interpkit.io.unlabeled import load_unlabeled

log = logging.getLogger("interpkit")


def fetch(typed: Mapping[str, object]) -> None:
    """Download the data sets of torchvision that options name, as ``COMPONENT.data``: a user has typed them."""
    for key, value in typed.items():
        reads = key.rpartition(".")[2] in ("data", "training")
        if reads and isinstance(value, str) and value.startswith(TORCHVISION):
            read_torchvision(value.removeprefix(TORCHVISION))


class ReadingOptions(Options):
    """Base class of `DataOptions` and `PictureOptions`: the option ``data``, and its record in the manifest.

    The manifest of a run records the sha256 of the images. A run can only be resumed with the same ones; if a run is
    repeated from a recipe and they have changed, interpkit logs a warning. The option may come from someone else's
    recipe or run, so nothing is downloaded here; see `fetch`.
    """

    data: str | None = None

    @field_validator("data", "training", check_fields=False)
    @classmethod
    def _absolute(cls, data: str | None) -> str | None:
        """Record an absolute path, so that the run can be repeated from any folder."""
        return data if data is None or data.startswith(TORCHVISION) else str(Path(data).absolute())

    @property
    def source(self) -> str:
        """The path or name of what the component reads, for the manifest; empty if it reads nothing."""
        return self.data or ""

    def record(self, target: Target) -> dict[str, str]:
        """Return the manifest's entry for the images: their ``path``, and the ``sha256`` of their content.

        Raises:
            UsageError: the option is not set, or the images cannot be read or do not fit the target.
        """
        return {"path": self.source, "sha256": self._read(target).sha256()}

    def _read(self, target: Target) -> LabelledImages:
        raise NotImplementedError

    def _named(self, what: str) -> str:
        if self.data is None:
            name = setting(f"{self._component}.data", "DATA")
            raise UsageError(f"the option 'data' is not set: name {what} by {name}.")
        return self.data


class DataOptions(ReadingOptions):
    """Base class of the ``Options`` of a component that reads labeled images: its option ``data`` names them.

    The manifest of a run records their sha256. A run can only be resumed with the same images; if a run is repeated
    from a recipe and they have changed, interpkit logs a warning.

    Example:
        >>> import numpy, torch
        >>> from interpkit import DataOptions, wrap
        >>> numpy.savez("known.npz", images=numpy.zeros((2, 4), "float32"), labels=[0, 1])
        >>> class Options(DataOptions):
        ...     "What the component's class declares."
        >>> target = wrap(torch.nn.Linear(4, 2), input_shape=(4,))
        >>> known = Options(data="known.npz").load(target)  # in the component: self.options.load(target)
        >>> known.images.shape, known.labels
        (torch.Size([2, 4]), tensor([0, 1]))
    """

    data: str | None = Field(
        None, description="labeled images: FILE.npz, a folder with one folder per class, or torchvision:NAME"
    )

    def load(self, target: Target) -> LabelledImages:
        """Return the images, (N, *input_shape) float32 in [0, 1], and their labels.

        Raises:
            UsageError: the option is not set, or the images cannot be read or do not fit the target.
        """
        known = self._read(target)
        return replace(known, images=to_unit(known.images, target))

    def _read(self, target: Target) -> LabelledImages:
        facts = target.description
        spec = self._named("labeled images")
        shape = facts.input_shape or target.input_shape
        return load_data(spec, shape, target.class_names, facts.crop_pct, download=False)


class PictureOptions(ReadingOptions):
    """Base class of the ``Options`` of a component that learns from pictures without labels, such as public ones.

    Any labels of the pictures are ignored, so they may show any classes. The manifest records the sha256 of the
    pictures, as for `DataOptions`.

    Example:
        >>> import numpy, torch
        >>> from interpkit import PictureOptions, wrap
        >>> numpy.savez("public.npz", images=numpy.zeros((20, 4), "float32"))
        >>> class Options(PictureOptions):
        ...     "What the component's class declares."
        >>> target = wrap(torch.nn.Linear(4, 2), input_shape=(4,))
        >>> Options(data="public.npz").pictures(target, least=10).shape
        torch.Size([20, 4])
    """

    data: str | None = Field(
        None, description="pictures, whose labels are ignored: FILE.npz, FILE.csv, a folder, or torchvision:NAME"
    )
    resize: bool = Field(False, description="resize pictures of another size and crop them at the center")
    training: str | None = Field(
        None, description="the classifier's own training images, to warn of pictures that are among them"
    )

    def pictures(self, target: Target, least: int = 1) -> Tensor:
        """Return the pictures, (N, *input_shape) float32 in [0, 1].

        With ``training``, a warning reports how many of them equal one of the target's own training images in 8 bits.

        Args:
            target: the classifier.
            least: the number of pictures that the component requires.

        Raises:
            UsageError: the option is not set; the pictures cannot be read, have another size (unless ``resize`` is
                set), or are fewer than ``least``.
        """
        pictures = to_unit(self._read(target).images, target)
        if len(pictures) < least:
            raise UsageError(f"{self.data} has {len(pictures)} pictures; at least {least} are required. Name more.")
        log.info("%s: %s pictures; labels, where it has them, are ignored", self.data, f"{len(pictures):,}")
        if self.training is not None:
            known = set(_in_8_bits(to_unit(self._load(self.training, target), target)))
            among = sum(picture in known for picture in _in_8_bits(pictures))
            if among:
                log.warning(
                    "%s: %d of its %d pictures (%.1f %%) are among the classifier's own training images (%s), which an "
                    "outsider would not have.",
                    *(self.data, among, len(pictures), 100 * among / len(pictures), self.training),
                )
        return pictures

    def _read(self, target: Target) -> LabelledImages:
        images = self._load(self._named("pictures"), target)
        return LabelledImages(images, torch.zeros(len(images), dtype=torch.int64))

    def _load(self, spec: str, target: Target) -> Tensor:
        facts = target.description
        shape = facts.input_shape or target.input_shape
        try:
            return load_unlabeled(spec, shape, resize=self.resize, crop_pct=facts.crop_pct, download=False)
        except OtherSizeError as error:
            resize = setting(f"{self._component}.resize")
            raise UsageError(f"{error} Have them resized by {resize}, or resize them first.") from error


def _in_8_bits(images: Tensor) -> list[bytes]:
    """Return the bytes of each image, rounded to 8 bits."""
    return [row.tobytes() for row in (images * 255).round().to(torch.uint8).flatten(1).numpy()]
