"""`concepts`: decomposes the features of a layer by a dictionary that is learned from the samples of an inversion."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.api.load import load_inversion
from interpkit.api.outputs import result_folder
from interpkit.attribution import concepts as found_by
from interpkit.attribution import dictionaries
from interpkit.attribution.concepts import ConceptTarget, Found
from interpkit.attribution.dictionaries import DICTIONARIES, LATENTS, Dictionary, Learn, known
from interpkit.attribution.explainer import checked_images
from interpkit.attribution.export import load_images
from interpkit.config.sizes import is_large
from interpkit.errors import RunError, UsageError, setting
from interpkit.evaluation.metrics import labelled_images
from interpkit.evaluation.statistics import wilson
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import digest, read_tensors, to_json, write_atomically, write_tensors
from interpkit.io.datasets import refuse_shared
from interpkit.io.locking import only_writer
from interpkit.plugins.loading import load_target
from interpkit.report.concepts import read_concepts, write_concepts
from interpkit.runs.manifest import weights_digest
from interpkit.runtime import progress
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device
from interpkit.targets.layers import count_runs, list_layers

log = logging.getLogger("interpkit")

SCHEMA = 1
COUNT = 10_000
FOLDER = "concepts"
FIGURES, TENSORS, PAGE = WRITTEN = "concepts.json", "concepts.safetensors", "report.html"
OF_DICTIONARY = "dictionary."
"""What the names of the dictionary's tensors begin with."""
STRONGEST = 6
"""Images that are kept of each of the `SHOWN` concepts."""
LARGE = 2
"""Those from which a concept is removed, where images are large: the classifier runs again for each concept."""
SHOWN = 24
RARE, OFTEN = 0.1, 0.005
"""A concept fires on one kind of images only if it fires on at least ``OFTEN`` of them, and at most ``RARE`` times as
often on the other kind."""


@dataclass
class Concepts:
    """The concepts of a classifier's layer.

    Attributes:
        target: the classifier.
        layer: the layer.
        dictionary: converts its features to codes of concepts and back.
        record: all figures, as in ``concepts.json``.
        pictures: (U, *input_shape) in [0, 1], the strongest samples of the first concepts in ``record["concepts"]``.
        codes: (N, n), how strongly each concept is present in each sample; empty if the concepts were loaded.
        maps: (U', C, H, W), where the concepts are in the first of these; empty for vectors.
    """

    target: Target
    layer: str
    dictionary: Dictionary
    record: dict[str, Any]
    pictures: Tensor
    maps: Tensor
    codes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def detector(self) -> ConceptTarget:
        """A target whose classes are the concepts, for `interpkit.attribute` and Captum."""
        names = [self.record["names"].get(str(number), str(number)) for number in range(self.record["latents"])]
        return ConceptTarget(self.target, self.layer, self.dictionary, names)

    def where(self, images: Tensor, concept: int | str, device: str = "auto") -> Tensor:
        """Return maps (N, 1 or C, H, W) of where a concept is in images (N, *input_shape) in [0, 1].

        If the layer has a grid, these are the concept's codes on it; otherwise they are attributions.

        Args:
            images: the images.
            concept: the name or the number of the concept.
            device: device to compute on.
        """
        images, number = checked_images(self.target, images), self.detector.class_number(concept)
        return found_by.maps(self.detector, images, torch.full((len(images),), number), device)

    def save(self, folder: str | Path) -> Path:
        """Write concepts.json, concepts.safetensors and report.html into a folder; return the folder.

        Names that an earlier call gave to the same concepts are kept.
        """
        place = result_folder(folder, WRITTEN)
        with only_writer(place, WRITTEN):
            if (place / FIGURES).is_file():
                before = read_concepts(place / FIGURES)
                # not by the steps, which older versions counted otherwise: the weights are compared
                alike = {**before["settings"], "steps": 0} == {**self.record["settings"], "steps": 0}
                if alike and self._learned_in(place, before):
                    self.record["names"] = {**before["names"], **self.record["names"]}
                elif before["names"]:
                    names = ", ".join(f"{number}={name}" for number, name in before["names"].items())
                    log.warning(
                        "the names in %s are those of other concepts and are not kept: %s", place / FIGURES, names
                    )
            for row in self.record["concepts"]:
                row["name"] = self.record["names"].get(str(row["concept"]), "")
            self.record["weights"] = digest(self._weights())
            tensors = {**self._weights(), "pictures": self.pictures, "maps": self.maps}
            metadata = {"format": "pt", "interpkit.schema": str(SCHEMA), "interpkit.kind": "concepts"}
            write_tensors(place / TENSORS, {name: value.contiguous() for name, value in tensors.items()}, metadata)
            write_atomically(place / FIGURES, to_json(self.record))
            write_atomically(place / PAGE, write_concepts(self.target, self.record, self.pictures, self.maps))
        return place

    def _weights(self) -> dict[str, Tensor]:
        return {f"{OF_DICTIONARY}{name}": value for name, value in self.dictionary.state_dict().items()}

    def _learned_in(self, place: Path, record: Mapping[str, Any]) -> bool:
        """Return whether a folder holds this dictionary, and not one of another classifier or other images."""
        try:
            stored = _read_tensors(place, record)
        except RunError:
            return False
        return all(
            name in stored
            and stored[name].shape == own.shape
            and torch.allclose(stored[name].double(), own.double(), rtol=1e-3)
            for name, own in self._weights().items()
        )


