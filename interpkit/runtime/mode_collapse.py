"""Detect collapsed classes during a run: all images are one picture, or the target recognizes none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SINCE = 0.4
"""The share of the run before which nothing is reported: at first all images are the same gray."""
MOST_IMAGES = 512
"""The maximum number of images of a batch that are compared with each other."""
ALIKE = 0.98
"""The mean cosine above which images count as one picture. Real images of a class reach at most 0.87 (MNIST,
FashionMNIST, CIFAR-10, SVHN); textures that fool a classifier, which vary little, reach 0.97.
"""
FLAT = 0.02
"""An invisible contrast, for images in [0, 1]."""
NEVER_HIT, ONE_PICTURE = "never hit", "one picture"
"""The two kinds of collapse, as the manifest names them."""


class Collapse:
    """Statistics of each of a number of classes since it was last judged.

    The images of a class are compared within a step only, because the generator changes from step to step. Only `judge`
    reads from the device.
    """

    def __init__(self, classes: int) -> None:
        self.reported: dict[int, dict[str, Any]] = {}
        """The collapse that was reported for each class, with its step."""
        self._counts = torch.zeros(4, classes)
        """By class: images, correctly classified images, pairs of images, and the sum of their cosines."""

    def look(self, images: Tensor, labels: Tensor, right: Tensor) -> None:
        """Add the images of a step, (B, *input_shape) in [0, 1], with the requested classes (B,).

        ``right`` (B,) says whether the target assigns each image to its class.
        """
        device = images.device
        labels, right = labels.to(device), right.to(device)
        self._counts = self._counts.to(device)
        self._counts[:2].index_add_(1, labels, torch.stack([torch.ones_like(right), right]).float())
        if images.dim() == 4:  # short vectors of one class are always similar
            labels = labels[:MOST_IMAGES]
            units = directions(images[:MOST_IMAGES])
            same = (labels[:, None] == labels).float().fill_diagonal_(0)
            pairs = torch.stack([same.sum(1), (same * (units @ units.T)).sum(1)])
            self._counts[2:].index_add_(1, labels, pairs)

    def judge(self, step: int) -> dict[str, list[int]]:
        """Return the collapsed classes that were not reported yet, by kind of collapse."""
        images, hits, pairs, cosines = self._counts.cpu()
        known = {NEVER_HIT: images >= 50, ONE_PICTURE: pairs >= 20}  # from so many on, a class may be reported
        fallen = {NEVER_HIT: hits == 0, ONE_PICTURE: cosines >= ALIKE * pairs}
        collapsed = {}
        for what, enough in known.items():
            classes = [c for c in (enough & fallen[what]).nonzero()[:, 0].tolist() if c not in self.reported]
            if classes:
                collapsed[what] = classes
                self.reported |= {label: {"what": what, "step": step} for label in classes}
        judged = torch.stack([known[NEVER_HIT]] * 2 + [known[ONE_PICTURE]] * 2)
        self._counts.masked_fill_(judged.to(self._counts.device), 0)
        return collapsed

    def forget(self) -> None:
        """Reset the statistics, but not what was reported."""
        self._counts.zero_()

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"told": self.reported, "seen": self._counts.cpu()}

    def take_up(self, state: Mapping[str, Any] | None) -> None:
        """Restore the state of a checkpoint, if it has one; a state of other classes is a ``ValueError``."""
        if state is None:
            return
        reported, counts = state["told"], state["seen"]
        if counts.shape != self._counts.shape or not all(isinstance(facts, dict) for facts in reported.values()):
            raise ValueError
        self.reported, self._counts = dict(reported), counts.float()


def directions(images: Tensor) -> Tensor:
    """Return unit vectors (B, D) of images (B, C, H, W), whose inner products measure how similar the images are.

    Images are pooled, to at most 16 x 16, so that noise has no effect, and each one's mean brightness is subtracted:
    otherwise the cosine of two textures that look gray from a distance, or of two drawings on the same background,
    would be close to 1.
    """
    height, width = (side if side < 12 else min(16, -(-side // 4)) for side in images.shape[2:])
    flat = F.adaptive_avg_pool2d(images.detach().float(), (height, width)).flatten(1)
    contrast = flat - flat.mean(1, keepdim=True)
    ground = contrast.new_full((len(flat), 1), FLAT * flat.shape[1] ** 0.5)  # so all flat images are one picture
    return F.normalize(torch.cat([contrast, ground], 1), dim=1)
