"""How alike images are: cosine, pooled pictures, and the Vendi score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 1000
"""Rows of a table of pairs that are in memory at once."""


def directions(vectors: Tensor) -> Tensor:
    """Return unit vectors (N, D + 1) float64 whose inner products are the cosines of vectors (N, ...).

    A zero vector has no direction; the last coordinate makes it like other zero vectors and unlike all else.
    """
    flat = vectors.flatten(1).double()
    zero = (flat.norm(dim=1, keepdim=True) == 0).double()
    return torch.cat([F.normalize(flat, dim=1), zero], 1)


def pooled(images: Tensor, size: int) -> Tensor:
    """Return images (N, C, H, W) average-pooled in squares of ``size`` pixels, at most the image; vectors as they are.

    What fine noise adds to a picture is averaged away, so that it does not count as variety.
    """
    if images.dim() == 2:
        return images
    height, width = images.shape[2:]
    return F.avg_pool2d(images, (min(size, height), min(size, width)))


def vendi(units: Tensor) -> float:
    r"""Return the Vendi score of unit vectors, in [1, N]: how many wholly different ones they are worth.

    .. math:: \exp\Big(-\sum_i \lambda_i \log \lambda_i\Big), \qquad \lambda = \text{eigenvalues of } K / N,
              \quad K_{ij} = u_i \cdot u_j

    Source: Friedman & Dieng 2023, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", eq. 2.

    Args:
        units: (N, D), rows of length 1.
    """
    gram = units @ units.T if len(units) <= units.shape[1] else units.T @ units  # the same eigenvalues but zeros
    spectrum = torch.linalg.eigvalsh(gram / len(units)).clamp_min(0)
    return float(torch.special.entr(spectrum).sum().exp())


def kernel_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the unbiased squared maximum mean discrepancy under the kernel of KID; about 0 for the same law.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{n (n - 1)}
              - \frac{2}{m n} \sum_{i, j} k(x_i, y_j), \qquad k(a, b) = (a \cdot b / D + 1)^3

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", section 4.3; there on Inception's features. It may be
    negative.

    Args:
        x: (m, D), m at least 2.
        y: (n, D), n at least 2.
    """
    x, y = x.double(), y.double()

    def total(a: Tensor, b: Tensor) -> Tensor:
        """Return the sum of the kernel over all pairs, some rows at a time, as many classes make many pairs."""
        return torch.stack([((rows @ b.T / a.shape[1] + 1) ** 3).sum() for rows in a.split(ROWS_AT_ONCE)]).sum()

    def among(a: Tensor) -> Tensor:
        itself = ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()
        return (total(a, a) - itself) / (len(a) * (len(a) - 1))

    return float(among(x) + among(y) - 2 * total(x, y) / (len(x) * len(y)))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the Euclidean distances (m, n) float64 of the rows of (m, ...) to those of (n, ...)."""
    exact = "donot_use_mm_for_euclid_dist"  # by products of matrices, equal vectors come out a little apart
    return torch.cdist(x.flatten(1).double(), y.flatten(1).double(), compute_mode=exact)
