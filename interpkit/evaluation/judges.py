"""Evaluators of the target's images: those of another image size, or with other class names, are adapted to it."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from interpkit.errors import ModelError, UsageError, listed, packing, setting
from interpkit.interfaces.targets import Response, Target
from interpkit.plugins.loading import load_target, loader_of
from interpkit.targets.around import TargetAround
from interpkit.targets.units import UnitTarget

log = logging.getLogger("interpkit")


class AdaptedTarget(TargetAround):
    """A classifier that receives images of another size, resized to its own, and answers in other classes.

    Args:
        target: the classifier.
        size: (height, width) of the images, which are resized (bicubic, antialiased); None for its own.
        columns: its classes, in the order of the answer, the number of its classes standing for one that it does not
            have, whose logit is -inf; None for its own.
        class_names: those of the answer.
        changes: what that means, in words, by ``resized_for`` and ``classes_matched_for``.
    """

    def __init__(
        self,
        target: Target,
        size: Sequence[int] | None,
        columns: Sequence[int] | None,
        class_names: list[str],
        changes: Mapping[str, str],
    ) -> None:
        super().__init__(target)
        self.size, self.columns, self.changes = size, columns, changes
        self.input_shape = target.input_shape if size is None else (target.input_shape[0], *size)
        self.num_classes, self.class_names = len(class_names), class_names
        self.lacks = frozenset(label for label, column in enumerate(columns or ()) if column == target.num_classes)
        facts = {"input_shape": self.input_shape, "num_classes": self.num_classes, "class_names": class_names}
        self.description = target.description.model_copy(update=facts)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the answer's classes."""
        return self._answer(self.target(self._resized(images)))

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return the response to resized images, with the logits of the answer's classes."""
        response = self.target.respond(self._resized(images), layers)
        return Response(self._answer(response.logits), response.features, response.feature_layer)

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        resized = nn.functional.interpolate(images, self.target.input_shape[1:], mode="bicubic", antialias=True)
        return resized.clamp(0, 1)

    def _answer(self, logits: Tensor) -> Tensor:
        if self.columns is None:
            return logits
        return torch.cat([logits, logits.new_full((len(logits), 1), -torch.inf)], dim=1)[:, self.columns]


def load_judges(evaluators: Sequence[Target | str | Path], target: Target) -> dict[str, Target]:
    """Load the evaluators by name, each adapted to the target's images and classes.

    Raises:
        UsageError: one is the target or another one again, or shares no images or no classes with the target.
    """
    judges: list[Target] = []
    for given in evaluators:
        judge = given if isinstance(given, Target) else _loaded(given)
        if judge is target or (judge.origin is not None and judge.origin == target.origin) or _alike(judge, target):
            raise UsageError(f"{judge.name} is the target itself: use another classifier of the same classes.")
        twin = next((other.name for other in judges if judge is other or _alike(judge, other)), None)
        if twin is not None:
            raise UsageError(f"the evaluators {twin} and {judge.name} are identical: name each once.")
        judges.append(judge)
    named: dict[str, Target] = {}
    for judge in judges:
        name, number = judge.name, 2
        while name in named:
            name, number = f"{judge.name}-{number}", number + 1
        named[name] = adapted(judge, target)
    return named


def _loaded(path: str | Path) -> Target:
    """Load an evaluator; what its file does not say has to be packed with it, as there are no options for it here."""
    try:
        return load_target(path)
    except ModelError as error:
        if loader_of(Path(path)) is None:  # no option would help
            raise
        raise ModelError(
            f"{error} An evaluator has no options here, so pack it with those that it needs: {packing(str(path))}. "
            f"Then name FILE.safetensors."
        ) from error


