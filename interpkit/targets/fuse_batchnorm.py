"""Fuse the batch norms of the frozen target with the layers before them: the same logits for less work.

    BN(W * x + b) = (g W) * x + g (b - mean) + beta,        g = gamma / sqrt(var + eps)        per channel,

because a frozen batch norm is a fixed scale and shift. This changes a copy, so the user's module stays as it is.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.targets.module_target import OUTPUT, ModuleTarget
from interpkit.targets.watch import first_of, watch

log = logging.getLogger("interpkit")

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
"""Layers are compared by their exact type, because a subclass may compute something else."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ROUNDING = 1e-2
"""The tolerance of the logits relative to the largest; a wrong fusion is off by far more, in any precision."""


def fuse(target: Target, layers: Sequence[str] = ()) -> tuple[Target, int]:
    """Return a target with the same logits and layers but fused batch norms, and the number of fused batch norms.

    A batch norm is fused if it alone reads the output of a convolution or linear layer, each of the two runs once, and
    no requested layer lies between them. A symbolic trace determines the order of layers, so that it holds for every
    image; a classifier that cannot be traced is returned unchanged.

    Args:
        target: the frozen target. It is not changed; the copy shares what is not fused.
        layers: the layers that will be requested in addition to the default features; none of them is fused away.
    """
    if not isinstance(target, ModuleTarget) or not any(type(module) in NORMS for module in target.modules()):
        return target, 0
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # by the tracer, about the classifier's code
            pairs = _consecutive(_copy(target).module)  # a separate copy, because tracing may change it
            twin = _copy(target)
            probe = _probe(target)
            pairs = _unread(twin, pairs, [target.feature_layer, *layers], probe)
            for layer, norm in pairs:
                module = twin.module
                module.set_submodule(layer, _fused(module.get_submodule(layer), module.get_submodule(norm)))
                module.set_submodule(norm, nn.Identity().eval())
            logits = target(probe)
            if not pairs or not (twin(probe) - logits).abs().max() <= ROUNDING * logits.abs().max():
                return target, 0
    except Exception as error:  # whatever the user's classifier raises when it is copied or traced
        log.debug("the batch norms of %s are not fused: %s", target.name, error)
        return target, 0
    return twin, len(pairs)


def _copy(target: ModuleTarget) -> ModuleTarget:
    """Return a copy that shares all tensors with the target."""
    return copy.deepcopy(target, {id(tensor): tensor for tensor in (*target.parameters(), *target.buffers())})


def _probe(target: ModuleTarget) -> Tensor:
    """Return two images, a gray one and a noisy one."""
    noise = torch.rand(1, *target.input_shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full_like(noise, 0.5), noise]).to(device_of(target))


def _consecutive(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the layers that can be fused, each with its batch norm, according to a symbolic trace."""
    graph = fx.Tracer().trace(module)
    # A weight that is used directly (`get_attr`) belongs to the module before its last dot.
    runs = [str(node.target).rpartition(".")[0] if node.op == "get_attr" else node.target for node in graph.nodes]
    names: dict[int, int] = {}
    for _, part in module.named_modules(remove_duplicate=False):
        names[id(part)] = names.get(id(part), 0) + 1

    def alone(node: Any, types: tuple[type[nn.Module], ...]) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module" or runs.count(node.target) != 1:
            return False
        part = module.get_submodule(str(node.target))
        if isinstance(part, TRANSPOSED) and part.groups > 1:
            return False  # torch.nn.utils.fusion does not support them
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
    """Return the pairs whose intermediate output no requested layer reads, and whose channel axes match."""
    outputs: dict[str, Tensor] = {}
    read: list[Tensor] = []
    module = target.module
    watched = {name: target.layer(name) for name in layers if name != OUTPUT or name in target.layers()}
    with (
        watch({name: module.get_submodule(name) for name, _ in pairs}, outputs.__setitem__),
        watch(watched, lambda _, x: read.append(first_of(x))),
    ):
        target.raw(probe)
    return [
        (layer, norm)
        for layer, norm in pairs
        # The channels of a linear layer are the last axis, those of a batch norm the second.
        if outputs[layer].dim() == cast(Tensor, module.get_submodule(layer).weight).dim()
        and not any(tensor is outputs[layer] for tensor in read)
    ]


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Return the layer fused with the batch norm, computed in float64."""
    weight = cast(Tensor, layer.weight)
    exact, scale = (copy.deepcopy(part).cpu().double() for part in (layer, norm))
    if isinstance(exact, nn.Linear):
        fused: nn.Module = fuse_linear_bn_eval(exact, cast(Any, scale))
    else:
        fused = fuse_conv_bn_eval(cast(Any, exact), cast(Any, scale), isinstance(exact, TRANSPOSED))
    return fused.requires_grad_(False).to(weight.device, weight.dtype)
