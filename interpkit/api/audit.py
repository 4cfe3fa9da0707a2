"""`audit`: tests a classifier for faults, class by class, with samples of its inversion or with real images."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interpkit.api.invert import prepare
from interpkit.api.load import load_inversion
from interpkit.api.outputs import result_folder
from interpkit.config.recipe import set_option, validated
from interpkit.errors import UsageError, percent, setting
from interpkit.evaluation.metrics import Data, labelled_images, refuse_training_images, training_images
from interpkit.evaluation.statistics import holm
from interpkit.interfaces import contracts
from interpkit.interfaces.audits import Audit, AuditCase, Tested
from interpkit.interfaces.data import fetch
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.metrics import TooFew
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import to_json, write_atomically, write_tensors
from interpkit.io.datasets import LabelledImages
from interpkit.io.locking import only_writer
from interpkit.plugins.discovery import installed
from interpkit.plugins.loading import load_target
from interpkit.report.audit import REAL, write_audit
from interpkit.runs.manifest import weights_digest
from interpkit.runtime.at_once import how_many, in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device, device_of, keep_freed_memory
from interpkit.runtime.progress import tell
from interpkit.runtime.random import global_seed

log = logging.getLogger("interpkit")

SCHEMA = 1
SAMPLES = "samples of the run"
FIGURES, TENSORS, PAGE = WRITTEN = "audit.json", "audit.safetensors", "audit.html"
PER_CLASS = 12
MOST_CLASSES = 20
"""Of more classes than this, the half that the screening tests found most unusual are tested, and as many others."""
LEVELS = {"warning": 0.05, "alarm": 0.001}
"""The family-wise error below which a finding is of a level."""
SUSPICIOUS = 10
"""If at least this number of real images get a wrong answer, it is unusual that most get the same one."""


class Found(NamedTuple):
    """A test with its options, and what it found."""

    test: Audit
    result: Tested


@dataclass
class AuditReport:
    """What an audit found.

    Attributes:
        target: the classifier.
        record: all figures, as in ``audit.json``.
        results: what each test found, by its name (``PLUGIN:NAME`` where several plugins use the name).
    """

    target: Target
    record: dict[str, Any]
    results: Mapping[str, Found]

    @property
    def flagged(self) -> bool:
        """Whether there is a finding, at a family-wise error of 5 %."""
        return bool(self.record["flagged"])

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings, the surest first."""
        found: list[dict[str, Any]] = self.record["findings"]
        return found

    def save(self, folder: str | Path) -> Path:
        """Write audit.json, audit.safetensors and audit.html into a folder; return the folder."""
        place = result_folder(folder, WRITTEN)
        pictures = {name: found.result.pictures for name, found in self.results.items()}
        with only_writer(place, WRITTEN):
            tensors = {
                name + key.removeprefix(found.test.name): tensor.contiguous()
                for name, found in self.results.items()
                for key, tensor in found.result.tensors.items()
            }
            metadata = {"format": "pt", "interpkit.schema": str(SCHEMA), "interpkit.kind": "audit"}
            write_tensors(place / TENSORS, tensors, metadata)
            write_atomically(place / FIGURES, to_json(self.record))
            write_atomically(place / PAGE, write_audit(self.target, self.record, pictures))
        return place


