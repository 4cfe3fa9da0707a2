"""The robustness regulariser as a term of the inversion loss."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import GeneratedBatch, InversionBatch, InversionLoss, Target, UsageError
from interpkit_robust import perturbations

Kind = Literal["gaussian", "linf", "l2", "pgd", "affine", "jitter"]


class Robustness(InversionLoss):
    r"""Cross-entropy of the requested label on perturbed images.

    .. math:: L_{robust} = -\frac{1}{B K} \sum_b \sum_k \log Q(y_b \mid x_b + \delta_{bk}),
              \qquad \delta_{bk} \in \text{the bound of kind } k

    One perturbation of each kind is drawn per image and step, and the target classifies all of them in one forward
    pass; ``pgd`` alone needs further passes, one per step of its search. Source: section 3.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_robust import Robustness
        >>> linear = torch.nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> target = wrap(linear, input_shape=(2,))
        >>> robust = Robustness(target, Robustness.Options(kinds=["pgd"], pgd_norm="linf", epsilon=0.25))
        >>> image = torch.tensor([[0.75, 0.25]])  # within 0.25 of the decision boundary
        >>> testing.evaluate_loss(robust, target, image, labels=[0])  # log 2
        tensor(0.6931)
    """

    name = "robust"

    class Options(interpkit.Options):
        """Which perturbations, and their bounds in units of the image's range [0, 1]."""

        kinds: list[Kind] | None = Field(
            None,
            min_length=1,
            description="perturbations: gaussian, linf, l2, pgd, affine, jitter (affine, then gaussian); repeat a kind "
            "to draw it more than once; by default gaussian, pgd and, for images, affine",
        )
        sigma: float = Field(0.5, gt=0, le=10, description="gaussian: largest standard deviation, per pixel")
        grain: int | None = Field(
            None,
            ge=1,
            le=1024,
            description="gaussian: side in pixels of the squares of the noise, because classifiers of large images "
            "average that of single pixels away; by default a 32nd of the image's shorter side, and at least 1",
        )
        epsilon: float = Field(0.1, gt=0, le=1, description="linf, and pgd in that norm: largest change of a pixel")
        radius: float = Field(1.5, gt=0, description="l2, and pgd in that norm: largest L2 norm of the perturbation")
        pgd_norm: Literal["linf", "l2"] = Field("l2", description="pgd: norm of the ball that is searched")
        pgd_steps: int = Field(3, ge=1, le=1000, description="pgd: number of gradient steps")
        degrees: float = Field(15.0, ge=0, le=180, description="affine: largest rotation, in degrees")
        shift: float = Field(0.1, ge=0, le=1, description="affine: largest shift, as a fraction of the side")
        scale: float = Field(0.15, ge=0, lt=1, description="affine: largest relative change of size")
        occlusion: float = Field(
            0.0,
            ge=0,
            le=1,
            description="jitter: longest side of a rectangle that is covered, as a fraction of the side",
        )

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        images = len(target.input_shape) == 3
        usual: list[Kind] = ["gaussian", "pgd", "affine"] if images else ["gaussian", "pgd"]
        self.kinds = self.options.kinds or usual
        geometric = {"affine", "jitter"} & set(self.kinds)
        if geometric and not images:
            raise UsageError(
                f"robust.kinds: {', '.join(sorted(geometric))} needs images; {target.name} classifies vectors. "
                f"Leave it out."
            )

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor:
        """Return (K * B, ...) perturbed images, kind by kind."""
        return torch.cat([self._perturb(kind, batch, rng) for kind in self.kinds])

    def _perturb(self, kind: Kind, batch: GeneratedBatch, rng: torch.Generator) -> Tensor:
        opt, images = self.options, batch.images
        grain = (opt.grain or max(1, min(images.shape[2:]) // 32)) if images.dim() == 4 else 1
        if kind == "gaussian":
            return perturbations.gaussian(images, opt.sigma, rng, grain)
        if kind == "linf":
            return perturbations.in_ball(images, opt.epsilon, "linf", rng)
        if kind == "l2":
            return perturbations.in_ball(images, opt.radius, "l2", rng)
        if kind in ("affine", "jitter"):
            if kind == "jitter" and opt.occlusion:
                images = perturbations.occlude(images, opt.occlusion, rng)
            moved = perturbations.affine(images, opt.degrees, opt.shift, opt.scale, rng)
            return moved if kind == "affine" else perturbations.gaussian(moved, opt.sigma, rng, grain)
        bound = opt.epsilon if opt.pgd_norm == "linf" else opt.radius
        return perturbations.pgd(batch.target, images, batch.condition.labels, bound, opt.pgd_norm, opt.pgd_steps, rng)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy on the perturbed images, a scalar."""
        assert batch.view_response is not None  # because `views` returned some
        labels = batch.condition.labels.repeat(len(self.kinds))
        return batch.target.cross_entropy(batch.view_response.logits, labels).mean()
