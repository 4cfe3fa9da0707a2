"""Terms that say what images are like, whatever the class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError


class TotalVariation(InversionLoss):
    r"""Total variation: the mean absolute difference of neighbouring pixels, down and across.

    .. math:: L_{TV} = \mathrm{mean}\,|x_{i+1,j} - x_{i,j}| + \mathrm{mean}\,|x_{i,j+1} - x_{i,j}|

    x are the images, (B, C, H, W) in [0, 1]; between 0 and 2. Source: Rudin, Osher & Fatemi 1992, anisotropic;
    for inversion Mahendran & Vedaldi 2015.
    """

    name = "tv"

    def __init__(self, target: Target, options: interpkit.Options | None = None) -> None:
        super().__init__(target, options)
        if len(target.input_shape) != 3:
            raise UsageError("the loss 'tv' is for images; this classifier takes vectors. Leave it out.")

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the total variation per pixel, a scalar."""
        x = batch.images
        down, across = x.diff(dim=2).abs(), x.diff(dim=3).abs()
        return sum((d.mean() for d in (down, across) if d.numel()), x.new_zeros(()))


class BatchNormStatistics(InversionLoss):
    r"""Match the statistics that the target's batch norms remember of its training data.

    .. math:: L_{BN} = \frac{1}{L} \sum_l \left( \overline{(\mu_l(x) - m_l)^2 / v_l}
              + \overline{(\sigma_l^2(x) / v_l - 1)^2} \right)

    mu_l and sigma_l^2 are the mean and variance of a channel of the input of batch norm l over the batch (and
    the pixels), m_l and v_l its running mean and variance; bars are means over channels. At least 0.
    DeepInversion (Yin et al. 2020, eq. 4) takes the sums of the plain l2 norms; here each channel is measured in
    units of its own spread, so that the weight does not depend on the network's scale.
    """

    name = "batchnorm"

    class Options(interpkit.Options):
        """Which batch norms."""

        first: int | None = Field(None, ge=1, description="only the first so many batch norms; all if left out")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        # (layer, running mean, running variance + eps); not the layers themselves, which are the user's.
        self.statistics: list[tuple[str, Tensor, Tensor]] = []
        for name, layer in target.layers().items():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
                assert layer.running_var is not None
                self.statistics.append((f"{name}:in", layer.running_mean, layer.running_var + layer.eps))
        self.statistics = self.statistics[: self.options.first]
        if not self.statistics:
            raise UsageError(
                f"the loss 'batchnorm' needs batch norm with running statistics, and {target.name} has none. "
                f"Leave it out, or set its weight to 0 (--loss batchnorm=0)."
            )

    def layers(self, target: Target) -> list[str]:
        """Return the inputs of the batch norms."""
        return [layer for layer, _, _ in self.statistics]

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean squared distance of the statistics, a scalar."""
        values = []
        for layer, mean, variance in self.statistics:
            features = batch.response.features[layer]
            over = [0, *range(2, features.dim())]
            spread, centre = torch.var_mean(features, over, correction=0)
            mean, variance = mean.to(features), variance.to(features)
            values.append(((centre - mean).square() / variance).mean() + (spread / variance - 1).square().mean())
        return torch.stack(values).mean()
