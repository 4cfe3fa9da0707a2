"""The interface of an attribution method, which explains which pixels support a class, compared with what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.targets import Target


class Contrast(nn.Module):
    """Images -> logits minus the logit of one class: column a answers "why a rather than that class?".

    Args:
        target: the classifier.
        against: the class whose logit is subtracted.
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
    """The arguments of an attribution method besides the images.

    Attributes:
        scores: images (B, *input_shape) -> scores (B, n); the method explains the column of each image's class. It is
            the target itself, or logit differences (`Contrast`). Any Captum method accepts it with ``target=classes``.
        baselines: (M, *input_shape) in [0, 1], images without evidence, on the images' device; M > 1 is a
            distribution, over which the method averages.
        layer: the layer that the user specified, one of ``target.layers()``; None leaves the choice to the method.
        rows: the maximum number of images per forward pass of the target; at least the number of images.
        note: shows the user a one-sentence message, once.
    """

    scores: nn.Module
    baselines: Tensor
    layer: str | None
    rows: int
    note: Callable[[str], None]


class Attribution(Component, ABC):
    """Computes how much each pixel contributes to the score of a class.

    Args:
        options: an instance of the class's ``Options``; defaults if omitted.
    """

    options: Options
    default: ClassVar[bool] = False
    """Whether this method is used if the user does not specify one; of several, the first registered wins."""
    complete: ClassVar[bool] = False
    """Whether a map sums to the image's score minus the baselines' mean score (completeness, Sundararajan et al.
    2017, section 3). If so, interpkit reports the completeness error."""
    local: ClassVar[bool] = False
    """Whether a map is a gradient, score per unit of a pixel, rather than contributions to the score."""
    by_image: ClassVar[bool] = False
    """Whether the method draws random numbers for each image. If so, it is called with one image at a time, seeded by
    the image's number, so that neither ``rows`` nor the other images change a map. If not, all calls have one seed."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps, (B, *input_shape): positive values support the class, negative values oppose it.

        The target is frozen, torch's global generators are seeded, and gradients are enabled.

        Args:
            target: the classifier, for its layers.
            images: (B, *input_shape) in [0, 1], on the target's device.
            classes: (B,) int64, the column of ``context.scores`` to explain for each image.
            context: all other arguments.

        Raises:
            UsageError: the method does not support this target; the message explains why.
        """
