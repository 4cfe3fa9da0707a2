"""Priors: terms that describe natural images, whatever their class."""

from __future__ import annotations

import logging

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError

log = logging.getLogger("interpkit")


class TotalVariation(InversionLoss):
    r"""Total variation: the mean absolute difference of neighboring pixels, down and across.

    .. math:: L_{TV} = \mathrm{mean}\,w_{i,j} |x_{i+1,j} - x_{i,j}| + \mathrm{mean}\,w_{i,j} |x_{i,j+1} - x_{i,j}|

    x are the images, (B, C, H, W) in [0, 1]; the value lies between 0 and 2. The weights w are 1; with ``edge`` above
    1 they grow from 1 in the middle to ``edge`` at the rim, as the square of the distance (the larger of both axes):
    the object is usually in the middle, and a target that pays little attention to the rim leaves noise there. The
    larger an image, the less its neighbors differ; ``relative`` makes up for it.
    Source: Rudin, Osher & Fatemi 1992, anisotropic; for inversion Mahendran & Vedaldi 2015.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import TotalVariation
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4))
        >>> stripes = torch.tensor([0.0, 1.0]).repeat(1, 1, 4, 2)
        >>> testing.evaluate_loss(TotalVariation(target), target, stripes, labels=[0])
        tensor(1.)
    """

    name = "tv"

    class Options(interpkit.Options):
        """Where variation is penalized most."""

        edge: float = Field(1.0, ge=0, le=1000, description="weight at the rim of the image; it is 1 in the middle")
        relative: bool | None = Field(
            None,
            description="multiply by the longer side / 32 if that is above 1, so that a weight means the same at every "
            "size",
        )

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        if len(target.input_shape) != 3:
            raise UsageError(f"the loss 'tv' needs images; {target.name} classifies vectors. Add --loss tv=0.")

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the total variation per pixel, a scalar."""
        x = batch.images
        vertical, horizontal = (torch.linspace(-1, 1, side, device=x.device).square() for side in x.shape[2:])
        w = 1 + (self.options.edge - 1) * torch.maximum(vertical[:, None], horizontal)
        # The weight of a difference is the mean of its two pixels' weights, so that no corner counts for more.
        down = x.diff(dim=2).abs() * (w[1:] + w[:-1]) / 2
        across = x.diff(dim=3).abs() * (w[:, 1:] + w[:, :-1]) / 2
        value = sum((d.mean() for d in (down, across) if d.numel()), x.new_zeros(()))
        return value * max(1, max(x.shape[2:]) / 32) if self.options.relative else value


class Chroma(InversionLoss):
    r"""Penalize color: the variance of the channels of a pixel, mean over the pixels.

    .. math:: L = \mathrm{mean}_{i,j} \, \frac{1}{C} \sum_c (x_{c,i,j} - \bar x_{i,j})^2

    x are the images, (B, 3, H, W) in [0, 1], and the bar the mean of a pixel's channels; at most 2/9. In photographs
    nearly all variance is in the brightness (Ruderman, Cronin & Chiao 1998), which a classifier's per-channel
    statistics cannot express. 0 unless there are three channels.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Chroma
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> target = wrap(net, input_shape=(3, 4, 4))
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 4, 4)
        >>> testing.evaluate_loss(Chroma(target), target, red, labels=[0])  # 2/9
        tensor(0.2222)
    """

    name = "chroma"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean variance, a scalar."""
        x = batch.images
        return x.var(1, correction=0).mean() if x.dim() == 4 and x.shape[1] == 3 else x.new_zeros(())


