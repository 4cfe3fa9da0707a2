"""The checks of inversion losses."""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from interpkit.errors import UsageError
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.targets import Response, Target
from interpkit.runtime.random import global_seed, random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, expect, promised
from interpkit.testing.components import (
    builder,
    expect_gradients,
    expect_images,
    expect_on,
    expect_unit,
    expect_untouched,
    random_states,
    same,
    with_seed,
)
from interpkit.testing.conditioners import average_step, expect_converged
from interpkit.testing.second_device import other_devices
from interpkit.testing.two_processes import Importable, in_both

SMOOTH: tuple[toy_models.Shape, ...] = ((3, 5, 5), (6,))
"""Shapes of small targets for derivatives in float64."""


def home(cls: Any) -> tuple[InversionLoss, Target]:
    """Return a loss and the first target that it takes."""
    shape, count = toy_models.home_of(builder(cls))
    target = toy_models.target_of(shape, count)
    return cls(target), target


@promised(
    "scalar",
    by="loss",
    promise="for any image size, number of classes and batch of two or more it is one finite number, of shape ()",
    remedy="end in .mean(); keep clear of log(0), 0 / 0 and overflow",
)
def scalar(cls: Any) -> None:
    """It is a scalar."""
    for shape, count, loss in toy_models.settings_of(cls, builder(cls))[0]:
        for size in (2, 5):
            where = f"for {size} images of {shape} and {count} classes"
            value = toy_models.value_of(loss, toy_models.target_of(shape, count), toy_models.images_of(shape, size))
            expect(isinstance(value, Tensor), f"{type(value).__name__} instead of a tensor, {where}")
            expect(value.shape == (), f"shape {tuple(value.shape)}, {where}")
            expect(value.is_floating_point() and value.isfinite(), f"{value.item()} of {value.dtype}, {where}")


@promised(
    "finite-gradients",
    by="loss",
    promise="its gradient on the images is finite, also where all images are black, white or the same",
    remedy="add an eps under square roots, norms, logarithms and divisions; torch.where does not stop a NaN's gradient",
)
def finite_gradients(cls: Any) -> None:
    """Gradients are finite."""
    loss, target = home(cls)
    usual = toy_models.images_of(target.input_shape, 6)
    cases = {
        "for random images": usual,
        "where all images are black": torch.zeros_like(usual),
        "where all images are white": torch.ones_like(usual),
        "where all images are the same": usual[:1].expand_as(usual).clone(),
    }
    with target.frozen():
        for where, images in cases.items():
            images.requires_grad_()
            value = toy_models.value_of(loss, target, images)
            expect(value.isfinite(), f"the value is {value.item()} {where}")
            if value.requires_grad:
                value.backward()
            expect(images.grad is None or images.grad.isfinite().all(), f"a gradient is not finite {where}")


@promised(
    "gradcheck",
    by="loss",
    promise="its gradient on the images, and on the target's answers to them and to the views, is the "
    "derivative of its value, in float64",
    remedy="use no detach(), .data, .item() or .float() on the way from what a batch holds to the value; mend "
    "the backward of your own autograd functions",
)
def gradcheck(cls: Any) -> None:
    """Gradients are right."""
    for shape in SMOOTH:
        target = toy_models.SmoothTarget(shape, 3)
        try:
            loss = cls(target)
        except UsageError:
            continue
        views = _views(loss, toy_models.generated(target, toy_models.images_of(shape, 4)))
        views, loss = None if views is None else views.double(), loss.double()
        batch = toy_models.generated(target, toy_models.images_of(shape, 4).double())
        seen = target.respond(batch.images, loss.layers(target))
        of_views = None if views is None else target.respond(views, loss.layers(target))
        layers = list(seen.features)
        given = [batch.images, seen.logits, *seen.features.values()]
        if of_views is not None:
            given += [of_views.logits, *(of_views.features[layer] for layer in layers)]

        def value(*tensors: Tensor, loss: InversionLoss = loss, batch: GeneratedBatch = batch,
                  views: Tensor | None = views, layers: list[str] = layers) -> Tensor:  # fmt: skip
            images, *answers = tensors
            each = 1 + len(layers)
            responses = [
                Response(part[0], dict(zip(layers, part[1:], strict=True)), batch.target.feature_layer)
                for part in (answers[:each], answers[each:])
                if part
            ]
            of_views = responses[1] if len(responses) > 1 else None
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                found: Tensor = loss(
                    InversionBatch(
                        batch.target, batch.condition, batch.latent, images, 0.5, responses[0], views, of_views
                    )
                )
            return found

        inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in given)
        if not value(*inputs).requires_grad:
            continue
        try:
            torch.autograd.gradcheck(value, inputs, atol=1e-4, rtol=1e-3, fast_mode=True)
        except GradcheckError as error:
            raise Broken(f"for images of {shape}: {_lines(str(error))}") from error


