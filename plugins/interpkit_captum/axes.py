"""Which axes of a layer's output run along the image's: found by changing one half of the image after another."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_EXTRA_TOKENS = 8
"""Class and register tokens that may stand before the patches of a vision transformer."""
PROBES = 3
"""Images whose halves are changed."""
BLOCKS = 16
"""Blocks of noise along a side of a probe: deep layers average finer noise away."""
EVIDENCE = 0.1
"""The least evidence for a reading: 1 where a change stays in its half, 0 where it spreads evenly."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a layer's output becomes a grid.

    Attributes:
        batch: the axis of the images.
        rows: the axis of the grid's rows, or of the tokens.
        columns: the axis of the grid's columns; None if tokens are folded into a grid.
        size: (h, w) of the grid.
        extra: tokens ahead of the patches.
        evidence: how well changes of the image's halves are found in the grid's.
    """

    batch: int
    rows: int
    columns: int | None
    size: tuple[int, int]
    extra: int = 0
    evidence: float = 0.0

    @property
    def is_found(self) -> bool:
        """Whether there is evidence for it."""
        return self.evidence >= EVIDENCE

    def has_heads(self, dimensions: int) -> bool:
        """Return whether tokens in an output with this number of dimensions have more than one axis of channels."""
        return self.columns is None and dimensions > 3

    def grid(self, tensor: Tensor) -> Tensor:
        """Return a layer's output as (B, K, h, w); all other axes become channels."""
        if self.columns is None:
            tokens = tensor.movedim((self.batch, self.rows), (0, -1))[..., self.extra :]
            tensor = tokens.unflatten(-1, self.size)
        else:
            tensor = tensor.movedim((self.batch, self.rows, self.columns), (0, -2, -1))
        return tensor.reshape(len(tensor), -1, *self.size)

    def words(self, dimensions: int) -> str:
        """Return the axes of an output with this number of dimensions, such as ``(C, h, w)``."""
        names = ["C"] * dimensions
        names[self.batch] = "B"
        if self.columns is None:
            prefix = f"{self.extra} + " if self.extra else ""
            names[self.rows] = f"{prefix}{self.size[0]} x {self.size[1]} tokens"
        else:
            names[self.rows], names[self.columns] = "h", "w"
        return f"({', '.join(name for name in names if name != 'B' or self.batch)})"


