"""The checks of attributions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import UsageError
from interpkit.interfaces.attributions import AttributionContext, Contrast
from interpkit.interfaces.targets import Target
from interpkit.runtime.random import global_seed
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import expect_on, one_of, random_states, same
from interpkit.testing.second_device import other_devices

SETTINGS: tuple[tuple[toy_models.Shape, int], ...] = (
    (toy_models.TINY, 3),
    ((3, 32, 32), 2),
    ((5, 17, 40), 10),
    ((1, 28, 28), 37),
    ((12,), 10),
)
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
    """Return a method's maps, called as `interpkit.attribute` calls it."""
    context = AttributionContext(
        scores=scores or target,
        baselines=torch.zeros_like(images[:1]) if baselines is None else baselines,
        layer=None,
        rows=rows,
        note=lambda sentence: None,
    )
    with target.frozen(), global_seed(0, images.device), torch.enable_grad():
        found: Tensor = one_of(cls).attribute(target, images, classes, context)
    return found


def case(shape: toy_models.Shape, num_classes: int, count: int = BATCH) -> tuple[Target, Tensor, Tensor]:
    """Return a target, images and classes."""
    images, labels = toy_models.Pictures(shape, num_classes).draw(count, 7)
    return toy_models.target_of(shape, num_classes), images, labels


def home(cls: Any) -> tuple[Target, Tensor, Tensor]:
    """Return the first target that the method supports, with images and classes."""
    refusal = ""
    for shape, num_classes in SETTINGS:
        found = case(shape, num_classes)
        try:
            attributed(cls, *found)
        except UsageError as error:
            refusal = refusal or str(error)
        else:
            return found
    expect(False, f"it refuses every target tried; the first with: {refusal}")
    raise AssertionError


def linear(cls: Any) -> Iterator[tuple[toy_models.LinearTarget, Tensor, Tensor, Tensor]]:
    """Yield the linear targets that the method supports, with images, classes and maps."""
    for shape in FLAT:
        target = toy_models.LinearTarget(shape, 3)
        images, classes = toy_models.images_of(shape, BATCH), torch.arange(BATCH)
        try:
            yield target, images, classes, attributed(cls, target, images, classes).detach()
        except UsageError:
            continue


@promised(
    "shapes",
    by="attribution",
    promise="for any image size, number of classes and batch, maps are finite floats of the images' shape; a "
    "target that it does not support is refused with a UsageError",
    remedy="enlarge a layer's map to the image, one map per channel; raise interpkit.UsageError with what to "
    "do instead",
)
def shapes(cls: Any) -> None:
    """Maps have the images' shape."""
    home(cls)
    for shape, num_classes in SETTINGS:
        for count in (1, BATCH):
            target, images, classes = case(shape, num_classes, count)
            where = f"for {count} images of {shape}"
            try:
                maps = attributed(cls, target, images, classes)
            except UsageError:
                continue
            expect(isinstance(maps, Tensor), f"{type(maps).__name__} instead of a tensor, {where}")
            expect(maps.shape == images.shape, f"shape {tuple(maps.shape)} {where}")
            expect(
                maps.is_floating_point() and maps.isfinite().all(), f"maps of {maps.dtype} that are not finite {where}"
            )


@promised(
    "signs",
    by="attribution",
    promise="positive values support the class and negative ones oppose it: on a linear classifier the maps "
    "correlate with what each pixel adds to the score",
    remedy="reverse the sign: the drop of the score without a pixel is positive where the pixel supports the class",
)
def signs(cls: Any) -> None:
    """Positive values support the class."""
    if cls.local:
        return
    for target, images, classes, maps in linear(cls):
        agree = (maps * target.weights(classes) * images).flatten(1).sum(1)
        expect((agree > 0).all(), f"on a linear classifier of {target.input_shape} they have the opposite sign")


@promised(
    "complete",
    by="attribution",
    promise="if it declares complete = True, a map sums to the image's score minus the baselines' mean "
    "score, exactly so on a linear classifier",
    remedy="fix the sum, or remove complete = True",
)
def complete(cls: Any) -> None:
    """Maps sum to the score."""
    if not cls.complete:
        return
    for target, images, classes, maps in linear(cls):
        scores = target(images).gather(1, classes[:, None])[:, 0]
        apart = (maps.flatten(1).sum(1) - scores).abs().max().item()
        expect(
            apart <= 1e-3 * (1 + scores.abs().max().item()),
            f"a map's sum differs from its image's score by {apart:.3g}",
        )


