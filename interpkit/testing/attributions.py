"""The checks of attributions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.interfaces import contracts
from interpkit.interfaces.attributions import AttributionContext, Contrast
from interpkit.interfaces.targets import Target
from interpkit.runtime.random import global_seed
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import expect_no_draws, expect_unchanged, prepared, same
from interpkit.testing.second_device import other_devices

FLAT: tuple[toy_models.Shape, ...] = ((1, 6, 6), (7,))
"""Shapes for linear targets, whose attributions are all known."""
BATCH = 3
ROWS = 64
"""Largest number of images in one forward pass."""


def attributed(
    cls: Any,
    target: Target,
    images: Tensor,
    classes: Tensor,
    *,
    scores: nn.Module | None = None,
    baselines: Tensor | None = None,
    rows: int = ROWS,
) -> Tensor:
    """Return a method's maps, called as `interpkit.attribute` calls it: of the images' shape and on their device."""
    baselines = torch.zeros_like(images[:1]) if baselines is None else baselines
    context = AttributionContext(scores or target, baselines, layer=None, rows=rows, note=lambda sentence: None)
    with prepared(cls, target) as method, target.frozen(), global_seed(0, images.device), torch.enable_grad():
        return contracts.maps(method, target, images, classes, context).detach()


Setting = tuple[toy_models.Shape, int, Callable[[toy_models.Shape, int], Target]]
SETTINGS: tuple[Setting, ...] = (
    *((*setting, toy_models.target_of) for setting in toy_models.VARIED),
    (toy_models.TINY, 3, toy_models.attention_target),
)
"""Targets of many shapes, and one with attention for methods that explain nothing else."""


def case(
    shape: toy_models.Shape,
    num_classes: int,
    build: Callable[[toy_models.Shape, int], Target] = toy_models.target_of,
    count: int = BATCH,
) -> tuple[Target, Tensor, Tensor]:
    """Return a target, images and classes."""
    images, labels = toy_models.Pictures(shape, num_classes).draw(count, 7)
    return build(shape, num_classes), images, labels


def home(cls: Any) -> tuple[Target, Tensor, Tensor]:
    """Return the first target that the method supports, with images and classes."""
    *setting, _ = next(toy_models.accepted(lambda *setting: attributed(cls, *case(*setting)), SETTINGS))
    return case(*setting)


def linear(cls: Any, level: float = 0.0) -> Iterator[tuple[toy_models.LinearTarget, Tensor, Tensor, Tensor]]:
    """Yield the linear targets that the method supports, with images, classes and maps for a baseline of this level."""
    cases = [
        (toy_models.LinearTarget(shape, 3), toy_models.images_of(shape, BATCH), torch.arange(BATCH)) for shape in FLAT
    ]

    def maps(target: Target, images: Tensor, classes: Tensor) -> Tensor:
        return attributed(cls, target, images, classes, baselines=torch.full_like(images[:1], level))

    return toy_models.accepted(maps, cases, needed=False)


@promised("attribution", "enlarge a layer's map to the image, one per channel; or raise interpkit.UsageError")
def shapes(cls: Any) -> None:
    """For any image size, number of classes and batch, maps are finite floats of the images' shape.

    A target that it does not support is refused with a UsageError.
    """
    for count in (1, BATCH):
        cases = [case(*setting, count) for setting in SETTINGS]
        for target, _, _, maps in toy_models.accepted(functools.partial(attributed, cls), cases):
            expect(maps.isfinite().all(), f"maps that are not finite for {count} images of {target.input_shape}")


@promised("attribution", "reverse the sign: without a pixel that supports the class the score drops")
def signs(cls: Any) -> None:
    """Positive values support the class and negative ones oppose it.

    On a linear classifier the maps correlate with what each pixel adds to the score.
    """
    if not cls.local:
        for target, images, classes, maps in linear(cls):
            agree = (maps * target.weights(classes) * images).flatten(1).sum(1)
            expect((agree > 0).all(), f"on a linear classifier of {target.input_shape} they have the opposite sign")


@promised("attribution", "fix the sum, which depends on context.baselines, or remove complete = True")
def complete(cls: Any) -> None:
    """If it declares complete = True, a map sums to the image's score minus the baselines' mean score.

    It does so exactly on a linear classifier.
    """
    for level in (0.0, 0.75) if cls.complete else ():
        for target, images, classes, maps in linear(cls, level):
            scores = (target(images) - target(torch.full_like(images, level))).gather(1, classes[:, None])[:, 0]
            apart = (maps.flatten(1).sum(1) - scores).abs().max().item()
            most = 1e-3 * (1 + scores.abs().max().item())
            expect(apart <= most, f"for a baseline of {level:g} a map's sum is {apart:.3g} away from what it explains")


@promised("attribution", "fix the scale, or remove local = True")
def local(cls: Any) -> None:
    """Where local = True, a map is the score's gradient, up to its sign: on a linear classifier, the weights."""
    if cls.local:
        for target, _, classes, maps in linear(cls):
            apart = (maps.abs() - target.weights(classes).abs()).abs().max().item()
            expect(apart < 1e-3, f"on a linear classifier it is {apart:.3g} away from the weights")


