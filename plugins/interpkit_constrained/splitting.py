"""Operator splitting: alternate between the layers' affine maps and everything else, each by an exact projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interpkit_constrained.activations import onto_class
from interpkit_constrained.chain import Affine, Chain

DENSE = 4_000_000
"""The largest number of coefficients of a map that is kept as a matrix."""
NORM = 2.0
"""The largest singular value of each layer, in the units in which the splitting measures; found by trial."""
POWER = 30
"""Steps of the power iteration that finds it."""
SMALLEST = 1e-6
TYPICAL = 16
"""Random images whose activations set the scale of each layer."""


class Graph:
    r"""The graph of one affine map, :math:`\{(a, z) : z = W a + b\}`, and the projection onto it.

    With the residual :math:`r = W a' + b - z'` and :math:`(I + W W^\top) \lambda = r`, the nearest pair to (a', z') is
    :math:`(a' - W^\top \lambda, z' + \lambda)`. A small map is a matrix whose Cholesky factor is kept; a large one
    is only called, with its vector-Jacobian product, in conjugate gradients.

    Args:
        affine: the map.
        after: the unit in which z is measured. That of a, ``before``, makes the largest singular value of W `NORM`.
        iterations: of conjugate gradients.
    """

    def __init__(self, affine: Affine, after: float, iterations: int) -> None:
        self.after, self.before = after, 1.0
        self.iterations = iterations
        self._affine = affine
        self.bias = affine(torch.zeros(1, affine.inputs, dtype=torch.float64)) / after
        self._matrix: Tensor | None = None
        if affine.inputs * affine.outputs <= DENSE:
            columns = affine(torch.eye(affine.inputs, dtype=torch.float64))
            self._matrix = (columns / after - self.bias).T.contiguous()
        self.before = NORM / max(self._norm(), SMALLEST)
        if self._matrix is not None:
            self._matrix = w = self._matrix * self.before
            square = w @ w.T if affine.outputs <= affine.inputs else w.T @ w
            self._factor = torch.linalg.cholesky(square + torch.eye(len(square), dtype=torch.float64))

    def _norm(self) -> float:
        """Return the largest singular value of W, by power iteration."""
        rng = torch.Generator().manual_seed(0)
        a = torch.randn(1, self._affine.inputs, generator=rng, dtype=torch.float64)
        for _ in range(POWER):
            a = self.transposed(self.linear(a / a.norm().clamp_min(SMALLEST)))
        return float(a.norm().sqrt())

    def linear(self, a: Tensor) -> Tensor:
        """Return W a, (N, out), for a, (N, in)."""
        if self._matrix is not None:
            return a @ self._matrix.T
        return self._affine(a * self.before) / self.after - self.bias

    def transposed(self, z: Tensor) -> Tensor:
        """Return the transpose of W applied to z, (N, in)."""
        if self._matrix is not None:
            return z @ self._matrix
        origin = torch.zeros(len(z), self._affine.inputs, dtype=z.dtype, device=z.device)
        pull = torch.func.vjp(self._affine, origin)[1]
        product: Tensor = pull(z)[0]
        return product * (self.before / self.after)

    def project(self, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest pair of the graph to (a, z)."""
        step = self._solve(self.linear(a) + self.bias - z)
        return a - self.transposed(step), z + step

    def _solve(self, r: Tensor) -> Tensor:
        """Solve (I + W W^T) x = r."""
        if self._matrix is None:
            return conjugate_gradients(lambda x: x + self.linear(self.transposed(x)), r, self.iterations)
        if len(self._factor) == r.shape[1]:
            return torch.cholesky_solve(r.T, self._factor).T
        return r - torch.cholesky_solve((r @ self._matrix).T, self._factor).T @ self._matrix.T


