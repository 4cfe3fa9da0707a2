"""`units`: a target whose classes are units of a classifier's layers, so that units can be inverted as classes are."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from interpkit.errors import UsageError, listed
from interpkit.interfaces.targets import Response, Target
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import device_of
from interpkit.targets.around import TargetAround
from interpkit.targets.layers import list_layers
from interpkit.targets.preprocessing import plausible

log = logging.getLogger("interpkit")

UNIT = re.compile(r"(?P<layer>.+?(:in)?):(?P<channels>\d+(,\d+)*)")
SHARE = 0.99
"""An image counts as a unit's if it excites the unit more than this share of plausible images do."""
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RNNBase)
IN_ROWS = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)
"""Their outputs (B, C, L) have the channels first."""


class Units(nn.Module):
    r"""Reads how strongly units of a target's layers are excited, from the target's response.

    The logit of unit k for the image x is :math:`z_k = (a_k - t_k) / s_k`, where :math:`a_k = w_k \cdot \bar f` is the
    mean over positions of a channel (or of a direction :math:`w_k` in the space of a layer's channels), and
    :math:`t_k` and :math:`s_k` are the 99 % quantile and the standard deviation of :math:`a_k` over images that the
    target was not trained on: noise with the spectrum of photographs, and drawings; uniform noise for vectors. So an
    image counts as the unit's (:math:`z_k > 0`) if it excites the unit more than 99 % of those do.

    Args:
        target: the classifier; no reference to it is kept.
        names: the units, ``LAYER:CHANNEL`` or ``LAYER:CHANNEL,CHANNEL``; ``LAYER`` as in `Target.respond`.
        directions: a name of your own -> a layer, and a direction in the space of its channels, (C,), e.g. a concept.

    Attributes:
        names: the names of the K units.
        layers: the layers whose features a response must contain.

    Raises:
        UsageError: a layer, a channel or a direction does not fit; the message names what exists.

    Example:
        >>> import torch
        >>> from interpkit import Units, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)), input_shape=(4,))
        >>> units = Units(target, ["0:5,7"])
        >>> units.names, units(target.respond(torch.rand(2, 4), units.layers)).shape
        (['0:5', '0:7'], torch.Size([2, 2]))
    """

    level: Tensor
    spread: Tensor

    def __init__(
        self, target: Target, names: Sequence[str] = (), directions: Mapping[str, tuple[str, Tensor]] | None = None
    ) -> None:
        super().__init__()
        wanted = {**_parsed(target, names), **(directions or {})}
        if not wanted:
            raise UsageError(f"name at least one unit as LAYER:CHANNEL, such as {_example(target)}.")
        self.names, self.layers = list(wanted), list(dict.fromkeys(layer for layer, _ in wanted.values()))
        self._layer_of = [layer for layer, _ in wanted.values()]
        device = device_of(target)
        with torch.no_grad(), target.frozen():
            gray = torch.full((1, *target.input_shape), 0.5, device=device)
            features = target.respond(gray, self.layers).features
            self._channels_last = {
                layer: has_channels_last(target, layer, features[layer].shape[1:]) for layer in self.layers
            }
            parts = [target.respond(x.to(device), self.layers) for x in _images(target.input_shape).split(32)]
            pooled = {layer: torch.cat([self._pooled(part, layer) for part in parts]) for layer in self.layers}
        for number, (name, (layer, which)) in enumerate(wanted.items()):
            direction = _direction(target, name, layer, which, pooled[layer].shape[1])
            self.register_buffer(f"direction{number}", direction.float().to(device))
        activations = self._activations(pooled)
        deviations = activations.std(0)
        steady = deviations <= 1e-6 * activations.abs().amax(0).clamp_min(1e-6)
        self.register_buffer("level", activations.quantile(SHARE, dim=0))
        self.register_buffer("spread", deviations.masked_fill(steady, 1.0))
        if steady.any():
            off = [name for name, same in zip(self.names, steady.tolist(), strict=True) if same]
            log.warning(
                "%s: %d of %d units are equally excited by all of %d plausible images, and may be always off: %s.",
                *(target.name, len(off), len(self.names), len(activations), listed(off)),
            )

    def forward(self, response: Response) -> Tensor:
        """Return the units' logits, (B, K), from a response with the features of `layers`."""
        pooled = {layer: self._pooled(response, layer) for layer in self.layers}
        return (self._activations(pooled) - self.level) / self.spread

    def _activations(self, pooled: Mapping[str, Tensor]) -> Tensor:
        columns = (pooled[layer] @ self.get_buffer(f"direction{k}") for k, layer in enumerate(self._layer_of))
        return torch.stack([*columns], 1)

    def _pooled(self, response: Response, layer: str) -> Tensor:
        """Return the means over positions, (B, C), of features (B, C), (B, C, H, W), (B, T, C) or (B, H, W, C)."""
        features = response.features[layer]
        if features.dim() == 2:
            return features
        return features.flatten(1, -2).mean(1) if self._channels_last[layer] else features.flatten(2).mean(2)


