"""RISE: the score's change under many random masks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Attribution, AttributionContext, Target


class Rise(Attribution):
    r"""RISE, :math:`E[(f(m \odot x + (1 - m) \odot x') - \bar f)\, m] / p (1 - p)`: what raises the score when kept.

    f is the score, x' the first baseline, :math:`\bar f` the mean over the masks. A mask m is a grid of cells, each
    kept with probability p, enlarged to the image (bilinear) at a random position; vectors keep or lose each feature.
    It needs no gradients. The paper explains probabilities and does not subtract the mean, which is the same number for
    all pixels; without it, negative values are pixels that speak against the class. Source: Petsiuk et al.
    2018, "RISE: randomized input sampling for explanation of black-box models", eq. 6.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[3.0, -3.0], [0.0, 0.0]])
        >>> target = wrap(linear, input_shape=(2,))
        >>> attribute(target, torch.ones(1, 2), [0], method="rise", options={"masks": 4000}).round()
        tensor([[ 3., -3.]])
    """

    name = "rise"

    class Options(interpkit.Options):
        """How many masks, and of what kind."""

        masks: int = Field(500, ge=2, le=100_000, description="random masks; the error falls with their root")
        cells: int = Field(7, ge=1, le=100, description="cells along a side of a mask")
        kept: float = Field(0.5, gt=0, lt=1, description="probability that a cell is kept")

    options: Options

    @torch.no_grad()
    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        count, kept, baseline = self.options.masks, self.options.kept, context.baselines[:1]
        sides = images.shape[2:] if images.dim() == 4 else ()
        cells = [min(self.options.cells, side) for side in sides]
        # All are drawn first, and on the CPU, so that neither rows nor device change them.
        grids = (torch.rand(count, *([side + 1 for side in cells] or images.shape[1:])) < kept).float()
        shifts = torch.rand(count, len(sides))
        scores = torch.zeros(len(images), device=images.device)
        total = torch.zeros(sides or images.shape[1:], device=images.device)
        products = torch.zeros(len(images), *total.shape, device=images.device)
        for part in torch.arange(count).split(max(1, context.rows // len(images))):
            masks = _enlarged(grids[part], shifts[part], sides, cells).to(images)
            shown = masks[:, None, None] if sides else masks[:, None]
            masked = (shown * images + (1 - shown) * baseline).flatten(0, 1)
            found = context.scores(masked).gather(1, classes.repeat(len(masks))[:, None]).view(len(masks), -1)
            scores += found.sum(0)
            total += masks.sum(0)
            products += torch.einsum("mb,m...->b...", found, masks)
        mean: Tensor = scores.view(-1, *(1 for _ in total.shape)) / count
        maps: Tensor = (products / count - mean * total / count) / (kept * (1 - kept))
        return maps[:, None].expand_as(images) if sides else maps


def _enlarged(grids: Tensor, shifts: Tensor, sides: torch.Size | tuple[()], cells: list[int]) -> Tensor:
    """Return grids of one cell more than needed, enlarged to the sides of an image and moved by parts of a cell."""
    if not sides:
        return grids
    size = [math.ceil(side / number) for side, number in zip(sides, cells, strict=True)]
    whole = [(number + 1) * of_cell for number, of_cell in zip(cells, size, strict=True)]
    large = F.interpolate(grids[:, None], whole, mode="bilinear", align_corners=False)[:, 0]
    first = (shifts * torch.tensor(size)).long().tolist()
    return torch.stack([m[y : y + sides[0], x : x + sides[1]] for m, (y, x) in zip(large, first, strict=True)])
