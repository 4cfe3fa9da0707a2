"""`explain`: the maps of several methods, what each class's have in common, whether to believe them, in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interpkit.attribution import faithfulness
from interpkit.attribution.evidence import ClassEvidence, class_evidence, evidence_agreement
from interpkit.attribution.explainer import (
    Explainer,
    TargetClass,
    checked_images,
    choose_classes,
    default_method,
    how_many,
)
from interpkit.attribution.quantus import quantus_means, quantus_metrics, quantus_scores
from interpkit.config.recipe import set_option
from interpkit.errors import InterpkitError, PluginError, UsageError, listed, setting
from interpkit.evaluation import scoring
from interpkit.interfaces import samples
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import to_json, write_atomically, write_tensors
from interpkit.io.datasets import DATA_ENDINGS, read_picture
from interpkit.io.images import MAX_ROWS, colour_scale, composite, save_panel, smoothed, to_heat, to_overlay, to_picture
from interpkit.io.locking import only_writer
from interpkit.io.picture_files import IMAGE_ENDINGS, PICTURE_ENDINGS, channels_first, pictures_in
from interpkit.io.unlabeled import load_unlabeled
from interpkit.plugins.discovery import installed
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.devices import choose_device
from interpkit.targets.units import UnitTarget

SCHEMA = 1
MOST_IMAGES = 100
"""Images that are explained if no number per class is given."""
PER_CLASS = 10
BASELINES = 8
"""Samples of a class that serve as a baseline distribution."""
CHECKED = 8
"""Images on which the expensive checks are made."""
DRAWN = 5
"""Images per class in a panel, each next to its map, and that laid over the image."""

ImagesAndLabels = tuple[Tensor, Tensor | None]
"""(N, *input_shape) in [0, 1], and labels (N,) or None where they are not known."""


def explain(
    target: Target,
    out: Path,
    *,
    images: ImagesAndLabels | None = None,
    inverted: ImagesAndLabels | None = None,
    methods: Sequence[str] = (),
    target_class: TargetClass = "asked",
    baseline: str = "black",
    per_class: int | None = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    checks: bool = True,
    quantus: Sequence[str] = (),
    seed: int = 0,
    rows: int | None = None,
    device: str = "auto",
    on_method: Callable[[str], None] | None = None,
    classifier: str = "",
) -> dict[str, Any]:
    """Explain images by several methods, and write METHOD.safetensors, METHOD.png, METHOD-classes.png and summary.json.

    A method that cannot serve the target, or fails, is left out with the reason, unless none is left. Maps that
    an earlier call made by other methods stay, but its summary is removed before the first maps are written.

    Args:
        target: the classifier.
        out: a folder, made if need be.
        images: what to explain; the inverted ones if left out.
        inverted: samples of an inversion, with labels: whose maps make the class evidence, and agree with those of
            ``images`` or do not.
        methods: names; ``all`` stands for every one; integrated gradients if left out.
        target_class: as in `interpkit.attribute`.
        baseline: ``black``, ``mean``, or ``class:N``: inverted samples that the target puts in class N, as a
            distribution.
        per_class: the most images of each class; 10, but about 100 in all, if left out.
        layer: for Grad-CAM.
        options: settings by ``METHOD.OPTION``.
        checks: measure infidelity, sensitivity and the effect of randomized weights on a few images.
        quantus: metrics of Quantus to compute on the maps, by name.
        seed: of all draws.
        rows: the most images that pass the target at once; see `interpkit.attribute`.
        device: where to compute.
        on_method: called with each method's name before it runs.
        classifier: the digest of the target, for summary.json.

    Returns:
        the content of summary.json.

    Raises:
        UsageError: a name or value is wrong, or no method serves the target.
        PluginError: every method fails.
    """
    given = inverted if images is None else images
    if given is None:
        raise UsageError(f"name the images to explain by {setting('images', 'FILE')}, or a run to explain its samples.")
    names, settings = _options_by_method(methods, options or {})
    if quantus:
        quantus_metrics(quantus, target.num_classes)  # refuses unknown names before anything is computed
    rows = how_many(target, device) if rows is None else rows
    select = partial(_select, target, target_class=target_class, per_class=per_class, rows=rows, device=device)
    shown = select(given)
    others = None if inverted is None or images is None else select(inverted)
    base = _baseline(target, baseline, inverted, device)
    set_up = partial(
        Explainer, target, against=shown.against, baseline=base, layer=layer, seed=seed, rows=rows, device=device
    )
    left_out: dict[str, InterpkitError] = {}
    explainers: dict[str, Explainer] = {}
    for name in names:
        try:
            explainers[name] = set_up(name, options=settings[name])
        except PluginError as error:
            left_out[name] = error
    found: dict[str, Any] = {}
    endings = (".safetensors", ".png", "-classes.png")
    written = ["summary.json", *(_stem(name) + ending for name in explainers for ending in endings)]
    with only_writer(out, written):
        for name, explainer in explainers.items():
            if on_method is not None:
                on_method(name)
            try:
                found[name] = _explain_by(_stem(name), explainer, out, shown, others, checks, quantus)
            except InterpkitError as error:
                left_out[name] = error
        if not found:
            first, *_ = left_out.values()
            raise type(first)("\n".join(map(str, left_out.values()))) from first
        summary = {
            "schema": SCHEMA,
            "target": target.name,
            "classifier": classifier,
            "count": len(shown.images),
            "target_class": "-".join(map(str, target_class)) if isinstance(target_class, tuple) else str(target_class),
            "baseline": baseline,
            "methods": found,
            **({"left_out": {name: str(error) for name, error in left_out.items()}} if left_out else {}),
        }
        write_atomically(out / "summary.json", to_json(summary))
    return summary


def load_images(spec: str, target: Target) -> ImagesAndLabels:
    """Load images: a picture, a folder of pictures, samples.safetensors, or labeled data (see `interpkit.load_data`).

    Raises:
        UsageError: they cannot be read, or do not fit the target.
    """
    path = Path(spec)
    if path.suffix.lower() == ".safetensors":
        stored, labels, _ = scoring.read_images(path, target)
        return samples.to_unit(stored, target), labels
    files = [path] if path.suffix.lower() in PICTURE_ENDINGS else pictures_in(spec)
    if files and len(target.input_shape) == 3:
        pixels = [read_picture(file, target.input_shape, target.description.crop_pct) for file in files]
        return torch.from_numpy(np.stack([channels_first(each) for each in pixels])) / 255, None
    if ":" not in spec and not os.path.exists(path):  # Path.exists raises if the name is too long
        raise UsageError(f"there is no file or folder {spec!r}.")
    if os.path.isfile(path) and path.suffix.lower() not in DATA_ENDINGS:
        raise UsageError(
            f"{path} is not a picture that interpkit reads, which are {listed(IMAGE_ENDINGS)}. Convert it."
        )
    if isinstance(target, UnitTarget):  # the data's labels are of other classes
        facts = target.description
        shape = facts.input_shape or target.input_shape
        return samples.to_unit(load_unlabeled(spec, shape, resize=True, crop_pct=facts.crop_pct), target), None
    data = scoring.load_labelled(spec, target)
    return samples.to_unit(data.images, target), data.labels


@dataclass(frozen=True)
class ExplainedImages:
    """Images, and the class to explain for each.

    Attributes:
        images: (N, *input_shape) float32 in [0, 1].
        labels: (N,) the images' own; None if they have none.
        classes: (N,) the class to explain.
        against: the class whose logit is subtracted.
    """

    images: Tensor
    labels: Tensor | None
    classes: Tensor
    against: int | None

    @property
    def groups(self) -> Tensor:
        """(N,) what maps are grouped by: the label, or the explained class of images without labels."""
        return self.classes if self.labels is None else self.labels


def _select(
    target: Target, given: ImagesAndLabels, *, target_class: TargetClass, per_class: int | None, rows: int, device: str
) -> ExplainedImages:
    """Take the first images of each class, sorted by class (of unlabelled ones the first), and what to explain."""
    images, labels = given
    if labels is None:
        images = images[: per_class or MOST_IMAGES]
    else:
        present = labels.unique().tolist()
        if per_class is None:
            present = present[:MOST_IMAGES]
            per_class = max(1, min(PER_CLASS, MOST_IMAGES // len(present)))
        kept = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in present])
        images, labels = images[kept], labels[kept]
    images = checked_images(target, images)
    classes, against = choose_classes(target, images, labels, target_class, rows=rows, device=device)
    return ExplainedImages(images, labels, classes, against)


def _baseline(target: Target, baseline: str, inverted: ImagesAndLabels | None, device: str) -> str | Tensor:
    kind, colon, number = baseline.partition(":")
    if kind != "class" or not colon:
        return baseline
    label = target.class_number(number)
    if inverted is None:
        raise UsageError(f"baseline {baseline!r} takes the samples of a run: name a run in place of the model.")
    images = inverted[0]
    asked = torch.full((len(images),), label)

    def accepted(rows: slice) -> Tensor:
        return target.accepts(target(images[rows].to(place)), asked[rows].to(place)).cpu()

    place = choose_device(device)
    with target.frozen(place), torch.no_grad():
        kept = images[torch.cat(in_batches(target, images, accepted))][:BASELINES]
    if not len(kept):
        raise UsageError(f"baseline {baseline!r}: the target puts none of the run's samples in that class.")
    return kept


def _options_by_method(
    methods: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    plugins = installed()
    known = plugins.settled_names("attribution")
    typed = [each for name in methods or [default_method()] for each in (known if name == "all" else [name])]
    names = list(dict.fromkeys(plugins.settled_name("attribution", name) for name in typed))
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        plugins.component("attribution", name)
    for key, value in ((plugins.settled_key(key, kinds=["attribution"]), value) for key, value in options.items()):
        example = setting(f"{default_method()}.OPTION", "VALUE")
        set_option(settings, key, value, "METHOD", example, "no method {!r} is asked for")
    return names, settings


def _stem(method: str) -> str:
    return method.replace(":", "-")  # no file of Windows has a colon in its name


def _explain_by(
    stem: str,
    explainer: Explainer,
    out: Path,
    shown: ExplainedImages,
    inverted: ExplainedImages | None,
    checks: bool,
    quantus: Sequence[str],
) -> dict[str, Any]:
    """Run one method, write its files, whose names begin with ``stem``, and return its figures."""
    target, method = explainer.target, explainer.method
    maps = explainer.maps(shown.images, shown.classes)
    notes, explainer.notes = explainer.notes, []  # those of other images, and of the checks, which change them, are not
    figures: dict[str, Any] = {"options": method.options.model_dump(mode="json", exclude_none=True)}
    tensors = {"maps": maps, "images": shown.images, "classes": shown.classes}
    if shown.labels is not None:
        tensors["labels"] = shown.labels
    if shown.against is not None:
        tensors["against"] = torch.tensor(shown.against)
    if method.complete:
        figures["completeness"] = faithfulness.completeness(explainer, shown.images, shown.classes, maps)
        tensors["delta"] = maps.flatten(1).sum(1) - explainer.differences(shown.images, shown.classes)
    evidence = of_shown = class_evidence(maps, shown.groups)
    if inverted is not None:
        evidence = class_evidence(explainer.maps(inverted.images, inverted.classes), inverted.groups)
        figures["agreement"] = [
            {"label": label, "name": target.class_names[label], **alike}
            for label, alike in evidence_agreement(evidence, of_shown).items()
        ]
    figures["deletion"] = _deletion(explainer, shown, maps, evidence)
    if checks:
        count = min(CHECKED, len(maps))
        few = torch.arange(count) * len(maps) // count  # spread evenly over the classes
        part = shown.images[few], shown.classes[few]
        figures["infidelity"] = faithfulness.infidelity(explainer, *part, maps[few])
        figures["sensitivity"] = faithfulness.sensitivity(explainer, *part)
        try:
            figures["randomisation"] = faithfulness.weight_randomisation(explainer, *part, maps[few])
        except UsageError as error:
            notes.append(str(error))
    if quantus:
        figures["quantus"] = dict.fromkeys(quantus)
    for name in quantus:
        try:
            scores = quantus_scores(explainer, shown.images, shown.classes, maps, [name])
            figures["quantus"] |= quantus_means(scores)
        except UsageError as error:
            notes.append(str(error))
    if not maps.any():
        notes.append(f"the maps of {method.name} are zero all over.")
    tensors |= {
        "evidence_labels": evidence.labels,
        "evidence_mean": evidence.mean,
        "evidence_spread": evidence.spread,
        "evidence_count": evidence.count,
    }
    metadata = {"format": "pt", "interpkit.schema": str(SCHEMA), "interpkit.kind": "attribution"}
    metadata["interpkit.method"] = method.name
    own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    for earlier in ("summary.json", f"{stem}.png", f"{stem}-classes.png"):  # of other images or options
        (out / earlier).unlink(missing_ok=True)
    write_tensors(out / f"{stem}.safetensors", own, metadata)
    figures["files"] = [f"{stem}.safetensors"]
    if maps.dim() == 4:
        _draw(out / f"{stem}.png", shown, maps, target.class_names)
        _draw_classes(out / f"{stem}-classes.png", inverted or shown, evidence, target.class_names)
        figures["files"] += [f"{stem}.png", f"{stem}-classes.png"]
    else:
        shape = "x".join(map(str, target.description.input_shape or target.input_shape))
        notes.append(
            f"no picture of the maps is drawn, as the inputs ({shape}) are not images; the maps are the tensor 'maps' "
            f"of {stem}.safetensors."
        )
    if notes:
        figures["notes"] = notes
    return figures


def _deletion(explainer: Explainer, shown: ExplainedImages, maps: Tensor, evidence: ClassEvidence) -> dict[str, float]:
    """Return the mean areas under the deletion curve of the maps, of the class evidence, and of random pixels.

    All three are of the images whose class has evidence; of all images, without the evidence, if none has.
    """
    of_class, known = maps.clone(), torch.isin(shown.groups, evidence.labels)
    for label, mean in zip(evidence.labels.tolist(), evidence.mean, strict=True):
        of_class[shown.groups == label] = mean
    rng = torch.Generator().manual_seed(explainer.seed)
    orders = {"maps": maps, "class_evidence": of_class, "random": torch.rand(maps.shape, generator=rng)}
    if not known.any():
        del orders["class_evidence"]
        known = ~known
    images, classes = shown.images[known], shown.classes[known]
    return {
        name: faithfulness.deletion(explainer, images, classes, order[known]).mean().item()
        for name, order in orders.items()
    }


def _draw(path: Path, shown: ExplainedImages, maps: Tensor, names: Sequence[str]) -> None:
    maps, square = smoothed(maps)
    scale = colour_scale(maps)
    panel, groups = [], shown.groups.unique().tolist()
    for label in groups[:MAX_ROWS]:
        own = (shown.groups == label).nonzero()[:DRAWN, 0].tolist()
        tiles = [tile for i in own for tile in _beside_its_map(shown.images[i], maps[i], scale)]
        panel.append((names[label], tiles))
    what = _explained(shown, names)
    meaning = f"red speaks for {what}, blue against" if maps.min() < 0 else f"the redder, the more it counts for {what}"
    caption = f"image, map, both: {meaning}; full color = {scale:.3g}"
    save_panel(panel, _captioned(caption, maps, square, len(groups)), path)


def _draw_classes(path: Path, source: ExplainedImages, evidence: ClassEvidence, names: Sequence[str]) -> None:
    (mean, square), (spread, _) = smoothed(evidence.mean), smoothed(evidence.spread)
    scale = colour_scale(mean)
    panel, labels = [], evidence.labels.tolist()
    for row, label in enumerate(labels[:MAX_ROWS]):
        heats = [to_heat(kind[row], scale) for kind in (mean, spread)]
        panel.append((names[label], [_pixels(source.images[source.groups == label].mean(0)), *heats]))
    caption = f"mean image, mean map (of {_explained(source, names)}), spread of the maps; full color = {scale:.3g}"
    save_panel(panel, _captioned(caption, evidence.mean, square, len(labels)), path)


def _explained(shown: ExplainedImages, names: Sequence[str]) -> str:
    """Return what the maps explain, in words: the class of each row, or another."""
    classes = shown.classes.unique().tolist()
    what = "the class"
    if not torch.equal(shown.classes, shown.groups):
        what = names[classes[0]] if len(classes) == 1 else "the class explained"
    return what if shown.against is None else f"{what} over {names[shown.against]}"


def _captioned(caption: str, maps: Tensor, square: int, classes: int) -> str:
    """Return the caption of a panel, with what was averaged and cut."""
    caption += f", averaged over {square} x {square} pixels" if square > 1 else ""
    cut = f"the first {MAX_ROWS} of {classes:,} classes" if classes > MAX_ROWS else ""
    return "; ".join(filter(None, (caption, cut, composite(maps.shape[1]))))


def _beside_its_map(image: Tensor, evidence: Tensor, scale: float) -> tuple[Image.Image, ...]:
    return _pixels(image), to_heat(evidence, scale), to_overlay(_bytes(image), evidence, scale)


def _pixels(image: Tensor) -> Image.Image:
    return to_picture(_bytes(image)).convert("RGB")


def _bytes(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