@with_autograd
def concepts(
    model: Target | Inversion | str | Path,
    images: Tensor | str | Path | None = None,
    *,
    layer: str | None = None,
    reference: str | Path | tuple[Tensor, Tensor] | None = None,
    learn_from: Literal["samples", "reference", "both"] = "samples",
    dictionary: str | Learn = "topk",
    latents: int | None = None,
    active: int = 8,
    count: int | None = None,
    steps: int | None = None,
    names: Mapping[int, str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Concepts:
    """Learn concepts whose sums approximate a layer's features, from the samples of an inversion and thus without data.

    Args:
        model: an inversion or the folder of a run; or a classifier, which needs ``images``.
        images: images to learn from in place of the run's samples: (N, *input_shape) in [0, 1], or a path.
        layer: a layer, ``NAME`` or ``NAME:in``; the one before the last linear layer if omitted.
        reference: real images with labels, a path or (images, labels), to evaluate the concepts on.
        learn_from: ``reference`` and ``both`` learn from a random half of the reference images, and evaluate on the
            other. A dictionary learned from ``samples`` alone can hardly have concepts that the samples lack.
        dictionary: ``topk``, a sparse auto-encoder; ``nmf``; or a function that learns a `Dictionary` from (N, D).
        latents: the number of concepts; if omitted, 256, or 32 for ``nmf``.
        active: the most concepts at one position, for ``topk``.
        count: the number of samples to draw, or of ``images`` to draw at random; if omitted, 10,000, or all images.
        steps: steps of the dictionary's training; if omitted, 2,000, or 200 updates for ``nmf``.
        names: names of concepts by number.
        out: a folder to write; see `Concepts.save`.
        seed: random seed of the dictionary and the samples.
        device: device to run the classifier on.

    Raises:
        UsageError: an argument does not fit, there are fewer samples than concepts, the layer runs several times, its
            features are the same for all samples, or the reference does not have the classifier's classes or has images
            of those to learn from.

    Example:
        >>> import torch
        >>> from interpkit import concepts, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 3))
        >>> found = concepts(wrap(net, input_shape=(1, 4, 4)), torch.rand(200, 1, 4, 4), latents=16, steps=20)
        >>> sorted(found.record["samples"])
        ['active', 'images', 'label_kept', 'silent', 'variance_explained']
        >>> found.where(torch.rand(2, 1, 4, 4), 0).shape  # where concept 0 is in two images
        torch.Size([2, 1, 4, 4])
    """
    if not isinstance(model, Target | Inversion):
        model = load_inversion(model)
    target = model.target if isinstance(model, Inversion) else model
    layer = layer or target.feature_layer
    found_by.check_layer(target, layer)
    if learn_from != "samples" and reference is None:
        raise UsageError(f"there is no reference to learn from: name real images by {setting('reference', 'DATA')}.")
    if active < 1 or (steps is not None and steps < 1) or (count is not None and count < 1):
        raise UsageError(
            f"concepts need at least 1 step, 1 active concept and 1 image, not {steps}, {active} and {count}."
        )
    kind = known(dictionary) if isinstance(dictionary, str) else "custom"
    if out is not None:
        result_folder(out, WRITTEN)
    steps = dictionaries.STEPS.get(kind, 0) if steps is None else steps
    size = latents or LATENTS.get(kind, 0)
    samples = _samples(model, images, layer, count, seed, device)
    read = found_by.read(target, layer, samples, device)
    real = None if reference is None else _reference(reference, target, device)
    if real is not None and images is not None and learn_from != "reference":
        refuse_shared(real, samples, "the reference data", "the images to learn from")
    given, judged = [read], real
    if real is not None and learn_from != "samples":
        half = torch.zeros(len(real), dtype=torch.bool)
        half[found_by.drawn(len(real), (len(real) + 1) // 2)] = True  # not every other row: classes may take turns
        half, judged = real[half], real[~half]
        given = [found_by.read(target, layer, half, device)] + given * (learn_from == "both")
    parts = [found_by.positions(target, layer, features) for features, _ in given]
    rows = torch.cat([part.flatten(0, 1) for part in parts])
    logits = torch.cat(
        [logits.repeat_interleave(part.shape[1], 0) for part, (_, logits) in zip(parts, given, strict=True)]
    )
    if len(rows) == 1:
        raise UsageError("concepts cannot be learned from one image: name or draw more.")
    if _equal(rows):
        raise UsageError(f"the features of the layer {layer!r} are the same for all samples: name another layer.")
    if len(rows) < size:
        raise UsageError(
            f"{size} concepts cannot be learned from {len(rows)} samples: draw more samples, ask for fewer concepts by "
            f"{setting('latents', max(1, len(rows) // 4))}{_or_a_grid(target, read[0])}."
        )
    active = min(active, size or active)
    if isinstance(dictionary, str):
        learned: Any = DICTIONARIES[kind].fit(rows, logits, size, active, steps=steps, seed=seed)
    else:
        learned = dictionary(rows)
        if not isinstance(learned, Dictionary):
            raise UsageError(f"dictionary= returned a {type(learned).__name__}: return an interpkit.Dictionary.")
    width = learned.encode(rows[:1]).shape[1]
    detector = ConceptTarget(target, layer, learned, [str(number) for number in range(width)])
    found, their = found_by.find(detector, samples, *read, device), None
    if judged is not None:
        features, answers = found_by.read(target, layer, judged, device)
        if _equal(found_by.positions(target, layer, features).flatten(0, 1)):
            raise UsageError(
                f"the features of the layer {layer!r} are the same for all reference images: name images that differ."
            )
        their = found_by.find(detector, judged, features, answers, device)
    facts = {"layer": layer, "dictionary": kind, "latents": found.codes.shape[1], "active": active, "seed": seed}
    facts |= {"learn_from": learn_from}
    learned_on = {"source": str(images) if isinstance(images, str | Path) else "images in memory"}
    if images is None and isinstance(model, Inversion):
        learned_on = {"inversion": model.fingerprint()}
    settings = {**facts, "steps": steps, "images": len(samples), "vectors": len(rows)}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "name": target.name,
        **facts,
        "settings": settings,
        "classifier": weights_digest(target),
        **learned_on,
        "samples": found.to_json(),
        **({} if their is None else {"reference": their.to_json(), **_only(found, their)}),
        "names": _named(names or {}, found, their),
    }
    with target.frozen(choose_device(device)):
        table, firing = [], (found.fires > 0).nonzero()[:, 0].tolist()
        for concept in firing:
            table.append(_row(detector, concept, samples, read[1], found, their, device))
            progress.tell("concepts taken out", len(table), len(firing))
    record["concepts"] = sorted(table, key=lambda row: -row["fires"] * abs(row["effect"]["logit"]))
    shown = [(place, row["concept"]) for row in record["concepts"][:SHOWN] for place in row["samples"]]
    places, wanted = torch.tensor(shown, dtype=torch.long).reshape(-1, 2).T
    pictures, where = samples[places], torch.zeros(0, 1, 1, 1)
    if samples.dim() == 4 and shown:
        costly = is_large(target.input_shape) and found_by.grid(target, layer, read[0].shape[1:]) is None
        few = slice(2 * STRONGEST if costly else None)
        where = found_by.maps(detector, pictures[few], wanted[few], device)
    result = Concepts(target, layer, learned, record, pictures, where, found.codes)
    if out is not None:
        result.save(out)
    return result


def load_concepts(
    folder: str | Path, *, target: Target | str | Path | None = None, dictionary: Dictionary | None = None
) -> Concepts:
    """Load the concepts that `Concepts.save` or ``interpkit concepts`` wrote.

    Args:
        folder: a run with concepts, or the folder that they were written to.
        target: the classifier or its file; the run's own if omitted.
        dictionary: an untrained dictionary of the same kind and size, if the stored one is of a class of your own.

    Raises:
        RunError: there are no concepts, or a file is damaged.
        UsageError: the classifier or the dictionary is missing.

    Example:
        >>> import torch
        >>> from interpkit import concepts, load_concepts, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)), input_shape=(4,))
        >>> folder = concepts(target, torch.rand(50, 4), layer="0", latents=16, steps=20, out="known").save("known")
        >>> load_concepts(folder, target=target).layer
        '0'
    """
    place = Path(folder)
    if not (place / FIGURES).is_file():
        place = place / FOLDER
    if target is None:
        if not (place.parent / "manifest.json").is_file():
            raise UsageError(f"{place} is not in a run: pass the classifier as target=.")
        target = load_inversion(place.parent).target
    if not isinstance(target, Target):
        target = load_target(target)
    record = read_concepts(place / FIGURES)
    tensors = _read_tensors(place, record)
    weights = {n.removeprefix(OF_DICTIONARY): value for n, value in tensors.items() if n.startswith(OF_DICTIONARY)}
    gray = torch.full((1, *target.input_shape), 0.5)
    features, _ = found_by.read(target, record["layer"], gray, "cpu")
    width = found_by.positions(target, record["layer"], features).shape[2]
    if dictionary is None:
        if record["dictionary"] not in DICTIONARIES:
            raise UsageError(f"{place} has a third party's dictionary: pass one of its kind as dictionary=.")
        if weights.get("atoms", torch.zeros(0)).shape != (record["latents"], width):
            raise RunError(f"{place / TENSORS} does not fit {FIGURES} beside it, or is of another classifier.")
        dictionary = cast(Any, DICTIONARIES[record["dictionary"]])(
            width, record["latents"], *([record["active"]] if record["dictionary"] == "topk" else [])
        )
    assert dictionary is not None
    pictures, maps = (tensors.get(name, torch.zeros(0)).float() for name in ("pictures", "maps"))
    try:
        dictionary.load_state_dict(weights)
        if pictures.shape[1:] != target.input_shape or maps.dim() != 4 or len(maps) > len(pictures):
            raise ValueError(f"its pictures are {tuple(pictures.shape)}, its maps {tuple(maps.shape)}")
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{place / TENSORS} does not fit the dictionary or the classifier: {error}.") from error
    return Concepts(target, record["layer"], dictionary.eval(), record, pictures, maps)


def _read_tensors(place: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a folder; a `RunError` if they are not those of its figures, as one of two was written."""
    tensors = read_tensors(place / TENSORS, f"there is no {place / TENSORS}.")
    weights = digest({name: value for name, value in tensors.items() if name.startswith(OF_DICTIONARY)})
    if record.get("weights", weights) != weights:  # older figures have none
        raise RunError(
            f"{place / TENSORS} and {FIGURES} beside it are of different calls, of which one was interrupted. Find the "
            f"concepts again."
        )
    return tensors


def _equal(rows: Tensor) -> bool:
    """Return whether features (N, D) differ by no more than rounding."""
    return bool(rows.var(0, correction=0).sum() * len(rows) <= 1e-10 * torch.linalg.vector_norm(rows) ** 2)


def _samples(
    model: Target | Inversion, images: Tensor | str | Path | None, layer: str, count: int | None, seed: int, device: str
) -> Tensor:
    """Return the images to learn from, as many as memory allows."""
    target = model.target if isinstance(model, Inversion) else model
    if isinstance(images, str | Path):
        images = load_images(str(images), target)[0]
    if isinstance(images, Tensor):
        images = checked_images(target, images)
        return images[found_by.drawn(len(images), count or len(images), seed)]
    if not isinstance(model, Inversion):
        raise UsageError(
            f"a classifier alone has no samples to learn from: name some by {setting('images', 'FILE')}, or "
            f"invert it first (interpkit invert) and name the run."
        )
    features = found_by.read(target, layer, torch.full((1, *target.input_shape), 0.5), device)[0]
    most = found_by.MOST_VALUES // max(features[0].numel(), math.prod(target.input_shape))
    there = model.images_per_class
    wanted = count or COUNT
    wanted = wanted if there is None else min(wanted, there * len(model.classes))
    if most < wanted:
        log.warning("%d samples are used instead of %d: the features of more do not fit in memory", most, wanted)
    return model.sample(count=max(1, min(wanted, most)), seed=seed)[0]


def _or_a_grid(target: Target, features: Tensor) -> str:
    """Return advice to name the last layer with a grid, if the features have no positions and there is such a layer."""
    if features.dim() > 2:
        return ""
    runs = count_runs(target)
    shapes = {layer.name: layer.shape for layer in list_layers(target) if layer.shape and len(layer.shape) == 3}
    grids = [layer for layer, shape in shapes.items() if runs[layer] == 1 and found_by.grid(target, layer, shape)]
    if not grids:
        return ""
    shape, name = " x ".join(map(str, shapes[grids[-1]])), setting("layer", grids[-1])
    return f", or name a layer of which every place counts as a sample, such as {name} ({shape})"


def _reference(reference: str | Path | tuple[Tensor, Tensor], target: Target, device: str) -> Tensor:
    """Return real images; the target must classify them as they are labeled more often than by chance."""
    data = labelled_images(reference, "the reference data", target)
    assert data is not None
    images, few = to_unit(data.images, target), found_by.drawn(len(data.images), found_by.KEPT)
    _, logits = found_by.read(target, target.feature_layer, images[few], device)
    hits = int((logits.argmax(1) == data.labels[few]).sum())
    if not target.multi_label and wilson(hits, len(logits))[0] <= 1 / target.num_classes:
        raise UsageError(
            f"{target.name} classifies {hits} of {len(logits)} reference images as they are labeled, not better "
            f"than chance: they are of other classes, or their labels are in another order. Name images of its "
            f"classes by {setting('reference', 'DATA')}."
        )
    return images


def _only(found: Found, their: Found) -> dict[str, list[int]]:
    """Return the concepts that fire on one kind of images and hardly on the other."""

    def alone(one: Tensor, other: Tensor) -> list[int]:
        places: list[int] = ((one >= OFTEN) & (other <= RARE * one)).nonzero()[:, 0].tolist()
        return sorted(places, key=lambda place: -float(one[place]))

    return {"only_samples": alone(found.fires, their.fires), "only_reference": alone(their.fires, found.fires)}


def _named(names: Mapping[int, str], found: Found, their: Found | None) -> dict[str, str]:
    fires = found.fires if their is None else found.fires + their.fires
    for number in names:
        if not 0 <= number < len(fires):
            raise UsageError(f"there is no concept {number} to name: they are 0 to {len(fires) - 1}.")
        if fires[number] == 0:
            raise UsageError(f"concept {number} is off in every image, so there is nothing to name: name another.")
    return {str(number): name for number, name in names.items()}


def _row(
    detector: ConceptTarget,
    concept: int,
    samples: Tensor,
    logits: Tensor,
    found: Found,
    their: Found | None,
    device: str,
) -> dict[str, Any]:
    """Return the figures of a concept.

    ``selectivity`` is its mean activation in the class where that is largest, as a share of the sum over all classes;
    ``effect`` is the largest change of a logit when the concept is removed from its strongest samples, of large images
    from the strongest two.
    """
    codes, names = found.codes[:, concept], detector.target.class_names
    there = F.one_hot(found.predicted, detector.target.num_classes).float()
    if detector.target.multi_label:  # an image without a label counts for the most probable one
        there = torch.where((logits > 0).any(1, keepdim=True), (logits > 0).float(), there)
    labels = there.any(0).nonzero()[:, 0]
    means = (there.T @ codes)[labels] / there.sum(0)[labels]
    places = codes.topk(min(STRONGEST, int((codes > 0).sum()))).indices
    few = places[: LARGE if is_large(detector.input_shape) else None]
    change = found_by.effect(detector, concept, samples[few], logits[few], device)
    best, moved = int(labels[means.argmax()]), int(change.abs().argmax())
    return {
        "concept": concept,
        "fires": found.fires[concept].item(),
        **({} if their is None else {"fires_on_reference": their.fires[concept].item()}),
        "strength": codes[codes > 0].mean().item(),
        "class": {"label": best, "name": names[best]},
        "selectivity": (means.max() / means.sum()).item(),
        "effect": {"label": moved, "name": names[moved], "logit": change[moved].item()},
        "samples": places.tolist(),
    }
