"""A target as a chain: affine maps, and between them activations that are linear in pieces."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from interpkit import Target, UsageError
from interpkit_constrained.activations import Activation, Leaky, MaxPool

READS = (
    "linear and convolutional layers, batch norms, average and max pooling, ReLU, leaky ReLU, dropout, reshaping and "
    "scaling, each of which reads the output of the one before"
)
LINEAR = re.compile(
    "view|_unsafe_view|reshape|clone|_to_copy|detach|alias|t|transpose|permute|squeeze|unsqueeze|expand|select|slice|"
    "index|index_select|flip|cat|stack|split|split_with_sizes|unbind|getitem|add|sub|rsub|neg|sum|mean|avg_pool[12]d|"
    "_adaptive_avg_pool2d|(constant_pad_n|(reflection|replication)_pad2)d|upsample_(nearest|bilinear)2d"
)
"""Operations that are affine in all their operands together."""
BILINEAR = re.compile("mul|mm|bmm|mv|addmm|convolution")
"""Operations that are affine in each operand; only one may depend on the input."""
LINEAR_IN_FIRST = re.compile("div|native_batch_norm|_native_batch_norm_legit_no_training|cudnn_batch_norm")
"""Operations that are affine in the first operand; no other may depend on the input."""
POOLING = "max_pool2d_with_indices"
ROUNDING = 1e-3
"""The tolerance of the chain's logits, relative to the largest."""


@dataclass(frozen=True)
class Affine:
    """An affine map z = W a + b, as a function.

    Attributes:
        function: one input (in,) -> one output (out,), float64.
        inputs: the number of inputs.
        outputs: the number of outputs.
    """

    function: Callable[[Tensor], Tensor]
    inputs: int
    outputs: int

    def __call__(self, a: Tensor) -> Tensor:
        """Return z, (N, out), for a, (N, in)."""
        z: Tensor = torch.vmap(self.function, chunk_size=256)(a)
        return z


class Chain:
    """The affine maps of a target and the activations between them, in float64 on the CPU.

    Args:
        target: the frozen target, of which a copy is traced.

    Attributes:
        affine: L maps; the last one returns logits.
        activations: the L - 1 activations between them.

    Raises:
        UsageError: the target has a layer that is neither, or one that reads more than the layer before it.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        if target.multi_label:
            raise self._refused("its classes do not exclude each other, and a margin between them means nothing.")
        probe = torch.rand(2, *target.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            try:
                self.target = target = copy.deepcopy(target).cpu()
                self._graph = make_fx(target)(probe[:1])
            except Exception as error:  # whatever the user's classifier raises when it is copied or traced
                raise self._refused(f"torch.fx cannot trace it ({error}).") from error
            self._graph.graph.eliminate_dead_code()
            self._values: dict[fx.Node, Any] = {}
            self.affine: list[Affine] = []
            self.activations: list[Activation] = []
            self._read(probe[:1])
            logits, own = (x.double().log_softmax(1).clamp_min(-20) for x in (target(probe), self(probe)))
        if not (logits - own).abs().max() <= ROUNDING * own.abs().max():
            raise self._refused("what it computes depends on more than its layers.")

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, (N, n) float64, up to a constant per image, of images (N, *input_shape) or flat ones."""
        z = self.affine[0](images.flatten(1).double())
        for activation, affine in zip(self.activations, self.affine[1:], strict=True):
            z = affine(activation(z))
        return z

    def _read(self, probe: Tensor) -> None:
        """Run the traced operations once and split them at the activations."""
        *nodes, end = self._graph.graph.nodes
        last = _before_softmax(end.args[0])
        source: fx.Node | None = None
        own: set[fx.Node] = set()  # depend on the source alone: the latest activation, or the input before the first
        earlier: set[fx.Node] = set()  # depend on what is before it
        for node in nodes:
            operands = _operands(node)
            if node.op == "placeholder":
                self._values[node] = probe.double()
                source, own = node, {node}
                continue
            self._values[node] = self._run(node, self._values)
            depends = [used in own for used in operands]
            if any(used in earlier for used in operands):
                raise self._refused_layer(
                    node, "also reads what an earlier layer returns, as a residual connection or a branch does"
                )
            if not any(depends):
                continue
            assert source is not None
            activation, windows = self._activation(node)
            if activation is not None:
                self._close(source, operands[0], own, windows)
                self.activations.append(activation)
                earlier, own, source = earlier | own, {node}, node
            elif _is_affine(node, depends):
                own.add(node)
            else:
                raise self._refused_layer(node, "is not among the layers that it reads")
            if node is last:
                break
        if source is None or last not in own:
            raise self._refused("its logits do not depend on the input.")
        self._close(source, last, own, None)

    def _close(self, source: fx.Node, end: fx.Node, own: set[fx.Node], windows: Tensor | None) -> None:
        """Add the affine map from a source to a node, followed by a choice of its outputs."""
        nodes = [node for node in self._graph.graph.nodes if node in own and node is not source]
        pooled = _name(source) == POOLING
        shape = (self._values[source][0] if pooled else self._values[source]).shape

        def function(a: Tensor) -> Tensor:
            a = a.reshape(shape)
            values: dict[fx.Node, Any] = {source: (a, None) if pooled else a}
            for node in nodes:
                values[node] = self._run(node, values)
            z: Tensor = values[end].flatten()
            return z if windows is None else z[windows]

        inputs, outputs = shape.numel(), self._values[end].numel() if windows is None else len(windows)
        self.affine.append(Affine(function, inputs, outputs))

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Run one operation in float64."""
        if node.op == "get_attr":
            constant = getattr(self._graph, str(node.target)).detach()
            return constant.double() if constant.is_floating_point() else constant
        args, kwargs = cast(Any, fx.map_arg((node.args, node.kwargs), lambda x: values.get(x, self._values.get(x))))
        if _name(node) == "_to_copy":
            return args[0].clone()
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _activation(self, node: fx.Node) -> tuple[Activation | None, Tensor | None]:
        """Return the activation of an operation; for max pooling, also the places that its windows read."""
        name, rest = _name(node), cast(Any, node.args[1:])
        if name == "relu" or (name in ("clamp", "clamp_min") and rest in ((0,), (0.0,), (0, None))):
            return Leaky(0.0), None
        if name == "leaky_relu":
            return Leaky(float(rest[0]) if rest else 0.01), None
        if name == POOLING:
            before, after = self._values[cast(fx.Node, node.args[0])], self._values[node]
            windows = pooling_windows(before.shape, after[0].shape, *rest)
            return MaxPool(windows.shape[1]), windows.flatten()
        return None, None

    def _refused(self, why: str) -> UsageError:
        return UsageError(
            f"the inverter 'constrained' cannot read {self.target.name}: {why} It reads {READS}. "
            "Other inverters accept any classifier."
        )

    def _refused_layer(self, node: fx.Node, why: str) -> UsageError:
        return self._refused(f"{_layer_of(self.target, node)} {why}.")


def pooling_windows(
    before: Sequence[int],
    after: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    """Return the places (in a flat input) that each output of a max pooling reads, (outputs, window).

    Where a window reaches beyond the input, it reads one of its own places twice, which leaves its maximum as it is.

    Args:
        before: the shape of its input, (1, C, H, W).
        after: the shape of its output.
        kernel: its size, as for the others one number or two.
        stride: the step; the kernel's size if empty.
        padding: on each side.
        dilation: the step within a window.
        ceil_mode: has no further effect, because ``after`` is known.
    """
    sides = []
    for axis in (0, 1):
        size, step, pad, gap = (x[axis % len(x)] for x in (kernel, stride or kernel, padding, dilation))
        places = torch.arange(after[2 + axis])[:, None] * step - pad + torch.arange(size) * gap
        inside = (places >= 0) & (places < before[2 + axis])
        sides.append(torch.where(inside, places, places.masked_fill(~inside, -1).amax(1, keepdim=True)))
    rows, columns = sides
    plane = rows[:, None, :, None] * before[3] + columns[None, :, None, :]
    channels = torch.arange(before[1])[:, None, None, None, None] * (before[2] * before[3])
    return (channels + plane).flatten(3).flatten(0, 2)


def _name(node: fx.Node) -> str:
    """Return the name of an operation; one that changes its input in place has the name of the one that does not."""
    if node.target is operator.getitem:
        return "getitem"
    name = str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")
    return name.removesuffix("_")


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that an operation reads, repeated as often as it reads them."""
    found: list[fx.Node] = []

    def keep(used: fx.Node) -> fx.Node:
        found.append(used)
        return used

    fx.map_arg((node.args, node.kwargs), keep)
    return found