@with_autograd
def audit(
    model: Target | Inversion | str | Path,
    *,
    reference: Data | None = None,
    training: Data | None = None,
    tests: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    per_class: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    on_test: Callable[[str], None] | None = None,
) -> AuditReport:
    """Test a classifier for faults: triggers, leaks, mixed-up labels, blind spots, memorized images.

    Each test returns a p-value for each class. They are corrected for their number, over all tests and classes, by
    Holm's method, so that a clean classifier has any finding at all with a probability of 5 %, as far as the null
    distributions of the tests hold. A classifier without a finding may have faults that no test looks for.

    Args:
        model: a classifier or its file; a run folder or an inversion, whose samples are used. A class "garbage", as
            `harden` adds it, is not tested.
        reference: real images with labels: a path or (images, labels). The tests then change these and no samples.
        training: images that the classifier was trained on, likewise, by default of the ``train`` split, for tests of
            what it remembers.
        tests: names of tests; if omitted, all that have what they need, but for those of `Audit.on_request`.
        options: settings by ``TEST.OPTION``.
        presets: presets that make the samples of a classifier, without a run or a reference; the plugins' own if
            omitted.
        per_class: the number of images of each class; 12 if omitted.
        seed: random seed of the tests, and of samples made for the audit; those of a run and real images are the same
            for every seed.
        device: device to compute on.
        out: a folder to write; see `AuditReport.save`.
        on_test: called with the name of each test before it runs.

    Raises:
        UsageError: an argument does not fit, no test can be made, or the classifier gives one answer to everything.

    Example:
        >>> import torch
        >>> from interpkit import audit, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 5, bias=False))
        >>> net[1].weight.data = torch.randn(5, 36, generator=torch.Generator().manual_seed(0))
        >>> net[1].weight.data[3, 7] = 60.0  # one pixel decides
        >>> report = audit(wrap(net, input_shape=(1, 6, 6)), tests=["patch"], per_class=6)
        >>> report.flagged, [finding["class"] for finding in report.findings]
        (True, [3])
    """
    chosen = _chosen(tests, {"reference": reference, "training": training}, options or {})
    fetch(options or {})
    rest = {name: test for name, test in chosen.items() if not test.screens}
    if not rest and (presets or per_class is not None):
        idle = setting("preset", presets[0]) if presets else setting("per_class", per_class)
        raise UsageError(f"no test made here uses samples: leave {idle} out.")
    inversion: Inversion | None = None
    if isinstance(model, str | Path) and Path(model).is_dir() and (Path(model) / "manifest.json").is_file():
        model = load_inversion(model)
    if isinstance(model, Inversion):
        inversion = model
        model = inversion.target
    if presets and (inversion is not None or reference is not None):
        source = SAMPLES if reference is None else "images of the reference"
        raise UsageError(
            f"presets make samples, and this audit uses the {source}: leave {setting('preset', presets[0])} out."
        )
    target = model if isinstance(model, Target) else load_target(model)
    everything = [c for c in range(target.num_classes) if c != target.garbage]
    if len(everything) < 2:
        raise UsageError(f"{target.name} has one class: an audit compares classes.")
    if out is not None:
        result_folder(out, WRITTEN)
    shown = everything
    place = choose_device(device)
    keep_freed_memory(place)
    real = labelled_images(reference, "the reference data", target)
    trained = training_images(training, target)
    refuse_training_images(real, trained, target)
    if rest and real is not None:  # before the tests that need no images, which may take a while
        _refuse_one_class(real.labels.tolist(), f"{len(real.labels)} {REAL}", target)
    elif rest and inversion is not None:
        _refuse_one_class(inversion.classes, SAMPLES, target)
    left_out: dict[str, str] = {}
    results: dict[str, Found] = {}
    empty = torch.zeros(0, *target.input_shape, device=place)
    with target.frozen(place):
        most = how_many(target, torch.full((2, *target.input_shape), 0.5, device=place))
        without = AuditCase(
            target, everything, empty, torch.zeros(0, dtype=torch.long, device=place),
            real is not None, real, trained, seed, place, most,
        )  # fmt: skip

        def run(name: str, test: Audit, case: AuditCase) -> None:
            tell("tests of the audit made", len(results) + len(left_out), len(chosen), name)
            reason = target.no_gradient if test.needs_gradient else ""
            if reason:
                left_out[name] = f"it requires a gradient: {reason}"
                return
            if on_test is not None:
                on_test(name)
            with global_seed(seed, place), torch.enable_grad():
                try:
                    results[name] = Found(test, contracts.tested(test, case))
                except TooFew as error:
                    left_out[name] = str(error)

        for name, test in chosen.items():
            if test.screens:
                run(name, test, without)
        if rest and inversion is not None and real is None:
            shown = [c for c in everything if c in inversion.classes]
        have = None if real is None else set(real.labels.tolist())
        classes = _classes(shown, results, seed, have) if rest else everything
        sources: dict[str, Any] = {}
        if rest:
            few = PER_CLASS if per_class is None else per_class
            images, labels, sources = _images(target, inversion, real, classes, presets, few, seed, device)
            case = replace(without, classes=classes, images=images.to(place), labels=labels.to(place))
            for name, test in rest.items():
                run(name, test, case)
    tell("tests of the audit made", len(chosen), len(chosen))
    if not results:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in left_out.items())
        raise UsageError(f"no test could be made: {reasons or 'none'}.")
    report = AuditReport(target, _record(target, results, left_out, classes, shown, sources, seed), results)
    if out is not None:
        report.save(out)
    return report


