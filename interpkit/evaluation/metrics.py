"""Measure samples with the metrics of all plugins."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import set_option, validated
from interpkit.errors import InterpkitError, UsageError, listed, setting, with_place
from interpkit.evaluation import doubts, scoring
from interpkit.interfaces.components import Options, options_of
from interpkit.interfaces.contracts import described, module_of
from interpkit.interfaces.metrics import RESERVED, STUDY_IMAGES, Metric, Study, TooFew
from interpkit.interfaces.samples import Samples, to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import TORCHVISION, LabelledImages, checked, path_and_split, refuse_shared
from interpkit.io.unlabeled import load_unlabeled
from interpkit.plugins.discovery import installed
from interpkit.runtime import progress
from interpkit.targets.units import UnitTarget

log = logging.getLogger("interpkit")

SOURCES = {"reference": "DATA", "training": "DATA", "canaries": "DATA", "ood": "DATA", "evaluator": "MODEL"}
"""The settings that provide what a metric needs, each with a placeholder for its value."""
PER_CLASS = 100
"""Samples per class of an inversion in memory."""

Data = str | Path | LabelledImages | tuple[Tensor, Tensor]
"""Labeled images: a spec for `interpkit.load_data`, or the images and labels themselves."""


def every_run(
    target: Target, samples: Samples, *, seed: int, device: torch.device, most: int | None = None
) -> dict[str, Any]:
    """Return the metrics.json of a run that has just ended: the target's own scores and the quick metrics."""
    quick = [_made(entry.item) for entry in installed().registry.entries("metric") if entry.item.every_run]
    return measured(Study(target, samples, seed=seed, device=device, most=most), filter(None, quick))


def _made(cls: type[Metric], options: Options | None = None) -> Metric | None:
    """Create a metric; if that fails, warn and return None, but raise its errors about the user's options."""
    try:
        return cls(options)
    except (Exception, SystemExit) as error:
        if isinstance(error, InterpkitError) and options is not None:
            raise
        _tell(cls, error)
        return None


def _tell(metric: Metric | type[Metric], error: BaseException) -> None:
    """Log that a metric failed, with its plugin and the place."""
    words = with_place(error, module_of(metric))
    log.warning("%s failed and is skipped: %s", described(metric), words, exc_info=log.isEnabledFor(10))


