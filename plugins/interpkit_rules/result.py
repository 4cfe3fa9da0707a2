"""`RulesInversion`: the result of ``hypinv``, rules beside the boundary points that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor

from interpkit import ImageInversion, Recipe, RunError, Section, StepRecord, StoredInversion, Strip, Target, percent
from interpkit_rules.rules import Rules

RULES_FILE, POINTS_FILE = "rules.json", "boundary.safetensors"


class RulesInversion(ImageInversion):
    """Rules for the classes of a target, and images from either side of its boundary.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the history of the run.
        rules: the rules.
        points: (M, 2, *input_shape) in [0, 1], pairs with the boundary between them.
        labels: (M, 2) int64, the class of each.
        empty: the classes without an image, each with the reason.
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        rules: Rules,
        points: Tensor,
        labels: Tensor,
        *,
        empty: Mapping[int, str],
    ) -> None:
        wanted = torch.tensor(range(target.num_classes) if recipe.labels is None else recipe.labels)
        own = torch.isin(labels.flatten(), wanted)
        super().__init__(target, recipe, history, points.flatten(0, 1)[own], labels.flatten()[own], empty=empty)
        self.rules = rules
        self.points = points
        self.point_labels = labels

    def classify(self, images: Tensor) -> Tensor:
        """Return the classes that the rules name, (N,) int64, for images (N, *input_shape) in [0, 1]."""
        with self.target.frozen(self.device), torch.no_grad():
            return self.rules.classify(features_of(self.target, images, self.rules.layer))

    def files(self) -> dict[str, bytes]:
        """Return rules.json, rules.txt, and the boundary points, 8-bit for images."""
        points = self.points if self.points.dim() == 3 else (self.points * 255).round().byte()
        return {
            RULES_FILE: self.rules.model_dump_json(indent=1).encode(),
            "rules.txt": self.rules.text().encode(),
            POINTS_FILE: safetensors.torch.save({"points": points.contiguous(), "labels": self.point_labels}),
        }

    @classmethod
    def load(cls, stored: StoredInversion) -> RulesInversion:
        """Return the inversion that a run folder holds.

        Raises:
            RunError: its files do not fit each other or the target.
        """
        target, tensors = stored.target, stored.tensors(POINTS_FILE)
        try:
            rules = Rules.model_validate_json(stored.read(RULES_FILE))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{RULES_FILE} does not contain the rules of a run: {error}.") from error
        points, labels = tensors.get("points", torch.empty(0)), tensors.get("labels", torch.empty(0))
        fits = points.shape[1:] == (2, *target.input_shape) and labels.shape == points.shape[:2]
        fits = fits and labels.dtype == torch.int64 and len(rules.classes) == target.num_classes
        fits = fits and (rules.layer is not None or (len(rules.features),) == target.input_shape)
        if not fits or any(plane.point >= len(points) for plane in rules.planes):
            raise RunError(f"{RULES_FILE} and {POINTS_FILE} do not fit each other or {target.name}.")
        points = points / 255 if points.dtype == torch.uint8 else points
        return cls(target, stored.recipe, stored.history, rules, points, labels, empty=stored.empty)

    def sections(self) -> list[Section]:
        """Return the rules and the hyperplanes as tables, and, for images, the pictures on either side of each."""
        rules, names = self.rules, self.rules.classes
        rows = [
            (rules.condition(path), names[leaf.label], leaf.points, percent(leaf.agreement))
            for path, leaf in rules.paths
        ]
        titles = [f"P{n}: {names[p.classes[0]]} | {names[p.classes[1]]}" for n, p in enumerate(rules.planes, 1)]
        planes = list(zip(titles, map(rules.inequality, rules.planes), strict=True))
        strips = (
            [Strip(title, self.points[plane.point]) for title, plane in zip(titles, rules.planes, strict=True)]
            if self.points.dim() == 5
            else []
        )
        text = "Each hyperplane touches the boundary at one point, between the class below and the class above it."
        if strips:
            text += f" Its features are those of the layer {rules.layer}. The images lie on either side of that point."
        return [
            Section("Rules", rules.summary, ("if", "then", "points", "of this class"), rows),
            Section("Hyperplanes", text, ("hyperplane: below | above", "above if"), planes, strips),
        ]


def features_of(target: Target, images: Tensor, layer: str | None) -> Tensor:
    """Return the features that rules are about, (N, F): of a layer, or inputs in the user's units."""
    if layer is None:
        return target.from_unit(images.double())
    return target.respond(images, [layer]).features[layer].flatten(1)