def _chosen(names: Sequence[str], given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Audit]:
    """Return the named tests, by default the usual ones whose needs are given, with their options."""
    plugins = installed()
    have = {name for name, data in given.items() if data is not None}
    known = plugins.settled_names("audit")
    if not known:
        raise UsageError("no installed plugin has a test for an audit: install one.")
    settled = [plugins.settled_name("audit", name) for name in names or known]
    classes = {name: plugins.component("audit", name) for name in settled}
    for name, cls in list(classes.items()):
        missing = [need for need in cls.needs if need not in have]
        if missing and names:
            added = " and ".join(setting(need, "DATA") for need in missing)
            raise UsageError(f"the test {name!r} needs {' and '.join(missing)} images: add {added}.")
        if missing or (cls.on_request and not names):
            del classes[name]
    if "training" in have and not any("training" in cls.needs for cls in classes.values()):
        more = "" if "reference" in have else "; the usual one compares them with others: "
        log.warning("no test made here uses training images%s%s", more, more and setting("reference", "DATA"))
    if "reference" in have and all(cls.screens and "reference" not in cls.needs for cls in classes.values()):
        log.warning("no test made here uses reference images")
    values: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, value in ((plugins.settled_key(key, kinds=["audit"]), value) for key, value in options.items()):
        set_option(values, key, value, "TEST", setting(f"{next(iter(classes))}.sd", 0.3), "no test {!r} is made here")
    return {name: cls(validated(cls.Options, values[name], f"the test {name!r}")) for name, cls in classes.items()}


