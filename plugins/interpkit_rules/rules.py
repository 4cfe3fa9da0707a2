"""`Rules`: hyperplanes and a decision tree over their sides, as rules.json stores them and rules.txt reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from interpkit import percent

MOST_TERMS = 8
"""Terms of a hyperplane that are written out, those with the largest influence first."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Plane(_Part):
    r"""The hyperplane :math:`n \cdot x = b`; a point is above it if :math:`n \cdot x > b`.

    Attributes:
        normal: n, one coefficient per feature, in the user's units. It is scaled such that :math:`n \cdot x - b` is the
            distance from the hyperplane with each feature measured in shares of its range.
        offset: b.
        classes: the classes below and above it, at the boundary point to which it is tangent.
        point: the number of this boundary point.
    """

    normal: tuple[float, ...]
    offset: float
    classes: tuple[Count, Count]
    point: Count


class Leaf(_Part):
    """The end of a rule.

    Attributes:
        label: the class.
        points: how many of the points that the tree was learned from satisfy the rule.
        agreement: the share of them that the target assigns to this class.
    """

    label: Count
    points: Count
    agreement: Share


class Split(_Part):
    """A question of the tree: on which side of a hyperplane is the point?"""

    plane: Count
    below: Leaf | Split
    above: Leaf | Split


class Fidelity(_Part):
    """The shares of points for which the rules and the target name the same class; None where there are no points.

    Attributes:
        learned: of the points that the tree was learned from.
        held_out: of rows that were held out; without data, of further uniform points.
        near_data: of the held-out rows with Gaussian noise.
    """

    learned: Share
    held_out: Share | None
    near_data: Share | None


