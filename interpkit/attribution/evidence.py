"""Class evidence: the mean attribution map of each class, and the agreement of two such maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassEvidence:
    """Mean and spread of the maps of each class.

    Attributes:
        labels: (K,) int64, the classes in ascending order.
        mean: (K, *input_shape) float32, the mean maps.
        spread: (K, *input_shape) float32, the standard deviations (n - 1; zero for a single map).
        count: (K,) int64, the number of maps per class.
    """

    labels: Tensor
    mean: Tensor
    spread: Tensor
    count: Tensor


def class_evidence(maps: Tensor, labels: Tensor) -> ClassEvidence:
    """Return the mean and spread of the maps of each class, for example over its inverted samples.

    Args:
        maps: (N, *input_shape), N at least 1.
        labels: (N,) int64.

    Example:
        >>> import torch
        >>> from interpkit import class_evidence
        >>> maps = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
        >>> evidence = class_evidence(maps, labels=torch.tensor([0, 0, 1]))
        >>> evidence.mean, evidence.count
        (tensor([[2., 0.],
                [0., 5.]]), tensor([2, 1]))
    """
    classes, count = labels.unique(return_counts=True)
    groups = [maps[labels == label].double() for label in classes.tolist()]
    mean = torch.stack([group.mean(0) for group in groups])
    spread = torch.stack([group.std(0, correction=int(len(group) > 1)) for group in groups])
    return ClassEvidence(classes, mean.float(), spread.float(), count)


def evidence_agreement(one: ClassEvidence, other: ClassEvidence) -> dict[int, dict[str, float | None]]:
    """Compare the mean maps of each class that both have, for example of inverted and of real images.

    Returns:
        by class, ``cosine`` similarity and Spearman's ``rank_correlation``, both in [-1, 1]: 1 for maps that are equal
        up to a factor, or have the same order of pixels; None if a map is zero or constant.

    Example:
        >>> import torch
        >>> from interpkit import class_evidence, evidence_agreement
        >>> labels = torch.tensor([0])
        >>> inverted = class_evidence(torch.tensor([[1.0, 2.0, 3.0]]), labels)
        >>> real = class_evidence(torch.tensor([[2.0, 4.0, 6.0]]), labels)
        >>> agreement = evidence_agreement(inverted, real)[0]
        >>> round(agreement["cosine"], 3), round(agreement["rank_correlation"], 3)
        (1.0, 1.0)
    """
    found: dict[int, dict[str, float | None]] = {}
    for label in sorted(set(one.labels.tolist()) & set(other.labels.tolist())):
        first, second = (e.mean[e.labels == label].flatten(1) for e in (one, other))
        zero = not (first.any() and second.any())
        one_map, other_map = (maps.double() / maps.abs().amax() for maps in (first, second))  # faint maps are maps
        found[label] = {
            "cosine": None if zero else F.cosine_similarity(one_map, other_map)[0].item(),
            "rank_correlation": _finite(rank_correlation(first, second)[0].item()),
        }
    return found


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps, (N,) float64 in [-1, 1]; NaN if one is constant."""
    from scipy.stats import rankdata  # which takes a second to import

    ranks = [torch.from_numpy(rankdata(maps.flatten(1).numpy(), axis=1)) for maps in (one, other)]
    first, second = (r - r.mean(1, keepdim=True) for r in ranks)
    scale = (first.norm(dim=1) * second.norm(dim=1)).numpy()
    product = (first * second).sum(1).numpy()
    return torch.from_numpy(np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
