"""`HypInv`: rules from the boundary points of a classifier."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from interpkit import (
    Inverter,
    Parts,
    Recipe,
    Recorder,
    RunError,
    StoredInversion,
    Target,
    UsageError,
    derive_seed,
    nearest,
    random_generator,
)
from interpkit_rules import trees
from interpkit_rules.points import RowOptions, feature_names, near_rows, uniform
from interpkit_rules.result import RulesInversion, features_of
from interpkit_rules.rules import Fidelity, Leaf, Plane, Rules, Split, classify, sides

log = logging.getLogger("interpkit")

NUDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""How far from the boundary an image is, as a share of the distance to the point from which the boundary was found."""
LEAST_DISTANCE = 0.02
"""Points nearer to the boundary are nudged as if they were this far from it."""
CELLS = 4
"""The number of cells of the confusion matrix, largest first, that a step tries before it gives up."""
LEAST_GAIN = 1e-6
PLANES = ("normals", "offsets", "classes", "origins")
STATE = (*PLANES, "points", "labels")

Planes = tuple[Tensor, Tensor, Tensor, Tensor]
"""Normals (K, F), offsets (K,), classes (K, 2) and origins (K,) of hyperplanes; see `Search`."""


class HypInv(Inverter):
    r"""Rules over hyperplanes that touch the classifier's boundary, learned by inversion.

    .. math:: \text{IF } n_i \cdot x > b_i \text{ and not } n_j \cdot x > b_j \ldots \text{ THEN class } c

    A step takes points of the largest cell of the confusion matrix of target and rules, finds the nearest boundary
    point of each (`interpkit.nearest`), and keeps the tangent hyperplane with which a decision tree over the sides of
    all hyperplanes agrees best with the target. If none improves it, as when it repeats an earlier hyperplane, the step
    tries the next cell. No step adds a hyperplane once the rules agree on a share of ``fidelity``, so ``steps`` is the
    maximum number of hyperplanes. For images, hyperplanes separate the features of a layer instead of pixels.

    The images are the boundary points, nudged to the side of their class. A class without such a point is empty.

    After Saad & Wunsch, "Neural network explanation using inversion" (2007): hyperplane rules by inversion, by its
    abstract; boundary points nearest to misclassified points and a decision tree over all hyperplanes, by the public
    implementation ``ruleex``. The choice among several points, the tangent as the hyperplane, the next cell, rules
    from another run's samples and rules over features of a layer are additions.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Linear(2, 2)
        >>> _ = net.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "bias": torch.tensor([0.0, -9])})
        >>> target = wrap(net, input_shape=(2,), input_range=(0, 10), class_names=["small", "large"])
        >>> inversion = invert(target, inverter="hypinv", steps=1)
        >>> inversion.classify(torch.tensor([[0.2, 0.3], [0.7, 0.8]]))  # the rule: x0 + x1 > 9
        tensor([0, 1])
    """

    name = "hypinv"
    ignores = ("optimizer", "micro_batch", "classes_per_batch", "compile")

    class Options(RowOptions):
        """What the rules are about, how many there are, and how well they should agree with the target."""

        rules: int = Field(10, ge=2, le=1000, description="maximum number of rules: leaves of the tree")
        fidelity: float = Field(0.99, gt=0, le=1, description="share of agreement at which no hyperplane is added")
        layer: str | None = Field(
            None, description="layer whose features the hyperplanes separate; the target's feature layer for images"
        )
        names: tuple[str, ...] = Field((), description="names of the features; the column names of a table if omitted")
        points: int = Field(2000, ge=10, le=1_000_000, description="points to learn from, noisy copies included")
        sigma: float = Field(0.15, gt=0, le=1, description="standard deviation of their noise, as a share of the range")
        held_out: float = Field(0.3, ge=0, lt=1, description="share of the rows on which the rules are tested")
        candidates: int = Field(8, ge=1, le=1000, description="boundary points to choose from in each step")

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> RulesInversion:
        """Add hyperplanes up to the recipe's last step; see `Inverter.invert`."""
        trees.need_trees()
        if target.multi_label:
            raise UsageError(
                f"the inverter 'hypinv' explains classes that exclude each other; those of {target.name} do not. Use "
                f"another inverter."
            )
        search = Search(target, recipe, self.options)
        recorder.resume(search)
        for step in recorder.training_steps(search):
            search.move()
            images, labels = search.points.flatten(0, 1), search.labels.flatten()
            error = torch.tensor(1 - search.agreement)
            recorder.step(step, error, {"disagreement": error}, images, search.logits(images), labels)
        return search.result(recorder)

    def load(self, stored: StoredInversion) -> RulesInversion:
        """Return the inversion that a run folder holds; see `Inverter.load`."""
        return RulesInversion.load(stored)


