"""Classes that have collapsed, noticed while the run goes: all images one picture, or none that the target accepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SINCE = 0.4
"""The share of the run before which nothing is said: at first all images are the same grey, and no class is hit."""
MOST_IMAGES = 512
"""Of a batch, that are held against each other."""
ENOUGH_IMAGES = 50
"""Before a class is said to be never hit."""
ENOUGH_PAIRS = 20
"""Before a class is said to be one picture."""
ALIKE = 0.98
"""The mean cosine from which on it is one. Real images of a class have 0.87 at most (MNIST, FashionMNIST, CIFAR-10,
SVHN), the textures that fool a classifier, which vary little, 0.97.
"""
FLAT = 0.02
"""A contrast, of images in [0, 1], that nobody sees."""
SIDE = 16
"""To which images are pooled at most; a quarter of theirs, if that is less."""
NEVER_HIT, ONE_PICTURE = "never hit", "one picture"
"""What is told of a class."""


class Collapse:
    """What is known of each class since it was last judged.

    The images of a class are held against each other within a step, as any two steps are of two generators. Nothing is
    read from the device but in `judge`.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        self.told: dict[int, dict[str, Any]] = {}
        """What was told of which class, and at which step."""
        self._seen = torch.zeros(4, classes)
        """By class: images, those that the target takes for it, pairs of images, and the sum of their cosines."""

    def look(self, images: Tensor, labels: Tensor, right: Tensor) -> None:
        """Look at the images of a step.

        Args:
            images: (B, *input_shape) in [0, 1].
            labels: (B,), the classes asked for.
            right: (B,) bool, whether the target takes each for it.
        """
        device = images.device
        labels, right = labels.to(device), right.to(device)
        self._seen = self._seen.to(device)
        self._seen[:2].index_add_(1, labels, torch.stack([torch.ones_like(right), right]).float())
        if images.dim() == 4:  # of vectors of few numbers, those of a class are alike by nature
            labels = labels[:MOST_IMAGES]
            units = directions(images[:MOST_IMAGES])
            same = (labels[:, None] == labels).float().fill_diagonal_(0)
            pairs = torch.stack([same.sum(1), (same * (units @ units.T)).sum(1)])
            self._seen[2:].index_add_(1, labels, pairs)

    def judge(self, step: int) -> dict[str, list[int]]:
        """Return the classes that have collapsed and were not told of yet, by what is to be told."""
        images, hits, pairs, cosines = self._seen.cpu()
        known = {NEVER_HIT: images >= ENOUGH_IMAGES, ONE_PICTURE: pairs >= ENOUGH_PAIRS}
        fallen = {NEVER_HIT: hits == 0, ONE_PICTURE: cosines >= ALIKE * pairs}
        found = {}
        for what, enough in known.items():
            classes = [c for c in (enough & fallen[what]).nonzero()[:, 0].tolist() if c not in self.told]
            if classes:
                found[what] = classes
                self.told |= {label: {"what": what, "step": step} for label in classes}
        judged = torch.stack([known[NEVER_HIT]] * 2 + [known[ONE_PICTURE]] * 2)
        self._seen.masked_fill_(judged.to(self._seen.device), 0)
        return found

    def forget(self) -> None:
        """Forget what was seen, but not what was told."""
        self._seen.zero_()

    def state(self) -> dict[str, Any]:
        """Return all of it, for a checkpoint."""
        return {"told": self.told, "seen": self._seen.cpu()}

    def take_up(self, state: Mapping[str, Any] | None) -> None:
        """Go on as at a checkpoint; where that has nothing of this, anew.

        Raises:
            ValueError: it is of other classes.
        """
        if state is None:
            return
        told, seen = state["told"], state["seen"]
        if seen.shape != self._seen.shape or not all(isinstance(facts, dict) for facts in told.values()):
            raise ValueError
        self.told, self._seen = dict(told), seen.float()


def directions(images: Tensor) -> Tensor:
    """Return unit vectors (B, D) of images (B, C, H, W), whose inner products say how much they are one picture.

    Pooled, so that noise makes no difference, and each without its own mean brightness: of two textures that are grey
    from afar, the cosine would be near 1 otherwise, and so it would of any two drawings on one ground.
    """
    height, width = (side if side < 12 else min(SIDE, -(-side // 4)) for side in images.shape[2:])
    flat = F.adaptive_avg_pool2d(images.detach().float(), (height, width)).flatten(1)
    contrast = flat - flat.mean(1, keepdim=True)
    ground = contrast.new_full((len(flat), 1), FLAT * flat.shape[1] ** 0.5)  # so all flat images are one picture
    return F.normalize(torch.cat([contrast, ground], 1), dim=1)
