"""Bounded perturbations of images: random, adversarial and geometric; all keep the images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit import Target

Norm = Literal["linf", "l2"]


def _uniform(like: Tensor, rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return (B,) numbers uniform in [low, high]."""
    return torch.empty(len(like), device=like.device).uniform_(low, high, generator=rng)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (images.dim() - 1))


def noise(images: Tensor, rng: torch.Generator, grain: int = 1) -> Tensor:
    """Return standard normal numbers of the images' shape, equal within squares of ``grain`` pixels."""
    if grain == 1:
        return torch.randn(images.shape, device=images.device, generator=rng)
    height, width = images.shape[2:]
    squares = (*images.shape[:2], -(-height // grain), -(-width // grain))
    numbers = torch.randn(squares, device=images.device, generator=rng)
    return F.interpolate(numbers, scale_factor=grain)[:, :, :height, :width]


def gaussian(images: Tensor, sigma: float, rng: torch.Generator, grain: int = 1) -> Tensor:
    """Add Gaussian noise; its standard deviation is drawn per image, uniformly from [0, sigma]."""
    return (images + _per_image(_uniform(images, rng, 0, sigma), images) * noise(images, rng, grain)).clamp(0, 1)


def in_ball(images: Tensor, radius: float, norm: Norm, rng: torch.Generator) -> Tensor:
    """Add a perturbation drawn uniformly from the L-inf or L2 ball of this radius."""
    return (images + random_delta(images, radius, norm, rng)).clamp(0, 1)


def random_delta(images: Tensor, radius: float, norm: Norm, rng: torch.Generator) -> Tensor:
    """Return perturbations (B, ...) drawn uniformly from a ball.

    In the L2 ball of D dimensions: a Gaussian direction times ``radius * u^(1/D)``, u uniform in [0, 1].
    """
    if norm == "linf":
        return torch.empty_like(images).uniform_(-radius, radius, generator=rng)
    direction = _to_unit(noise(images, rng))
    return direction * _per_image(radius * _uniform(images, rng) ** (1 / images[0].numel()), images)


def _to_unit(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(1), dim=1).view_as(x)


def project(delta: Tensor, radius: float, norm: Norm) -> Tensor:
    """Return the nearest perturbation inside the ball."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    lengths = _per_image(delta.flatten(1).norm(dim=1), delta)
    return delta * (radius / lengths.clamp_min(radius))


def cross_entropy(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image (B,)."""
    return target.cross_entropy(logits, labels)


def lag(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much each image's class lags behind the most probable other one (B,): below 0 if it leads.

    Unlike that of the cross-entropy, its gradient does not vanish where a classifier is sure. Of independent labels,
    the image's own alone counts. Source: Carlini & Wagner 2017, f_6.
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    return -own if target.multi_label else logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def pgd(
    target: Target,
    images: Tensor,
    labels: Tensor,
    radius: float,
    norm: Norm,
    steps: int,
    start: torch.Generator | Tensor,
    *,
    loss: Callable[[Target, Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """Search the ball for the perturbation with the highest loss, by default cross-entropy: projected gradient descent.

    From ``start``, a perturbation or the generator of a random one, it takes ``steps`` steps of ``2.5 * radius /
    steps`` along the sign of the gradient (L-inf) or the unit gradient (L2), and projects each back onto the ball. The
    gradient of the result flows to ``images`` but not through the search. Source: Madry et al. 2018.
    """
    still = images.detach()
    delta = start if isinstance(start, Tensor) else random_delta(still, radius, norm, start)
    for _ in range(steps):
        delta.requires_grad_(True)
        with torch.enable_grad():
            value = loss(target, target((still + delta).clamp(0, 1)), labels).sum()
            (slope,) = torch.autograd.grad(value, delta)
        direction = slope.sign() if norm == "linf" else _to_unit(slope)
        delta = project(delta.detach() + 2.5 * radius / steps * direction, radius, norm)
    return (images + delta).clamp(0, 1)


def affine(images: Tensor, degrees: float, shift: float, scale: float, rng: torch.Generator) -> Tensor:
    """Rotate, shift and scale each image by its own random amount; border pixels are repeated outside the image.

    Args:
        images: (B, C, H, W).
        degrees: rotation, uniform in [-degrees, degrees].
        shift: shift in each direction, uniform in [-shift, shift], as a fraction of the side.
        scale: factor uniform in [1 - scale, 1 + scale].
        rng: source of randomness.
    """
    height, width = images.shape[2:]
    angle = _uniform(images, rng, -degrees, degrees) * (math.pi / 180)
    zoom = _uniform(images, rng, 1 - scale, 1 + scale)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    across, down = (2 * _uniform(images, rng, -shift, shift) for _ in range(2))
    # affine_grid's coordinates run from -1 to 1 on both axes, so a rotation in pixels depends on the aspect ratio.
    rows = [cos, -sin * (height / width), across, sin * (width / height), cos, down]
    matrices = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)


def occlude(images: Tensor, largest: float, rng: torch.Generator) -> Tensor:
    """Cover a rectangle of each image (B, C, H, W) with that of another in the batch (CutMix, Yun et al. 2019).

    Each side of the rectangle is uniform in [0, largest], as a fraction of the image's. Unlike in CutMix, the labels
    stay as they are.
    """

    def inside(side: int) -> Tensor:
        length = largest * _uniform(images, rng)
        start = _uniform(images, rng) * (1 - length)
        place = (torch.arange(side, device=images.device) + 0.5) / side
        return (place >= start[:, None]) & (place < (start + length)[:, None])

    height, width = images.shape[2:]
    covered = inside(height)[:, None, :, None] & inside(width)[:, None, None, :]
    return torch.where(covered, images.detach().roll(1, 0), images)
