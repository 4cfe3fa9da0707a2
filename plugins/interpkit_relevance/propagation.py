"""Layer-wise relevance propagation: zennit's rules for layers, and for what forward methods compute outside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError, install_extra

OPERATORS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("add", "iadd", "radd"), torch.add),
    **dict.fromkeys(("sub", "isub", "subtract"), torch.sub),
    "rsub": lambda one, other: other - one,
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), torch.mul),
    **dict.fromkeys(("div", "idiv", "truediv", "itruediv", "true_divide"), torch.div),
}
"""What operators compute, never in place."""
LINEAR = {"mean", "sum", "interpolate", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
LINEAR |= {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
"""Functions that are linear in their input: each value gets its share of the output's relevance."""
ACTIVATIONS = {"silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "elu", "selu", "mish", "leaky_relu"}
ACTIVATIONS |= {"relu", "relu6", "hardtanh", "clamp", "clip", "neg", "negative"}
"""Functions that pass the relevance on, whatever their gradient is."""
ROUTING = frozenset(
    (  # noqa: SIM905
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d dropout dropout2d "
        "flatten pad reshape view view_as permute transpose swapaxes movedim contiguous clone unsqueeze squeeze "
        "getitem get cat concat chunk split unbind flip roll float double half bfloat16 to type type_as expand "
        "expand_as repeat unflatten gather "
    ).split()
)
"""Functions that move values, or let them through or not, as their gradient does relevance."""
LAYERS = {"linear", "batch_norm", *(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))}
"""Functions of the layers that zennit has rules for."""
FAR = 0.5
"""How far the sums of the maps may be from the scores, as a share of these, before a note says so."""
INSTEAD = "Use another method, such as integrated-gradients"


class RelevancePropagation(Attribution):
    r"""Layer-wise relevance propagation: the score is distributed over the inputs of each layer, down to the pixels.

    An input i of a linear layer receives :math:`R_i = \sum_j x_i w_{ij} R_j / z_j`, where z is the layer's output
    (rule ``epsilon``). In convolutions, the rule ``plus`` counts only positive contributions, which gives maps with
    less noise, and spreads that of the bias evenly over the inputs. Activations, constants and the preprocessing pass
    the relevance on; sums and means share it among their terms; products pass it to the larger factor, and not to a
    gate (as in squeeze and excitation). Batch norms are first merged into the layer before them. Targets that compute
    anything else are refused. The relevances sum to the score, except for what other biases take or add; a note says
    if that is more than half of it. Source: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier
    decisions by layer-wise relevance propagation", eq. 58 and 60; the rules are zennit's.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> target = wrap(linear, input_shape=(3,))
        >>> attribute(target, torch.tensor([[1.0, 0.5, 1.0]]), [0], method="lrp").round(decimals=3)
        tensor([[ 2.0000, -0.5000,  0.0000]])
    """

    name = "lrp"

    class Options(interpkit.Options):
        """Which rule applies to convolutions."""

        rule: Literal["plus", "epsilon"] = Field("plus", description="rule of convolutions; other layers have epsilon")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        try:
            from zennit.canonizers import NamedMergeBatchNorm
            from zennit.composites import LayerMapComposite, layer_map_base
            from zennit.rules import Epsilon
            from zennit.types import AvgPool, BatchNorm, Convolution, Linear
        except ImportError as error:
            raise UsageError(f"lrp requires the package zennit: {install_extra('zennit')}.") from error

        class Merge(NamedMergeBatchNorm):  # type: ignore[misc]  # zennit has no types
            """Leaves an exact identity behind; zennit's divides by sqrt(1 + eps), which adds up over many layers."""

            @staticmethod
            def merge_batch_norm(modules: list[nn.Module], batch_norm: Any) -> None:
                NamedMergeBatchNorm.merge_batch_norm(modules, batch_norm)
                batch_norm.weight.data *= (1 + batch_norm.eps) ** 0.5

        _check_layers(target, (Linear, BatchNorm, nn.PReLU))
        of_convolutions = _plus() if self.options.rule == "plus" else Epsilon()
        rules = [(Convolution, of_convolutions), ((Linear, BatchNorm), Epsilon()), *layer_map_base()]
        scores, pairs = _batch_norms(target, context.scores, images, (Linear, BatchNorm, AvgPool))
        scores = scores.gather(1, classes[:, None])
        near = 1e-3 * (1 + scores.abs().max().item())
        # Without merging where a layer has other uses besides its batch norm.
        for canonizers in ([Merge(pairs)], []):
            pixels, functions = images.detach().clone().requires_grad_(), _Functions()
            with _as_before(target), LayerMapComposite(rules, canonizers).context(target):
                with functions:
                    found = context.scores(pixels).gather(1, classes[:, None])
                if functions.unknown:
                    names = ", ".join(sorted(functions.unknown))
                    raise UsageError(f"lrp has no rule for what {target.name} computes: {names}. {INSTEAD}.")
                if (found - scores).abs().max() <= near:
                    (relevance,) = torch.autograd.grad(found, pixels, found.detach())
                    gap = (relevance.flatten(1).sum(1) - scores[:, 0]).abs().sum() / scores.abs().sum()
                    if not canonizers and pairs:
                        context.note("lrp could not merge the batch norms, whose biases then take relevance.")
                    if gap > FAR:
                        context.note(
                            f"the maps of lrp do not add up to the scores: the difference is {gap:.0%} of these, which "
                            f"biases take or add."
                        )
                    return relevance
        raise UsageError(f"lrp cannot explain {target.name}: its scores change with hooks on its layers. {INSTEAD}.")


