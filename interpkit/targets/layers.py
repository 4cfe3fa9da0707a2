"""List a target's layers with their output shapes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.targets.watch import watch


@dataclass(frozen=True)
class Layer:
    """One layer of a target.

    Attributes:
        name: the dotted name, as `Target.respond` accepts it.
        kind: the name of the layer's class.
        shape: the shape of its output for one image; None if it does not run or does not return a tensor.
        parameters: the number of parameters, including those of the layers inside it.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int

    def to_row(self) -> dict[str, Any]:
        """Return the layer as JSON values."""
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "type": self.kind, "output": shape, "parameters": self.parameters}


@torch.no_grad()
def list_layers(target: Target) -> list[Layer]:
    """Run the target once on a gray image, and return its layers in order of definition."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            shapes[name] = tuple(output.shape[1:])

    layers = target.layers()
    with watch(layers, note), target.frozen():
        target(torch.full((2, *target.input_shape), 0.5, device=device_of(target)))
    return [
        Layer(name, type(module).__name__, shapes.get(name), sum(p.numel() for p in module.parameters()))
        for name, module in layers.items()
    ]


@torch.no_grad()
def count_runs(target: Target) -> Counter[str]:
    """Return how often each layer runs in the forward pass of one image."""
    runs = Counter[str]()
    with watch(target.layers(), lambda name, _: runs.update([name])), target.frozen():
        target(torch.full((1, *target.input_shape), 0.5, device=device_of(target)))
    return runs


def has_batch_norm(target: Target) -> bool:
    """Return whether a target has batch norms with running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(layer, kind) and layer.running_mean is not None for layer in target.layers().values())