def _is_affine(node: fx.Node, depends: Sequence[bool]) -> bool:
    name, dtype = _name(node), node.kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        return False  # a cast to whole numbers
    if LINEAR.fullmatch(name):
        return True
    if BILINEAR.fullmatch(name):
        return sum(depends) == 1
    training = len(node.args) > 5 and bool(node.args[5]) and name.endswith("batch_norm")
    first = depends[0] and not any(depends[1:])
    fits = LINEAR_IN_FIRST.fullmatch(name) and first and not training
    return bool(fits) and "rounding_mode" not in node.kwargs


def _before_softmax(node: Any) -> Any:
    """Return the logits, if a node is the logarithm of their softmax."""
    inner = node
    if _name(inner) == "log":  # of probabilities, to which a small number has been added
        inner = inner.args[0]
        inner = inner.args[0] if _name(inner) == "add" else inner
    softmax = "_softmax" if inner is not node else "_log_softmax"
    return inner.args[0] if _name(inner) == softmax and inner.args[1] in (1, -1) else node


class _Calls(TorchDispatchMode):
    """Records each operation and the layer in which it runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.within: list[str] = []
        self.calls: list[tuple[Any, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, self.within[-1] if self.within else ""))
        return func(*args, **(kwargs or {}))


def _layer_of(target: Target, node: fx.Node) -> str:
    """Name the layer that runs an operation, by running the target once more."""
    same = [other for other in node.graph.nodes if other.target == node.target]
    log, layers = _Calls(), target.layers()
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            enter = layer.register_forward_pre_hook(lambda *_, name=name: log.within.append(name))
            leave = layer.register_forward_hook(lambda *_: log.within.pop() and None)
            hooks.callback(enter.remove)
            hooks.callback(leave.remove)
        with log:
            target(torch.full((1, *target.input_shape), 0.5))
    places = [name for func, name in log.calls if func == node.target]
    name = places[same.index(node)] if len(places) == len(same) else ""
    operation = f"the operation {_name(node)!r}"
    return f"{operation} of the layer {name!r} ({type(layers[name]).__name__})" if name else operation
