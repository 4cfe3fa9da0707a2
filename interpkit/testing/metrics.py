"""The checks of metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from interpkit.errors import UsageError
from interpkit.interfaces.metrics import Metric, Study, TooFew
from interpkit.interfaces.samples import Samples
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import LabelledImages
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, expect, promised
from interpkit.testing.components import expect_untouched, one_of, random_states, with_seed
from interpkit.testing.second_device import other_devices

NEEDS = ("reference", "training", "evaluator")
SETTINGS: tuple[tuple[toy_models.Shape, int], ...] = (
    (toy_models.TINY, 3),
    ((3, 32, 32), 2),
    ((5, 17, 40), 10),
    ((12,), 37),
)
PER_CLASS = 12


def study_of(
    shape: toy_models.Shape,
    num_classes: int,
    given: tuple[str, ...] = NEEDS,
    *,
    per_class: int = PER_CLASS,
    target: Target | None = None,
    device: torch.device = toy_models.CPU,
) -> Study:
    """Return a study of made-up samples.

    Args:
        shape: of an image.
        num_classes: n.
        given: of reference, training and evaluator, the data besides the samples.
        per_class: images of each class, of each kind.
        target: the classifier; a small one of that shape if left out.
        device: where classifiers compute.
    """
    judge = toy_models.target_of(shape, num_classes)
    drawn = toy_models.Pictures(shape, num_classes)
    data = {}
    for seed, name in enumerate(("samples", "reference", "training")):
        images, labels = drawn.draw(per_class * num_classes, 90 + seed)
        data[name] = LabelledImages(
            images if len(shape) == 3 else judge.low + (judge.high - judge.low) * images, labels
        )
    images, labels = data["samples"].images, data["samples"].labels
    with torch.no_grad(), judge.frozen():
        q = judge(images).softmax(1)
    samples = Samples(
        images=(images * 255).round().to(torch.uint8) if len(shape) == 3 else images,
        labels=labels,
        predicted=q.argmax(1),
        confidence=q.gather(1, labels[:, None])[:, 0],
        divergence=-q.gather(1, labels[:, None])[:, 0].log(),
        generator=torch.zeros_like(labels),
        probabilities=q if num_classes <= 100 else None,
        distribution=torch.eye(num_classes)[labels] if num_classes <= 100 else None,
    )
    evaluator: Target = toy_models.LinearTarget(shape, num_classes)
    if device != toy_models.CPU:
        evaluator = toy_models.moved(evaluator, device)
    return Study(
        target or judge,
        samples,
        data["reference"] if "reference" in given else None,
        data["training"] if "training" in given else None,
        {"other": evaluator} if "evaluator" in given else None,
        device=device,
    )


@dataclass(frozen=True)
class Found:
    """What a metric finds in a study.

    Attributes:
        fragment: of metrics.json.
        classes: that were sampled.
        where: words for the setting.
    """

    fragment: Any
    classes: list[int]
    where: str


@lru_cache(maxsize=1)
def all_found(cls: Any) -> list[Found]:
    """Return what a metric finds in each setting that it takes."""
    refusal, found = "", []
    for shape, count in SETTINGS:
        study = study_of(shape, count)
        try:
            fragment = one_of(cls).measure(study)
        except (UsageError, TooFew) as error:
            refusal = refusal or str(error)
        else:
            found.append(Found(fragment, study.classes, f"for images of {shape} and {count} classes"))
    expect(found, f"it measures nothing; with {PER_CLASS} images per class, it raises: {refusal}")
    return found


@promised(
    "fragment",
    by="metric",
    promise="for any image size and number of classes it gives a fragment of metrics.json: a mapping of names "
    "to JSON values, every number finite",
    remedy="turn tensors into numbers by float() or .tolist(), and leave a figure out where it is not finite",
)
def fragment(cls: Any) -> None:
    """It gives JSON."""
    for made in all_found(cls):
        found, where = made.fragment, made.where
        expect(isinstance(found, Mapping) and found, f"{found!r}, {where}")
        expect(all(isinstance(key, str) for key in found), f"keys {list(found)}, {where}")
        rest = {key: value for key, value in found.items() if key != "per_class"}
        rows = list(found["per_class"].values()) if isinstance(found.get("per_class"), Mapping) else []
        try:
            json.dumps([rest, rows], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Broken(f"{error}, {where}") from error


@promised(
    "entry",
    by="metric",
    promise="it gives the entry that `key` names, or its own name where `key` is empty",
    remedy="write key = 'the-entry' in the class, or name the entry as the metric is named",
)
def entry(cls: Any) -> None:
    """The entry is there."""
    wanted = cls.key or cls.name
    for made in all_found(cls):
        expect(wanted in made.fragment, f"{wanted!r} is not among {', '.join(made.fragment)}, {made.where}")


@promised(
    "per-class",
    by="metric",
    promise="`per_class`, where it gives one, is a mapping from labels that were sampled to fragments",
    remedy="write {'per_class': {label: {...} for label in study.classes}}",
)
def per_class(cls: Any) -> None:
    """Classes have rows."""
    for made in all_found(cls):
        rows = made.fragment.get("per_class", {})
        expect(isinstance(rows, Mapping), f"per_class is a {type(rows).__name__}, {made.where}")
        odd = [label for label, row in rows.items() if label not in made.classes or not isinstance(row, Mapping)]
        expect(not odd, f"per_class has {odd[:3]}, {made.where}")


@promised(
    "intervals",
    by="metric",
    promise="where a figure NAME has its interval beside it, NAME_interval, it lies in it",
    remedy="compute both from the same counts, by interpkit.wilson for a share",
)
def intervals(cls: Any) -> None:
    """Figures lie in their intervals."""
    for made in all_found(cls):
        for row in _mappings(made.fragment):
            for name, interval in row.items():
                of = str(name).removesuffix("_interval")
                if of != name and of in row:
                    inside = len(interval) == 2 and interval[0] - 1e-9 <= row[of] <= interval[1] + 1e-9
                    expect(inside, f"{of} = {row[of]} with the interval {interval}, {made.where}")


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, Mapping):
        yield value
        for part in value.values():
            yield from _mappings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _mappings(part)


@promised(
    "needs",
    by="metric",
    promise="`needs` names what it cannot be measured without, of reference, training and evaluator, and it "
    "needs nothing else; one of every run needs nothing",
    remedy="write needs = ('reference',), say, in the class, and look whether study.reference is None before "
    "the rest is read",
)
def needs(cls: Any) -> None:
    """`needs` is true."""
    unknown = [name for name in cls.needs if name not in NEEDS]
    expect(isinstance(cls.needs, tuple) and not unknown, f"needs is {cls.needs!r}")
    expect(not (cls.every_run and cls.needs), f"every_run, and needs {cls.needs!r}")
    try:
        _measured(cls, study_of(*SETTINGS[0], cls.needs))
    except Exception as error:
        raise Broken(f"with {', '.join(cls.needs) or 'samples'} alone: {type(error).__name__}: {error}") from error


@promised(
    "too-few",
    by="metric",
    promise="of too few images it gives finite numbers all the same, or raises TooFew, and nothing else",
    remedy="raise interpkit.TooFew with how many it takes, before dividing by counts or looking for neighbors",
)
def too_few(cls: Any) -> None:
    """Too few images raise no other error."""
    for few in (1, 2):
        try:
            found = one_of(cls).measure(study_of(toy_models.TINY, 3, per_class=few))
            json.dumps([value for key, value in found.items() if key != "per_class"], allow_nan=False)
        except (UsageError, TooFew):
            continue
        except Exception as error:
            raise Broken(f"with {few} per class: {type(error).__name__}: {error}") from error


@promised(
    "seeded",
    by="metric",
    promise="what it draws comes from study.rng alone: the same study gives the same figures, and every global "
    "generator is left alone",
    remedy="pass generator=study.rng to every draw",
)
def seeded(cls: Any) -> None:
    """The seed determines the figures."""
    shape, count = SETTINGS[0]
    before = random_states()
    one = _measured(cls, study_of(shape, count))
    expect_untouched(before)
    other = with_seed(1, lambda: _measured(cls, study_of(shape, count)))
    expect(one == other, "one study gives two sets of figures")


def _measured(cls: Any, study: Study) -> str:
    """Return what a metric finds, as text."""
    metric: Metric = one_of(cls)
    try:
        return repr(metric.measure(study))
    except (UsageError, TooFew) as error:
        return str(error)


@promised(
    "study-untouched",
    by="metric",
    promise="it changes neither the images and labels of the study nor the classifiers",
    remedy="clone what you change in place, and look through study.response or within study.target.frozen(...)",
)
def study_untouched(cls: Any) -> None:
    """The study is unchanged."""
    study = study_of(*SETTINGS[0])
    before, tensors = toy_models.state_of(study.target), _tensors(study)
    _measured(cls, study)
    changed = toy_models.changes(before, toy_models.state_of(study.target))
    expect(not changed, f"changed of the target: {changed}")
    expect(_tensors(study) == tensors, "images or labels were changed")


def _tensors(study: Study) -> list[Any]:
    assert study.reference is not None and study.training is not None
    data = (study.samples, study.reference, study.training)
    return [tensor.tolist() for part in data for tensor in (part.images, part.labels)] + [study.images.tolist()]


@promised(
    "device",
    by="metric",
    promise="classifiers compute on study.device, and all else on the CPU",
    remedy="look through study.response or study.look, or move images by .to(study.device) and answers back by .cpu()",
)
def device(cls: Any) -> None:
    """Classifiers compute where they are."""
    shape, count = SETTINGS[0]
    usual = _measured(cls, study_of(shape, count))
    for place in other_devices():
        with place as other:
            study = study_of(
                shape, count, target=toy_models.moved(toy_models.target_of(shape, count), other), device=other
            )
            found = _measured(cls, study)
        expect("device=" not in found, "a tensor of the other device is among the figures")
        expect((usual[:1] == "{") == (found[:1] == "{"), f"it finds {found[:80]}")
