"""Training images that were learned by heart."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from interpkit import Audit, AuditCase, LabelledImages, Options, Strip, Tested, TooFew, percent

LEAST = 20


class Memorized(Audit):
    r"""Memorized images: are answers to training images more fragile than those to other images of the class?

    Of the images whose label the classifier gives, one is fragile if the answer changes in more than half of the images
    shifted up, down, left and right. The p-value of a class is that of Fisher's exact test: the probability of as many
    fragile training images if training and held-out images were fragile alike,

    .. math:: p = \sum_{k \ge k_t} \binom{K}{k} \binom{N - K}{n_t - k} \Big/ \binom{N}{n_t}

    with N images of which K are fragile, and n_t training images of which k_t are. An image that was learned with the
    wrong label, or shown very often, is known only as it is. Copies count as often as they were trained on.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, LabelledImages, wrap
        >>> from interpkit_audit import Memorized
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2, bias=False))
        >>> net[1].weight.data = torch.full((2, 64), 0.01)
        >>> net[1].weight.data[0] = torch.eye(64)[27]  # a single pixel decides
        >>> one, rest = torch.zeros(25, 1, 8, 8), torch.zeros(25, 1, 8, 8)
        >>> one[:, :, 3, 3] = 1  # it alone is bright
        >>> rest[:, :, 2:5, 2:5] = 1  # so are its neighbors
        >>> zeros = torch.zeros(25, dtype=torch.long)
        >>> case = AuditCase(
        ...     wrap(net, input_shape=(1, 8, 8)), range(2), rest, zeros,
        ...     reference=LabelledImages(rest, zeros), training=LabelledImages(one, zeros),
        ... )
        >>> Memorized(Memorized.Options(shift=1)).test(case).p_values[0] < 1e-6
        True
    """

    name = "memorized"
    kind = "memorized images"
    question = "Were training images of a class learned by heart?"
    limits = "It sees only images that a small shift makes unknown, and requires the training images."
    needs = ("reference", "training")
    needs_gradient = False

    class Options(Options):
        """How far images are shifted."""

        shift: int = Field(2, ge=1, le=100, description="pixels by which images are shifted")

    options: Options

    @torch.no_grad()
    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        if case.images.dim() != 4:
            raise TooFew("it shifts pictures, and this classifier does not read pictures.")
        assert case.reference is not None and case.training is not None
        training, reference = self.fragile(case, case.training), self.fragile(case, case.reference)
        values: dict[int | None, float] = {}
        p_values: dict[int | None, float] = {}
        evidence: dict[int | None, str] = {}
        pictures: dict[int | None, list[Strip]] = {}
        for c in case.classes:
            own = training[(case.training.labels == c) & (training >= 0)]
            other = reference[(case.reference.labels == c) & (reference >= 0)]
            if min(len(own), len(other)) < LEAST:
                continue
            k, total = int(own.sum()), int(own.sum() + other.sum())
            values[c] = k / len(own) - (total - k) / len(other)
            p_values[c] = more_often(k, len(own), total, len(own) + len(other))
            evidence[c] = (
                f"The answers to {percent(k / len(own))} of the training images, and to "
                f"{percent((total - k) / len(other))} of the held-out ones, change if the image moves by "
                f"{self.options.shift} pixels."
            )
            rows = ((training == 1) & (case.training.labels == c)).nonzero()[:, 0]
            if len(rows):
                distinct = case.training.images[rows].unique(dim=0)[:6]
                pictures[c] = [Strip("fragile training images", case.target.to_unit(distinct).cpu())]
        if not values:
            raise TooFew(f"it requires {LEAST} correctly classified training and held-out images of a class.")
        return Tested(values, p_values, evidence, pictures)

    def fragile(self, case: AuditCase, data: LabelledImages) -> Tensor:
        """Return 1 for each fragile image, 0 for the others, and -1 where the classifier does not give the label."""
        found = []
        for rows in torch.arange(len(data.labels)).split(case.most):
            images = case.target.to_unit(data.images[rows]).to(case.device)
            labels = data.labels[rows].to(case.device)
            right = case.target(images).argmax(1) == labels
            moved = [case.target(image).argmax(1) != labels for image in shifted(images, self.options.shift)]
            fragile = torch.stack(moved).float().mean(0) > 0.5
            found.append(torch.where(right, fragile.long(), -1).cpu())
        return torch.cat(found)


def shifted(images: Tensor, by: int) -> list[Tensor]:
    """Return the images shifted in four directions; the edge is repeated."""
    height, width = images.shape[-2:]
    wide = torch.nn.functional.pad(images, (by, by, by, by), mode="replicate")
    places = ((0, by), (2 * by, by), (by, 0), (by, 2 * by))
    return [wide[..., top : top + height, left : left + width] for top, left in places]


def more_often(hits: int, drawn: int, total: int, count: int) -> float:
    """Return the probability of at least ``hits`` among ``drawn`` of ``count``, of which ``total`` are hits."""

    def ways(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    most = min(drawn, total)
    logs = [
        ways(total, k) + ways(count - total, drawn - k) - ways(count, drawn)
        for k in range(max(hits, drawn + total - count), most + 1)
    ]
    return min(1.0, max(sum(math.exp(value) for value in logs), 1e-300))