def _views(loss: InversionLoss, batch: GeneratedBatch) -> Tensor | None:
    views = loss.views(batch, random_generator(toy_models.CPU, 0))
    return None if views is None else views.detach()


def _lines(text: str) -> str:
    """Return gradcheck's findings in one line."""
    kept = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("The above")]
    return " ".join(kept)[:300]


@promised(
    "reaches",
    by="loss",
    promise="it says something of the images, or of parameters of its own: for one of the targets tried its "
    "gradient is not zero",
    remedy="see that the value depends on batch.images, or on the responses, by differentiable operations",
)
def reaches(cls: Any) -> None:
    """It has a gradient."""
    tried = []
    for shape, count in toy_models.HOMES:
        target = toy_models.target_of(shape, count)
        try:
            loss = cls(target)
        except UsageError:
            continue
        images = toy_models.images_of(shape, 6).requires_grad_()
        with target.frozen():
            value = toy_models.value_of(loss, target, images)
            if value.requires_grad:
                value.backward()
        slopes = [images.grad, *(parameter.grad for parameter in loss.parameters())]
        if any(slope is not None and slope.any() for slope in slopes):
            return
        tried.append(f"{shape}")
    raise Broken(f"no gradient on images of {', '.join(tried)}")


@promised(
    "parameters",
    by="loss",
    promise="its own parameters, if it has any, are trained along: every one gets a finite gradient",
    remedy="drop parameters that the value does not depend on, or register them as buffers",
)
def parameters(cls: Any) -> None:
    """Its parameters are trained."""
    loss, target = home(cls)
    if list(loss.parameters()):
        with target.frozen():
            value = toy_models.value_of(loss, target, toy_models.images_of(target.input_shape, 6).requires_grad_())
            value.backward()
        expect_gradients(loss, "from its value")


@promised(
    "layers-exist",
    by="loss",
    promise="`layers` names layers of the target, NAME for the output and NAME:in for the input of one",
    remedy="take the names from target.layers(); raise UsageError in __init__ for a target without such layers",
)
def layers_exist(cls: Any) -> None:
    """Layers exist."""
    for shape, count, loss in toy_models.settings_of(cls, builder(cls))[0]:
        target = toy_models.target_of(shape, count)
        names = loss.layers(target)
        expect(isinstance(names, list) and all(isinstance(name, str) for name in names), f"layers gives {names!r}")
        known = {name for layer in target.layers() for name in (layer, f"{layer}:in")}
        unknown = [name for name in names if name not in known]
        expect(not unknown, f"{unknown[:3]} for a target whose layers are {', '.join(target.layers())}")


@promised(
    "views",
    by="loss",
    promise="`views` gives None, or images (V, *input_shape) in [0, 1]",
    remedy="end in .clamp(0, 1), and put the views one after another in the first dimension",
)
def views(cls: Any) -> None:
    """Views are images."""
    for shape, count, loss in toy_models.settings_of(cls, builder(cls))[0]:
        target = toy_models.target_of(shape, count)
        found = loss.views(
            toy_models.generated(target, toy_models.images_of(shape, 3)), random_generator(toy_models.CPU, 0)
        )
        if found is not None:
            where = f"in the views of images of {shape}"
            expect(isinstance(found, Tensor) and found.dim() > 0, f"{type(found).__name__} {where}")
            expect_images(found, shape, len(found), where)
            expect_unit(found, where)