class UnitTarget(TargetAround):
    """A target whose classes are units of another target; create it with `units`.

    Its logits are those of `Units`. Units do not exclude each other (`Target.multi_label`), except that a single unit
    with the logit z becomes two exclusive classes with the logits (-z/2, z/2).
    """

    def __init__(self, target: Target, read: Units, stated: Sequence[str]) -> None:
        super().__init__(target)
        self.read = read
        self.multi_label = len(read.names) > 1
        self.class_names = read.names if self.multi_label else [f"not {read.names[0]}", *read.names]
        self.num_classes = len(self.class_names)
        self.description = target.description.model_copy(update={"units": tuple(stated) or None})
        self.sources = {**target.sources, "units": "given"}

    def forward(self, images: Tensor) -> Tensor:
        """Return the units' logits."""
        return self.respond(images).logits

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return the target's response, with the units' logits."""
        response = self.target.respond(images, [*layers, *self.read.layers])
        logits = self.read(response)
        if not self.multi_label:
            logits = torch.cat([-logits / 2, logits / 2], 1)
        return Response(logits, response.features, response.feature_layer)


@with_autograd
def units(
    target: Target, names: Sequence[str] = (), *, directions: Mapping[str, tuple[str, Tensor]] | None = None
) -> Target:
    """Return a target whose classes are units of a target's layers, for any inverter, metric or attribution.

    Args:
        target: the classifier.
        names: the units; see `Units`.
        directions: further units by name; see `Units`. To load a run with directions, pass the target again.

    Raises:
        UsageError: as for `Units`.

    Example:
        >>> import torch
        >>> from interpkit import units, wrap
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> found = units(wrap(net, input_shape=(4,)), ["0:5"], directions={"mine": ("0", torch.ones(8))})
        >>> found.class_names, found(torch.rand(2, 4)).shape
        (['0:5', 'mine'], torch.Size([2, 2]))
    """
    return UnitTarget(target, Units(target, names, directions), names)


def _parsed(target: Target, names: Sequence[str]) -> dict[str, tuple[str, int | Tensor]]:
    found: dict[str, tuple[str, int | Tensor]] = {}
    for text in names:
        match = UNIT.fullmatch(text)
        if match is None:
            raise UsageError(f"a unit is LAYER:CHANNEL, such as {_example(target)}, not {text!r}.")
        for channel in match["channels"].split(","):
            found[f"{match['layer']}:{int(channel)}"] = match["layer"], int(channel)
    return found


def _direction(target: Target, name: str, layer: str, which: int | Tensor, channels: int) -> Tensor:
    """Return a unit's direction in the space of its layer's channels, (C,)."""
    if isinstance(which, int):
        if which >= channels:
            raise UsageError(
                f"the layer {layer!r} of {target.name} has {channels} channels, 0 to {channels - 1}, not {which}."
            )
        return torch.eye(channels)[which]
    if which.shape != (channels,):
        raise UsageError(
            f"the direction {name!r} has the shape {tuple(which.shape)}; the layer {layer!r} of {target.name} has "
            f"{channels} channels, so it is ({channels},)."
        )
    return which


def has_channels_last(target: Target, layer: str, shape: Sequence[int]) -> bool:
    """Return whether a layer's channels come last, (H, W, C) or (T, C), and not first, (C, H, W) or (C, L).

    Of three axes, whichever can be a grid of the image decide, else the kind of the layer. Of two, the last layer
    inside it decides whose kind is known, else the axis that can be a grid, else the last known kind before it.

    Args:
        target: the classifier.
        layer: the layer, NAME or NAME:in.
        shape: of its output for one image.
    """
    name = layer.removesuffix(":in")
    module = target.layers().get(name)
    if len(shape) not in (2, 3):
        return isinstance(module, CHANNELS_LAST)
    first, last = (grid_of(target, places) is not None for places in (shape[1:], shape[:-1]))
    if len(shape) == 3:
        by_grid = first != last and not _is_convolution(module, shape[0])
        return last if by_grid else isinstance(module, CHANNELS_LAST)
    before: list[bool] = []
    inside: list[bool] = []
    reached = False
    for known, part in target.layers().items():
        own = f"{known}.".startswith(f"{name}.")
        if reached and not own:
            break
        reached = reached or own
        if isinstance(part, CHANNELS_LAST + IN_ROWS):
            (inside if own else before).append(isinstance(part, CHANNELS_LAST))
    if not inside and first != last:
        return last
    return [True, *before, *inside][-1]


def grid_of(target: Target, places: Sequence[int]) -> tuple[int, int] | None:
    """Return the height and width of the grid that places (H, W), or tokens (T,), are of the target's images.

    Tokens may have one for the class ahead of the patches. None if they are not such a grid.
    """
    if len(target.input_shape) != 3:
        return None
    _, height, width = target.input_shape
    for patch in range(1, min(height, width) + 1):
        for grid in ((height // patch, width // patch), (-(-height // patch), -(-width // patch))):
            count = math.prod(grid)
            if count > 1 and (tuple(places) == grid or (len(places) == 1 and places[0] - count in (0, 1))):
                return grid
    return None


def _is_convolution(module: nn.Module | None, channels: int) -> bool:
    """Return whether a layer contains a convolution or batch norm with these channels, whose axes are known."""
    parts = [] if module is None else [p for p in module.modules() if isinstance(p, nn.Conv2d | nn.BatchNorm2d)]
    return any(getattr(part, "out_channels", getattr(part, "num_features", None)) == channels for part in parts)


def _images(shape: Sequence[int]) -> Tensor:
    """Return images that no classifier was trained on, (N, *shape)."""
    if len(shape) == 3:
        return torch.cat(plausible(shape))
    return torch.rand(128, *shape, generator=torch.Generator().manual_seed(0))


def _example(target: Target) -> str:
    """Return a unit of the last layer, and the shapes of the layers, last one first, for an error message."""
    shaped = [layer for layer in reversed(list_layers(target)) if layer.shape]
    return f"{shaped[0].name if shaped else 'LAYER'}:0 (layers: {listed(f'{la.name} {la.shape}' for la in shaped)})"
