"""Terms that say what images are like, whatever the class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError

PLAUSIBLE = 0.95
"""Share of the largest possible variance above which a normalisation is a convention, not a measurement."""


class TotalVariation(InversionLoss):
    r"""Total variation: the mean absolute difference of neighbouring pixels, down and across.

    .. math:: L_{TV} = \mathrm{mean}\,w_{i,j} |x_{i+1,j} - x_{i,j}| + \mathrm{mean}\,w_{i,j} |x_{i,j+1} - x_{i,j}|

    x are the images, (B, C, H, W) in [0, 1]; between 0 and 2. The weights w are 1, or with ``edge`` above 1 grow from
    1 in the middle to ``edge`` at the rim, as the square of the distance (the larger of both axes): pictures are of
    something in their middle, and a target that looks little at the rim leaves litter there. Source: Rudin, Osher &
    Fatemi 1992, anisotropic; for inversion Mahendran & Vedaldi 2015.
    """

    name = "tv"

    class Options(interpkit.Options):
        """Where variation costs most."""

        edge: float = Field(1.0, ge=0, le=1000, description="weight at the rim; 1 in the middle")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        if len(target.input_shape) != 3:
            raise UsageError("the loss 'tv' is for images; this classifier takes vectors. Leave it out.")

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the total variation per pixel, a scalar."""
        x = batch.images
        vertical, horizontal = (torch.linspace(-1, 1, side, device=x.device).square() for side in x.shape[2:])
        w = 1 + (self.options.edge - 1) * torch.maximum(vertical[:, None], horizontal)
        # A difference weighs as its two pixels do on average, so that no corner of the picture counts for more.
        down = x.diff(dim=2).abs() * (w[1:] + w[:-1]) / 2
        across = x.diff(dim=3).abs() * (w[:, 1:] + w[:, :-1]) / 2
        return sum((d.mean() for d in (down, across) if d.numel()), x.new_zeros(()))


class Chroma(InversionLoss):
    r"""How colourful the images are: the variance of a pixel's channels, mean over the pixels.

    .. math:: L = \mathrm{mean}_{i,j} \, \frac{1}{C} \sum_c (x_{c,i,j} - \bar x_{i,j})^2

    x are the images, (B, 3, H, W) in [0, 1], and the bar the mean of a pixel's channels; at most 2/9. In photographs
    nearly all variance is in the brightness (Ruderman, Cronin & Chiao 1998), and a classifier's statistics channel by
    channel do not say so. 0 unless there are three channels.
    """

    name = "chroma"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean variance, a scalar."""
        x = batch.images
        return x.var(1, correction=0).mean() if x.dim() == 4 and x.shape[1] == 3 else x.new_zeros(())


class SquaredNorm(InversionLoss):
    r"""Mean square of the images, counted from what the target's normalisation moves to zero.

    .. math:: L_2 = \mathrm{mean}\,(x - m)^2

    x are the images, (B, *input_shape) in [0, 1], and m the normalisation's mean, channel by channel, in the same
    units; between 0 and 1 where m is. Source: the R_l2 of Mordvintsev et al. 2015 and DeepInversion (Yin et al. 2020,
    eq. 3), whose images are normalised.
    """

    name = "l2"

    centre: Tensor

    def __init__(self, target: Target, options: interpkit.Options | None = None) -> None:
        super().__init__(target, options)
        centre = normalisation(target)[0]
        self.register_buffer("centre", centre.view(-1, *(1,) * (len(target.input_shape) - 1)), persistent=False)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean square, a scalar."""
        return (batch.images - self.centre).square().mean()


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
        self.statistics = running_statistics(target)[: self.options.first]
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
        features = batch.response.features
        values = [distance(features[layer], mean, variance) for layer, mean, variance in self.statistics]
        return torch.stack(values).mean()


def running_statistics(target: Target) -> list[tuple[str, Tensor, Tensor]]:
    """Return for each batch norm its input's name, its running mean, and its running variance + eps, (C,) each.

    Copies: the layers themselves are the user's, and a loss is not to keep them.
    """
    found = []
    for name, layer in target.layers().items():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            assert layer.running_var is not None
            found.append((f"{name}:in", layer.running_mean.clone(), layer.running_var + layer.eps))
    return found


def distance(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the squared distances of a batch's mean and variance, in units of the variance, mean over channels."""
    mean, variance = mean.to(features), variance.to(features)
    # About the mean that is asked for, so that nothing cancels; norms and sums, as their gradients cost one pass each.
    rows = features.movedim(1, -1).flatten(0, -2) - mean
    shift = rows.sum(0) / len(rows)
    spread = torch.linalg.vector_norm(rows, dim=0).square() / len(rows) - shift.square()
    apart: Tensor = (shift.square() / variance).mean() + (spread / variance - 1).square().mean()
    return apart


class Statistics(InversionLoss):
    r"""Match all that the target remembers of its training images' distribution.

    .. math:: L = \frac{1}{|S|} \sum_{s \in S} \overline{(\mu_s(x) - m_s)^2 / v_s}
              + \overline{(\sigma_s^2(x) / v_s - 1)^2}

    S are the inputs of the batch norms, with their running statistics, as in `BatchNormStatistics`, and the pixels:
    the normalisation that a classifier applies to its input, (x - mean) / std, is the mean and spread of its training
    images, channel by channel, and so a batch norm before the first layer, which nearly every classifier has. A
    normalisation that no image but pure black and white could have (as mean 0.5 and std 0.5, a convention) says
    nothing of the data and is left out, and so is one without a std; where nothing is left, the term is 0.
    """

    name = "statistics"

    def __init__(self, target: Target, options: interpkit.Options | None = None) -> None:
        super().__init__(target, options)
        self.running = running_statistics(target)
        self.pixels = pixel_statistics(target)

    def layers(self, target: Target) -> list[str]:
        """Return the inputs of the batch norms."""
        return [layer for layer, _, _ in self.running]

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean squared distance of the statistics, a scalar."""
        features = batch.response.features
        values = [distance(features[layer], mean, variance) for layer, mean, variance in self.running]
        if self.pixels is not None:
            values.append(distance(batch.images, *self.pixels))
        return torch.stack(values).mean() if values else batch.images.new_zeros(())


def pixel_statistics(target: Target) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of the training images' pixels, (C,) each in [0, 1], as the normalisation tells them.

    Pixels in [0, 1] with mean m have a variance of at most m (1 - m), reached by pure black and white.
    """
    if len(target.input_shape) != 3:
        return None
    if set(target.description.std or [1.0]) == {1.0}:
        return None  # the mean alone is subtracted, and nothing is said of the spread
    mean, variance = normalisation(target)
    told = (mean > 0) & (mean < 1) & (variance < PLAUSIBLE * mean * (1 - mean))
    return (mean, variance) if bool(told.all()) else None


def normalisation(target: Target) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the target's normalisation in the units of images in [0, 1], (C,) or (D,) each."""
    said, features = target.description, target.input_shape[0]
    low, high = (torch.tensor(ends).expand(features) for ends in zip(*said.ranges, strict=True))
    mean = (torch.tensor(said.mean or [0.0]).expand(features) - low) / (high - low)
    variance = (torch.tensor(said.std or [1.0]).expand(features) / (high - low)).square()
    return (mean.flip(0), variance.flip(0)) if said.channel_order == "bgr" else (mean, variance)