@promised(
    "seeded",
    by="loss",
    promise="its views are drawn by the `rng` that they are given, leaving every global generator alone, and "
    "its value by torch's global one at most",
    remedy="pass generator=rng to every draw in `views`, and draw by no other library than torch",
)
def seeded(cls: Any) -> None:
    """The seed determines views and value."""
    loss, target = home(cls)
    images = toy_models.images_of(target.input_shape, 4)
    batch = toy_models.generated(target, images)
    before = random_states()
    one = _views(loss, batch)
    expect_untouched(before)
    expect(same(one, with_seed(1, lambda: _views(loss, batch))), "one seed of `rng` gives two sets of views")
    values = [with_seed(2, lambda: toy_models.value_of(loss, target, images).detach()) for _ in range(2)]
    expect(same(*values), "one seed gives two values of one batch")


@promised(
    "batch-mean",
    by="loss",
    promise="its size does not grow with the batch, so that a weight means the same for any batch size",
    remedy="take the mean over the batch, not the sum",
)
def batch_mean(cls: Any) -> None:
    """It is a mean."""
    loss, target = home(cls)
    sizes = (8, 64)
    with torch.no_grad():
        few, many = (
            abs(toy_models.value_of(loss, target, toy_models.images_of(target.input_shape, size)).item())
            for size in sizes
        )
    expect(many <= 3 * few + 0.1, f"{few:.4g} for {sizes[0]} random images, {many:.4g} for {sizes[1]}")


@promised(
    "target-untouched",
    by="loss",
    promise="the user's classifier is unchanged: parameters, buffers, modes, hooks, requires_grad",
    remedy="read the target through batch.response; change nothing of it, and remove hooks in a finally",
)
def target_untouched(cls: Any) -> None:
    """The target is unchanged."""
    _, target = home(cls)
    before = toy_models.state_of(target)
    loss = cls(target)
    with target.frozen():
        inside = toy_models.state_of(target)
        value = toy_models.value_of(loss, target, toy_models.images_of(target.input_shape, 4).requires_grad_())
        if value.requires_grad:
            value.backward()
        changed = toy_models.changes(inside, toy_models.state_of(target))
        expect(not changed, f"changed within a step: {changed}")
    changed = toy_models.changes(before, toy_models.state_of(target))
    expect(not changed, f"changed: {changed}")


@promised(
    "target-not-kept",
    by="loss",
    promise="it does not keep the target: a target among its submodules would be trained and saved with it",
    remedy="keep numbers and copies that you need of the target, and use batch.target in forward",
)
def target_not_kept(cls: Any) -> None:
    """The target is not kept."""
    loss, target = home(cls)
    theirs = {id(module) for module in target.modules()}
    tensors = {tensor.data_ptr() for tensor in (*target.parameters(), *target.buffers()) if tensor.numel()}
    kept = [name for name, module in loss.named_modules() if id(module) in theirs]
    kept += [name for name, value in vars(loss).items() if isinstance(value, nn.Module) and id(value) in theirs]
    kept += [name for name, tensor in loss.state_dict().items() if tensor.numel() and tensor.data_ptr() in tensors]
    expect(not kept, f"it keeps it as {', '.join(kept[:4])}")


@promised(
    "device",
    by="loss",
    promise="it computes on the device of the batch, once it was moved there itself",
    remedy="make new tensors with device=batch.images.device, and register tensors of its own by "
    "register_buffer, or move them by .to(batch.images)",
)
def device(cls: Any) -> None:
    """It computes on the batch's device."""
    _, target = home(cls)
    images = toy_models.images_of(target.input_shape, 4)
    for place in other_devices():
        with place as other:
            there = toy_models.moved(target, other)
            value = toy_models.value_of(cls(there).to(other), there, images.to(other).requires_grad_())
            expect_on(other, **{"the value": value})
            if value.requires_grad:
                value.backward()