def _classes(shown: list[int], results: Mapping[str, Found], seed: int, have: set[int] | None) -> list[int]:
    """Return the classes to test: all, or the most unusual by the tests that screened them, and others at random.

    Of the others, those of which there are images (``have``) come first: images of them are changed into each class.
    """
    if len(shown) <= MOST_CLASSES:
        return shown
    lowest = {c: min((f.result.p_values.get(c, 1.0) for f in results.values()), default=1.0) for c in shown}
    others = random.Random(seed).sample(shown, len(shown))  # breaks ties too
    unusual = sorted(others, key=lowest.__getitem__)[: MOST_CLASSES // 2]
    usual = sorted((c for c in others if c not in unusual), key=lambda c: have is not None and c not in have)
    usual = usual[: MOST_CLASSES // 2]
    return sorted(unusual + usual)


def _refuse_one_class(labels: Iterable[int], images: str, target: Target) -> None:
    if len(present := set(labels)) == 1:
        raise UsageError(
            f"all {images} are of one class, {target.class_names[present.pop()]}: an audit changes images of all other "
            f"classes into each class. Add images of others."
        )


def _images(
    target: Target,
    inversion: Inversion | None,
    real: LabelledImages | None,
    classes: Sequence[int],
    presets: Sequence[str],
    per_class: int,
    seed: int,
    device: str,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return images that the target assigns to the class in the labels, and where they are from."""
    if real is not None:
        rows = torch.cat([(real.labels == c).nonzero()[:, 0] for c in classes])
        images, labels, kind = target.to_unit(real.images[rows]), real.labels[rows], REAL
    else:
        kind = SAMPLES
        if inversion is None and target.no_gradient:
            raise UsageError(
                f"no gradient passes from the logits of {target.name} to its images: {target.no_gradient}. The samples "
                f"of an audit need one: name real images by {setting('reference', 'DATA')}, or a run."
            )
        if inversion is None:
            kind = "samples made for the audit"
            inversion = _inverted(target, classes, presets, per_class, seed, device)
        images, labels = inversion.sample_up_to(2 * per_class, list(classes))
    place = device_of(target)

    def answers(rows: slice) -> Tensor:
        with torch.no_grad():
            logits, asked = target(images[rows].to(place)), labels[rows].to(place)
            return torch.stack([logits.argmax(1), (target.predictions(logits, asked) == asked).long()]).cpu()

    labels = labels.cpu()
    found, own = torch.cat(in_batches(target, images, answers), 1) if len(images) else torch.zeros(2, 0).long()
    _refuse_one_class(labels.tolist(), f"{len(labels)} {kind}", target)
    if len(found) and len(found.unique()) == 1 and not target.multi_label:
        raise UsageError(
            f"{target.name} gives one answer to all {len(found)} {kind}, {target.class_names[int(found[0])]}: there is "
            f"nothing to compare. If it tells real images apart, name some by {setting('reference', 'DATA')}, or a run."
        )
    right = own == 1
    if target.multi_label:  # tests see which label leads, and which image turns into it
        right &= found == labels
    keep = torch.cat([((labels == c) & right).nonzero()[:per_class, 0] for c in classes])
    if not len(keep):
        raise UsageError(
            f"{target.name} puts no image into the class that it is labeled with: name a run whose samples it does, or "
            f"real images by {setting('reference', 'DATA')}."
        )
    counts = {str(c): int((labels[keep] == c).sum()) for c in classes}
    others = {str(c): int((found[~right] == c).sum()) for c in found[~right].unique().tolist()}
    dropped = {"count": int((~right).sum()), "of": len(found), "answers": others}
    return images[keep], labels[keep], {"images": kind, "count": len(keep), "per_class": counts, "dropped": dropped}


def _inverted(
    target: Target, classes: Sequence[int], presets: Sequence[str], per_class: int, seed: int, device: str
) -> Inversion:
    """Return an inversion with a few quick images of each class."""
    plugins = installed()
    names = list(presets)
    if not names and plugins.photograph_preset(target.input_shape) is None:
        own = plugins.audit_preset()
        if own is None:
            raise UsageError(
                f"no plugin has a preset for audits: name one by {setting('preset', 'NAME')}, or name a run."
            )
        names = [own]
    few: dict[str, Any] = {} if len(classes) == target.num_classes else {"labels": list(classes)}
    job = prepare(target, presets=names, per_class=per_class, seed=seed, device=device, **few)
    return job.run(on_step=lambda step: tell("steps of the samples", step, job.recipe.steps))


def _record(
    target: Target,
    results: Mapping[str, Found],
    left_out: Mapping[str, str],
    classes: Sequence[int],
    shown: Sequence[int],
    sources: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    raw = {(name, c): p for name, found in results.items() for c, p in found.result.p_values.items()}
    corrected = holm(raw)
    findings = [
        {
            "test": name,
            "kind": results[name].test.kind,
            "class": c,
            "name": None if c is None else target.class_names[c],
            "p_value": p,
            "level": next(level for level in reversed(LEVELS) if p <= LEVELS[level]),
            "evidence": results[name].result.evidence.get(c, ""),
        }
        for (name, c), p in sorted(corrected.items(), key=lambda item: (item[1], raw[item[0]]))
        if p <= LEVELS["warning"]
    ]
    tests = {
        name: {
            "kind": found.test.kind,
            "question": found.test.question,
            "limits": found.test.limits,
            "false_alarms": "" if found.test.options.model_dump(exclude_defaults=True) else found.test.false_alarms,
            "options": found.test.options.model_dump(mode="json"),
            "classes": [
                {"class": c, "statistic": value, "p_value": corrected[name, c], "uncorrected": raw[name, c]}
                for c, value in found.result.statistics.items()
                if (name, c) in raw
            ],
        }
        for name, found in results.items()
    }
    return {
        "schema": SCHEMA,
        "name": target.name,
        "classifier": weights_digest(target),
        "flagged": bool(findings),
        "findings": findings,
        "tests": tests,
        "left_out": dict(left_out),
        "classes": {
            "tested": list(classes),
            "of": target.num_classes,
            "names": [target.class_names[c] for c in classes],
        },
        "images": dict(sources),
        "notes": list(_notes(target, classes, shown, sources, any(f.test.screens for f in results.values()))),
        "seed": seed,
    }


def _notes(
    target: Target, classes: Sequence[int], shown: Sequence[int], sources: Mapping[str, Any], screened: bool
) -> Iterator[str]:
    """Return what a reader has to know about this audit, a sentence or two each."""
    known = target.num_classes - (target.garbage is not None)
    if target.garbage is not None:
        yield f"The class {target.class_names[target.garbage]} was not tested: it stands for what belongs to no other."
    if known == 2:
        yield (
            "With two classes there is only one to compare a class with: how unusual a difference is, was learned from "
            "other classifiers alone."
        )
    if len(shown) < known:
        yield f"The run has samples of {len(shown)} of {known} classes. The others were not tested with images."
    if len(classes) < len(shown):
        how = "drawn at random"
        if screened:
            how = "half of them are those that the other tests found most unusual, the others were drawn at random"
        yield f"Only {len(classes)} of {len(shown)} classes were tested with images: {how}."
    if target.multi_label:
        yield (
            "The classes of this classifier do not exclude each other. The tests ask for the class with the highest "
            "logit, so that they do not see a trigger that only adds a label."
        )
    dropped = sources.get("dropped", {"count": 0})
    if not dropped["count"]:
        return
    said = (
        f"{dropped['count']} of {dropped['of']} {sources['images']} were left out, because the classifier does not "
        f"assign them to their class."
    )
    most = max(dropped["answers"], key=dropped["answers"].__getitem__)
    share = dropped["answers"][most] / dropped["count"]
    if sources["images"] == REAL and dropped["count"] >= SUSPICIOUS and share > 0.5:
        said += (
            f" It assigns {percent(share, 0)} of them to the class {target.class_names[int(most)]}: look at them, they "
            f"may carry a trigger themselves."
        )
    yield said