@promised(
    "local",
    by="attribution",
    promise="if it declares local = True, a map is the score's gradient, up to its sign: on a linear "
    "classifier, the weights",
    remedy="fix the scale, or remove local = True",
)
def local(cls: Any) -> None:
    """Maps are gradients."""
    if not cls.local:
        return
    for target, _, classes, maps in linear(cls):
        apart = (maps.abs() - target.weights(classes).abs()).abs().max().item()
        expect(apart < 1e-3, f"on a linear classifier it is {apart:.3g} away from the weights")


@promised(
    "explains-class",
    by="attribution",
    promise="it explains the requested class of each image",
    remedy="select the column of `classes`: Captum's target=classes",
)
def explains_class(cls: Any) -> None:
    """Classes matter."""
    target, images, classes = home(cls)
    one = attributed(cls, target, images, classes)
    other = attributed(cls, target, images, (classes + 1) % target.num_classes)
    expect(not same(one.detach(), other.detach(), tolerance=1e-9), "two classes have the same maps")


@promised(
    "explains-scores",
    by="attribution",
    promise="it explains context.scores, which may be a difference of logits, and not the target's own logits",
    remedy="pass context.scores, not target, to the method; use the target only for its layers",
)
def explains_scores(cls: Any) -> None:
    """Scores matter."""
    target, images, classes = home(cls)
    against = Contrast(target, (int(classes[0]) + 1) % target.num_classes)
    one, other = (attributed(cls, target, images[:1], classes[:1], scores=scores) for scores in (None, against))
    expect(not same(one.detach(), other.detach(), tolerance=1e-9), "a difference of logits has the maps of the logit")


@promised(
    "image-alone",
    by="attribution",
    promise="an image's map does not depend on the other images of the batch",
    remedy="normalize only over the image's own pixels",
)
def image_alone(cls: Any) -> None:
    """Other images of the batch do not matter."""
    target, images, classes = home(cls)
    others = torch.cat([images[:1], 1 - images[1:]])
    one, other = (attributed(cls, target, batch, classes)[0].detach() for batch in (images, others))
    scale = one.abs().max().item()
    apart = (one - other).abs().max().item()
    expect(
        apart <= 1e-4 * scale + 1e-7, f"with other images in the batch a pixel differs by {apart:.3g} of {scale:.3g}"
    )


@promised(
    "rows",
    by="attribution",
    promise="a forward pass of the target has at most context.rows images",
    remedy="pass context.rows on: Captum's internal_batch_size, perturbations_per_eval or nt_samples_batch_size",
)
def rows(cls: Any) -> None:
    """Few images per forward pass."""
    target, images, classes = home(cls)
    passed: list[int] = []
    handle = target.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    try:
        attributed(cls, target, images, classes, baselines=toy_models.images_of(target.input_shape, 2), rows=BATCH)
    finally:
        handle.remove()
    most = max(passed, default=0)
    expect(most <= BATCH, f"{most} images where context.rows is {BATCH}")


@promised(
    "seeded",
    by="attribution",
    promise="all randomness is from torch's global generator; numpy's and Python's global generators are unchanged",
    remedy="draw only with torch; restore numpy's state where a library draws from it",
)
def seeded(cls: Any) -> None:
    """The seed determines the maps."""
    found = home(cls)
    before = random_states()
    one, other = (attributed(cls, *found).detach() for _ in range(2))
    expect(same(one, other), "two calls with one seed return different maps")
    after = random_states()
    moved = [name for name in ("numpy", "Python") if before[name] != after[name]]
    expect(not moved, f"the global random state of {' and '.join(moved)} was changed")


@promised(
    "target-untouched",
    by="attribution",
    promise="target and images are unchanged: parameters, buffers, modes, hooks, requires_grad, gradients",
    remedy="remove hooks in a finally, restore what you change, and work on images.detach().clone()",
)
def target_untouched(cls: Any) -> None:
    """The target is unchanged."""
    target, images, classes = home(cls)
    kept, before = images.clone(), toy_models.state_of(target)
    attributed(cls, target, images, classes)
    changed = toy_models.changes(before, toy_models.state_of(target))
    expect(not changed, f"changed: {changed}")
    expect(torch.equal(kept, images), "the images were changed")
    expect(not images.requires_grad and images.grad is None, "the images require a gradient afterwards")


@promised(
    "device",
    by="attribution",
    promise="it computes on the device of the images and the target",
    remedy="make new tensors with device=images.device",
)
def device(cls: Any) -> None:
    """It computes on the images' device."""
    target, images, classes = home(cls)
    for place in other_devices():
        with place as other:
            maps = attributed(cls, toy_models.moved(target, other), images.to(other), classes.to(other))
            expect_on(other, maps=maps)