def adapted(judge: Target, target: Target) -> Target:
    """Return an evaluator that accepts the target's images and answers in its classes; warn of what that takes.

    The answer's classes are the target's, followed by those of the evaluator that the target does not have.

    Raises:
        UsageError: they differ in more than the size of images, or have no class in common.
    """
    changes: dict[str, str] = {}
    ours, own = target.input_shape, judge.input_shape
    whole = [one.description.input_shape or one.input_shape for one in (target, judge)]
    if len(ours) == 1 and own == ours and min(map(len, whole)) > 1:  # signals and volumes are vectors outside of them
        ours, own = whole
    if own != ours:
        if len(own) != 3 or len(ours) != 3 or own[0] != ours[0]:
            takes = f"the evaluator {judge.name} takes inputs of {own}; {target.name} takes {ours}."
            if own == (math.prod(ours),):
                path = judge.description.path or "MODEL"
                how = packing(path, setting("input_shape", list(ours)))
                raise UsageError(f"{takes} Pack it for images, which it then receives as vectors: {how}.")
            raise UsageError(
                f"{takes} Images are resized for an evaluator, but not converted to other channels. Put that into its "
                f"module and pack it again: {packing('MODEL')}."
            )
        (height, width), (own_height, own_width) = ours[1:], own[1:]
        words = f"from {width} x {height} to {own_width} x {own_height} pixels, bicubic, antialiased"
        changes["resized_for"] = words
        log.warning("images are resized for the evaluator %s %s.", judge.name, words)
    both = (target, judge)
    if any(isinstance(one, UnitTarget) for one in both) and target.class_names != judge.class_names:
        raise UsageError(
            f"the classes of {' and '.join(one.name for one in both if isinstance(one, UnitTarget))} are units, which "
            f"an evaluator with other classes does not know: leave {judge.name} out."
        )
    columns, names = _matched(judge, target), judge.class_names
    if columns is not None:
        left = [f"{name} ({label})" for label, name in enumerate(target.class_names) if columns[label] == len(names)]
        words = f"{target.num_classes - len(left):,} of {target.num_classes:,} classes by name"
        words += f"; it does not evaluate samples of {listed(left, 5)}" if left else ""
        changes["classes_matched_for"] = words
        log.warning("the evaluator %s is matched in %s.", judge.name, words)
        others = [label for label in range(len(names)) if label not in set(columns)]
        names = [*target.class_names, *(names[label] for label in others)]
        columns += others
    return AdaptedTarget(judge, ours[1:] if own != ours else None, columns, names, changes) if changes else judge


def _matched(judge: Target, target: Target) -> list[int] | None:
    """Return the evaluator's class for each of the target's; None if they are the same in the same order.

    They are if their number is the same, at least half of the names are where they should be and none is elsewhere, or
    only numbers are known of one of them, which are not the other's names. Else names decide. Classes of a name that
    several have, and those that the evaluator does not know, have no counterpart, for which the number of the
    evaluator's classes stands.

    Raises:
        UsageError: no class has a counterpart.
    """
    ours, theirs = ([_plain(name) for name in classifier.class_names] for classifier in (target, judge))
    same_number, same_names = len(ours) == len(theirs), sorted(ours) == sorted(theirs)
    named = same_names or not any(all(map(str.isdigit, names)) for names in (ours, theirs))
    counts, own_counts = Counter(theirs), Counter(ours)
    places = {name: label for label, name in enumerate(theirs) if counts[name] == 1}
    columns = [places.get(name, len(theirs)) if own_counts[name] == 1 else len(theirs) for name in ours]
    in_order = all(column in (label, len(theirs)) for label, column in enumerate(columns))
    alike = sum(map(str.__eq__, ours, theirs)) >= len(ours) / 2
    if same_number and (not named or (in_order and alike)):
        return None
    if not named or set(columns) == {len(theirs)}:
        raise UsageError(
            f"the evaluator {judge.name} has {len(theirs)} classes, {listed(judge.class_names, 4)}; {target.name} has "
            f"{len(ours)}, {listed(target.class_names, 4)}. They must be the same in the same order, or have names in "
            f"common. If they are the same classes, pack the evaluator with {setting('class_names', 'FILE')}."
        )
    return columns


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ").strip()


def _alike(one: Target, other: Target) -> bool:
    """Return whether two classifiers have the same weights and outputs, such as copies of one file."""
    if (one.input_shape, one.num_classes) != (other.input_shape, other.num_classes):
        return False
    ours, theirs = (
        {name: value for name, value in judge.state_dict().items() if isinstance(value, Tensor)}
        for judge in (one, other)
    )
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours):
        return False
    images = torch.rand(8, *one.input_shape, generator=torch.Generator().manual_seed(0))
    answers = []
    for judge in (one, other):  # classifiers may differ in more than their state
        with judge.frozen("cpu"), torch.no_grad():
            answers.append(judge(images))
    return torch.equal(*answers)
