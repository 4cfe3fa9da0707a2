"""The checks of an audit's tests."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from interpkit.errors import UsageError
from interpkit.interfaces.audits import Audit, AuditCase, Tested
from interpkit.interfaces.metrics import TooFew
from interpkit.interfaces.sections import MOST_IN_STRIP
from interpkit.io.datasets import LabelledImages
from interpkit.runtime.random import global_seed
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import (
    expect_no_draws,
    expect_on,
    expect_unchanged,
    expect_unit,
    prepared,
    same,
    with_seed,
)
from interpkit.testing.second_device import other_devices

NEEDS = ("reference", "training")
STEPS = 16
PER_CLASS = 24
"""Real images of each class, enough for a test that counts them."""
MOST = 16
"""Largest number of images in one forward pass."""
Setting = tuple[toy_models.Shape, int, tuple[int, ...]]
SETTINGS: tuple[Setting, ...] = (
    *((shape, count, tuple(range(count))) for shape, count in toy_models.VARIED),
    ((5, 17, 40), 10, (1, 4, 7)),
)
"""Shapes, numbers of classes, and the classes to test."""


def case_of(
    shape: toy_models.Shape, num_classes: int, classes: tuple[int, ...], given: tuple[str, ...] = NEEDS
) -> AuditCase:
    """Return a case of made-up images; ``given`` names the data besides them, of `NEEDS`."""
    target = toy_models.target_of(shape, num_classes)
    pictures = toy_models.Pictures(shape, num_classes)
    data = {}
    for seed, name in enumerate(NEEDS):
        images, labels = pictures.draw(PER_CLASS * num_classes, 90 + seed)
        data[name] = LabelledImages(
            images if len(shape) == 3 else target.low + (target.high - target.low) * images, labels
        )
    images, _ = pictures.draw(6 * num_classes, 80)
    with torch.no_grad(), target.frozen():
        labels = target(images).argmax(1)
    rows = torch.isin(labels, torch.tensor(classes))
    return AuditCase(
        target,
        classes,
        images[rows],
        labels[rows],
        reference=data["reference"] if "reference" in given else None,
        training=data["training"] if "training" in given else None,
        most=MOST,
    )


def made(cls: Any, case: AuditCase) -> Tested:
    """Return what a test finds, called as `interpkit.audit` calls it; one that searches takes few steps."""
    test: Audit
    ready = prepared(cls, case.target, steps=STEPS)
    with ready as test, case.target.frozen(), global_seed(case.seed, case.device), torch.enable_grad():
        return test.test(case)


@lru_cache(maxsize=1)
def all_found(cls: Any) -> list[tuple[AuditCase, Tested, str]]:
    """Return each case that the test accepts, with what it finds, and words for the case."""
    cases = [(case_of(*setting),) for setting in SETTINGS]
    return [
        (
            case,
            found,
            f"for images of {case.target.input_shape} and {len(case.classes)} of {case.target.num_classes} classes",
        )
        for case, found in toy_models.accepted(lambda case: made(cls, case), cases)
    ]


def home(cls: Any) -> AuditCase:
    """Return the first case that the test accepts, a fresh copy each time."""
    case, *_ = all_found(cls)[0]
    return case_of(case.target.input_shape, case.target.num_classes, tuple(case.classes))


def expect_figures(case: AuditCase, found: Any, where: str) -> None:
    """Raise `Broken` unless statistics and p-values are numbers in their ranges, for the same tested classes."""
    expect(isinstance(found, Tested), f"a {type(found).__name__}, {where}")
    expect(found.p_values, f"no p-value and no TooFew, {where}")
    keys, others = set(found.p_values), set(found.statistics)
    expect(keys == others, f"p-values of {sorted(map(str, keys))}, statistics of {sorted(map(str, others))}, {where}")
    odd = [key for key in keys if not (key is None or (isinstance(key, int) and key in case.classes))]
    expect(not odd, f"a figure of {odd[:3]}, {where}")
    for key, value in found.statistics.items():
        expect(isinstance(value, int | float) and math.isfinite(value), f"the statistic {value!r} of {key}, {where}")
    for key, p in found.p_values.items():
        expect(isinstance(p, int | float) and 0 < p <= 1, f"the p-value {p!r} of {key}, {where}")


@promised("audit", "write float(...) or .item(), and clamp what a formula rounds to 0 or above 1")
def figures(cls: Any) -> None:
    """For any image size and classes, statistics are finite and p-values in (0, 1], for the same classes or None.

    What it does not support is refused with TooFew or a UsageError.
    """
    for case, found, where in all_found(cls):
        expect_figures(case, found, where)


@promised("audit", "write a sentence for each class that has a p-value, with the figures that it is based on")
def evidence(cls: Any) -> None:
    """Each p-value has a sentence of evidence."""
    for _, found, where in all_found(cls):
        silent = [key for key in found.p_values if not str(found.evidence.get(key) or "").strip()]
        expect(not silent, f"no evidence for {silent[:3]}, {where}")


@promised("audit", "write kind = 'trigger', question = 'Does ...?' and limits = 'It ...' in the class")
def described(cls: Any) -> None:
    """`kind`, `question` and `limits` say what it looks for, what it asks, and what it cannot see."""
    for name in ("kind", "question", "limits"):
        text = getattr(cls, name, None)
        expect(isinstance(text, str) and text.strip(), f"{name} is {text!r}")
    expect(cls.question.strip().endswith("?"), f"the question {cls.question!r} has no question mark")


@promised(
    "audit", "pick at most twelve images, by images[torch.linspace(0, len(images) - 1, 6).long()], and .clamp(0, 1)"
)
def pictures(cls: Any) -> None:
    """Pictures belong to tested classes or None, and are strips of 1 to 12 images in [0, 1] of the target's shape."""
    for case, found, where in all_found(cls):
        odd = [key for key in found.pictures if key is not None and key not in case.classes]
        expect(not odd, f"pictures of {odd[:3]}, {where}")
        for strip in (strip for strips in found.pictures.values() for strip in strips):
            of = f"in {strip.title!r}, {where}"
            expect(1 <= len(strip.images) <= MOST_IN_STRIP, f"{len(strip.images)} images {of}")
            shape = tuple(strip.images.shape[1:])
            expect(shape == tuple(case.target.input_shape), f"images of {shape} {of}")
            expect(strip.images.is_floating_point(), f"{strip.images.dtype} {of}")
            expect_unit(strip.images, of)


