"""The checks of inversion losses; see `parts` for those that they share."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from interpkit.interfaces import contracts
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.targets import Response
from interpkit.runtime.random import random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, expect, promised
from interpkit.testing.components import (
    builder,
    expect_no_draws,
    expect_unchanged,
    expect_unit,
    loss_of,
    same,
    with_seed,
)
from interpkit.testing.parts import LossTrial, backward

SMOOTH: tuple[tuple[toy_models.Shape, int], ...] = (((3, 5, 5), 3), ((6,), 3))
"""Shapes and numbers of classes of small targets for derivatives in float64."""


@promised("loss", "end in .mean(); keep clear of log(0), 0 / 0 and overflow")
def scalar(cls: Any) -> None:
    """For any image size, number of classes and batch of two or more it is one finite number, of shape ()."""
    for shape, count, loss in toy_models.settings_of(builder(cls)):
        for size in (2, 5):
            batch = toy_models.answered(
                loss, toy_models.generated(toy_models.target_of(shape, count), toy_models.images_of(shape, size))
            )
            value = contracts.term(loss, batch)
            expect(value.isfinite(), f"{value.item()} for {size} images of {shape} and {count} classes")


@promised("loss", "add an eps in roots, norms, logarithms and divisions; torch.where stops no NaN's gradient")
def finite_gradients(cls: Any) -> None:
    """Its gradient on the images is finite, also where all images are black, white or the same."""
    trial = LossTrial(cls)
    loss, usual = trial.build(), trial.images().detach()
    cases = {
        "for random images": usual,
        "where all images are black": torch.zeros_like(usual),
        "where all images are white": torch.ones_like(usual),
        "where all images are the same": usual[:1].expand_as(usual).clone(),
    }
    with trial.target.frozen():
        for where, images in cases.items():
            value = toy_models.value_of(loss, trial.target, images.requires_grad_())
            expect(value.isfinite(), f"the value is {value.item()} {where}")
            backward({"value": value})
            expect(images.grad is None or images.grad.isfinite().all(), f"a gradient is not finite {where}")


@promised("loss", "clone what you change in place: p = batch.condition.distribution.clone()")
def batch_untouched(cls: Any) -> None:
    """It changes neither the images nor the condition of a batch, which other losses read after it."""
    trial = LossTrial(cls)
    loss, batch = trial.build(), toy_models.generated(trial.target, trial.images().detach())
    batch = replace(batch, condition=replace(batch.condition, vector=batch.condition.vector.clone()))
    condition = batch.condition
    given = (batch.images, condition.labels, condition.distribution, condition.vector)
    kept = [tensor.clone() for tensor in given]
    with trial.target.frozen():
        contracts.term(loss, toy_models.answered(loss, batch))
    for name, before, tensor in zip(("images", "labels", "distribution", "vector"), kept, given, strict=True):
        expect(same(before, tensor), f"the {name} were changed in place")


@promised(
    "loss", "return {'name': numbers of shape (N,)} for each name in describe, and clone what you change in place"
)
def figures(cls: Any) -> None:
    """`figures` gives the names in `describe`, each with a finite number per image, and leaves the images as they are.

    What it gives for an image does not depend on the others.
    """
    trial = LossTrial(cls)
    loss, images = trial.build().eval(), trial.images(4).detach()
    kept = images.clone()
    with trial.target.frozen(), torch.no_grad():
        loss.figures(trial.target, images)
        expect(same(kept, images), "the images were changed in place")
        all_four, two = (contracts.figures(loss, trial.target, some) for some in (images, images[:2]))
    apart = [name for name in two if not same(all_four[name][:2], two[name], tolerance=1e-4)]
    expect(not apart, f"{apart} of an image differ with other images beside it")


@promised(
    "loss",
    "use no detach(), .data, .item() or .float() on the way from what a batch holds to the value; mend the backward of "
    "your own autograd functions",
)
def gradcheck(cls: Any) -> None:
    """In float64, its gradient on the images and on the target's answers is the derivative of its value."""
    targets = [(toy_models.SmoothTarget(*case),) for case in SMOOTH]
    for target, loss in toy_models.accepted(functools.partial(loss_of, cls), targets, needed=False):
        try:
            _gradcheck(loss, toy_models.generated(target, toy_models.images_of(target.input_shape, 4)))
        except GradcheckError as error:
            lines = [line.strip() for line in str(error).splitlines() if not line.startswith("The above")]
            raise Broken(f"for images of {target.input_shape}: {' '.join(lines)[:300]}") from error


def _gradcheck(loss: InversionLoss, batch: GeneratedBatch) -> None:
    """Compare the gradient on images, logits and features, of images and views, with finite differences."""
    target, layers = batch.target, loss.layers(batch.target)
    views = _views(loss, batch)
    views, loss = None if views is None else views.double(), loss.double()
    batch = toy_models.generated(target, batch.images.double())
    answers = [target.respond(images, layers) for images in (batch.images, views) if images is not None]
    names = list(answers[0].features)

    def value(images: Tensor, *tensors: Tensor) -> Tensor:
        each = 1 + len(names)
        responses = [
            Response(tensors[at], dict(zip(names, tensors[at + 1 : at + each], strict=True)), target.feature_layer)
            for at in range(0, len(tensors), each)
        ]
        given = InversionBatch(target, batch.condition, batch.latent, images, 0.5, responses[0], views, *responses[1:])
        found: Tensor = with_seed(0, lambda: loss(given))
        return found

    parts = [batch.images, *(part for answer in answers for part in (answer.logits, *answer.features.values()))]
    inputs = tuple(part.detach().clone().requires_grad_() for part in parts)
    if value(*inputs).requires_grad:
        torch.autograd.gradcheck(value, inputs, atol=1e-4, rtol=1e-3, fast_mode=True)


