"""`DataOptions`: how an inverter, a loss or a metric receives labeled images, so that a run can be repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator

from interpkit.errors import UsageError, setting
from interpkit.interfaces.components import Options
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import TORCHVISION, LabelledImages, load_data


class DataOptions(Options):
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

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str | None) -> str | None:
        """Record an absolute path, so that the run can be repeated from any folder."""
        return data if data is None or data.startswith(TORCHVISION) else str(Path(data).absolute())

    def load(self, target: Target) -> LabelledImages:
        """Return the images, (N, *input_shape) float32 in [0, 1], and their labels.

        Raises:
            UsageError: the option is not set, or the images cannot be read or do not fit the target.
        """
        known = self._read(target)
        return replace(known, images=to_unit(known.images, target))

    def record(self, target: Target) -> dict[str, str]:
        """Return the manifest's entry for the images: their ``path``, and the ``sha256`` of images and labels.

        Raises:
            UsageError: as for `load`.
        """
        return {"path": str(self.data), "sha256": self._read(target).sha256()}

    def _read(self, target: Target) -> LabelledImages:
        if self.data is None:
            raise UsageError(
                f"the option 'data' is not set: name labeled images by {setting('COMPONENT.data', 'DATA')}."
            )
        facts = target.description
        return load_data(self.data, facts.input_shape or target.input_shape, target.class_names, facts.crop_pct)