def read_layers(
    layers: Mapping[str, nn.Module], scores: Callable[[Tensor], Tensor], images: Tensor, rows: int
) -> dict[str, Reading]:
    """Return how each layer's output is read as a grid; those that run more than once, or lack a grid, are absent.

    Halves of images of noise are redrawn, and it is measured where that changes each output. Along an axis of rows the
    center of the change moves with the changed half, along one of channels it stays. If no reading has evidence, the
    usual one, (C, h, w), is returned; around convolutions it counts as found.

    Args:
        layers: the layers by name.
        scores: the classifier.
        images: (B, C, H, W), for their shape and device.
        rows: the most images in one forward pass.
    """
    rng = torch.Generator().manual_seed(0)
    count, (channels, height, width) = min(PROBES, rows), images.shape[1:]

    def noise() -> Tensor:
        blocks = torch.rand(count, channels, min(height, BLOCKS), min(width, BLOCKS), generator=rng)
        return F.interpolate(blocks, (height, width), mode="nearest").to(images)

    probes, other = noise(), noise()
    above, left = (torch.arange(side, device=images.device) < side // 2 for side in (height, width))
    halves = (above[:, None], ~above[:, None], left[None], ~left[None])
    before = _outputs(layers, scores, probes)
    changes: dict[str, list[Tensor]] = {name: [] for name in before}
    for half in halves:
        for name, output in _outputs(layers, scores, torch.where(half, other, probes)).items():
            if name in before and output.shape == before[name].shape:
                changes[name].append((output - before[name]).abs())
    readings = {}
    for name, changed in changes.items():
        reading = _best(changed, count, (height, width)) if len(changed) == len(halves) else None
        if reading is not None and not reading.is_found and _is_convolution(layers[name], changed[0].shape[1]):
            reading = dataclasses.replace(reading, evidence=EVIDENCE)
        if reading is not None:
            readings[name] = reading
    return readings


def _is_convolution(layer: nn.Module, channels: int) -> bool:
    """Return whether a layer contains a convolution or batch norm with these channels, whose axes are known."""
    parts = [part for part in layer.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    return any(getattr(part, "out_channels", getattr(part, "num_features", None)) == channels for part in parts)


@contextlib.contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call ``hook(name, output)`` after each layer within the block; it may return another output in its place."""
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda _, inputs, output, name=name: hook(name, output))
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def _outputs(layers: Mapping[str, nn.Module], scores: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of at least three axes of the layers that run once."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.setdefault(name, []).append(output.float().clone() if output.dim() > 2 else output)

    with hooked(layers, keep):
        scores(images)
    return {name: runs[0] for name, runs in outputs.items() if len(runs) == 1 and runs[0].dim() > 2}


def _best(changes: list[Tensor], count: int, size: tuple[int, int]) -> Reading | None:
    """Return the reading with the most evidence, the usual one first among equals; None if there is none.

    Args:
        changes: of an output, where the upper, lower, left and right half of the image is changed.
        count: the images.
        size: of an image.
    """
    shape = changes[0].shape
    batch = 0 if shape[0] == count else next((axis for axis, length in enumerate(shape) if length == count), None)
    if batch is None:  # windows of images, for instance
        return None
    usual = Reading(0, 2, 3, (shape[2], shape[3])) if len(shape) == 4 and math.prod(shape[2:]) > 1 else None
    for readings in (_readings(shape, batch, size), [usual] if usual and batch == 0 else []):
        found = [dataclasses.replace(reading, evidence=_evidence(reading, changes)) for reading in readings]
        best = max(found, key=lambda reading: reading.evidence, default=None)
        if best is not None and best.is_found:
            return best
    return usual if batch == 0 else None


def _evidence(reading: Reading, changes: list[Tensor]) -> float:
    """Return how well changes of the image's halves are found in the grid's, along the worse of the two axes."""
    upper, lower, left, right = (reading.grid(change).mean((0, 1)) for change in changes)
    moves = (_moves(upper.mean(1), lower.mean(1)), _moves(left.mean(0), right.mean(0)))
    return min(move for move, length in zip(moves, reading.size, strict=True) if length > 1)


def _readings(shape: torch.Size, batch: int, size: tuple[int, int]) -> Iterator[Reading]:
    """Yield what could be the grid of an output, the usual readings first."""
    axes = [axis for axis in range(len(shape)) if axis != batch]
    for rows, columns in sorted(itertools.permutations(axes, 2), key=lambda pair: (pair[0] > pair[1], -pair[0])):
        if min(shape[rows], shape[columns]) > 1:
            yield Reading(batch, rows, columns, (shape[rows], shape[columns]))
    height, width = size
    grids = [(height // p, width // p) for p in range(1, min(size) + 1)]
    grids += [(-(-height // p), -(-width // p)) for p in range(1, min(size) + 1)]
    for axis, extra in itertools.product(axes, range(MOST_EXTRA_TOKENS + 1)):
        for grid in dict.fromkeys(grids):
            if 1 < math.prod(grid) == shape[axis] - extra:
                yield Reading(batch, axis, None, grid, extra)


def _moves(one: Tensor, other: Tensor) -> float:
    """Return how far the center of a change moves along an axis, from the first half to the second, in [-1, 1].

    Args:
        one: (L,), the changes along the axis where the image's first half is changed.
        other: likewise, the second half.
    """
    places = torch.arange(len(one), device=one.device)
    centers = [float((change * places).sum() / change.sum().clamp_min(1e-30)) for change in (one, other)]
    return 2 * (centers[1] - centers[0]) / len(one)