@promised("attribution", "select the column of `classes`: Captum's target=classes")
def explains_class(cls: Any) -> None:
    """It explains the requested class of each image."""
    target, images, classes = home(cls)
    one, other = (attributed(cls, target, images, (classes + add) % target.num_classes) for add in (0, 1))
    expect(not same(one, other, tolerance=1e-9), "two classes have the same maps")


@promised("attribution", "pass context.scores, not target, to the method; use the target only for its layers")
def explains_scores(cls: Any) -> None:
    """It explains context.scores, which may be a difference of logits, and not the target's own logits."""
    target, images, classes = home(cls)
    against = Contrast(target, (int(classes[0]) + 1) % target.num_classes)
    one, other = (attributed(cls, target, images[:1], classes[:1], scores=scores) for scores in (None, against))
    expect(not same(one, other, tolerance=1e-9), "a difference of logits has the maps of the logit")


@promised("attribution", "normalize only over the image's own pixels")
def image_alone(cls: Any) -> None:
    """An image's map does not depend on the other images of the batch."""
    target, images, classes = home(cls)
    others = torch.cat([images[:1], 1 - images[1:]])
    one, other = (attributed(cls, target, batch, classes)[0] for batch in (images, others))
    scale, apart = one.abs().max().item(), (one - other).abs().max().item()
    most = 1e-4 * scale + 1e-7
    expect(apart <= most, f"with other images in the batch a pixel differs by {apart:.3g} of {scale:.3g}")


@promised("attribution", "pass context.rows on, as Captum's internal_batch_size or perturbations_per_eval, say")
def rows(cls: Any) -> None:
    """A forward pass of the target has at most context.rows images."""
    target, images, classes = home(cls)
    passed: list[int] = []
    target.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    attributed(cls, target, images, classes, baselines=toy_models.images_of(target.input_shape, 2), rows=BATCH)
    most = max(passed, default=0)
    expect(most <= BATCH, f"{most} images where context.rows is {BATCH}")


@promised("attribution", "draw only with torch; restore numpy's state where a library draws from it")
def seeded(cls: Any) -> None:
    """All randomness is from torch's global generator; those of numpy and Python are unchanged."""
    found = home(cls)
    with expect_no_draws("numpy", "Python"):
        one, other = (attributed(cls, *found) for _ in range(2))
    expect(same(one, other), "two calls with one seed return different maps")


@promised("attribution", "remove hooks in a finally, restore what you change, and work on images.detach().clone()")
def target_untouched(cls: Any) -> None:
    """Target, images, classes and context.baselines are unchanged: parameters, modes, hooks, gradients, values."""
    target, images, classes = home(cls)
    given = {"images": images, "classes": classes, "baselines": toy_models.images_of(target.input_shape, 2)}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    with expect_unchanged(target):
        attributed(cls, target, images, classes, baselines=given["baselines"])
    for name, tensor in given.items():
        expect(torch.equal(kept[name], tensor), f"the {name} were changed")
    expect(not images.requires_grad and images.grad is None, "the images require a gradient afterwards")


@promised("attribution", "make new tensors with device=images.device")
def device(cls: Any) -> None:
    """It computes on the device of the images and the target."""
    target, images, classes = home(cls)
    for place in other_devices():
        with place as other:
            attributed(cls, toy_models.moved(target, other), images.to(other), classes.to(other))
