"""How sure of each class the classifier can be made: tests that need no images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median_high
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor

from interpkit import AuditCase, Strip, Tested, TooFew, tell
from interpkit_audit.change import step_of
from interpkit_audit.comparing import ComparesClasses

LEAST = 0.1
"""Smaller margins count as this one, or as a hundredth of the usual margin if that is smaller."""
CUT = 27.5
"""Where a classifier returns probabilities, their logarithms are cut at log 1e-12 = -27.6, and so are margins."""
MANY = 100
"""Of more classes than this, each is climbed once, for a quarter of the steps."""
Climbed = tuple[dict[int, float], dict[int, int], dict[int, Tensor]]
_climbed: WeakKeyDictionary[AuditCase, dict[tuple[int, int], Climbed]] = WeakKeyDictionary()


class Margin(ComparesClasses):
    r"""Maximum margin: is the classifier far surer of one class than of all others, on images of its own choice?

    .. math:: m_c = \max_{x \in [0, 1]^d} z_c(x) - \max_{k \ne c} z_k(x)

    z are the logits. A trigger makes a class easy to reach, which leaves a large margin. The statistic is log m_c, the
    largest of several ascents with Adam from uniform noise; its null distribution is that of `outlier_p_values`. With
    more than 100 classes, each gets one ascent of a quarter of the steps. Source: Wang et al. 2024, "MM-BD:
    post-training detection of backdoor attacks with arbitrary backdoor pattern types using a maximum margin statistic",
    who fit a Gamma distribution to the other classes' margins instead.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Margin
        >>> net = torch.nn.Linear(6, 6, bias=False)
        >>> net.weight.data = torch.eye(6) + 9 * torch.diag(torch.tensor([0.0, 0, 1, 0, 0, 0]))
        >>> case = AuditCase(wrap(net, input_shape=(6,)), range(6), torch.zeros(0, 6), torch.zeros(0).long())
        >>> tested = Margin().test(case)
        >>> min(tested.p_values, key=tested.p_values.get)
        2
    """

    name = "margin"
    kind = "trigger"
    question = "Can the classifier be made far surer of one class than of all others?"
    limits = "It names a class, not the trigger, and sees only triggers that make their class unusually sure."
    screens = True

    class Options(ComparesClasses.Options):
        """How long and how often to climb."""

        steps: int = Field(40, ge=1, le=10_000, description="steps of Adam")
        starts: int = Field(6, ge=1, le=1000, description="images for each class")
        sd: float = Field(0.35, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        margins, _, images = climb(case, self.options.steps, self.options.starts)
        least, middle = _least(margins), median_high(margins.values())
        values: dict[int | None, float] = {c: math.log(max(m, least)) for c, m in margins.items()}
        evidence: dict[int | None, str] = {
            c: f"The margin over all other classes reaches {m:.3g}, where {middle:.3g} is usual in this classifier."
            for c, m in margins.items()
        }
        pictures: dict[int | None, list[Strip]] = {
            c: [Strip("images of the largest margins", images[c])] for c in images
        }
        return Tested(values, self.p_values(values), evidence, pictures)


class Unsure(ComparesClasses):
    r"""Smallest maximum margin: is there a class of which the classifier never becomes sure?

    The statistic is -log m_c, with the margins of `Margin`. Where two classes were mixed up in the labels, the
    classifier hesitates between them even at its surest. Because such classes come in pairs, each class is compared
    with the others except the one with the smallest margin.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Unsure
        >>> net = torch.nn.Linear(8, 8, bias=False)
        >>> net.weight.data = 4 * torch.eye(8)
        >>> net.weight.data[0, 0] = net.weight.data[1, 1] = 0.3
        >>> case = AuditCase(wrap(net, input_shape=(8,)), range(8), torch.zeros(0, 8), torch.zeros(0).long())
        >>> sorted(sorted(range(8), key=Unsure().test(case).p_values.get)[:2])
        [0, 1]
    """

    name = "unsure"
    kind = "mixed-up labels"
    question = "Are there classes of which the classifier can never become sure?"
    limits = "Classes that look alike, and a class with few training images, can be the reason too."
    screens = True

    false_alarms = "by itself, on 3 of 12 held-out clean classifiers, small ones of ten classes"

    class Options(Margin.Options):
        """How long and how often to climb."""

        sd: float = Field(0.22, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        if len(case.classes) < 3:
            raise TooFew("it compares a class with two others at least.")
        margins, rivals, _ = climb(case, self.options.steps, self.options.starts)
        least = _least(margins)
        values: dict[int | None, float] = {c: -math.log(max(m, least)) for c, m in margins.items()}
        names = case.target.class_names
        evidence: dict[int | None, str] = {
            c: f"The margin never exceeds {margins[c]:.3g}; its strongest rival is {names[rivals[c]]}." for c in margins
        }
        return Tested(values, self.p_values(values), evidence)

    def p_values(self, values: Mapping[int | None, float]) -> dict[int | None, float]:
        """Return the p-values of the statistics, each compared with the others except the highest."""
        first, second = sorted(values, key=values.__getitem__, reverse=True)[:2]
        others = super().p_values({c: value for c, value in values.items() if c != first})
        own = super().p_values({c: value for c, value in values.items() if c != second})
        return {c: own[c] if c == first else others[c] for c in values}


def _least(margins: Mapping[int, float]) -> float:
    """Return what smaller margins count as, so that a common factor of all logits changes little."""
    return min(LEAST, median_high(m for m in margins.values() if m > 0) / 100)


@torch.no_grad()
def _cut(case: AuditCase, margins: Mapping[int, float], images: Mapping[int, Tensor]) -> int:
    """Return how many of the margins are those of probabilities that are exactly 0 or 1."""
    output = case.target.description.output
    if output == "sigmoid":
        surest = {c: case.target(images[c][:1].to(case.device))[0, c].item() for c in margins}
        return sum(logit > CUT for logit in surest.values())
    cut = (margin for margin in margins.values() if CUT < margin < CUT + 0.2)
    return len(list(cut)) if output in ("probs", "log_probs") else 0


def climb(case: AuditCase, steps: int, starts: int) -> Climbed:
    """Return the result of `_climb`, which two tests use: computed once for a case and these options.

    Raises:
        TooFew: most classes were not reached. Their margins then say nothing of the classes.
    """
    known = _climbed.setdefault(case, {})
    if len(case.classes) > MANY:
        steps, starts = -(-steps // 4), 1
    if (steps, starts) not in known:
        known[steps, starts] = _climb(case, steps, starts)
    margins = known[steps, starts][0].values()
    if _cut(case, *known[steps, starts][::2]) > 1:  # one alone is the largest
        raise TooFew(
            "the classifier returns probabilities, which are exactly 0 and 1 where it is surest: audit it without its "
            "last softmax or sigmoid."
        )
    reached = sum(margin > 0 for margin in margins)
    if reached < len(margins) / 2:
        raise TooFew(
            f"starting from noise, it reaches {reached} of {len(margins)} classes, too few to compare: gradients may "
            f"vanish there, or it needs more steps."
        )
    return known[steps, starts]


def _climb(case: AuditCase, steps: int, starts: int) -> Climbed:
    """Return the maximum margin of each class, its rival there, and the images in which the margins are largest."""
    target, rng = case.target, case.rng()
    margins, rivals, found = {}, {}, {}
    at_once, done = max(1, case.most // starts), 0
    for start in range(0, len(case.classes), at_once):
        chunk = list(case.classes)[start : start + at_once]
        labels = torch.tensor(chunk, device=case.device).repeat_interleave(starts)
        images = torch.rand((len(labels), *target.input_shape), generator=rng).to(case.device).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=0.05)
        for _ in range(steps):
            _, margin = rival(target(images), labels)
            step_of(optimizer, -margin.sum())
            with torch.no_grad():
                images.clamp_(0, 1)
            done += len(chunk)
            tell("steps to the largest margins", done, len(case.classes) * steps)
        with torch.no_grad():
            second, margin = rival(target(images), labels)
        for row, label in enumerate(chunk):
            rows = slice(row * starts, (row + 1) * starts)
            order = margin[rows].argsort(descending=True)
            margins[label] = margin[rows][order[0]].item()
            rivals[label] = int(second[rows][order[0]])
            found[label] = images.detach()[rows][order[:6]].cpu()
    return margins, rivals, found


def rival(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the strongest other class of each row, and the margin over it."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others, second = logits.scatter(1, labels[:, None], -math.inf).max(1)
    return second, own - others
