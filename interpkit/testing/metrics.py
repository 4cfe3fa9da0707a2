"""The checks of metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch

from interpkit.errors import UsageError
from interpkit.interfaces import contracts
from interpkit.interfaces.metrics import RESERVED, Metric, Study, TooFew
from interpkit.interfaces.samples import Samples
from interpkit.interfaces.sections import Section
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import LabelledImages
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, expect, promised
from interpkit.testing.components import expect_no_draws, expect_unchanged, prepared, with_seed
from interpkit.testing.second_device import other_devices

NEEDS = ("reference", "training", "canaries", "ood", "evaluator")
STEPS = 2


def study_of(
    shape: toy_models.Shape,
    num_classes: int,
    given: tuple[str, ...] = NEEDS,
    *,
    per_class: int = 20,
    device: torch.device = toy_models.CPU,
) -> Study:
    """Return a study of made-up samples; ``given`` names the data besides them, of `NEEDS`."""
    target = toy_models.target_of(shape, num_classes)
    evaluator: Target = toy_models.LinearTarget(shape, num_classes)
    pictures = toy_models.Pictures(shape, num_classes)
    data = {}
    for seed, name in enumerate(("samples", "reference", "training")):
        images, labels = pictures.draw(per_class * num_classes, 90 + seed)
        vectors = target.low + (target.high - target.low) * images
        data[name] = LabelledImages(images if len(shape) == 3 else vectors, labels)
    seen = data["training"]
    data["canaries"] = LabelledImages(seen.images[:num_classes], seen.labels[:num_classes])
    images, labels = data["samples"].images, data["samples"].labels
    with torch.no_grad(), target.frozen():
        q = target(images).softmax(1)
    asked = q.gather(1, labels[:, None])[:, 0]
    samples = Samples(
        images=(images * 255).round().to(torch.uint8) if len(shape) == 3 else images,
        labels=labels,
        predicted=q.argmax(1),
        confidence=asked,
        divergence=-asked.log(),
        generator=torch.zeros_like(labels),
        probabilities=q,
        distribution=torch.eye(num_classes)[labels],
    )
    if device != toy_models.CPU:
        target, evaluator = toy_models.moved(target, device), toy_models.moved(evaluator, device)
    return Study(
        target,
        samples,
        data["reference"] if "reference" in given else None,
        data["training"] if "training" in given else None,
        {"other": evaluator} if "evaluator" in given else None,
        canaries=data["canaries"] if "canaries" in given else None,
        outliers=pictures.draw(per_class * num_classes, 93)[0] if "ood" in given else None,
        device=device,
    )


def measured(cls: Any, study: Study) -> Mapping[str, Any]:
    """Return what a metric finds; one that trains takes few steps."""
    metric: Metric
    with prepared(cls, study.target, steps=STEPS) as metric:
        return metric.measure(study)


@lru_cache(maxsize=1)
def _accepted(cls: Any) -> list[tuple[toy_models.Shape, int, Any]]:
    """Return each setting that a metric takes, and what it finds in it."""
    made = toy_models.accepted(lambda *setting: measured(cls, study_of(*setting)), toy_models.VARIED)
    return [(shape, count, found) for shape, count, found in made]


def all_found(cls: Any) -> list[tuple[Any, int, str]]:
    """Return what a metric finds in each setting that it takes, with the number of classes, and words for both."""
    return [(found, count, f"for images of {shape} and {count} classes") for shape, count, found in _accepted(cls)]


def home(cls: Any) -> tuple[toy_models.Shape, int]:
    """Return the first setting that a metric takes."""
    return _accepted(cls)[0][:2]


@promised("metric", "turn tensors into numbers by float() or .tolist(), and leave a figure out where it is not finite")
def fragment(cls: Any) -> None:
    """It gives a fragment of metrics.json: names with JSON values, numbers finite, for any image size and classes."""
    for found, _, where in all_found(cls):
        expect(isinstance(found, Mapping) and found, f"{found!r}, {where}")
        expect(all(isinstance(key, str) for key in found), f"keys {list(found)}, {where}")
        rows = list(found["per_class"].values()) if isinstance(found.get("per_class"), Mapping) else []
        try:
            json.dumps([_figures(found), rows], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Broken(f"{error}, {where}") from error


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "per_class"}


@promised("metric", "write key = 'the-entry' in the class, or name the entry as the metric is named")
def entry(cls: Any) -> None:
    """It gives the entry that `key` names, or its own name where `key` is empty, and none that is interpkit's own."""
    wanted = cls.key or cls.name
    for found, _, where in all_found(cls):
        expect(wanted in found, f"{wanted!r} is not among {', '.join(found)}, {where}")
        taken = sorted({*_figures(found)} & {*RESERVED})
        expect(not taken, f"{', '.join(taken)} of metrics.json is interpkit's own, {where}")


@promised("metric", "write {'per_class': {label: {...} for label in study.classes}}")
def per_class(cls: Any) -> None:
    """`per_class`, where it gives one, maps labels that were sampled to fragments, with no name of interpkit's own."""
    for found, count, where in all_found(cls):
        rows = found.get("per_class", {})
        expect(isinstance(rows, Mapping), f"per_class is a {type(rows).__name__}, {where}")
        odd = [label for label, row in rows.items() if label not in range(count) or not isinstance(row, Mapping)]
        expect(not odd, f"per_class has {odd[:3]}, {where}")
        taken = sorted({key for row in rows.values() for key in row} & {*RESERVED})
        expect(not taken, f"{', '.join(taken)} of a class is interpkit's own, {where}")


