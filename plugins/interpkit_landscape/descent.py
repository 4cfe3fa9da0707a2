"""Gradient descent in Z, the space of points, through a learned map theta from Z to images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit import Condition, GeneratedBatch, InversionLoss, ObjectiveValue, Target, objective

KERNEL = 5
SMALL = 0.1
"""The factor of r, so that its weights may take large steps without saturating the images."""
TINY = 1e-20


class Theta(nn.Module):
    r"""Maps points of Z to images, :math:`x = \mathrm{sigmoid}(z + r(z, y))`, where r is zero before the training.

    r has two hidden layers of ``width`` channels, normalized over each image: convolutions for images (C, H, W), linear
    layers for vectors (D,). The label y adds a learned number to each channel of the first. Convolutions are the same
    at every position, so r can hardly store a picture of a class.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, width: int) -> None:
        super().__init__()

        def layer(before: int, after: int) -> nn.Module:
            if len(shape) == 1:
                return nn.Linear(before, after)
            return nn.Conv2d(before, after, KERNEL, padding=KERNEL // 2, padding_mode="replicate")

        self.label = nn.Embedding(num_classes, width)
        self.first, self.second, self.last = layer(shape[0], width), layer(width, width), layer(width, shape[0])
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the images (B, *shape) in [0, 1] of points (B, *shape) and labels (B,)."""
        of_label = self.label(labels).view(len(z), -1, *[1] * (z.dim() - 2))
        hidden = F.silu(F.group_norm(self.first(z), 1) + of_label)
        hidden = F.silu(F.group_norm(self.second(hidden), 1))
        images: Tensor = (z + SMALL * self.last(hidden)).sigmoid()
        return images


@dataclass(eq=False)
class Descent:
    r"""Steps of equal length against the gradient of the objective L with respect to z.

    .. math:: z_{t+1} = z_t - \alpha \, g_t / \mathrm{rms}(g_t), \qquad g_t = \nabla_z L(\theta(z_t), y)

    Attributes:
        target: the frozen classifier.
        losses: the terms of L by name, each with its weight.
        theta: the map.
        steps: T, the number of steps.
        rate: alpha, the root mean square of a step.
        autocast: the context that sets the precision of the networks.
        micro_batch: images in memory at a time; all if None.
        trained: theta and the terms, which may have parameters of their own.
    """

    target: Target
    losses: Mapping[str, tuple[float, InversionLoss]]
    theta: Theta
    steps: int
    rate: float
    autocast: torch.autocast
    micro_batch: int | None = None
    trained: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        terms = nn.ModuleDict({name: loss for name, (_, loss) in self.losses.items()})
        self.trained = nn.ModuleDict({"theta": self.theta, "terms": terms})

    def value(
        self, z: Tensor, labels: Tensor, progress: float, rng: torch.Generator
    ) -> tuple[GeneratedBatch, ObjectiveValue]:
        """Return the images of points (B, *shape), and their objective L."""
        with self.autocast:
            images = self.theta(z, labels).float()
        one_hot = F.one_hot(labels, self.target.num_classes).float()
        batch = GeneratedBatch(
            self.target, Condition(labels, one_hot, one_hot), images.new_zeros(len(images), 0), images, progress
        )
        layers = sorted({layer for _, loss in self.losses.values() for layer in loss.layers(self.target)})
        value = objective(batch, self.losses, layers, rng, self.autocast, micro_batch=self.micro_batch)
        return batch, ObjectiveValue(*value)

    @torch.enable_grad()
    def path(
        self, z: Tensor, labels: Tensor, progress: float, rng: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the points z_0 to z_T of a descent from z, (B, *shape) each, and the `numbers` of all but the last."""
        points, values = [z], []
        for _ in range(self.steps):
            z = points[-1].detach().requires_grad_()
            _, value = self.value(z, labels, progress, rng)
            values.append(numbers(value))
            (slope,) = torch.autograd.grad(value.total, z)
            size = slope.flatten(1).square().mean(1).sqrt().clamp_min(TINY)
            points.append((z - self.rate * slope / size.view(-1, *[1] * (z.dim() - 1))).detach())
        return points, values


def numbers(value: ObjectiveValue) -> Tensor:
    """Return the objective and its terms, (1 + terms,)."""
    return torch.stack([value.total, *value.terms.values()]).detach()
