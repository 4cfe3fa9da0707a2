"""A linear program in one region of linearity: the input with the largest margin, and a proof that none is larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interpkit_constrained.chain import Chain

if TYPE_CHECKING:
    from scipy import sparse  # slow to import

ZERO = 1e-12
"""Coefficients below this, relative to the largest of their row, are left out."""


@dataclass(frozen=True)
class Region:
    r"""The region of an input in which the target is affine: logits A x + c where G x <= h, within the box [0, 1].

    Attributes:
        logits: A, (n, D).
        offset: c, (n,).
        sides: G, (R, D), a sparse matrix; rows that hold in the whole box are left out.
        limits: h, (R,).
    """

    logits: np.ndarray
    offset: np.ndarray
    sides: sparse.csr_array
    limits: np.ndarray

    @classmethod
    def around(cls, chain: Chain, image: Tensor) -> Region:
        """Return the region of an image, (D,) in [0, 1], by moving the origin and all unit vectors through the chain.

        Args:
            chain: the target.
            image: float64.
        """
        from scipy import sparse

        points = torch.cat([torch.zeros_like(image)[None], torch.eye(len(image), dtype=image.dtype)])
        here = image[None]
        sides, limits = [], []
        for affine, activation in zip(chain.affine, chain.activations, strict=False):
            here, points = affine(here), affine(points)
            take, slope, above, below = activation.region(here[0])
            padded = torch.cat([points, torch.zeros(len(points), 1, dtype=points.dtype)], 1)  # place -1 is 0
            difference = padded[:, below] - padded[:, above]
            rows, limit = (difference[1:] - difference[0]).T.numpy(), -difference[0].numpy()
            binding = np.maximum(rows, 0).sum(1) > limit
            rows[np.abs(rows) <= ZERO * np.abs(rows).max(1, keepdims=True, initial=0)] = 0
            sides.append(sparse.csr_array(rows[binding]))
            limits.append(limit[binding])
            points, here = points[:, take] * slope, activation(here)
        points = chain.affine[-1](points)
        count = len(image)
        empty = sparse.csr_array((0, count))
        return cls(
            (points[1:] - points[0]).T.numpy(),
            points[0].numpy(),
            sparse.csr_array(sparse.vstack([empty, *sides])),
            np.concatenate([np.zeros(0), *limits]),
        )


def coefficients(chain: Chain) -> int:
    """Return the most coefficients that the linear program of a region can have."""
    return chain.affine[0].inputs * sum(affine.outputs for affine in chain.affine)


@dataclass(frozen=True)
class Certificate:
    """What a linear program says about the region of one image.

    Attributes:
        status: ``optimal``, ``time`` if the solver ran out of its time, ``failed`` if it gave up, or ``skipped`` if the
            program was too large, or the run was stopped before it.
        bound: no input of the region has a larger margin, in logits; None without one.
        image: the solver's input, (D,) in [0, 1]; None if it has none.
    """

    status: str
    bound: float | None = None
    image: Tensor | None = None


def largest_margin(region: Region, label: int, seconds: float) -> Certificate:
    r"""Maximize the margin of a class over a region.

    .. math:: \max_{x \in [0, 1]^D,\, t} t \quad \text{s.t.} \quad
              t \le (A_y - A_j) x + c_y - c_j \; (j \ne y), \quad G x \le h

    The bound is computed here from the solver's multipliers, and holds for any multipliers that are not negative: for
    :math:`\lambda \ge 0` of the sides and :math:`\mu \ge 0` of the margins, :math:`\sum_j \mu_j = 1`,

    .. math:: t \le \lambda^\top h + \sum_j \mu_j (c_y - c_j)
              + \sum_i \max\bigl(0, \bigl(\sum_j \mu_j (A_y - A_j) - G^\top \lambda\bigr)_i\bigr)

    Args:
        region: the region.
        label: y.
        seconds: the time that the solver may take.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    others = np.arange(len(region.offset)) != label
    slopes = region.logits[label] - region.logits[others]
    gaps = region.offset[label] - region.offset[others]
    count = slopes.shape[1]
    left = sparse.vstack(
        [
            sparse.hstack([sparse.csr_array(-slopes), sparse.csr_array(np.ones((len(slopes), 1)))]),
            sparse.hstack([region.sides, sparse.csr_array((len(region.limits), 1))]),
        ]
    )
    solved = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=sparse.csr_array(left),
        b_ub=np.concatenate([gaps, region.limits]),
        bounds=[(0, 1)] * count + [(None, None)],
        method="highs",
        options={"time_limit": seconds},
    )
    status = {0: "optimal", 1: "time"}.get(solved.status, "failed")
    multipliers = getattr(solved, "ineqlin", None)
    bound, image = None, None
    if multipliers is not None and multipliers.marginals is not None:
        weights = np.maximum(-multipliers.marginals, 0)
        mu, side = weights[: len(gaps)], weights[len(gaps) :]
        mu = mu / mu.sum() if mu.sum() > 0 else np.full(len(gaps), 1 / len(gaps))
        reduced = mu @ slopes - region.sides.T @ side
        bound = float(side @ region.limits + mu @ gaps + np.maximum(reduced, 0).sum())
    if solved.x is not None:
        image = torch.from_numpy(np.clip(solved.x[:count], 0, 1))
    return Certificate(status, bound, image)