@promised("metric", "compute both from the same counts, by interpkit.wilson for a share")
def intervals(cls: Any) -> None:
    """Where a figure NAME has its interval beside it, NAME_interval, it lies in it."""
    for found, _, where in all_found(cls):
        for row in _mappings(found):
            for name, interval in row.items():
                of = str(name).removesuffix("_interval")
                if of != name and of in row:
                    inside = len(interval) == 2 and interval[0] - 1e-9 <= row[of] <= interval[1] + 1e-9
                    expect(inside, f"{of} = {row[of]} with the interval {interval}, {where}")


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _mappings(part)


@promised("metric", "read figures by .get(), as there may be none; return texts, Sections without strips, and shares")
def said(cls: Any) -> None:
    """The report can show what `warnings`, `summary`, `sections` and `doubts` return, of its figures and of none."""
    for found, _, where in all_found(cls):
        classes = found.get("per_class", {}).items()
        rows = [{"label": label, "name": str(label), **row} for label, row in classes]
        try:
            metrics = json.loads(json.dumps({**_figures(found), "per_class": rows}))
        except (TypeError, ValueError):
            continue  # which `fragment` reports
        *_, shares = _said(cls, metrics, where)
        odd = [f"{words}: {share}" for words, share in shares if not (isinstance(words, str) and 0 <= share <= 1)]
        expect(not odd, f"doubts() returns {', '.join(odd[:3])}, {where}")
    for name, some in zip(("warnings", "sections", "doubts"), _said(cls, {}, "of no figures"), strict=True):
        expect(not some, f"{name}() returns {some!r}, where nothing was measured")


def _said(cls: Any, metrics: Mapping[str, Any], where: str) -> tuple[list[str], list[Section], list[tuple[str, float]]]:
    """Return the warnings, the sections and the doubts about all classes, checked but for the shares."""
    warnings, summary = cls.warnings(metrics), cls.summary(metrics)
    whole = isinstance(warnings, list) and all(isinstance(text, str) and text for text in warnings)
    expect(whole, f"warnings() returns {warnings!r}, {where}")
    expect(isinstance(summary, str), f"summary() returns {summary!r}, {where}")
    doubts = [doubt for row in metrics.get("per_class", [{}]) for doubt in cls.doubts(row).items()]
    return warnings, contracts.sections_of_metric(cls, metrics), doubts


@promised("metric", "write needs = ('reference',), say, in the class, and read what else there may be only if not None")
def needs(cls: Any) -> None:
    """`needs` names all that it needs, of the entries of `NEEDS`; a metric of every run needs nothing."""
    unknown = [name for name in cls.needs if name not in NEEDS]
    expect(isinstance(cls.needs, tuple) and not unknown, f"needs is {cls.needs!r}")
    expect(not (cls.every_run and cls.needs), f"every_run, and needs {cls.needs!r}")
    expect(not (cls.every_run and cls.on_request), "every_run, and on_request")
    _measured(cls, study_of(*home(cls), cls.needs))


@promised("metric", "raise interpkit.TooFew with how many it takes, before dividing by counts or looking for neighbors")
def too_few(cls: Any) -> None:
    """Of too few images it gives finite numbers all the same, or raises TooFew, and nothing else."""
    for few in (1, 2):
        with suppress(UsageError, TooFew):
            json.dumps(_figures(measured(cls, study_of(*home(cls), per_class=few))), allow_nan=False)


@promised("metric", "pass generator=study.rng to every draw")
def seeded(cls: Any) -> None:
    """What it draws comes from study.rng alone: one study gives the same figures; global generators are left alone."""
    with expect_no_draws():
        one = _measured(cls, study_of(*home(cls)))
    other = with_seed(1, lambda: _measured(cls, study_of(*home(cls))))
    expect(one == other, "one study gives two sets of figures")


def _measured(cls: Any, study: Study) -> str:
    """Return what a metric finds, as text."""
    try:
        return repr(measured(cls, study))
    except (UsageError, TooFew) as error:
        return str(error)


@promised("metric", "clone what you change in place, and look through study.response")
def study_untouched(cls: Any) -> None:
    """It changes neither the images and labels of the study nor the classifiers."""
    study = study_of(*home(cls))
    tensors = _tensors(study)
    with expect_unchanged(study.target):
        _measured(cls, study)
    expect(_tensors(study) == tensors, "images or labels were changed")


def _tensors(study: Study) -> list[Any]:
    assert study.reference is not None and study.training is not None
    data = (study.samples, study.reference, study.training)
    return [tensor.tolist() for part in data for tensor in (part.images, part.labels)] + [study.images.tolist()]


@promised("metric", "look through study.response or study.look, or move images there and answers back by .cpu()")
def device(cls: Any) -> None:
    """Classifiers compute on study.device, and all else on the CPU."""
    usual = _measured(cls, study_of(*home(cls)))
    for place in other_devices():
        with place as other:
            found = _measured(cls, study_of(*home(cls), device=other))
        expect("device=" not in found, "a tensor of the other device is among the figures")
        expect((usual[:1] == "{") == (found[:1] == "{"), f"it finds {found[:80]}")
