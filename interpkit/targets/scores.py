"""What a classifier's numbers are, and how they become the logits of a target.

What the numbers are is decided by evidence: their range and sums for a few images, the last operation that computes
them, and whether they leave 0..1 for inputs far outside the image's range. What remains in doubt is logged.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import Node

from interpkit.config.recipe import Output, TargetOptions
from interpkit.errors import ModelError, listed, setting
from interpkit.runtime.random import global_seed

if TYPE_CHECKING:
    from interpkit.targets.module_target import ModuleTarget

log = logging.getLogger("interpkit")

TINY = 1e-12
CLOSE = 1e-2
"""How far sums of probabilities may be from 1."""
ASSUMED = "assumed: it is between 0 and 1 for all probes"
MULTI_LABEL: tuple[Output, ...] = ("sigmoid", "sigmoid_logits")
LOUD = (10.0, 1000.0)
"""Amplitudes of noise that takes the output of a classifier without a final sigmoid out of 0..1."""
FLAT, STEEP = 1e-3, 1e4
"""Differences between an image's logits that suggest a wrong scale."""

RESHAPING = re.compile(
    "View|UnsafeView|ReshapeAlias|Squeeze|Unsqueeze|Select|Slice|Index|IndexSelect|Transpose|T|Permute|Cat|Stack|Split|"
    "Unbind|Expand|Clone|Alias|ToCopy"
)
"""Operations, as autograd names them, that move numbers but do not change them."""
SCALING = re.compile(f"{RESHAPING.pattern}|Add|Sub|Rsub|Mul|Div|Neg|.*AccumulateGrad")
"""Operations that also shift and scale them."""
SUMMING = re.compile(f"{SCALING.pattern}|Sum|Mean|Sqrt")
SIGMOIDS = frozenset({"Sigmoid", "Hardsigmoid"})
SAFE = frozenset({"Add", "Clamp", "ClampMin", "Maximum"})
"""Operations that keep the argument of a logarithm above 0."""
AGREE = {("logits", "log_probs"), ("probs", "sigmoid")}
"""What may be stated where something else is found: the same, or a choice that is the user's."""
DISTANCES = frozenset({"Cdist", "EuclideanDist", "LinalgVectorNorm", "Norm", "Pow", "Abs"})
"""Operations whose results, and the sums of them, are distances."""
UNUSUAL = frozenset({"Relu", "Softplus", "Exp", "Tanh"})
"""Operations that end evidence, rates, counts or coordinates rather than logits."""
LINEAR = frozenset({"Addmm", "Mm", "Addmv", "Mv", "Linear", "Bmm", "Baddbmm", "Convolution"})


