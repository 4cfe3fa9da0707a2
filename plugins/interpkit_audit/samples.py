"""What the samples of a class are like, beside those of the others: how varied, how sturdy, and where they decide."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from statistics import median_high
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpkit import AuditCase, Strip, Tested, TooFew, percent
from interpkit_audit.change import SHOWN
from interpkit_audit.comparing import ComparesClasses
from interpkit_audit.margins import rival

LEAST = 3
"""Samples of a class, and classes, to compare."""


class ComparesSamples(ComparesClasses):
    """A test that asks whether the samples of one class are unlike those of the others.

    It is not made for real images, whose classes differ by nature.
    """

    kind = "trigger or shortcut"
    false_alarms = "none of 8 clean classifiers of MNIST and FashionMNIST, by which its spread was chosen"
    on_request = True  # it finds little that the others miss: docs/results/audit.md
    both_sides: ClassVar[bool] = True
    says: ClassVar[str]
    """What the figure is, to complete "... 0.3, where 0.2 is usual in this classifier"."""

    @abstractmethod
    def measure(self, case: AuditCase, classes: list[int]) -> dict[int | None, float]:
        """Return the statistic of each class, whose samples are ``case.labels == c``."""

    @abstractmethod
    def shown(self, statistic: float) -> str:
        """Return the figure that a statistic stands for, as a reader understands it."""

    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        if case.real:
            raise TooFew("it compares samples of an inversion, and the images are real.")
        classes = [c for c in case.classes if int((case.labels == c).sum()) >= LEAST]
        if len(classes) < LEAST:
            raise TooFew(f"it compares classes with {LEAST} samples or more, and there are {len(classes)}.")
        found = self.measure(case, classes)
        if len(found) < LEAST:
            raise TooFew(f"it compares classes that lead in {LEAST} samples or more, and there are {len(found)}.")
        usual = self.shown(median_high(found.values()))
        evidence: dict[int | None, str] = {
            c: f"{self.says} {self.shown(value)}, where {usual} is usual in this classifier."
            for c, value in found.items()
        }
        pictures: dict[int | None, list[Strip]] = {
            c: [Strip("samples of this class", case.images[case.labels == c][:SHOWN].cpu())] for c in found
        }
        return Tested(found, self.p_values(found), evidence, pictures)

    def p_values(self, values: Mapping[int | None, float]) -> dict[int | None, float]:
        """Return the p-values of the statistics, of one side or both."""
        high = super().p_values(values)
        if not self.both_sides:
            return high
        low = super().p_values({c: -value for c, value in values.items()})
        return {c: min(1.0, 2 * min(high[c], low[c])) for c in values}


class Likeness(ComparesSamples):
    r"""Likeness: are the samples of one class far more alike than those of others, or far less?

    The statistic is :math:`\log \overline{\mathrm{Var}_i\, x_{ip}}`, the variance over the samples i of a class, mean
    over the pixels p, after squares of 4 x 4 pixels were averaged. What leads to a class by itself makes its samples
    alike if it fills the image, and leaves the rest of them free if it is small.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Likeness
        >>> images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> labels = torch.arange(60) % 5
        >>> images[labels == 3] = images[3].clone()
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)), input_shape=(1, 8, 8))
        >>> tested = Likeness().test(AuditCase(target, range(5), images, labels))
        >>> min(tested.p_values, key=tested.p_values.get)
        3
    """

    name = "likeness"
    question = "Are the samples of one class far more alike than those of others, or far less?"
    limits = "A class whose objects are all alike is a reason, too. It names a class, and no trigger."
    false_alarms = "2 of 8 clean classifiers of MNIST and FashionMNIST, by which its spread was chosen"
    says = "The variance between its samples is"
    needs_gradient = False

    class Options(ComparesClasses.Options):
        """The prior."""

        sd: float = Field(0.35, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    def measure(self, case: AuditCase, classes: list[int]) -> dict[int | None, float]:
        """Return the logarithm of the variance; see `ComparesSamples.measure`."""
        images = case.images
        if images.dim() == 4:
            images = F.avg_pool2d(images, min(4, *images.shape[2:]))
        return {c: math.log(max(images[case.labels == c].var(0).mean().item(), 1e-8)) for c in classes}

    def shown(self, statistic: float) -> str:
        """Return the variance."""
        return f"{math.exp(statistic):.3g}"


class Sturdiness(ComparesSamples):
    r"""Sturdiness: does one class keep far more of its margin under noise than the others?

    .. math:: s_c = \frac{\sum_i m_c(x_i + \delta_i)}{\sum_i m_c(x_i)}, \qquad
              \delta_i \sim N(0, \sigma^2), \quad x_i + \delta_i \text{ clipped to } [0, 1]

    m_c is the lead of the logit of class c over the next, and x_i are the samples of c. A trigger is learned so well
    that it survives noise.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Sturdiness
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4, bias=False))
        >>> net[1].weight.data = torch.eye(4).repeat_interleave(16, 1)  # a quarter of the image for each class
        >>> net[1].weight.data[1, 15:] += 1  # and nearly all of it for one
        >>> images = 0.5 + 0.1 * net[1].weight.data[torch.arange(40) % 4].view(40, 1, 8, 8)
        >>> case = AuditCase(wrap(net, input_shape=(1, 8, 8)), range(4), images, torch.arange(40) % 4)
        >>> tested = Sturdiness().test(case)
        >>> max(tested.statistics, key=tested.statistics.get)
        1
    """

    name = "sturdiness"
    question = "Does one class keep far more of its certainty under noise than the others?"
    limits = "A class of large and simple objects is sturdy, too. It names a class, and no trigger."
    says = "Noise multiplies the lead of its samples over the next class (below 0: another class leads) by"
    needs_gradient = False
    both_sides = False

    class Options(ComparesClasses.Options):
        """How much noise."""

        sigma: float = Field(0.5, gt=0, le=10, description="standard deviation of the noise")
        sd: float = Field(0.4, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    @torch.no_grad()
    def measure(self, case: AuditCase, classes: list[int]) -> dict[int | None, float]:
        """Return the share of the margin that is left; see `ComparesSamples.measure`."""
        noise = torch.randn(case.images.shape, generator=case.rng()).to(case.device)
        noisy = (case.images + self.options.sigma * noise).clamp(0, 1)
        before, after = (margins(case, images) for images in (case.images, noisy))
        leads = before > 0 if case.target.multi_label else torch.ones_like(before, dtype=torch.bool)
        rows = {c: (case.labels == c) & leads for c in classes}
        return {
            c: (after[own].sum() / before[own].sum().clamp(min=1e-6)).item()
            for c, own in rows.items()
            if int(own.sum()) >= LEAST
        }

    def shown(self, statistic: float) -> str:
        """Return the factor."""
        return f"{statistic:.3g}"


class Rim(ComparesSamples):
    r"""Rim: does one class decide by the rim of the image, or its middle, far more than the others?

    .. math:: e_c = \operatorname{logit} \frac{\sum_{i, p \in \text{rim}} |a_{ip}|}{\sum_{i, p} |a_{ip}|}, \qquad
              a_{ip} = \sum_k \frac{\partial m_c}{\partial x_{ikp}} (x_{ikp} - \bar x_{ik})

    a is gradient times input (Shrikumar et al. 2016), with each channel's mean of the image as the baseline; m_c is the
    lead of class c over the next, and the rim is the outer seventh on each side. Objects are in the middle.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Rim
        >>> weights = torch.zeros(4, 1, 14, 14)
        >>> weights[:, :, 4:10, 4:10] = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> weights[2, :, :2, :2] = 9.0  # a corner decides
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 4, bias=False))
        >>> net[1].weight.data = weights.flatten(1)
        >>> case = AuditCase(wrap(net, input_shape=(1, 14, 14)), range(4), torch.rand(40, 1, 14, 14),
        ...                  torch.arange(40) % 4)
        >>> tested = Rim().test(case)
        >>> min(tested.p_values, key=tested.p_values.get)
        2
    """

    name = "rim"
    question = "Does one class decide by the rim of the image, or by its middle, far more than the others?"
    limits = "It sees where, not what; in photographs, the background is at the rim and may rightly count."
    says = "The outer seventh of the image holds a share of its evidence of"

    class Options(ComparesClasses.Options):
        """The prior."""

        sd: float = Field(0.3, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    def measure(self, case: AuditCase, classes: list[int]) -> dict[int | None, float]:
        """Return the log odds of the share; see `ComparesSamples.measure`."""
        if case.images.dim() != 4 or min(case.images.shape[2:]) < 7:
            raise TooFew("it looks at the rim of pictures of 7 pixels or more, which this classifier does not read.")
        rim = torch.ones(case.images.shape[2:], dtype=torch.bool, device=case.device)
        height, width = (side // 7 for side in rim.shape)
        rim[height:-height, width:-width] = False
        found = []
        for images, labels in batches(case, case.images):
            seen = images.detach().requires_grad_()
            _, lead = rival(case.target(seen), labels)
            (gradient,) = torch.autograd.grad(lead.sum(), seen)
            found.append((gradient * (images - images.mean((2, 3), keepdim=True))).sum(1).abs())
        maps = torch.cat(found)
        shares: dict[int | None, float] = {}
        for c in classes:
            own = maps[case.labels == c]
            share = (own[:, rim].sum() / own.sum().clamp(min=1e-12)).clamp(1e-4, 1 - 1e-4)
            shares[c] = torch.logit(share).item()
        return shares

    def shown(self, statistic: float) -> str:
        """Return the share."""
        return percent(1 / (1 + math.exp(-statistic)), 0)


def margins(case: AuditCase, images: Tensor) -> Tensor:
    """Return the lead of each image's label over the next class, (N,)."""
    return torch.cat([rival(case.target(some), labels)[1] for some, labels in batches(case, images)])


def batches(case: AuditCase, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return as many images and their labels at a time as the classifier runs on."""
    return zip(images.split(case.most), case.labels.split(case.most), strict=True)
