"""Test whether to trust a map: completeness, infidelity, sensitivity, randomized weights, and deletion.

Each test requires an `Explainer`, images, the classes explained, and the explainer's maps of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpkit.attribution.evidence import rank_correlation
from interpkit.attribution.explainer import Explainer
from interpkit.errors import UsageError
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.random import derive_seed, global_seed, random_generator

DRAWS = 20
"""Perturbations per image for infidelity."""
STAGES = 4
"""Steps in which the weights are randomized."""


@with_autograd
def completeness(explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor) -> dict[str, float]:
    r"""Return how far the sum of each map is from the score's difference to the baseline.

    Let :math:`\delta = \sum_i a_i - (f(x) - f(x'))` (Captum's convergence delta; Sundararajan et al. 2017,
    proposition 1), where :math:`f(x')` is the mean over all baselines. ``relative_error`` is
    :math:`\sum |\delta| / \sum |f(x) - f(x')|` over the images, at least 0; ``worst`` is the largest
    :math:`|\delta|` in logits.
    """
    differences = explainer.differences(images, classes)
    deltas = maps.flatten(1).sum(1) - differences
    whole = differences.abs().sum().item()
    return {
        "relative_error": deltas.abs().sum().item() / whole if whole > 0 else 0.0,
        "worst": deltas.abs().max().item(),
    }


@with_autograd
def infidelity(explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor) -> float:
    r"""Return the share of the score's changes that the maps do not predict, in [0, 1]; 0 is best.

    Infidelity (Yeh et al. 2019, definition 2.1 with the optimal scale) is

    .. math:: \min_\beta E_I (\beta I^T a - (f(x) - f(x - I)))^2,

    here divided by :math:`E_I (f(x) - f(x - I))^2`, its value for maps of zeros. A perturbation sets a random
    rectangle (for vectors, a random range of features), up to half of each side long, to the first baseline. For
    gradients I is the removed part of the image; for contributions it is 1 at the removed pixels.
    """
    target, device = explainer.target, explainer.device
    baseline = explainer.baselines[:1].to(device)
    sides = images.shape[2:] if images.dim() == 4 else images.shape[1:]
    rng = random_generator(torch.device("cpu"), derive_seed(explainer.seed, "infidelity"))
    numbers = torch.rand(len(images) * DRAWS, len(sides), 2, generator=rng)
    scores = explainer.scores(images, classes).double().repeat_interleave(DRAWS)
    changes, predicted = torch.zeros_like(scores), torch.zeros_like(scores)
    with target.frozen(device), torch.no_grad():
        for part in torch.arange(len(numbers)).split(explainer.rows):
            rows = part // DRAWS
            shown = images[rows].to(device)
            mask = _rectangles(numbers[part], sides).to(device)
            mask = (mask[:, None] if images.dim() == 4 else mask).expand_as(shown)
            taken = (shown - baseline) * mask
            changes[part] = scores[part] - explainer.scores(shown - taken, classes[rows])
            removed = (taken if explainer.method.local else mask) * maps[rows].to(device)
            predicted[part] = removed.flatten(1).sum(1).cpu().double()
    changes, predicted = changes.view(-1, DRAWS), predicted.view(-1, DRAWS)
    squares, whole = predicted.square().sum(1), changes.square().sum().item()
    told = ((predicted * changes).sum(1).square() / squares)[squares > 0].sum().item()
    return min(1.0, max(0.0, 1 - told / whole)) if whole > 0 else 0.0


def _rectangles(numbers: Tensor, sides: Sequence[int]) -> Tensor:
    """Return masks (B, *sides) that are 1 in a rectangle, from numbers (B, sides, 2) in [0, 1): length and place."""
    mask = torch.ones(len(numbers), *sides)
    for axis, side in enumerate(sides):
        length = 1 + (numbers[:, axis, :1] * max(1, side // 2)).floor()
        first = (numbers[:, axis, 1:] * (side - length + 1)).floor()
        place = torch.arange(side)
        inside = (place >= first) & (place < first + length)
        mask *= inside.view(-1, *(side if a == axis else 1 for a in range(len(sides))))
    return mask


@with_autograd
def sensitivity(
    explainer: Explainer, images: Tensor, classes: Tensor, *, radius: float = 0.02, draws: int = 5
) -> float:
    r"""Return the largest relative change of a map for small changes of the image, at least 0.

    :math:`\max_e |a(x + e) - a(x)| / |a(x)|` over ``draws`` random e with :math:`|e|_\infty \le` ``radius``,
    averaged over the images (Yeh et al. 2019, definition 3.1). Uses ``captum.metrics.sensitivity_max``.
    """
    from captum.metrics import sensitivity_max

    def explain(inputs: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor]:
        shown = inputs[0] if isinstance(inputs, tuple) else inputs
        classes = target.expand(len(shown)) if len(target) == 1 else target  # Captum repeats only several
        return (explainer.maps(shown, classes),)  # for a bare tensor Captum would use only the first image's map

    with global_seed(derive_seed(explainer.seed, "sensitivity"), torch.device("cpu")):
        worst = sensitivity_max(
            explain,
            images,
            perturb_radius=radius,
            n_perturb_samples=draws,
            max_examples_per_batch=len(images),  # the same rows in each call, so that a method draws the same for them
            target=classes,
        )
    return float(worst.double().mean())


@with_autograd
def weight_randomisation(
    explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor, *, stages: int = STAGES
) -> list[dict[str, Any]]:
    """Compare the maps with those of the same network after randomizing more and more of its weights.

    A method whose maps hardly change does not explain what the network has learned (Adebayo et al. 2018, section 3,
    cascading randomization). Layers are randomized on a copy, from the last defined (the logits') to the first: each
    weight is redrawn from a normal distribution with its tensor's mean and standard deviation.

    Returns:
        one row per stage: ``randomised``, the number of randomized layers, out of ``layers``; ``rank_correlation`` of
        the maps and ``rank_correlation_absolute`` of their absolute values, both Spearman's, in [-1, 1], over the
        pixels where either is not zero, averaged over the images, None if all maps are constant. A faithful method
        ends near 0.

    Raises:
        UsageError: the target cannot be copied, or has no weights that can be changed.
    """
    try:
        with torch.no_grad():  # otherwise TorchScript copies its weights by a differentiable operation
            target = copy.deepcopy(explainer.target)
    except Exception as error:  # raised by the user's module
        raise UsageError(
            f"{explainer.target.name} cannot be copied, so its weights are not randomized: {error}"
        ) from error
    layers = [layer for layer in target.modules() if any(True for _ in layer.parameters(recurse=False))][::-1]
    if not layers:
        raise UsageError(f"{explainer.target.name} has no weights that can be changed, so they are not randomized.")
    other = explainer.on(target)
    rng = random_generator(torch.device("cpu"), derive_seed(explainer.seed, "randomisation"))
    rows: list[dict[str, Any]] = []
    done = 0
    for until in sorted({round(len(layers) * (stage + 1) / stages) or 1 for stage in range(stages)}):
        for layer in layers[done:until]:
            for weight in layer.parameters(recurse=False):
                if weight.is_floating_point():
                    _redraw(weight, rng)
        done = until
        randomized = other.maps(images, classes)
        rows.append(
            {
                "randomised": done,
                "layers": len(layers),
                "rank_correlation": _alike(maps, randomized),
                "rank_correlation_absolute": _alike(maps.abs(), randomized.abs()),
            }
        )
    return rows


@torch.no_grad()
def _redraw(weight: Tensor, rng: torch.Generator) -> None:
    values = weight.float()
    fresh = torch.randn(values.shape, generator=rng).to(weight.device)
    weight.copy_(values.mean() + values.std(correction=0) * fresh)


def _alike(maps: Tensor, others: Tensor) -> float | None:
    """Return the mean rank correlation over the pixels where either map of an image is not zero.

    Pixels where both are zero, for example because the image equals the baseline there, do not depend on the weights.
    """
    pairs = zip(maps.flatten(1), others.flatten(1), strict=True)
    kept = [torch.stack([one, other])[:, (one != 0) | (other != 0)] for one, other in pairs]
    values = torch.cat([rank_correlation(pair[:1], pair[1:]) for pair in kept if pair.shape[1]] or [torch.empty(0)])
    values = values[values.isfinite()]
    return values.mean().item() if len(values) else None


@with_autograd
@torch.no_grad()
def deletion(explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor, *, steps: int = 20) -> Tensor:
    r"""Return the area under the deletion curve of each image, (N,) in [0, 1]; lower is better.

    Pixels are set to the first baseline in descending order of evidence (summed over the channels). The curve is the
    probability of the class as a function of the share of deleted pixels, integrated by the trapezoidal rule (Petsiuk
    et al. 2018, section 3.2). Compare with random maps. A single map, (1, *input_shape), applies to all images.
    """
    evidence = maps.sum(1) if maps.dim() == 4 else maps
    order = evidence.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(evidence.shape).expand(len(images), *evidence.shape[1:])
    rank = rank[:, None] if maps.dim() == 4 else rank
    pixels, target, device = order.shape[1], explainer.target, explainer.device
    areas = []
    with target.frozen(device):
        for part in torch.arange(len(images)).split(explainer.rows):
            shown, asked, ranked = (t[part].to(device) for t in (images, classes, rank))
            baseline = explainer.baselines[:1].to(device)
            curve = []
            for step in range(steps + 1):
                left = torch.where(ranked < round(pixels * step / steps), baseline, shown)
                curve.append(target.probabilities(target(left)).gather(1, asked[:, None])[:, 0])
            areas.append(torch.trapezoid(torch.stack(curve, 1), dx=1 / steps).cpu())
    return torch.cat(areas)
