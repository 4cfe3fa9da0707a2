"""Batch norm of the frozen target, folded into the layer before it: the same logits for less work.

    BN(W * x + b) = (g W) * x + g (b - mean) + beta,        g = gamma / sqrt(var + eps)        per channel,

as a frozen batch norm is a fixed scale and shift. It is done in a copy, so the user's module stays as it is.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from interpkit.interfaces.targets import Target
from interpkit.targets.module_target import OUTPUT, ModuleTarget

log = logging.getLogger("interpkit")

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
"""Taken by their exact type: a subclass may compute something else."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ROUNDING = 1e-2
"""By how much the logits may differ, over the largest: a wrong fold is off by far more, in any precision."""


def folded(target: Target, layers: Sequence[str] = ()) -> tuple[Target, int]:
    """Return a target with the same logits and layers, batch norms folded where they can be, and how many were.

    A batch norm is folded where it alone reads what a convolution or linear layer gives, where each of the two runs
    once, and where nothing else looks between them. What follows what is taken from a symbolic trace, so it holds for
    every image; a classifier that cannot be traced is returned as it is.

    Args:
        target: frozen. It is not changed; what the copy does not fold, it shares.
        layers: that will be asked for beyond the default features; none of them is folded away.
    """
    if not isinstance(target, ModuleTarget) or not any(type(module) in NORMS for module in target.modules()):
        return target, 0
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, about the classifier's code
            pairs = _consecutive(_copy(target).module)  # a copy for this alone: tracing may leave traces in it
            twin = _copy(target)
            probe = _probe(target)
            pairs = _unread(twin, pairs, [target.feature_layer, *layers], probe)
            for layer, norm in pairs:
                module = twin.module
                module.set_submodule(layer, _fold(module.get_submodule(layer), module.get_submodule(norm)))
                module.set_submodule(norm, nn.Identity().eval())
            logits = target(probe)
            if not pairs or not (twin(probe) - logits).abs().max() <= ROUNDING * logits.abs().max():
                return target, 0
    except Exception as error:  # whatever a foreign classifier raises when it is copied or traced
        log.debug("the batch norms of %s are not folded: %s", target.name, error)
        return target, 0
    return twin, len(pairs)


def _copy(target: ModuleTarget) -> ModuleTarget:
    """Return a copy that shares all tensors with the target."""
    return copy.deepcopy(target, {id(tensor): tensor for tensor in (*target.parameters(), *target.buffers())})


def _probe(target: ModuleTarget) -> Tensor:
    """Return two images, a grey and a noisy one."""
    noise = torch.rand(1, *target.input_shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full_like(noise, 0.5), noise]).to(target.scale.device)


def _consecutive(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the layers that can be folded, each with its batch norm, from a symbolic trace."""
    graph = fx.Tracer().trace(module)
    # As text, for a weight that is used by itself (`get_attr`) belongs to the module before its last dot.
    runs = [str(node.target).rpartition(".")[0] if node.op == "get_attr" else node.target for node in graph.nodes]
    names: dict[int, int] = {}
    for _, part in module.named_modules(remove_duplicate=False):
        names[id(part)] = names.get(id(part), 0) + 1

    def alone(node: Any, types: tuple[type[nn.Module], ...]) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or runs.count(node.target) != 1:
            return False
        part = module.get_submodule(str(node.target))
        return type(part) in types and names[id(part)] == 1 and not any(getattr(part, hooks) for hooks in HOOKS)

    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if not (alone(node, NORMS) and alone(before, LINEAR) and len(cast(fx.Node, before).users) == 1):
            continue
        if module.get_submodule(node.target).running_var is not None:
            pairs.append((str(cast(fx.Node, before).target), str(node.target)))
    return pairs


def _unread(
    target: ModuleTarget, pairs: Sequence[tuple[str, str]], layers: Sequence[str], probe: Tensor
) -> list[tuple[str, str]]:
    """Return the pairs between which none of the layers looks, and whose channels are those of the batch norm."""
    given: dict[str, Tensor] = {}
    read: list[Tensor] = []

    def giver(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: given.update({name: output})

    def read_output(module: nn.Module, inputs: Any, output: Any) -> None:
        read.append(_first(output))

    def read_input(module: nn.Module, inputs: Any, named: Any) -> None:
        read.append(_first(inputs or list(named.values())))

    handles = [target.module.get_submodule(name).register_forward_hook(giver(name)) for name, _ in pairs]
    try:
        for layer in layers:
            if layer.endswith(":in"):
                handles.append(target._layer(layer).register_forward_pre_hook(read_input, with_kwargs=True))
            elif layer != OUTPUT:
                handles.append(target._layer(layer).register_forward_hook(read_output))
        target.raw(probe)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (layer, norm)
        for layer, norm in pairs
        # A linear layer's channels are the last axis, a batch norm's the second.
        if given[layer].dim() == cast(Tensor, target.module.get_submodule(layer).weight).dim()
        and not any(tensor is given[layer] for tensor in read)
    ]


def _first(value: Any) -> Any:
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value


def _fold(layer: Any, norm: Any) -> nn.Module:
    """Return the layer with the batch norm in it; computed in float64."""
    fused: Any = copy.deepcopy(layer)
    weight, mean, variance = (tensor.cpu().double() for tensor in (layer.weight, norm.running_mean, norm.running_var))
    maybe = (layer.bias, norm.weight, norm.bias)
    bias, gamma, beta = (None if tensor is None else tensor.cpu().double() for tensor in maybe)
    transposed = isinstance(layer, TRANSPOSED)
    if transposed:  # (in, out / groups, ...) to (in / groups, out, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(0, 1).flatten(1, 2)
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gamma, beta, transposed)
    if transposed:
        weight = weight.unflatten(1, (layer.groups, -1)).transpose(0, 1).flatten(0, 1)
    layout = torch.channels_last if _is_channels_last(layer.weight) else torch.contiguous_format
    placed = weight.to(layer.weight).contiguous(memory_format=layout)
    fused.weight = nn.Parameter(placed, requires_grad=False)
    fused.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
    return cast(nn.Module, fused)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
