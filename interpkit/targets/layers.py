"""A target's layers, with the shapes that pass them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.targets.watch import watch


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: dotted, as `Target.respond` takes it.
        kind: the class's name.
        shape: of its output for one image; None if it gives no tensor or does not run.
        parameters: its own and those of the layers in it.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int

    def to_row(self) -> dict[str, Any]:
        """Return the layer for JSON."""
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "type": self.kind, "output": shape, "parameters": self.parameters}


@torch.no_grad()
def list_layers(target: Target) -> list[Layer]:
    """Run the target once on a grey image, and return its layers in order of definition."""
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