@contextmanager
def _as_before(target: Target) -> Iterator[None]:
    """Restore what each module has at the end: zennit 1.0 leaves new parameters in place of those that it merges."""
    before = [(vars(module), dict(vars(module))) for module in target.modules()]
    tables = [(table, dict(table)) for _, own in before for table in own.values() if isinstance(table, dict)]
    try:
        yield
    finally:
        for now, was in (*before, *tables):
            now.clear()
            now.update(was)


def _plus() -> Any:
    """Return the rule of positive contributions; that of the bias is spread evenly over the inputs.

    The passes are: positive and negative inputs with the weights of their sign, the bias alone, the number of inputs.
    """
    from zennit.core import BasicHook
    from zennit.rules import ClampMod, ParamMod

    def shares(relevance: Tensor, outputs: list[Tensor]) -> list[Tensor]:
        positive, negative, bias, number = outputs
        share = relevance / (positive + negative + bias + 1e-6)
        return [share, share, torch.zeros_like(share), share * bias / number]

    return BasicHook(
        input_modifiers=[lambda x: x.clamp_min(0), lambda x: x.clamp_max(0), torch.zeros_like, torch.ones_like],
        param_modifiers=[
            ClampMod(min=0.0, zero_params="bias"),
            ClampMod(max=0.0, zero_params="bias"),
            ClampMod(min=0.0, zero_params="weight"),
            ParamMod(lambda value, name: torch.full_like(value, name == "weight")),
        ],
        output_modifiers=[lambda output: output] * 4,
        gradient_mapper=shares,
        reducer=lambda inputs, gradients: sum(x * gradient for x, gradient in zip(inputs, gradients, strict=True)),
    )


@torch.no_grad()
def _batch_norms(
    target: Target, scores: nn.Module, images: Tensor, kinds: tuple[Any, Any, Any]
) -> tuple[Tensor, list[tuple[list[str], str]]]:
    """Return the scores, and the pairs of linear layer and batch norm in which the one's output enters the other.

    Raises:
        UsageError: a layer with a rule runs several times, of which zennit keeps only the last input.
    """
    linear, norm, _ = kinds
    runs = Counter[str]()
    outputs: list[tuple[str, Tensor]] = []
    pairs: list[tuple[list[str], str]] = []

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            if isinstance(layer, linear):
                outputs.append((name, output))
            elif isinstance(layer, norm) and layer.affine and layer.running_mean is not None:
                pairs.extend(([before], name) for before, tensor in outputs if tensor is inputs[0])

        return layer.register_forward_hook(hook)

    layers = {name: layer for name, layer in target.named_modules() if isinstance(layer, kinds)}
    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        found = scores(images)
    finally:
        for handle in handles:
            handle.remove()
    if several := [name.removeprefix("module.") for name, count in runs.items() if count > 1]:
        raise UsageError(
            f"lrp cannot explain {target.name}: these layers run more than once: {', '.join(several)}. {INSTEAD}, or "
            f"rows=1 (--rows 1) if the classifier processes one image at a time."
        )
    return found, pairs


def _check_layers(target: Target, known: tuple[Any, ...]) -> None:
    """Refuse layers with weights of their own that have no rule, and targets whose layers do not accept hooks."""
    inside = [layer for layer in target.modules() if not isinstance(layer, torch.jit.ScriptModule)]
    layers = [layer for layer in inside if any(True for _ in layer.parameters(recurse=False))]
    if other := sorted({type(layer).__name__ for layer in layers if not isinstance(layer, known)}):
        raise UsageError(f"lrp has no rule for these layers of {target.name}: {', '.join(other)}. {INSTEAD}.")
    if not layers:
        raise UsageError(
            f"lrp cannot explain {target.name}: it has no layers with weights that accept hooks, as in TorchScript or "
            f"an exported program. {INSTEAD}."
        )


class _Function(nn.Module):
    """A function as a layer, to which a rule can be attached."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Functions(TorchFunctionMode):
    """Attaches rules to functions that run outside layers; ``unknown`` are the names of those that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()
        self._rules: list[Any] = []  # zennit refers to them weakly

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", str(func)).strip("_"), kwargs or {}
        tracked = _tracked(args)
        if len(tracked) == 2 and OPERATORS.get(name) in (torch.add, torch.sub):
            operator, terms = OPERATORS[name], torch.stack(torch.broadcast_tensors(*args[:2]))
            return self._by_rule(lambda both: operator(both[0], both[1], **kwargs), terms)
        if tracked and name in LINEAR:
            return self._by_rule(lambda x: func(x, *args[1:], **kwargs), args[0])
        if tracked and (name in OPERATORS or name in ACTIVATIONS):
            operator, of_copies = OPERATORS.get(name, func), [_copied(each) for each in args]
            feature, *gates = sorted(tracked, key=torch.Tensor.numel, reverse=True)
            if gates and gates[0].numel() == feature.numel():
                self.unknown.add(f"{name} of two features")
            return feature + (operator(*of_copies, **kwargs) - feature).detach()
        result = func(*args, **kwargs)
        if name not in ROUTING | LAYERS and _tracked([result]):
            self.unknown.add(name)
        return result

    def _by_rule(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        from zennit.rules import Norm

        self._rules.append(Norm())
        self._rules[-1].register(layer := _Function(function))
        result: Tensor = layer(x)
        return result


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tracked(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors that depend on the image."""
    return [each for each in values if isinstance(each, Tensor) and each.requires_grad]