def conjugate_gradients(operator: Callable[[Tensor], Tensor], r: Tensor, iterations: int) -> Tensor:
    """Solve A x = r for each row of r, (N, m); A is symmetric and positive definite.

    Args:
        operator: x -> A x, row by row.
        r: the right-hand sides.
        iterations: how many.
    """
    x, direction = torch.zeros_like(r), r
    size = (r * r).sum(1, keepdim=True)
    for _ in range(iterations):
        image = operator(direction)
        step = size / (direction * image).sum(1, keepdim=True).clamp_min(1e-300)
        x, r = x + step * direction, r - step * image
        before, size = size, (r * r).sum(1, keepdim=True)
        direction = r + size / before.clamp_min(1e-300) * direction
    return x


class Splitting:
    r"""Douglas-Rachford splitting (ADMM on the dual) over the layers of a chain, for N images at once.

    The unknowns u are the image x, and each layer's z and a. Two sets, or functions, share them:

    .. math:: A = \{z_l = W_l a_{l-1} + b_l\}, \qquad
              B = \{x \in [0, 1]^D,\; a_l = \sigma_l(z_l),\; z_L \in K_y\}
                  + \tfrac{\mu}{2} \lVert x - x_0 \rVert^2

    Each sweep is :math:`p = \mathrm{prox}_B(u)`, :math:`q = P_A(2 p - u)`, :math:`u \leftarrow u + q - p`. B is not
    convex, so nothing is promised: the images are judged by the target. Each layer's z is measured in units of its
    typical size, and what it reads in units that make its largest singular value `NORM`; without that, units that are
    off hardly ever turn on. The activations are positively homogeneous, so this only multiplies them by a constant.

    Args:
        chain: the target.
        start: x_0, (N, D) in [0, 1].
        labels: y, (N,).
        margin: the margin m of K_y, in logits.
        closeness: mu.
        iterations: of conjugate gradients, in large layers.

    Attributes:
        state: u, (N, D + sizes of all z and a).
    """

    def __init__(
        self, chain: Chain, start: Tensor, labels: Tensor, margin: float, closeness: float, iterations: int
    ) -> None:
        self.chain, self.start, self.labels = chain, start, labels
        self.margin, self.closeness = margin, closeness
        typical = torch.rand(TYPICAL, start.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sizes = [z.square().mean().sqrt().item() for z in self._layers(typical)[1::2]]
        after = [max(size, SMALLEST) for size in sizes]
        after[-1] = min(after[-1], margin)
        self.graphs = [Graph(affine, size, iterations) for affine, size in zip(chain.affine, after, strict=True)]
        self._units = [unit for graph in self.graphs for unit in (graph.before, graph.after)]
        layers = [layer / unit for layer, unit in zip(self._layers(start), self._units, strict=True)]
        self._split = [layer.shape[1] for layer in layers]
        self.state = torch.cat(layers, 1)

    def _layers(self, images: Tensor) -> list[Tensor]:
        """Return the image, and z and a of each layer; the last has no a."""
        layers = [images]
        for number, affine in enumerate(self.chain.affine):
            layers.append(affine(layers[-1]))
            if number < len(self.chain.activations):
                layers.append(self.chain.activations[number](layers[-1]))
        return layers

    def sweep(self) -> tuple[Tensor, Tensor]:
        """Take one step.

        Returns:
            the images, (N, D) in [0, 1], and the distance of the two projections, (N,).
        """
        x, *rest = self.state.split(self._split, 1)
        unit, *units = self._units
        images = ((unit * x + self.closeness * self.start) / (1 + self.closeness)).clamp(0, 1)
        parts = [images / unit]
        for number, activation in enumerate(self.chain.activations):
            z, a = rest[2 * number : 2 * number + 2]
            parts += activation.project(z, a, units[2 * number] / units[2 * number + 1])
        parts.append(onto_class(rest[-1], self.labels, self.margin / units[-1]))
        p = torch.cat(parts, 1)
        reflected = (2 * p - self.state).split(self._split, 1)
        pairs = zip(self.graphs, reflected[::2], reflected[1::2], strict=True)
        q = torch.cat([part for graph, a, z in pairs for part in graph.project(a, z)], 1)
        self.state = self.state + q - p
        return images, (q - p).norm(dim=1)
