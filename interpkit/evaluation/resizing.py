"""An evaluator of images of another size than the target's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from interpkit.interfaces.targets import Response, Target


class ResizedTarget(Target):
    """A target that receives images of another size, resized to its own (bilinear, antialiased).

    Args:
        target: a classifier of images (C, H, W).
        size: (height, width) of the images to resize.
    """

    def __init__(self, target: Target, size: Sequence[int]) -> None:
        super().__init__()
        self.target = target
        self.name = target.name
        self.input_shape = (target.input_shape[0], *size)
        self.num_classes, self.class_names = target.num_classes, target.class_names
        self.feature_layer, self.no_gradient, self.multi_label = (
            target.feature_layer,
            target.no_gradient,
            target.multi_label,
        )
        self.description = target.description.model_copy(update={"input_shape": self.input_shape})
        self.origin, self.sources = target.origin, target.sources

    @property
    def resizing(self) -> str:
        """What happens to an image, in words."""
        (height, width), (own_height, own_width) = self.input_shape[1:], self.target.input_shape[1:]
        return f"from {width} x {height} to {own_width} x {own_height} pixels, bilinear, antialiased"

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of resized images."""
        return self.target(self._resized(images))  # type: ignore[no-any-return]

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return the response to resized images."""
        return self.target.respond(self._resized(images), layers)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the layers of the target."""
        return self.target.layers()

    @contextmanager
    def frozen(
        self, device: torch.device | str | None = None, layout: torch.memory_format = torch.preserve_format
    ) -> Iterator[None]:
        """Freeze the target; see `Target.frozen`."""
        with self.target.frozen(device, layout):
            yield

    def _resized(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(images, self.target.input_shape[1:], mode="bilinear", antialias=True)