def measured(
    study: Study,
    metrics: Iterable[Metric],
    old: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return ``old`` metrics updated with those of a study.

    A metric that fails is listed in ``left_out`` with the reason, and so are metrics that share an entry; the others
    are still measured. Old figures are dropped, and listed there too, where ``sources`` names other data than those
    that they were measured on, or states another ``KIND.sha256``; a digest that was not recorded then is not compared.
    """
    old = old or {}
    names = study.target.class_names
    own = scoring.measure(study.samples, names)
    metrics = list(metrics)
    entries = Counter(key for key, _ in {(metric.key or metric.name, type(metric)) for metric in metrics})

    def other(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in entries}

    found: dict[str, Any] = {**other(old), **own}
    before = {row["label"]: other(row) for row in old.get("per_class", [])}
    rows = {row["label"]: {**before.get(row["label"], {}), **row} for row in found["per_class"]}
    left_out = dict(old.get("left_out", {}))
    for cls in _outdated(old.get("measured_on", {}), sources, metrics):
        key = cls.key or cls.name
        holders = [part for part in (found, *rows.values()) if key in part]
        for part in holders:
            del part[key]
        if holders:
            left_out[cls.name] = "it was measured on other data than the other metrics: measure it again"
            log.warning("the figures of %s are dropped: they were measured on other data", described(cls))
    spoiled = ""
    for number, metric in enumerate(metrics):
        progress.tell("metrics measured", number, len(metrics))
        for part in [part for part in left_out if part.partition(".")[0] == metric.name]:
            del left_out[part]
        if entries[entry := metric.key or metric.name] > 1:
            study.leave_out(metric.name, _of_several(entry, metrics))
            continue
        if spoiled:
            study.leave_out(metric.name, spoiled)
            continue
        study.restart()
        versions, fragment, merged = study.versions(), {}, {}
        try:
            made = dict(metric.measure(study))
            json.dumps(made, allow_nan=False)
            of_classes = made.pop("per_class", {})
            joined = {label: {**rows[label], **figures} for label, figures in of_classes.items()}
            if clash := {*own, *RESERVED} & {key for part in (made, *of_classes.values()) for key in part}:
                raise ValueError(f"it returns {listed(sorted(clash))}, which every run already has")
            fragment, merged = made, joined
        except TooFew as error:
            study.leave_out(metric.name, str(error))
        except (Exception, SystemExit) as error:
            _tell(metric, error)
            study.leave_out(metric.name, f"it failed: {type(error).__name__}: {error}")
        if changed := [what for what, version in study.versions().items() if version != versions[what]]:
            words = f"{described(metric)} changed {listed(changed)} in place, which it must clone first"
            log.warning("its figures are skipped: %s", words)
            study.leave_out(metric.name, words)
            study.forget()
            spoiled = "" if changed == [STUDY_IMAGES] else words  # those are made from the samples again
            continue
        rows |= merged
        found |= fragment
    progress.tell("metrics measured", len(metrics), len(metrics))
    left_out |= study.left_out
    found.pop("left_out", None)
    per_class = [rows[label] for label in sorted(rows)]
    found |= {"per_class": per_class, "doubts": doubts.by_class({"per_class": per_class})}
    return found | ({"left_out": left_out} if left_out else {})


def _of_several(entry: str, metrics: Iterable[Metric]) -> str:
    """Return why metrics that share an entry are left out, as one would replace the other's, and what to type."""
    sharing = {type(metric) for metric in metrics if (metric.key or metric.name) == entry}
    known = installed().registry.entries("metric")
    typed = [setting("metric", other.full_name) for other in known if other.item in sharing]
    return f"several metrics have the entry {entry!r}: choose one by {' or '.join(typed)}"


def _outdated(
    before: Mapping[str, Any], sources: Mapping[str, str], measured_now: Iterable[Metric]
) -> list[type[Metric]]:
    """Return the metrics not measured now that depend on data which differ from those before.

    Each metric that needs data may use the reference too.
    """
    changed = {kind.partition(".")[0] for kind, data in sources.items() if before.get(kind, data) != data}
    now = {metric.name for metric in measured_now}
    others = [entry.item for entry in installed().registry.entries("metric") if entry.name not in now]
    return [cls for cls in others if changed & set(cls.needs) or (cls.needs and "reference" in changed)]


def measured_on(
    before: Mapping[str, Any], now: Mapping[str, Any], metrics: Iterable[Metric], judged: bool
) -> dict[str, Any]:
    """Return what all figures of a metrics.json were measured on.

    Args:
        before: what those were that it had; empty if it had none.
        now: what the present metrics were measured on.
        metrics: the present metrics.
        judged: whether evaluators were given now.
    """
    names = {metric.name for metric in metrics}
    kept = {key: value for key, value in before.items() if key.partition(".")[0] not in names}
    options = {key: value for key, value in kept.get("options", {}).items() if key.rpartition(".")[0] not in names}
    options |= now.get("options", {})
    if judged:
        kept = {key: value for key, value in kept.items() if key not in ("resized_for", "classes_matched_for")}
    found = {**kept, **now, "options": options}
    return {key: value for key, value in found.items() if key != "options" or options}


def _chosen(names: Sequence[str], given: Sequence[str], options: Mapping[str, Any]) -> list[Metric]:
    """Return the named metrics, by default all but the slow whose needs are in ``given``, with their options."""
    plugins = installed()
    if names:
        names = [plugins.settled_name("metric", name) for name in names]
        classes = {name: plugins.component("metric", name) for name in dict.fromkeys(names)}
        for name, cls in classes.items():
            missing = [need for need in cls.needs if need not in given]
            if missing:
                added = " and ".join(setting(need, SOURCES[need]) for need in missing)
                raise UsageError(f"the metric {name!r} needs {' and '.join(missing)}: add {added}.")
    else:
        entries = plugins.registry.entries("metric")
        classes = {
            plugins.settled_name("metric", entry.full_name): entry.item
            for entry in entries
            if set(entry.item.needs) <= set(given) and not entry.item.on_request
        }
        compared = next((kind for kind in ("training", "canaries", "ood") if kind in given), None)
        if compared and "reference" not in given:
            images = {"training": "training images", "ood": "outliers"}.get(compared, compared)
            raise UsageError(f"{images} are compared with held-out ones: add {setting('reference', 'DATA')}.")
    values: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, value in ((plugins.settled_key(key, kinds=["metric"]), value) for key, value in options.items()):
        name = key.rpartition(".")[0]
        if name not in values and name in plugins.registry.names("metric"):
            missing = [need for need in plugins.component("metric", name).needs if need not in given]
            added = " and ".join(setting(need, SOURCES[need]) for need in missing) or setting("metric", name)
            raise UsageError(f"{setting(key, None)}: the metric {name!r} is not measured here: add {added}.")
        set_option(values, key, value, "METRIC", setting("reference.k", 5), "no metric {!r} is measured here")
    settled = {
        name: options_of(name, validated(cls.Options, values[name], f"the metric {name!r}"))
        for name, cls in classes.items()
    }
    return list(filter(None, (_made(cls, settled[name]) for name, cls in classes.items())))


def labelled_images(given: Data | None, what: str, target: Target) -> LabelledImages | None:
    """Load labeled images that fit the target; convert uint8 images to [0, 1], but not vectors."""
    if given is None:
        return None
    if isinstance(target, UnitTarget):
        raise UsageError(
            f"The classes of {target.name} are units, of which {what} have no labels: leave them out. The report of "
            f"the run shows which real images excite each unit most, if it gets them by {setting('reference', 'DATA')}."
        )
    if isinstance(given, str | Path):
        return scoring.load_labelled(str(given), target)
    images, labels = (given.images, given.labels) if isinstance(given, LabelledImages) else given
    images = images / 255 if images.dtype == torch.uint8 and images.dim() == 4 else images.float()
    return checked(LabelledImages(images, labels.long()), what, target.input_shape, target.class_names)


def training_images(given: Data | None, target: Target) -> LabelledImages | None:
    """Load training images like `labelled_images`, of the ``train`` split if a name does not say which."""
    if isinstance(given, str | Path):
        spec = str(given)
        path, split = path_and_split(spec)
        if (path.suffix.lower() == ".npz" and not split) or (spec.startswith(TORCHVISION) and spec.count(":") == 1):
            given = f"{spec}:train"
    return labelled_images(given, "the training data", target)


def refuse_training_images(reference: LabelledImages | None, training: LabelledImages | None, target: Target) -> None:
    """Raise a `UsageError` if the reference has images of the training data, which it is compared with."""
    if reference is not None and training is not None:
        unseen, seen = target.to_unit(reference.images), target.to_unit(training.images)
        refuse_shared(unseen, seen, "the reference data", "the training data")


def _outliers(given: str | Path | Tensor | None, target: Target) -> Tensor | None:
    """Load images that the target should refuse, in [0, 1]; files of another size are resized and cropped."""
    if isinstance(given, Tensor):
        known = labelled_images((given, torch.zeros(len(given), dtype=torch.int64)), "ood", target)
        return None if known is None else to_unit(known.images, target)
    if given is None:
        return None
    facts = target.description
    shape = facts.input_shape or target.input_shape
    return to_unit(load_unlabeled(str(given), shape, resize=True, crop_pct=facts.crop_pct), target)
