"""The interface of an attribution method, and what it is asked: which pixels speak for a class, and against what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.targets import Target


class Contrast(nn.Module):
    """Images -> logits less the logit of one class: column a is "why a rather than that class?".

    Args:
        target: the classifier.
        against: the class whose logit is taken off.
    """

    def __init__(self, target: Target, against: int) -> None:
        super().__init__()
        self.target = target
        self.against = against

    def forward(self, images: Tensor) -> Tensor:
        """Return logit differences, (B, n), of images (B, *input_shape) in [0, 1]."""
        logits: Tensor = self.target(images)
        return logits - logits[:, self.against, None]


@dataclass(frozen=True)
class AttributionContext:
    """What a method is given beside the images.

    Attributes:
        scores: images (B, *input_shape) -> scores (B, n), of which the column of an image's class is explained: the
            target itself, or logit differences (`Contrast`). Any method of Captum takes it, with ``target=classes``.
        baselines: (M, *input_shape) in [0, 1], images without evidence, on the images' device; M > 1 is a
            distribution, whose mean is taken.
        layer: the layer that the user named, one of ``target.layers()``; None leaves the choice to the method.
        rows: the most images that may pass the target at once; at least as many as are given.
        note: tells the user something once, in a sentence.
    """

    scores: nn.Module
    baselines: Tensor
    layer: str | None
    rows: int
    note: Callable[[str], None]


class Attribution(Component, ABC):
    """Says what each pixel contributes to the score of a class.

    Args:
        options: an instance of the class's ``Options``; defaults if left out.
    """

    options: Options
    default: ClassVar[bool] = False
    """Whether it explains where the user names no method; of several, the one that was registered first."""
    complete: ClassVar[bool] = False
    """Whether a map adds up to the image's score less the baselines' mean score (completeness, Sundararajan et al.
    2017, section 3); how far it misses is then reported."""
    local: ClassVar[bool] = False
    """Whether a map is a gradient, score per unit of a pixel, rather than contributions to the score."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps, (B, *input_shape): positive speaks for the class, negative against it.

        The target is frozen and torch's global generators are seeded; gradients are on.

        Args:
            target: the classifier, for its layers.
            images: (B, *input_shape) in [0, 1], on the target's device.
            classes: (B,) int64, the column of ``context.scores`` that is explained for each.
            context: all else.

        Raises:
            UsageError: the method cannot serve this target; says why.
        """