def _views(loss: InversionLoss, batch: GeneratedBatch) -> Tensor | None:
    views = contracts.views(loss, batch, random_generator(toy_models.CPU, 0))
    return None if views is None else views.detach()


@promised("loss", "see that the value depends on batch.images, or on the responses, by differentiable operations")
def reaches(cls: Any) -> None:
    """Its gradient on the images, or on parameters of its own, is not zero for one of the targets tried."""
    tried = []
    for shape, count, loss in toy_models.accepted(builder(cls), toy_models.HOMES):
        target = toy_models.target_of(shape, count)
        images = toy_models.images_of(shape, 6).requires_grad_()
        with target.frozen():
            backward({"value": toy_models.value_of(loss, target, images)})
        if any(tensor.grad is not None and tensor.grad.any() for tensor in (images, *loss.parameters())):
            return
        tried.append(f"{shape}")
    raise Broken(f"no gradient on images of {', '.join(tried)}")


@promised("loss", "take the names from target.layers(); raise UsageError in __init__ for a target without such layers")
def layers_exist(cls: Any) -> None:
    """`layers` names layers of the target, NAME for the output and NAME:in for the input of one."""
    for shape, count, loss in toy_models.settings_of(builder(cls)):
        target = toy_models.target_of(shape, count)
        unknown = [name for name in contracts.layers(loss, target) if name.removesuffix(":in") not in target.layers()]
        expect(not unknown, f"{unknown[:3]} for a target whose layers are {', '.join(target.layers())}")


@promised("loss", "end in .clamp(0, 1), and put the views one after another in the first dimension")
def views(cls: Any) -> None:
    """`views` gives None, or images (V, *input_shape) in [0, 1]."""
    for shape, count, loss in toy_models.settings_of(builder(cls)):
        batch = toy_models.generated(toy_models.target_of(shape, count), toy_models.images_of(shape, 3))
        found = _views(loss, batch)
        if found is not None:
            expect_unit(found, f"in the views of images of {shape}")


@promised("loss", "pass generator=rng to every draw in `views`, and draw by no other library than torch")
def seeded(cls: Any) -> None:
    """Its views are drawn by `rng` and leave global generators alone; its value depends on torch's one at most."""
    trial = LossTrial(cls)
    loss, images = trial.build(), trial.images().detach()
    batch = toy_models.generated(trial.target, images)
    with expect_no_draws():
        one = _views(loss, batch)
    expect(same(one, with_seed(1, lambda: _views(loss, batch))), "one seed of `rng` gives two sets of views")
    values = [with_seed(2, lambda: toy_models.value_of(loss, trial.target, images)) for _ in range(2)]
    expect(same(*values), "one seed gives two values of one batch")


@promised("loss", "take the mean over the batch, not the sum")
def batch_mean(cls: Any) -> None:
    """Its size does not grow with the batch, so that a weight means the same for any batch size."""
    trial = LossTrial(cls)
    loss, sizes = trial.build(), (8, 64)
    with torch.no_grad():
        few, many = (abs(toy_models.value_of(loss, trial.target, trial.images(size)).item()) for size in sizes)
    expect(many <= 2 * few + 0.1, f"{few:.4g} for {sizes[0]} random images, {many:.4g} for {sizes[1]}")


@promised("loss", "read the target through batch.response; change nothing of it, and remove hooks in a finally")
def target_untouched(cls: Any) -> None:
    """The user's classifier is unchanged: parameters, buffers, modes, hooks, requires_grad."""
    trial = LossTrial(cls)
    with expect_unchanged(trial.target):
        loss = trial.build()
        with trial.target.frozen(), expect_unchanged(trial.target, "changed within a step"):
            backward({"value": toy_models.value_of(loss, trial.target, trial.images())})


@promised("loss", "keep numbers and copies that you need of the target, and use batch.target in forward")
def target_not_kept(cls: Any) -> None:
    """It does not keep the target: a target among its submodules would be trained and saved with it."""
    trial = LossTrial(cls)
    loss, target = trial.build(), trial.target
    theirs = {id(module) for module in target.modules()}
    tensors = {tensor.data_ptr() for tensor in (*target.parameters(), *target.buffers()) if tensor.numel()}
    kept = [name for name, module in loss.named_modules() if id(module) in theirs]
    kept += [name for name, value in vars(loss).items() if isinstance(value, nn.Module) and id(value) in theirs]
    kept += [name for name, tensor in loss.state_dict().items() if tensor.numel() and tensor.data_ptr() in tensors]
    expect(not kept, f"it keeps it as {', '.join(kept[:4])}")