class Search:
    """The hyperplanes so far; a state to resume from, as `Recorder.resume` expects.

    Attributes:
        normals: (K, F) float64, unit normals in features of [0, 1], or of the layer.
        offsets: (K,) float64.
        classes: (K, 2) int64, the classes below and above each.
        origins: (K,) int64, the boundary point of each.
        points: (M, 2, *input_shape), pairs of images with the boundary between them.
        labels: (M, 2) int64, their classes.
        step: the last completed step.
    """

    def __init__(self, target: Target, recipe: Recipe, options: HypInv.Options) -> None:
        self.target, self.recipe, self.options = target, recipe, options
        self.device = torch.device(recipe.device)
        is_vector = len(target.input_shape) == 1
        self.layer = options.layer or (None if is_vector else target.feature_layer)
        drawn = random_generator(torch.device("cpu"), derive_seed(recipe.seed, HypInv.name, "points"))
        self.data = (
            uniform(target, options.points, drawn)
            if options.data is None
            else near_rows(target, options, options.points, options.sigma, options.held_out, drawn)
        )
        self.rng = random_generator(torch.device("cpu"), derive_seed(recipe.seed, HypInv.name))
        self.features, self.asked = self._features(self.data.learned), self._classes(self.data.learned)
        self.names = self._names()
        self.normals = torch.empty(0, self.features.shape[1], dtype=torch.float64)
        self.offsets = torch.empty(0, dtype=torch.float64)
        self.classes = torch.empty(0, 2, dtype=torch.int64)
        self.origins = torch.empty(0, dtype=torch.int64)
        self.points = torch.empty(0, 2, *target.input_shape)
        self.labels = torch.empty(0, 2, dtype=torch.int64)
        self.step = 0
        self._fit()

    def _names(self) -> tuple[str, ...]:
        count, stated = self.features.shape[1], self.options.names
        if stated and len(stated) != count:
            raise UsageError(
                f"hypinv.names has {len(stated)} names, and there are {count} features. Name each of them, or none."
            )
        return stated or feature_names(() if self.layer else self.data.columns, count)

    # --------------------------------------------------------------------------------- the target

    def logits(self, images: Tensor) -> Tensor:
        """Return the target's logits, (N, n) on the CPU."""
        with torch.no_grad():
            return torch.cat([self.target(part.to(self.device)).cpu() for part in images.split(self.recipe.batch_size)])

    def _classes(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        broken = int(logits.isnan().any(1).sum())
        if broken:
            raise UsageError(
                f"{self.target.name} returns NaN for {broken} of {len(images)} points, so it has no class there to "
                f"explain. Is its input range right, and are its weights intact?"
            )
        return logits.argmax(1)

    def _features(self, images: Tensor) -> Tensor:
        """Return features (N, F) float64 on the CPU: of the layer, or inputs in [0, 1]."""
        if self.layer is None:
            return images.double()
        with torch.no_grad():
            parts = images.split(self.recipe.batch_size)
            features = [features_of(self.target, part.to(self.device), self.layer).cpu() for part in parts]
        return torch.cat(features).double()

    def _tangents(self, points: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hyperplanes tangent to the boundary near points.

        Args:
            points: (B, *input_shape), on the boundary or close to it.
            above: (B,) int64, the class on one side.

        Returns:
            unit normals (B, F), which point to that class; offsets (B,); and the classes on the other side (B,).
        """
        with torch.enable_grad():
            images = points.to(self.device).requires_grad_()
            if self.layer is None:
                features, logits = images, self.target(images)
            else:
                response = self.target.respond(images, [self.layer])
                features, logits = response.features[self.layer], response.logits
            above = above.to(self.device)[:, None]
            below = logits.scatter(1, above, -torch.inf).argmax(1, keepdim=True)
            margin = (logits.gather(1, above) - logits.gather(1, below))[:, 0]
            (slope,) = torch.autograd.grad(margin.sum(), features, allow_unused=True)
        if slope is None:
            kind = next((w.dtype for w in self.target.parameters() if w.is_floating_point()), torch.float32)
            instead = (
                "Name the input of the layer that follows it, NAME:in"
                if kind == torch.float32
                else f"Its features are read as copies in float32, and the classifier has {kind}: wrap model.float()"
            )
            raise UsageError(
                f"the logits have no gradient with respect to the output of the layer {self.layer!r}. {instead}."
            )
        slope, features = (each.detach().flatten(1).cpu().double() for each in (slope, features))
        size = slope.norm(dim=1)
        # The margin corrects for points that are not exactly on the boundary.
        offsets = ((slope * features).sum(1) - margin.detach().cpu().double()) / size
        return slope / size[:, None], offsets, below[:, 0].cpu()

    # ----------------------------------------------------------------------------------- the step

    def _fit(self) -> None:
        """Fit the tree to the hyperplanes so far."""
        self.above = sides(self.features, self.normals, self.offsets)
        self.tree, self.agreement = self._grown(self.above)

    def _grown(self, above: Tensor) -> tuple[Leaf | Split, float]:
        tree = trees.fit(above, self.asked, self.options.rules)
        return tree, (classify(tree, above) == self.asked).double().mean().item()

    def move(self) -> None:
        """Add a hyperplane, unless the rules agree with the target or all that are found repeat earlier ones."""
        if len(self.normals) and self.agreement >= self.options.fidelity:
            return
        spare = None
        for start, to in self._cells():
            found = self._candidates(start, to)
            above = sides(self.features, found[0], found[1])
            gains = [self._grown(torch.cat([self.above, side[:, None]], 1))[1] - self.agreement for side in above.T]
            best = max(range(len(gains)), key=gains.__getitem__, default=0)
            if gains and gains[best] > LEAST_GAIN:
                self._add(found, best)
                return
            if spare is None:  # it may be of use beside the next one
                spare = next(((found, row) for row, side in enumerate(above.T) if not self._repeats(side)), None)
        if spare is not None:
            self._add(*spare)
        elif not len(self.points):
            name = self.target.class_names[int(self.asked[0])]
            raise RunError(
                f"no boundary was found from {len(self.asked):,} points ({self.data.source}): {self.target.name} "
                f"assigns all inputs that were tried to the class {name}. Name data of several classes (hypinv.data)."
            )

    def _repeats(self, side: Tensor) -> bool:
        """Return whether a hyperplane divides the points as an earlier one does."""
        same = (self.above == side[:, None]).double().mean(0)
        return bool(((same > 0.999) | (same < 0.001)).any())

    def _cells(self) -> Iterator[tuple[Tensor, int | None]]:
        """Yield points (B, *input_shape) of one cell of the confusion matrix, and the class that the tree names."""
        named = classify(self.tree, self.above)
        wrong = named != self.asked
        if not len(self.normals):
            middle = self.data.learned.mean(0, keepdim=True)
            yield middle, None
        pairs, counts = torch.stack([self.asked, named], 1)[wrong].unique(dim=0, return_counts=True)
        for place in counts.argsort(descending=True, stable=True)[:CELLS].tolist():
            own, other = pairs[place].tolist()
            rows = (wrong & (self.asked == own) & (named == other)).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=self.rng)[: self.options.candidates]]
            yield self.data.learned[rows], other

    def _candidates(self, start: Tensor, to: int | None) -> Planes:
        """Return the hyperplanes at the boundary points nearest to some points; keep images of both of their sides."""
        seed = int(torch.randint(2**31, (), generator=self.rng))
        found = nearest(self.target, start, to, seed=seed, device=self.device)
        rows, pairs = [], []
        for row in found.found.nonzero()[:, 0].tolist():
            edge, image = found.boundary[row], found.images[row]
            before = self._nudged(edge, start[row], int(found.before[row]))
            after = self._nudged(edge, 2 * edge - start[row], int(found.answers[row]), image)
            if before is not None and after is not None:
                rows.append(row)
                pairs.append(torch.stack([before, after]))
        if not rows:
            return self.normals[:0], self.offsets[:0], self.classes[:0], self.origins[:0]
        normals, offsets, below = self._tangents(found.boundary[rows], found.answers[rows])
        origins = torch.arange(len(rows)) + len(self.points)
        self.points = torch.cat([self.points, torch.stack(pairs)])
        self.labels = torch.cat([self.labels, torch.stack([found.before[rows], found.answers[rows]], 1)])
        known = normals.isfinite().all(1) & offsets.isfinite()  # the slope of a plateau has no direction
        return normals[known], offsets[known], torch.stack([below, found.answers[rows]], 1)[known], origins[known]

    def _nudged(self, boundary: Tensor, toward: Tensor, label: int, *others: Tensor) -> Tensor | None:
        """Return an image near the boundary that the target assigns to a class, in the precision that a run stores."""
        way = toward - boundary
        distance = way.norm().clamp_min(1e-12)
        lengths = torch.tensor(NUDGES) * distance.clamp_min(LEAST_DISTANCE) / distance
        images = boundary + lengths.view(-1, *[1] * boundary.dim()) * way
        images = torch.cat([images, *(other[None] for other in (*others, toward))]).clamp(0, 1)
        if images.dim() == 4:
            images = (images * 255).round() / 255
        right = (self._classes(images) == label).nonzero()[:, 0]
        return images[right[0]] if len(right) else None

    def _add(self, planes: Planes, row: int) -> None:
        """Add one of some hyperplanes."""
        for name, column in zip(PLANES, planes, strict=True):
            setattr(self, name, torch.cat([getattr(self, name), column[row : row + 1]]))
        self._fit()

    # --------------------------------------------------------------------------------- the result

    def result(self, recorder: Recorder) -> RulesInversion:
        """Return the rules so far."""
        if self.agreement < self.options.fidelity and self.step >= self.recipe.steps:
            log.warning(
                "the rules agree with the target on %.1f %% of the points, fewer than the %.1f %% asked for: allow "
                "more hyperplanes (steps) or more rules (hypinv.rules)",
                100 * self.agreement,
                100 * self.options.fidelity,
            )
        requested = range(self.target.num_classes) if self.recipe.labels is None else self.recipe.labels
        reached = set(self.labels.flatten().tolist())
        empty = {label: self._why_empty(label) for label in requested if label not in reached}
        return RulesInversion(
            self.target, self.recipe, recorder.history, self._rules(), self.points, self.labels, empty=empty
        )

    def _why_empty(self, label: int) -> str:
        own = int((self.asked == label).sum())
        if not own:
            return f"the target assigns none of the {len(self.asked):,} points to it ({self.data.source})"
        return f"no hyperplane for its {own:,} of {len(self.asked):,} points was sought in {self.step} steps"

    def _rules(self) -> Rules:
        """Return the rules in the user's units."""
        low, high = torch.zeros(self.features.shape[1]).double(), torch.ones(self.features.shape[1]).double()
        if self.layer is None:
            low, high = (limit.double().expand_as(low) for limit in (self.target.low, self.target.high))
        normals = self.normals / (high - low)
        offsets = self.offsets + normals @ low
        data = self.data

        def agreement(images: Tensor) -> float | None:
            if not len(images):
                return None
            named = classify(self.tree, sides(self._features(images), self.normals, self.offsets))
            return (named == self._classes(images)).double().mean().item()

        columns = zip(normals.tolist(), offsets.tolist(), self.classes.tolist(), self.origins.tolist(), strict=True)
        return Rules(
            layer=self.layer,
            features=self.names,
            ranges=tuple(zip(low.tolist(), high.tolist(), strict=True)),
            classes=tuple(self.target.class_names),
            planes=tuple(Plane(normal=n, offset=b, classes=c, point=p) for n, b, c, p in columns),
            tree=self.tree,
            fidelity=Fidelity(
                learned=self.agreement, held_out=agreement(data.held_out), near_data=agreement(data.near)
            ),
            source=data.source,
            points=len(data.learned),
            categorical=tuple(self.names[place] for place in data.categorical) if self.layer is None else (),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {"step": self.step, "rng": self.rng.get_state(), **{name: getattr(self, name) for name in STATE}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore such a state.

        Raises:
            RunError: it is of another run.
        """
        for name in STATE:
            own, kept = getattr(self, name), state_dict.get(name)
            if not isinstance(kept, Tensor) or kept.dtype != own.dtype or kept.shape[1:] != own.shape[1:]:
                raise RunError("the checkpoint does not fit its recipe.")
            setattr(self, name, kept)
        self.step = int(state_dict["step"])
        self.rng.set_state(state_dict["rng"])
        self._fit()