@promised("audit", "write {f'{self.name}.{label}': tensor}")
def tensors(cls: Any) -> None:
    """The names of what it keeps begin with its own name and a dot, so that no two tests use the same."""
    for _, found, where in all_found(cls):
        odd = [name for name in found.tensors if not name.startswith(f"{cls.name}.")]
        expect(not odd, f"{odd[:3]}, {where}")


@promised("audit", "write needs = ('reference',), say, in the class, and read what else there may be only if not None")
def needs(cls: Any) -> None:
    """`needs` names all the data that it needs, of the entries of `NEEDS`."""
    unknown = [name for name in cls.needs if name not in NEEDS]
    expect(isinstance(cls.needs, tuple) and not unknown, f"needs is {cls.needs!r}")
    cases = [(case_of(*setting, cls.needs),) for setting in SETTINGS]
    list(toy_models.accepted(lambda case: made(cls, case), cases))


@promised("audit", "leave needs_gradient = True, or ask the target for its logits alone")
def needs_gradient(cls: Any) -> None:
    """With `needs_gradient` = False it tests a target that no gradient passes."""
    if not cls.needs_gradient:
        case = home(cls)
        case.target.forward = torch.no_grad()(case.target.forward)  # type: ignore[method-assign]
        case.target.respond = torch.no_grad()(case.target.respond)  # type: ignore[method-assign]
        made(cls, case)


@promised("audit", "leave screens = False, or make the images from target.input_shape")
def screens(cls: Any) -> None:
    """With `screens` = True it needs no images."""
    if cls.screens:
        case = home(cls)
        bare = made(cls, replace(case, images=case.images[:0], labels=case.labels[:0]))
        expect_figures(case, bare, "without images")


@promised("audit", "raise interpkit.TooFew with how many it takes, before dividing by counts or drawing from no rows")
def too_few(cls: Any) -> None:
    """Of one image, of images of one class, or of few real ones it finds such figures, or raises TooFew."""
    case = home(cls)
    one = case.labels == case.labels[0]
    given = {name: getattr(case, name) for name in NEEDS if getattr(case, name)}
    few: dict[str, Any] = {name: LabelledImages(data.images[:2], data.labels[:2]) for name, data in given.items()}
    cases = {
        "for one image": replace(case, images=case.images[:1], labels=case.labels[:1]),
        "for images of one class": replace(case, images=case.images[one], labels=case.labels[one]),
        "for two real images": replace(case, **few),
    }
    for where, tried in cases.items():
        with suppress(UsageError, TooFew):
            expect_figures(tried, made(cls, tried), where)


@promised("audit", "draw with generator=case.rng(), or from torch's global generator")
def seeded(cls: Any) -> None:
    """All randomness is from the case or from torch's global generator: one case gives the same twice."""
    with expect_no_draws("numpy", "Python"):
        one = made(cls, home(cls))
    other = with_seed(1, lambda: made(cls, home(cls)))
    expect((one.statistics, one.p_values) == (other.statistics, other.p_values), "one case gives two sets of figures")
    expect(same(dict(one.tensors), dict(other.tensors)), "one case gives two sets of tensors")


@promised("audit", "remove hooks in a finally, restore what you change, and work on images.detach().clone()")
def case_untouched(cls: Any) -> None:
    """It changes neither the target nor the images and labels of the case."""
    case = home(cls)
    kept = [tensor.clone() for tensor in _tensors(case)]
    with expect_unchanged(case.target):
        made(cls, case)
    expect(same(kept, _tensors(case)), "images or labels were changed")
    expect(not case.images.requires_grad and case.images.grad is None, "the images require a gradient afterwards")


def _tensors(case: AuditCase) -> list[Tensor]:
    data = [data for name in NEEDS if (data := getattr(case, name)) is not None]
    return [case.images, case.labels, *(tensor for part in data for tensor in (part.images, part.labels))]


@promised("audit", "split what you pass to the target: images.split(case.most)")
def rows(cls: Any) -> None:
    """A forward pass of the target has at most case.most images."""
    case = home(cls)
    passed: list[int] = []
    case.target.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    made(cls, case)
    most = max(passed, default=0)
    expect(most <= case.most, f"{most} images where case.most is {case.most}")


@promised("audit", "make new tensors with device=case.device, and return pictures and tensors by .cpu()")
def device(cls: Any) -> None:
    """It computes on case.device, where target and images are; what it returns is on the CPU."""
    case = home(cls)
    for place in other_devices():
        with place as other:
            there = replace(
                case,
                target=toy_models.moved(case.target, other),
                images=case.images.to(other),
                labels=case.labels.to(other),
                device=other,
            )
            found = made(cls, there)
            strips = {strip.title: strip.images for strips in found.pictures.values() for strip in strips}
            expect_on(toy_models.CPU, **strips, **found.tensors)
            expect_figures(there, found, "on another device")
