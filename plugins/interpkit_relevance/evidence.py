"""Minimal evidence: the fewest pixels that suffice for the score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError, percent

FINEST = 28
"""Most cells along a side of the mask that is optimized; it is enlarged to the image."""
WEIGHTS = {"score": 4.0, "features": 1.0, "area": 1.0, "binary": 0.2, "variation": 0.1}
"""Weights of the terms; each term is about 1 for the whole image or for none of it."""
SHARES = 20
"""Sizes of evidence that are tried first, from a 400th of the pixels to all of them."""


class MinimalEvidence(Attribution):
    r"""Minimal evidence: a small mask m whose pixels alone, :math:`m \odot x + (1 - m) \odot x'`, keep the score.

    For each image, m in [0, 1] is optimized (Adam) for a score that is kept, features of the target's last layer that
    are kept (cosine), a small area, values near 0 and 1, and a small total variation. What is removed becomes the first
    baseline, in every other step with noise on it, so that the mask does not rely on it. Then m becomes 0 except at its
    largest values: as few as still hold ``keep`` of the score's rise over the baseline, found by bisection. A note
    says which share of the pixels they are. Source: after Suhail et al. 2025, "EXP-CAM: explanation generation
    and circuit discovery using classifier activation matching" (arXiv 2509.25686), where an autoencoder returns the
    mask and more layers are matched; the weights of the terms are interpkit's.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, 0.1, -1.0], [0.0, 0.0, 0.0]])
        >>> target = wrap(linear, input_shape=(3,))
        >>> attribute(target, torch.ones(1, 3), [0], method="minimal-evidence") > 0
        tensor([[ True, False, False]])
    """

    name = "minimal-evidence"

    class Options(interpkit.Options):
        """How long it is optimized, and how much of the score remains."""

        steps: int = Field(100, ge=1, le=10_000, description="steps of the optimizer")
        keep: float = Field(0.9, gt=0, le=1, description="share of the score's rise over the baseline that must remain")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        baseline, picture = context.baselines[:1], images.dim() == 4

        def score(shown: Tensor) -> Tensor:
            found: Tensor = context.scores(shown).gather(1, classes[:, None])[:, 0]
            return found

        with torch.no_grad():
            whole, nothing = score(images), score(baseline.expand_as(images))
            features = target.respond(images).penultimate
        rise = (
            (whole - nothing).abs().clamp_min(1e-6)
        )  # where the image has less than the baseline: what would raise it
        sides = [min(side, FINEST) for side in images.shape[2:]] if picture else list(images.shape[1:])
        logits = torch.full((len(images), *sides), 2.0, device=images.device, requires_grad=True)

        def mask() -> Tensor:
            small = logits.sigmoid()
            if not picture:
                return small
            return F.interpolate(small[:, None], images.shape[2:], mode="bilinear", align_corners=False)

        optimizer = torch.optim.Adam([logits], lr=0.2)
        for step in range(self.options.steps):
            m = mask()
            removed = baseline if step % 2 else (baseline + 0.2 * torch.randn_like(baseline)).clamp(0, 1)
            shown = m * images + (1 - m) * removed
            missing = ((nothing + rise - score(shown)) / rise).relu()
            if not missing.requires_grad:
                raise UsageError(
                    f"minimal-evidence cannot explain {target.name}: it needs gradients, but none reach the image (a "
                    f"rounding or a detach() stops them). Choose a method without gradients, such as rise."
                )
            near = F.cosine_similarity(target.respond(shown).penultimate, features)
            flat = m.flatten(1)
            terms = {
                "score": missing,
                "features": 1 - near,
                "area": flat.mean(1),
                "binary": 4 * (flat * (1 - flat)).mean(1),
                "variation": _variation(m) if picture else torch.zeros_like(missing),
            }
            loss = torch.stack([WEIGHTS[name] * term for name, term in terms.items()])
            (logits.grad,) = torch.autograd.grad(loss.sum(), logits)
            optimizer.step()
        m = mask().detach()
        order = m.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)  # 0 is the most evidence
        pixels = order.shape[1]

        def first(count: Tensor) -> Tensor:
            return (order < count[:, None]).view_as(m)

        def holds(count: Tensor) -> Tensor:
            with torch.no_grad():
                kept: Tensor = score(torch.where(first(count), images, baseline))
            return kept >= nothing + self.options.keep * rise

        few, many = (torch.zeros(len(images), dtype=torch.long, device=images.device) for _ in range(2))
        for i in range(1, SHARES + 1):  # few: the most pixels that do not suffice; many: the fewest that do, 0 if none
            size = torch.full_like(many, max(1, round((i / SHARES) ** 2 * pixels)))
            unknown, suffices = many == 0, holds(size)
            many = torch.where(unknown & suffices, size, many)
            few = torch.where(unknown & ~suffices, size, few)
        while (unknown := many - few > 1).any():
            middle = (few + many) // 2
            suffices = holds(middle)
            many, few = torch.where(unknown & suffices, middle, many), torch.where(unknown & ~suffices, middle, few)
        enough = many > 0
        kept = torch.where(enough.view(-1, *(1 for _ in m.shape[1:])), first(many), m > 0.5)
        others = "" if enough.all() else "; the others do not support the class"
        least = "no" if not enough.any() else percent((many[enough].cpu().double().mean() / pixels).item()) + " of the"
        context.note(
            f"minimal-evidence: {least} pixels hold {percent(self.options.keep, 0)} of the score in "
            f"{int(enough.sum())} of {len(images)} images{others}."
        )
        return (m * kept).expand_as(images)


def _variation(masks: Tensor) -> Tensor:
    """Return the mean absolute difference of neighboring pixels of masks (B, 1, H, W), (B,)."""
    down, right = masks.diff(dim=2).abs(), masks.diff(dim=3).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)