@promised(
    "bf16",
    by="loss",
    promise="it works where the target and the views are computed under bf16 autocast",
    remedy="cast before operations that need equal dtypes: x.float(), or other.to(x.dtype)",
)
def bf16(cls: Any) -> None:
    """It runs where the target answers in bf16."""
    loss, target = home(cls)
    with target.frozen():
        images = toy_models.images_of(target.input_shape, 4).requires_grad_()
        value = toy_models.value_of(loss, target, images, bf16=True)
        expect(value.isfinite(), f"the value is {value.item()}")
        if value.requires_grad:
            value.backward()


@promised(
    "state-dict",
    by="loss",
    promise="its state dict holds all that its value depends on: loaded into another one for the same target "
    "it is the same",
    remedy="keep learned and random tensors as nn.Parameter or by register_buffer, not as plain attributes",
)
def state_dict(cls: Any) -> None:
    """The state dict is complete."""
    _, target = home(cls)
    one, other = (with_seed(seed, lambda: cls(target)) for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    values = [_value(loss, target) for loss in (one, other)]
    expect(same(*values), "one that was built under another seed has another value with the same state dict")


def _value(loss: InversionLoss, target: Target) -> Tensor:
    """Return a value under one seed, and without a gradient."""
    images = toy_models.images_of(target.input_shape, 4)
    value: Tensor = with_seed(0, lambda: toy_models.value_of(loss, target, images).detach())
    return value


@promised(
    "picklable",
    by="loss",
    promise="it can be pickled, and has the same value afterwards",
    remedy="keep no lambdas, open files or locks as attributes, and define the class in a module",
)
def picklable(cls: Any) -> None:
    """It pickles."""
    loss, target = home(cls)
    again = pickle.loads(pickle.dumps(loss))  # noqa: S301  # our own
    expect(same(_value(loss, target), _value(again, target)), "it has another value after it was pickled")


@promised(
    "two-processes",
    by="loss",
    promise="in two processes it has the same value of the same batch under one seed, and its parameters stay "
    "alike after a step with averaged gradients",
    remedy="let nothing depend on the process, the host or the time; call collectives in every process or in none",
)
def two_processes(cls: Any) -> None:
    """Two processes agree."""
    shape, count = toy_models.home_of(builder(cls))
    one, other = in_both(step_in_process, Importable.of(cls), shape, count)
    expect(one["value"] == other["value"], f"one batch has the values {one['value']} and {other['value']}")
    expect(same(one["stepped"], other["stepped"]), "their parameters differ after a step with averaged gradients")


def step_in_process(cls: Importable, shape: toy_models.Shape, count: int) -> dict[str, Any]:
    """Compute the value of one batch, and step by gradients of a half of another that are averaged."""
    target = toy_models.target_of(shape, count)
    with global_seed(0, toy_models.CPU):
        loss: InversionLoss = cls.load()(target)
    value = _value(loss, target).item()
    half = toy_models.images_of(shape, 4, seed=dist.get_rank()).requires_grad_()
    with target.frozen():
        found = toy_models.value_of(loss, target, half)
        if found.requires_grad:
            found.backward()
    average_step(list(loss.parameters()))
    return {"value": value, "stepped": [parameter.detach() for parameter in loss.parameters()]}


@promised(
    "converges",
    by="loss",
    promise="beside cross-entropy, and no larger than it at the start, it lets an inversion converge: in "
    f"{toy_models.STEPS} steps the loss falls, and the target assigns most images to the requested class",
    remedy="see that the term falls as images get better: its sign, and that it does not drown the others",
)
def converges(cls: Any) -> None:
    """An inversion converges."""
    loss, target = home(cls)
    images = toy_models.images_of(target.input_shape, 24)
    with torch.no_grad():
        size, usual = (
            abs(toy_models.value_of(term, target, images).item()) for term in (loss, toy_models.PlainLoss(target))
        )
    weight = min(1.0, usual / max(size, 1e-9))
    terms = {"plain": (1.0, toy_models.PlainLoss(target)), "it": (weight, loss)}
    expect_converged(toy_models.invert(target, losses=terms).history, target.num_classes)
