"""The projections of operator splitting, each exact: onto the graph of an activation, and onto a class's logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


def water_level(base: Tensor, others: Tensor, *, weight: float = 1.0, least: int = 0) -> Tensor:
    r"""Return the t that minimizes :math:`w (t - b)^2 + \sum_i \max(0, o_i - t)^2`.

    The k largest of the others lie above t, which is the weighted mean of these and b; a sort finds k.

    Args:
        base: b, (...).
        others: o, (..., K).
        weight: w.
        least: the smallest k; 1 if the largest of the others is to equal t.
    """
    high = others.sort(dim=-1, descending=True).values
    base = base[..., None]
    counts = torch.arange(1, others.shape[-1] + 1)
    levels = torch.cat([base, (weight * base + high.cumsum(-1)) / (weight + counts)], -1)
    k = (high > levels[..., :-1]).sum(-1, keepdim=True).clamp_min(least)
    return levels.gather(-1, k)[..., 0]


def onto_class(z: Tensor, labels: Tensor, margin: float) -> Tensor:
    r"""Project logits onto :math:`K_y = \{z : z_y \ge z_j + m \text{ for all } j \ne y\}`.

    Args:
        z: (N, n).
        labels: y, (N,).
        margin: m, in the units of z.
    """
    own = labels[:, None]
    others = z.scatter(1, own, -torch.inf)
    level = water_level(z.gather(1, own)[:, 0], others + margin)[:, None]
    return torch.minimum(others, level - margin).scatter(1, own, level)


class Activation(ABC):
    """A positively homogeneous activation a = s(z) that is linear in pieces."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Return a (N, out) for z (N, in)."""

    @abstractmethod
    def project(self, z: Tensor, a: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Return the nearest pair with a = ratio * s(z)."""

    @abstractmethod
    def region(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Describe the region of linearity of one z (in,).

        Returns:
            ``take`` and ``slope``, (out,): a = slope * z[take] in the region; ``above`` and ``below``, (K,) each:
            the region is where z[above] >= z[below]; the index -1 stands for 0.
        """


@dataclass(frozen=True)
class Leaky(Activation):
    """a = z where z > 0, and slope * z elsewhere; ReLU has slope 0."""

    slope: float

    def __call__(self, z: Tensor) -> Tensor:
        """See `Activation.__call__`."""
        return torch.where(z > 0, z, self.slope * z)

    def project(self, z: Tensor, a: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Take the nearer of the projections onto the two rays of the graph."""
        right, left = ratio, ratio * self.slope
        up = ((z + right * a) / (1 + right**2)).clamp_min(0)
        down = ((z + left * a) / (1 + left**2)).clamp_max(0)
        cost_up = (up - z) ** 2 + (right * up - a) ** 2
        cost_down = (down - z) ** 2 + (left * down - a) ** 2
        nearer = torch.where(cost_up < cost_down, up, down)
        return nearer, ratio * self(nearer)

    def region(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The side of each unit; see `Activation.region`."""
        places, zero, on = torch.arange(len(z)), torch.full((len(z),), -1), z > 0
        slope = torch.where(on, 1.0, self.slope).to(z.dtype)
        return places, slope, torch.where(on, places, zero), torch.where(on, zero, places)


@dataclass(frozen=True)
class MaxPool(Activation):
    """The largest of each window of ``size`` neighbors in z; windows do not overlap, because z repeats values."""

    size: int

    def __call__(self, z: Tensor) -> Tensor:
        """See `Activation.__call__`."""
        return z.view(*z.shape[:-1], -1, self.size).amax(-1)

    def project(self, z: Tensor, a: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Lower the largest values, or raise the largest one, to the level of a."""
        windows = z.unflatten(-1, (-1, self.size))
        level = water_level(a / ratio, windows, weight=ratio**2, least=1)[..., None]
        lowered = torch.minimum(windows, level)
        raised = lowered.scatter(-1, windows.argmax(-1, keepdim=True), level)
        return raised.flatten(-2), ratio * level[..., 0]

    def region(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The largest of each window; see `Activation.region`."""
        places = torch.arange(len(z)).view(-1, self.size)
        best = z.view(-1, self.size).argmax(-1, keepdim=True)
        take = places.gather(1, best)
        other = places != take
        return take[:, 0], torch.ones(len(take), dtype=z.dtype), take.expand_as(places)[other], places[other]