def in_single(tensor: Tensor) -> Tensor:
    """Return floating-point numbers of any precision as float32, and others unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor


def as_logits(values: Tensor, output: Output) -> Tensor:
    """Return a module's output, (B, n) or (B, 1), as logits of at least two classes, (B, n) float32.

    - Log-probabilities are logits already, and so are the logarithms of probabilities.
    - Probabilities p of independent labels become log p - log(1 - p), the logit of each.
    - A single logit z becomes (-z/2, z/2), whose softmax is (1 - sigmoid(z), sigmoid(z)) and which explains both
      classes; a single probability p becomes (log(1 - p), log p).
    """
    values = in_single(values)
    if output == "neg_log_probs":
        values, output = -values, "log_probs"
    if output == "sigmoid":
        return (values + TINY).log() - (1 - values + TINY).log()
    if output == "probs":
        if values.shape[1] == 1:
            values = torch.cat([1 - values, values], 1)
        return (values + TINY).log()
    if values.shape[1] == 1:
        both = (-values / 2, values / 2) if output == "logits" else ((1 - values.exp() + TINY).log(), values)
        return torch.cat(both, 1)
    return values


def names_of(given: list[str] | None, width: int) -> list[str]:
    """Return the names of the classes of an output, (B, width); one name for one output has a class ``not NAME``."""
    if given is None:
        return [str(i) for i in range(max(2, width))]
    return [f"not {given[0]}", *given] if len(given) == width == 1 else given


def find_output(target: ModuleTarget, raw: Tensor, options: TargetOptions) -> None:
    """Detect what the numbers are if the options do not say so, and warn of what is doubtful about them.

    Args:
        target: runs the module; receives ``output``, its source, and ``multi_label``.
        raw: the module's output for a few images, (B, n) or (B, 1).
        options: may state ``output``.

    Raises:
        ModelError: the numbers cannot be what the options state, or are of a kind that is not supported.
    """
    values, single = raw[raw.isfinite().all(1)].detach().cpu().double(), raw.shape[1] == 1
    last = _last_operations(raw.grad_fn)
    try:
        found, evidence = _detect(target, values, last)
    except ModelError:
        if options.output is None:
            raise
        found, evidence = options.output, "given"
    output, source = options.output or found, "given" if options.output else evidence
    if options.output is None:
        doubt = _doubt(output, source, raw, unnamed=len(options.class_names or ()) < raw.shape[1] + single)
        if doubt:
            log.warning("%s: %s", target.name, doubt)
    if len(values) < len(raw):
        log.warning(
            "%s returns NaN or infinite logits for %d of %d probes (black, white and noise are among them), so some "
            "images cannot be scored. Does it divide by something that may be 0? Add a small number to that.",
            target.name, len(raw) - len(values), len(raw),
        )  # fmt: skip
    if single:  # one label and its absence are two classes that exclude each other
        output = {"sigmoid": "probs", "sigmoid_logits": "logits"}.get(output, output)  # type: ignore[assignment]
    if not as_logits(values, output).isfinite().all():
        raise ModelError(
            f"{target.name} does not return what {setting('output', output)} states: its numbers are between "
            f"{values.min():.3g} and {values.max():.3g}. Pass another, or leave it out to have it detected."
        )
    other = found not in ("logits", output) and (output, found) not in AGREE and evidence != ASSUMED
    # negative logarithms of probabilities are above 0, and other logits change the order of their classes
    turned = found == "logits" and output == "neg_log_probs" and bool((values < 0).any())
    if other or turned:
        log.warning(
            "%s: %s is stated, but its numbers look like %s (%s), and other probabilities come of that. Pass %s, or "
            "leave it out.",
            target.name, setting("output", output), found, evidence, setting("output", found),
        )  # fmt: skip
    target.output, target.sources["output"] = output, source
    target.multi_label = output in MULTI_LABEL
    if len(values) > 1:
        _check_scale(target, values)


def _detect(target: ModuleTarget, values: Tensor, last: set[str]) -> tuple[Output, str]:
    """Return the kind of output, and the evidence for it: the numbers, and the last operations."""
    single, within = values.shape[1] == 1, bool(((values >= 0) & (values <= 1)).all())
    if within and last and last <= SIGMOIDS:
        return ("probs", "found: a sigmoid") if single else ("sigmoid", "found: sigmoids, one for each label")
    if not single and values.logsumexp(1).abs().max() < CLOSE:
        return "log_probs", "found: its exponentials sum to 1"
    if not single and (-values).logsumexp(1).abs().max() < CLOSE:
        return "neg_log_probs", "found: the exponentials of its negative sum to 1"
    _refuse_other_bases(target, values)
    if single and last == {"LogSigmoid"}:
        return "log_probs", "found: the logarithm of a sigmoid"
    if last == {"LogSigmoid"}:
        raise ModelError(
            f"{target.name} returns the logarithms of sigmoids, one for each label. Wrap it in a module that returns "
            f"model(x).exp()."
        )
    powers = values.exp()
    if not single and bool((values <= 0).all()) and powers.sum(1).mean() > 1.5 and _have_one_sum(powers):
        raise ModelError(
            f"{target.name} returns logarithms of numbers that sum to {float(powers.sum(1).mean()):.4g}, as several "
            f"distributions side by side do. Wrap it in a module that returns one of them, such as model(x)[:, :3]; "
            f"use {setting('output', 'logits')} if its numbers are logits after all."
        )
    total = float(values.sum(1).mean())
    if not single and bool((values >= 0).all()) and _have_one_sum(values):
        if within and total > 1.5:
            raise ModelError(
                f"{target.name} returns numbers between 0 and 1 that sum to {total:.4g}, as several distributions side "
                f"by side do. Wrap it in a module that returns one of them, such as model(x)[:, :3]; if they are "
                f"multiples of one, use {setting('output', 'probs')}."
            )
        return "probs", f"found: it sums to {total:.4g}"
    if not within:
        return "logits", "found: it is neither probabilities nor their logarithms"
    if not single and (values.sum(1) - 1).abs().max() < CLOSE:
        return "probs", "found: it sums to 1"
    if last == {"Softmax"}:
        return "probs", "found: a part of a softmax"
    if _leaves(target):
        return "logits", "found: it leaves 0..1 for inputs outside the image's range"
    alike = bool((values == values[0]).all())
    output: Output = "logits" if alike or last & LINEAR else "probs" if single else "sigmoid"
    return output, ASSUMED


def _doubt(output: Output, source: str, raw: Tensor, *, unnamed: bool) -> str:
    """Return what a detected output may be instead, and how to say so; empty if nothing speaks for that."""
    count, confirm = raw.shape[1], setting("output", output)
    scaled, summed = (_last_operations(raw.grad_fn, through=through) for through in (SCALING, SUMMING))
    if source == ASSUMED:
        return (
            f"its output is between 0 and 1 for all probes, which may be probabilities or logits; it is read as "
            f"{output}. Confirm it with {confirm}, or pass another."
        )
    if output == "sigmoid" and count in (2, 4) and unnamed:
        return (
            f"it returns {count} sigmoids, which are read as labels that do not exclude each other. If they are "
            f"coordinates, such as a {'point' if count == 2 else 'box'}, it has no classes: see the page about "
            f"bringing your classifier. {confirm} confirms the labels."
        )
    if output == "logits" and summed & DISTANCES and summed <= DISTANCES | LINEAR and bool((raw >= 0).all()):
        return (
            f"it returns distances, which are read as logits. If the nearest class is the likeliest, wrap it in a "
            f"module that returns -model(x). {confirm} confirms the logits."
        )
    if output == "logits" and scaled and scaled <= UNUSUAL and (scaled == {"Tanh"} or bool((raw >= 0).all())):
        return (
            f"it ends in {listed(sorted(scaled)).lower()}, as evidence, rates or coordinates do, and is read as "
            f"logits. If its numbers are evidence or rates, wrap it in a module that returns their logarithms; if they "
            f"are quantities, it has no classes: see the page about bringing your classifier. {confirm} confirms the "
            f"logits."
        )
    if output == "logits" and count == 1 and unnamed:
        return (
            f"it returns one number per image, which is read as the logit of a yes or no. If it is a quantity, such as "
            f"an age, it has no classes: see the page about bringing your classifier. {confirm} confirms the logit."
        )
    return ""


def _refuse_other_bases(target: ModuleTarget, values: Tensor) -> None:
    """Refuse logarithms of probabilities to another base than e, whose softmax is not those probabilities.

    Raises:
        ModelError: the powers of 2 or 10 sum to 1 for every image.
    """
    for base, sign in itertools.product((2, 10), (1, -1)):
        factor = sign * math.log(base)
        if values.shape[1] > 1 and (factor * values).logsumexp(1).abs().max() < CLOSE:
            raise ModelError(
                f"{target.name} returns {'minus ' if sign < 0 else ''}the logarithms of probabilities to base {base}. "
                f"Wrap it in a module that returns {factor:.4f} * model(x), or use {setting('output', 'logits')} if "
                f"its numbers are logits after all."
            )


def _have_one_sum(values: Tensor) -> bool:
    """Return whether rows differ but have the same sum, as percentages have."""
    spread = values.std(0).max() if len(values) > 1 else values.new_zeros(())
    return bool(spread > 0) and bool(values.sum(1).std() < 1e-3 * spread)


def _last_operations(*ends: Node | None, through: re.Pattern[str] = RESHAPING) -> set[str]:
    """Return the autograd names of the operations that computed the output's numbers; empty if they are not known.

    Operations whose name matches ``through`` are passed over.
    The logarithm of a sigmoid is ``LogSigmoid`` however it is written, also with a small number inside.
    """
    names, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        name = "" if node is None else node.name().split("Backward")[0]
        if node is None or through.fullmatch(name):
            todo += [] if node is None else [before for before, _ in node.next_functions if before is not None]
            continue
        inside = [before for before, _ in node.next_functions]
        while name == "Log" and len(inside) == 1 and inside[0] and inside[0].name().split("Backward")[0] in SAFE:
            inside = [before for before, _ in inside[0].next_functions if before is not None]
        if name == "Log" and _last_operations(*inside) == {"Sigmoid"}:
            name = "LogSigmoid"
        names.add(name)
    return names


def _leaves(target: ModuleTarget) -> bool:
    """Return whether the output leaves 0..1 for noise far outside the image's range."""
    device, generator = target.scale.device, torch.Generator().manual_seed(0)
    noise = torch.randn(4, *target.input_shape, generator=generator).to(device)
    try:
        with target.frozen(), torch.no_grad(), global_seed(0, device):
            loud = torch.cat([target.raw(amplitude * noise) for amplitude in LOUD])
    except Exception:  # whatever the user's module raises for such inputs
        return False
    return bool(((loud < 0) | (loud > 1)).any())


