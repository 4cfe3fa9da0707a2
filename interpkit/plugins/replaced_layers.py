"""Layers that people put in place of an architecture's own: a head of several layers, a first layer of other channels.

Their sizes are read from the weights of the file. What the weights do not tell, the user has to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import commonpath

from torch import Tensor, nn

from interpkit.errors import ModelError, listed, setting
from interpkit.plugins.state_dicts import Match

ACTIVATION = "head_activation"
"""The argument that names what stands between the layers of a head."""
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "none": nn.Identity,
}


Layers = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each layer of a sequence, by their names in it."""


def replace(module: nn.Module, found: Match, activation: str | None) -> list[str]:
    """Give a network the first layer and the head of a file, in place, where those are what differs.

    Args:
        module: the network; its values are not read.
        found: how the file's weights differ from it.
        activation: what stands between the layers of the head, as the user names it.

    Returns:
        what was replaced.

    Raises:
        ModelError: a head of several layers would fit, but its activation is not named, or not known.
    """
    notes = _replace_stem(module, found)
    root, layers = _head(module, found)
    own = module.get_submodule(root)
    if len(_linear(layers)) < 2 or not isinstance(own, nn.Linear | nn.Sequential):
        return notes
    sequence = _sequence(own, layers, ACTIVATIONS.get(activation or "", nn.Identity))
    if sequence is None:
        return notes
    sizes = listed(f"{root}.{key}: {weight.shape[1]} to {weight.shape[0]}" for key, weight in _linear(layers).items())
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"the head of the file has several layers ({sizes}), and weights do not tell the activation between them. "
            f"Name it: {setting('arch_arg', f'{ACTIVATION}=relu')} (or {', '.join(list(ACTIVATIONS)[1:])})."
        )
    parent, _, leaf = root.rpartition(".")
    module.get_submodule(parent).add_module(leaf, sequence)
    return [*notes, f"the head ({sizes}) with {activation}"]


def _replace_stem(module: nn.Module, found: Match) -> list[str]:
    channels = found.channels()
    name, conv = next(((n, m) for n, m in module.named_modules() if isinstance(m, nn.modules.conv._ConvNd)), ("", None))
    old, new = found.shapes.get(f"{name}.weight", ((), ()))
    if conv is None or conv.groups != 1 or channels is None or (old[:1], old[2:]) != (new[:1], new[2:]):
        return []
    conv.in_channels = channels
    conv.weight = nn.Parameter(conv.weight.new_empty(old))
    return [f"{name} for {channels} channels"]


def _head(module: nn.Module, found: Match) -> tuple[str, Layers]:
    """Return the name of the layer in which all differences are, and the tensors of each layer in it in the file."""
    wide = [name for name, (old, _) in found.shapes.items() if len(old) <= 2]
    parts = [name.rpartition(".")[0].replace(".", "/") for name in (*found.missing, *found.unexpected, *wide)]
    root = commonpath(parts).replace("/", ".") if parts else ""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.given.items():
        if root and name.startswith(f"{root}."):
            key, _, leaf = name.removeprefix(f"{root}.").partition(".")
            layers.setdefault(key, {})[leaf] = tensor
    if all(key.isdecimal() for key in layers):
        layers = {key: layers[key] for key in sorted(layers, key=int)}
    return root, layers


def _linear(layers: Layers) -> dict[str, Tensor]:
    weights = {key: tensors["weight"] for key, tensors in layers.items() if "weight" in tensors}
    return {key: weight for key, weight in weights.items() if weight.dim() == 2}


def _sequence(own: nn.Module, layers: Layers, activation: type[nn.Module]) -> nn.Sequential | None:
    """Return the layers in order, with an activation in the gap between two linear ones.

    What stands before the first linear layer is the network's own or does nothing (dropout). There is no answer if a
    layer is of another kind, or if there are two gaps, of which only one can be the activation.
    """
    sequence, linear, device = nn.Sequential(), _linear(layers), next(own.parameters()).device
    kept = dict(own.named_children()) if isinstance(own, nn.Sequential) else {}
    numbered = all(key.isdecimal() for key in layers)
    keys = map(str, range(int(list(layers)[-1]) + 1)) if numbered else iter(layers)
    begun, gaps, before = False, 0, ""
    for key in keys:
        tensors = layers.get(key, {})
        if key in linear:
            if begun and not numbered:
                sequence.add_module(f"before_{key}", activation())
            out, into = linear[key].shape
            sequence.add_module(key, nn.Linear(into, out, "bias" in tensors, device=device))
            begun, gaps = True, 0
        elif not begun and key in kept:
            sequence.add_module(key, kept[key])
        elif "running_mean" in tensors:
            norm = nn.BatchNorm1d(len(tensors["running_mean"]), affine="weight" in tensors, device=device)
            sequence.add_module(key, norm)
        elif tensors:
            return None
        else:
            first = begun and before in layers
            gaps += first
            sequence.add_module(key, activation() if first else nn.Identity())
        if gaps > 1:
            return None
        before = key
    return sequence
