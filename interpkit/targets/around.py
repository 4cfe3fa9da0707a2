"""`TargetAround`: a target around another one, which answers something else about the same classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from interpkit.interfaces.targets import Target


class TargetAround(Target):
    """Base class of targets that run another target, with its layers; the subclass says what it answers.

    Attributes:
        target: the other one; its facts are this one's until the subclass changes them.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.name, self.input_shape, self.feature_layer = target.name, target.input_shape, target.feature_layer
        self.num_classes, self.class_names = target.num_classes, target.class_names
        self.multi_label, self.no_gradient = target.multi_label, target.no_gradient
        self.description, self.origin, self.sources = target.description, target.origin, target.sources

    @property
    def family(self) -> str:
        """The target's family."""
        return self.target.family

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the target's layers."""
        return self.target.layers()

    @contextmanager
    def frozen(
        self, device: torch.device | str | None = None, layout: torch.memory_format = torch.preserve_format
    ) -> Iterator[None]:
        """Freeze the target; see `Target.frozen`."""
        with self.target.frozen(device, layout), super().frozen(device):
            yield