def _check_scale(target: ModuleTarget, values: Tensor) -> None:
    """Warn if the logits of all probes are so close together, or so far apart, that no gradient can use them."""
    logits = as_logits(values.float(), target.output)
    relative, spread = (logits - logits.mean(1, keepdim=True)).std(0).max(), logits.std(0).max()
    if len(values) > 1 and relative < 1e-3 * spread:
        log.warning(
            "%s: the differences between its logits are the same for all probes, as if each class said \"more than\" "
            "(ordinal regression). Wrap it in a module that returns the probabilities of the classes: with p = "
            "model(x).sigmoid(), torch.cat([1 - p[:, :1], p[:, :-1] - p[:, 1:], p[:, -1:]], 1).",
            target.name,
        )  # fmt: skip
    apart = (logits.amax(1) - logits.amin(1)).max().item()
    if target.output in ("probs", "sigmoid") and bool(((values == 0) | (values == 1)).all()):
        words = "its probabilities are exactly 0 or 1 for all probes, so they may have no gradient. Return the logits"
    elif not FLAT <= apart <= STEEP:
        words = f"its logits differ by at most {apart:.2g} between classes for all probes. Multiply them by a number"
    else:
        return
    log.warning("%s: %s in a module around the classifier if the inversion does not start.", target.name, words)