class Rules(_Part):
    """Everything that rules.json holds.

    Attributes:
        layer: the layer whose features the hyperplanes separate; None for those of the input.
        features: names of the features.
        ranges: the range of each, in the user's units; (0, 1) for those of a layer.
        classes: names of the target's classes.
        planes: the hyperplanes.
        tree: the decision tree over their sides.
        fidelity: how often the rules agree with the target.
        source: where the points came from, in words.
        points: how many points the tree was learned from.
        categorical: features that look like categories.
    """

    layer: str | None
    features: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    classes: tuple[str, ...]
    planes: tuple[Plane, ...]
    tree: Leaf | Split
    fidelity: Fidelity
    source: str
    points: Count
    categorical: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fit_together(self) -> Rules:
        sizes = {len(self.ranges), *(len(plane.normal) for plane in self.planes)}
        nodes = [self.tree]
        while nodes:
            node = nodes.pop()
            if isinstance(node, Split):
                nodes += [node.below, node.above]
            if node.plane >= len(self.planes) if isinstance(node, Split) else node.label >= len(self.classes):
                raise ValueError("the tree names a hyperplane or a class that does not exist")
        if sizes != {len(self.features)} or any(max(plane.classes) >= len(self.classes) for plane in self.planes):
            raise ValueError("the hyperplanes do not fit the features and classes")
        if not all(map(math.isfinite, map(self._largest, self.planes))):
            raise ValueError("the numbers of a hyperplane are too large")
        return self

    def sides(self, features: Tensor) -> Tensor:
        """Return on which side of each hyperplane points lie, (N, K) bool, of features (N, F) in the user's units."""
        return sides(
            features,
            torch.tensor([plane.normal for plane in self.planes], dtype=torch.float64).view(-1, len(self.features)),
            torch.tensor([plane.offset for plane in self.planes], dtype=torch.float64),
        )

    def classify(self, features: Tensor) -> Tensor:
        """Return the class that the rules name, (N,) int64, of features (N, F) in the user's units."""
        return classify(self.tree, self.sides(features))

    @property
    def paths(self) -> list[tuple[list[tuple[int, bool]], Leaf]]:
        """The rules: conditions, each a hyperplane and whether the point is above it, and the leaf that they lead to.

        They are sorted by class, and within a class by points, most first.
        """
        found = list(_paths(self.tree, []))
        return sorted(found, key=lambda path: (path[1].label, -path[1].points))

    @property
    def complexity(self) -> dict[str, int]:
        """The number of rules, of hyperplanes that they use, and of conditions in all rules together."""
        conditions = [plane for path, _ in self.paths for plane, _ in path]
        return {"rules": len(self.paths), "planes": len(set(conditions)), "conditions": len(conditions)}

    def _largest(self, plane: Plane) -> float:
        spans = zip(plane.normal, self.ranges, strict=True)
        return max(1.0, abs(plane.offset), *(abs(n) * max(abs(low), abs(high)) for n, (low, high) in spans))

    def inequality(self, plane: Plane) -> str:
        """Return what it means to be above a hyperplane: ``0.41 petal width + 0.2 petal length > 1.6``.

        Numbers have enough digits that the hyperplane moves by about 1/10,000 of the features' ranges at most.
        """
        digits = 4 + round(math.log10(self._largest(plane)))
        influence = [abs(n) * (high - low) for n, (low, high) in zip(plane.normal, self.ranges, strict=True)]
        order = sorted(range(len(influence)), key=lambda i: -influence[i])
        shown = [i for i in order if plane.normal[i]][:MOST_TERMS]
        terms = [
            f"{'-' if plane.normal[i] < 0 else '+'} {abs(plane.normal[i]):.{digits}g} {self.features[i]}" for i in shown
        ]
        rest = sum(map(bool, plane.normal)) - len(shown)
        more = f" + {rest} smaller terms" * (rest > 0)
        return f"{' '.join(terms).removeprefix('+ ')}{more} > {plane.offset:.{digits}g}"

    def condition(self, path: Sequence[tuple[int, bool]]) -> str:
        """Return the conditions of a rule: ``P1 and not P2``."""
        return " and ".join(f"{'not ' * (not above)}P{plane + 1}" for plane, above in sorted(path)) or "always"

    @property
    def summary(self) -> str:
        """What the rules are worth, in two or three sentences."""
        size, fidelity = self.complexity, self.fidelity
        near = "" if fidelity.near_data is None else f", and for {percent(fidelity.near_data)} of points near them"
        if fidelity.held_out is None:
            agreed = f"{percent(fidelity.learned)} of the points that they were learned from"
        else:
            agreed = f"{percent(fidelity.held_out)} of held-out points{near}"
        told = (
            f"{_several(size['rules'], 'rule')} over {_several(size['planes'], 'hyperplane')}, learned from "
            f"{self.points:,} points ({self.source}). They name the same class as the classifier for {agreed}."
        )
        if self.categorical:
            told += f" Treated as quantities, though they look like categories: {', '.join(self.categorical)}."
        return told

    def text(self) -> str:
        """Return the rules as text."""
        names = self.classes
        where = "" if self.layer is None else f"Features of the layer {self.layer}.\n"
        planes = [
            f"P{number}: {self.inequality(plane)}   ({names[plane.classes[0]]} | {names[plane.classes[1]]})\n"
            for number, plane in enumerate(self.planes, 1)
        ]
        rules = [
            f"IF {self.condition(path)} THEN {names[leaf.label]}   "
            f"({leaf.points:,} points, {percent(leaf.agreement)})\n"
            for path, leaf in self.paths
        ]
        return f"{self.summary}\n{where}\n{''.join(planes)}\n{''.join(rules)}"


def sides(features: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Return whether points (N, F) are above hyperplanes, normals (K, F) and offsets (K,): (N, K) bool."""
    return features.double() @ normals.T > offsets


def classify(tree: Leaf | Split, above: Tensor) -> Tensor:
    """Return the class of each point, (N,) int64, by a tree, from its sides (N, K)."""
    if isinstance(tree, Leaf):
        return torch.full((len(above),), tree.label)
    return torch.where(above[:, tree.plane], classify(tree.above, above), classify(tree.below, above))


def _paths(node: Leaf | Split, before: list[tuple[int, bool]]) -> Iterator[tuple[list[tuple[int, bool]], Leaf]]:
    if isinstance(node, Leaf):
        yield before, node
    else:
        yield from _paths(node.below, [*before, (node.plane, False)])
        yield from _paths(node.above, [*before, (node.plane, True)])


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
