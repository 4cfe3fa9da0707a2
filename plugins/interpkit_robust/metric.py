"""Whether the samples keep their label under perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Study, derive_seed, wilson
from interpkit_robust import perturbations

Perturb = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Changes images, given their labels and rows."""


class KeptLabels(Metric):
    r"""Share of samples that the target puts in the class asked for after a perturbation, by its size.

    - ``noise``: :math:`x + \sigma z`, z standard normal, cut to [0, 1]; by sigma, of a pixel in [0, 1].
    - ``pgd``: the worst that 10 steps of projected gradient ascent find in the L2 ball of a radius, from one random
      start (Madry et al. 2018, eq. 2), or have found in a smaller ball; by radius, of the whole image. They climb
      :math:`\max_{k \ne c} z_k - z_c` of the logits z (Carlini & Wagner 2017, f_6), since the slope of the
      cross-entropy vanishes where the target is sure. It is an upper bound: a stronger search may find more.

    ``kept`` in [0, 1], with its 95 % interval (Wilson 1927); ``clean`` is the share with no perturbation, which it is
    to be read against. At most 500 samples, spread evenly over all of them. Training images keep their label where
    noise that fools the target does not: Suhail & Sethi, section 3.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> images = torch.tensor([[0.8, 0.2], [0.2, 0.8]])  # 0.42 from the decision boundary
        >>> inversion = ImageInversion(target, Recipe(), [], images, labels=torch.tensor([0, 1]))
        >>> metrics = evaluate(inversion, metrics=["robustness"], options={"robustness.radius": [0.25, 0.75]})
        >>> {radius: row["kept"] for radius, row in metrics["robustness"]["pgd"].items()}
        {'0.25': 1.0, '0.75': 0.0}
    """

    name = "robustness"
    describe = {
        r"robustness\.clean": "Share in the class asked for before any perturbation.",
        r"robustness\.noise\..*\.kept": "Share that keep their class under noise of this standard deviation.",
        r"robustness\.pgd\..*\.kept": "Share that keep their class under the worst change found in this L2 ball.",
        r"robustness\.count": "Number of samples that were perturbed.",
    }

    class Options(interpkit.Options):
        """Sizes of the perturbations."""

        sigma: list[Annotated[float, Field(gt=0, le=10)]] = Field(
            [0.1, 0.2, 0.3, 0.5], description="standard deviations of the noise"
        )
        radius: list[Annotated[float, Field(gt=0)]] = Field([0.25, 0.5, 1.0, 2.0], description="radii of the L2 balls")
        steps: int = Field(10, ge=1, le=1000, description="steps of the search in a ball")
        samples: int = Field(500, ge=1, description="the most samples that are tried")

    options: Options

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``robustness``."""
        opt, total = self.options, len(study.images)
        few = min(total, opt.samples)
        by_class = study.samples.labels.argsort(stable=True)  # where the classes take turns, a stride would skip some
        rows = by_class[torch.arange(few) * total // few]
        images, labels = study.images[rows], study.samples.labels[rows]

        def rng(*purpose: str) -> torch.Generator:
            """Return a generator for all rows, so that neither batches nor other sizes change what is drawn for one."""
            return torch.Generator().manual_seed(derive_seed(study.rng.initial_seed(), *purpose))

        def noise(sigma: float) -> Perturb:
            drawn = sigma * perturbations.noise(images, rng("noise", f"{sigma:g}"))
            return lambda x, y, part: (x + drawn[part].to(x)).clamp(0, 1)

        def pgd(radius: float) -> Perturb:
            drawn = perturbations.random_delta(images, radius, "l2", rng("pgd", f"{radius:g}"))
            target, lag = study.target, perturbations.lag
            return lambda x, y, part: perturbations.pgd(
                target, x, y, radius, "l2", opt.steps, drawn[part].to(x), loss=lag
            )

        def right(which: Tensor, perturb: Perturb) -> Tensor:
            """Return those of some rows that keep their label."""

            def kept(some: slice) -> Tensor:
                part = which[some]
                x, y = images[part].to(study.device), labels[part].to(study.device)
                perturbed = perturb(x, y, part)
                with torch.no_grad():
                    return part[study.target.accepts(study.target(perturbed), y).cpu()]

            return torch.cat([which[:0], *study.in_batches(study.target, images[which], kept)])

        everything = torch.arange(len(images))
        with study.target.frozen(study.device):
            kept = right(everything, lambda x, y, part: x)
            found: dict[str, Any] = {"clean": len(kept) / len(images), "noise": {}, "pgd": {}, "count": len(images)}
            for sigma in opt.sigma:
                found["noise"][f"{sigma:g}"] = _share(len(right(everything, noise(sigma))), len(images))
            radii = sorted(opt.radius)  # what is lost in a ball is lost in every larger one
            if study.target.no_gradient:
                study.leave_out(f"{self.name}.pgd", f"it requires a gradient: {study.target.no_gradient}.")
                radii = []
            for radius in radii:
                kept = right(kept, pgd(radius))
                found["pgd"][f"{radius:g}"] = _share(len(kept), len(images))
        return {"robustness": found}


def _share(hits: int, count: int) -> dict[str, Any]:
    return {"kept": hits / count, "kept_interval": wilson(hits, count)}
