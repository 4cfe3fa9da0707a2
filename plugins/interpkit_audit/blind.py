"""Which class the classifier sees where there is nothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpkit import AuditCase, Strip, Tested, percent
from interpkit_audit.comparing import ComparesClasses


class BlindSpots(ComparesClasses):
    r"""Blind spots: does one class get most of the images that show nothing?

    The images are uniform noise, coarse noise where they are pictures, and even blends of two samples. The statistic
    is the log odds of the share that is assigned to a class, with one image added to each side; the null distribution
    is that of `outlier_p_values`. A classifier has to put such images somewhere, so that shares differ widely on clean
    ones.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import BlindSpots
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
        >>> net[1].bias.data[2] = 9.0
        >>> case = AuditCase(wrap(net, input_shape=(1, 6, 6)), range(4), torch.rand(9, 1, 6, 6), torch.zeros(9).long())
        >>> tested = BlindSpots().test(case)
        >>> max(tested.statistics, key=tested.statistics.get)
        2
    """

    name = "blind-spots"
    kind = "blind spot"
    question = "Does one class get most of the images that show nothing?"
    limits = "Uneven shares are normal; only one class that gets nearly everything is a finding."
    needs_gradient = False

    class Options(ComparesClasses.Options):
        """How many images."""

        images: int = Field(600, ge=10, le=100_000, description="images of each kind")
        sd: float = Field(2.2, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    @torch.no_grad()
    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        images = nothing(case, self.options.images)
        logits = torch.cat([case.target(some.to(case.device)).cpu() for some in images.split(case.most)])
        answers = logits.argmax(1)
        if case.target.multi_label:
            answers[logits.amax(1) <= 0] = -1  # it says itself that nothing is there
        counts = {c: int((answers == c).sum()) for c in case.classes}
        values: dict[int | None, float] = {
            c: math.log((count + 1) / (len(images) - count + 1)) for c, count in counts.items()
        }
        evidence: dict[int | None, str] = {
            c: f"{percent(count / len(images), 0)} of images that show nothing are assigned to this class."
            for c, count in counts.items()
        }
        rows = {c: (answers == c).nonzero()[:, 0] for c in case.classes}
        pictures: dict[int | None, list[Strip]] = {
            c: [Strip("assigned to it", images[own[torch.linspace(0, len(own) - 1, 6).long()]])]
            for c, own in rows.items()
            if len(own)
        }
        return Tested(values, self.p_values(values), evidence, pictures)


def nothing(case: AuditCase, count: int) -> Tensor:
    """Return noise, coarse noise and blends of two images each, on the CPU."""
    rng, shape = case.rng(), case.images.shape[1:]
    pairs = torch.randint(len(case.images), (2, count), generator=rng)
    blends = case.images.cpu()[pairs].mean(0)
    noise = torch.rand(count, *shape, generator=rng)
    if len(shape) != 3:
        return torch.cat([noise, blends])
    coarse = F.interpolate(torch.rand(count, shape[0], 4, 4, generator=rng), size=tuple(shape[1:]), mode="bilinear")
    return torch.cat([noise, coarse, blends])