class SquaredNorm(InversionLoss):
    r"""Mean squared distance of the images from the mean of the target's normalization, or from one gray.

    .. math:: L_2 = \mathrm{mean}\,(x - m)^2

    x are the images, (B, *input_shape) in [0, 1], and m is ``center``, or the normalization's mean, channel by channel,
    in the same units; between 0 and 1 if m is. It limits the contrast. Source: the R_l2 of Mordvintsev et al. 2015 and
    DeepInversion (Yin et al. 2020, eq. 3), whose images are normalized.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import SquaredNorm
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4), mean=0.5)
        >>> testing.evaluate_loss(SquaredNorm(target), target, torch.ones(1, 1, 4, 4), labels=[0])
        tensor(0.2500)
    """

    name = "l2"

    class Options(interpkit.Options):
        """Where the distance is measured from."""

        center: float | None = Field(None, ge=0, le=1, description="gray value; the normalization's mean if omitted")

    center: Tensor
    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        gray = self.options.center
        center = normalization(target)[0] if gray is None else torch.full((target.input_shape[0],), gray)
        self.register_buffer("center", center.view(-1, *(1,) * (len(target.input_shape) - 1)), persistent=False)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean square, a scalar."""
        return (batch.images - self.center).square().mean()


class BatchNormStatistics(InversionLoss):
    r"""Match the running statistics that the target's batch norms recorded on its training data.

    .. math:: L_{BN} = \frac{1}{L} \sum_l \left( \overline{(\mu_l(x) - m_l)^2 / v_l}
              + \overline{(\sigma_l^2(x) / v_l - 1)^2} \right)

    mu_l and sigma_l^2 are the mean and variance of a channel of the input of batch norm l over the batch (and
    the pixels), m_l its running mean, v_l its running variance + eps; bars are means over channels. At least 0.
    DeepInversion (Yin et al. 2020, eq. 4) sums the plain l2 norms; here each channel is measured in
    units of its own standard deviation, so that the weight does not depend on the network's scale.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import BatchNormStatistics
        >>> net = nn.Sequential(nn.BatchNorm2d(1, eps=0.0), nn.Flatten(), nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4))  # its running mean is 0 and its running variance 1
        >>> testing.evaluate_loss(BatchNormStatistics(target), target, torch.ones(2, 1, 4, 4), labels=[0, 1])
        tensor(2.)
    """

    name = "batchnorm"

    class Options(interpkit.Options):
        """Which batch norms."""

        first: int | None = Field(None, ge=1, description="match only the first N batch norms; all if omitted")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        self.statistics = running_statistics(target)[: self.options.first]
        if not self.statistics:
            raise UsageError(
                f"the loss 'batchnorm' needs batch norm with running statistics, but {target.name} does not have any. "
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
    """Return for each batch norm the name of its input, its running mean, and its running variance + eps, (C,) each.

    These are copies, because a loss must not keep the layers themselves, which are the user's.
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
    # Centered on the requested mean, to avoid cancellation; norms and sums, because their gradients cost one pass each.
    rows = features.movedim(1, -1).flatten(0, -2) - mean
    shift = rows.sum(0) / len(rows)
    spread = torch.linalg.vector_norm(rows, dim=0).square() / len(rows) - shift.square()
    apart: Tensor = (shift.square() / variance).mean() + (spread / variance - 1).square().mean()
    return apart


class Statistics(InversionLoss):
    r"""Match everything that the target recorded about its training images: batch norms and input normalization.

    .. math:: L = \frac{1}{|S|} \sum_{s \in S} \overline{(\mu_s(x) - m_s)^2 / v_s}
              + \overline{(\sigma_s^2(x) / v_s - 1)^2}

    S are the inputs of the batch norms, with their running statistics, as in `BatchNormStatistics`, and the pixels;
    with ``every`` = N, of every Nth batch norm only, which takes less time in a deep network.
    The normalization that a classifier applies to its input, (x - mean) / std, usually holds the mean and standard
    deviation of its training images, channel by channel: in effect a batch norm before the first layer, which nearly
    every classifier has. A normalization that only pure black and white images could produce (such as mean 0.5 and
    std 0.5, a convention) carries no information about the data and is ignored, and so is one without a std. If
    nothing remains, the term is 0.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Statistics
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4), mean=0.5, std=0.25)
        >>> gray = torch.full((2, 1, 4, 4), 0.5)  # the right mean, but no variance
        >>> testing.evaluate_loss(Statistics(target), target, gray, labels=[0, 1])
        tensor(1.)
    """

    name = "statistics"

    class Options(interpkit.Options):
        """Which batch norms."""

        every: int = Field(1, ge=1, description="match the first batch norm and every Nth after it, which is faster")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        self.running = running_statistics(target)[:: self.options.every]
        self.pixels = pixel_statistics(target)
        if not self.running and self.pixels is None:
            log.info(
                "the loss 'statistics' stays 0: %s has no batch norm that interpkit can read (TorchScript hides them, "
                "exporters to ONNX merge them) and no measured normalization. If you have the network's code, load its "
                "state dict with --arch instead.",
                target.name,
            )

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
    """Return the mean and variance of the training images' pixels, (C,) each in [0, 1], from the normalization.

    Pixels in [0, 1] with mean m have a variance of at most m (1 - m), reached by pure black and white; above 95 % of
    that, a normalization is a convention, not a measurement.
    """
    if len(target.input_shape) != 3:
        return None
    if set(target.description.std or [1.0]) == {1.0}:
        return None  # only the mean is subtracted, so the variance is unknown
    mean, variance = normalization(target)
    plausible = (mean > 0) & (mean < 1) & (variance < 0.95 * mean * (1 - mean))
    return (mean, variance) if bool(plausible.all()) else None


def normalization(target: Target) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of the target's normalization, (C,) or (D,) each, in units of images in [0, 1]."""
    facts, features = target.description, target.input_shape[0]
    stated = (torch.tensor(each) for each in (facts.mean or [0.0], facts.std or [1.0]))
    mean, std = (each.repeat_interleave(features // len(each)) for each in stated)  # a signal has them by channel
    mean, variance = target.to_unit(mean[None])[0], (std / (target.high - target.low)).square()
    return (mean.flip(0), variance.flip(0)) if facts.channel_order == "bgr" else (mean, variance)
