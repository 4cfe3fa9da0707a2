"""Regions as features: how much each region of the image contributes, by Shapley values or by removing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError

MOST_REGIONS = 1000


class RegionOptions(interpkit.Options):
    """Which pixels belong together."""

    cells: int = Field(7, ge=1, le=100, description="squares along a side of the image, each a region")
    regions: str | None = Field(
        None, description="picture of the image's size in which each color is a region (PNG), instead of squares"
    )

    @field_validator("regions")
    @classmethod
    def _absolute(cls, regions: str | None) -> str | None:
        return regions if regions is None else str(Path(regions).absolute())

    def mask(self, images: Tensor) -> Tensor:
        """Return the number of each pixel's region, (1, 1, H, W) int64, or (1, D) for vectors: a region per feature.

        Raises:
            UsageError: the picture cannot be read, has another size, or too many colors.
        """
        if images.dim() == 2:
            if self.regions is not None:
                raise UsageError("the option 'regions' is for images; the target classifies vectors. Leave it out.")
            mask = torch.arange(images.shape[1])[None]
        elif self.regions is None:
            rows, columns = (torch.arange(side) * min(self.cells, side) // side for side in images.shape[2:])
            mask = (rows[:, None] * (int(columns[-1]) + 1) + columns)[None, None]
        else:
            mask = torch.from_numpy(_colors(Path(self.regions), tuple(images.shape[2:])))[None, None]
        if (count := int(mask.max()) + 1) > MOST_REGIONS:
            raise UsageError(
                f"there are {count} regions, more than {MOST_REGIONS}. Use fewer: draw each in one flat color, and "
                f"save the picture as PNG, not JPEG."
            )
        return mask.to(images.device)


def _colors(file: Path, size: tuple[int, ...]) -> np.ndarray:
    """Return the number of each pixel's color in a picture, (H, W) int64."""
    try:
        with Image.open(file) as picture:
            if (found := picture.size[::-1]) == size:
                pixels = np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"the regions {str(file)!r} cannot be read as a picture: {error}. Pass a PNG file.") from error
    if found != size:
        raise UsageError(
            f"the regions {file.name} have {found[0]} x {found[1]} pixels, but the target's images {size[0]} x "
            f"{size[1]}. Draw them on the image as the target receives it."
        )
    return np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)[1].reshape(size).astype(np.int64)


class KernelShap(Attribution):
    r"""Kernel SHAP: Shapley values of regions of the image, from a weighted regression on random coalitions of them.

    A region outside a coalition is replaced with the baseline. The value of a region is spread evenly over its pixels
    and channels, and averaged over the baselines; the method is complete. It needs no gradients. Regions are squares,
    or the colors of a picture (a segmentation of the image, for example); of vectors, each feature is one. Source:
    Lundberg & Lee 2017, "A unified approach to interpreting model predictions", theorem 2; coalitions by Captum.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> target = wrap(linear, input_shape=(3,))
        >>> maps = attribute(target, torch.tensor([[1.0, 0.5, 1.0]]), [0], method="kernel-shap")
        >>> torch.allclose(maps, torch.tensor([[2.0, -0.5, 0.0]]), atol=1e-3)
        True
    """

    name = "kernel-shap"
    complete = True
    by_image = True

    class Options(RegionOptions):
        """How many coalitions of which regions."""

        samples: int = Field(200, ge=3, le=100_000, description="coalitions for each image, more than regions")

    options: Options

    @torch.no_grad()
    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import KernelShap as Captum

        mask = self.options.mask(images)
        if (regions := int(mask.max()) + 1) >= self.options.samples:
            raise UsageError(
                f"kernel-shap needs more samples than regions: there are {regions} regions and "
                f"{self.options.samples} samples. Raise kernel-shap.samples, or use fewer regions."
            )
        if regions == 1:
            raise UsageError("kernel-shap needs at least two regions. Raise kernel-shap.cells, or draw more regions.")
        method = Captum(context.scores)
        method.interpretable_model = _LeastSquares()
        total = torch.zeros_like(images)
        for baseline in context.baselines.split(1):
            for row in range(len(images)):
                image, one = images[row : row + 1], classes[row : row + 1]
                settings: dict[str, Any] = {"n_samples": self.options.samples, "perturbations_per_eval": context.rows}
                total[row] += method.attribute(image, baseline, one, None, mask.expand_as(image), **settings)[0]
        return total / len(context.baselines) / _sizes(mask, images)


class RegionAblation(Attribution):
    """Region ablation: how far the score falls when a region of the image is replaced with the first baseline.

    The fall is spread evenly over the pixels and channels of the region. It needs no gradients. For the regions, see
    `KernelShap`. Source: Captum's FeatureAblation.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(4, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, 3.0, 0.0, -4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), linear), input_shape=(1, 2, 2))
        >>> attribute(target, torch.ones(1, 1, 2, 2), [0], method="region-ablation", options={"cells": 2})
        tensor([[[[ 1.,  3.],
                  [ 0., -4.]]]])
    """

    name = "region-ablation"

    class Options(RegionOptions):
        """Which regions."""

    options: Options

    @torch.no_grad()
    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import FeatureAblation as Captum

        mask = self.options.mask(images)
        at_once = max(1, context.rows // len(images))
        maps: Tensor = Captum(context.scores).attribute(
            images, context.baselines[:1], classes, None, mask.expand_as(images[:1]), perturbations_per_eval=at_once
        )
        return maps / _sizes(mask, images)


def _sizes(mask: Tensor, images: Tensor) -> Tensor:
    """Return the number of values in each pixel's region."""
    sizes: Tensor = mask.flatten().bincount()[mask] * (images.shape[1] if images.dim() == 4 else 1)
    return sizes


class _LeastSquares:
    """Captum's regression, by torch instead of scikit-learn."""

    def fit(self, data: Any) -> None:
        """Fit values to coalitions with weights."""
        # on the CPU, whose solver alone allows for coalitions that say the same
        inputs, values, weights = (torch.cat(part).cpu().double() for part in zip(*data, strict=True))
        design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        root = weights.flatten()[:, None].sqrt()
        self.solution = torch.linalg.lstsq(design * root, values.reshape(-1, 1) * root).solution[:, 0]

    def representation(self) -> Tensor:
        """Return the coefficients of the regions."""
        found: Tensor = self.solution[:-1].float()
        return found
