"""The report of one run: what is shown, gathered from the run folder and the inversion."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.config.schemas import Manifest
from interpkit.errors import RunError, command, in_shell, setting
from interpkit.evaluation import doubts, scoring, warnings
from interpkit.interfaces import contracts
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.samples import Samples, to_unit
from interpkit.interfaces.sections import Section
from interpkit.interfaces.targets import Target
from interpkit.inversion.results import GeneratorInversion
from interpkit.io.atomic import read_tensors, write_atomically
from interpkit.io.datasets import LabelledImages
from interpkit.io.images import composite
from interpkit.io.unlabeled import load_unlabeled
from interpkit.report import classes as of_classes
from interpkit.report import concepts as of_concepts
from interpkit.report import curves, encode, text
from interpkit.report import units as of_units
from interpkit.report.page import render
from interpkit.runs.folder import Run
from interpkit.runs.manifest import weights_digest
from interpkit.runtime.at_once import in_batches
from interpkit.targets.units import UnitTarget

NEAREST_SIDE, NEAREST_AT_ONCE = 32, 2048
UNITS = (
    "The classes of this run are units of the classifier. A sample counts as a unit's if it excites the unit more than "
    "99 % of noise and drawings do. The samples show what excites the unit most, not all that it responds to, and not "
    "that real images excite it as much."
)


@dataclass(frozen=True)
class _Beside:
    """Pictures (M, C, H, W) uint8 that are shown beside samples, when one is opened.

    ``places`` and ``notes`` have the place among the images, and a few words, by the row of a sample that has one.
    """

    title: str
    images: Tensor
    places: dict[int, int]
    notes: dict[int, str]


def write_report(
    run: str | Path,
    *,
    reference: str | Path | None = None,
    target: Target | None = None,
    model: str | Path | None = None,
    arch: str | None = None,
    trust: bool = False,
) -> Path:
    """Write report.html into a run folder: one self-contained file for a browser.

    Args:
        run: the folder of a run that is finished, or was interrupted.
        reference: real images, as `interpkit.evaluate` takes them; each sample is shown beside its nearest one. For a
            run of units, those that excite each unit most are shown, and labels are not needed.
        target: the classifier, for a run of one that was wrapped in memory.
        model: the classifier's file, if it has moved.
        arch: as in `load_target`, where the run records code of the user's own.
        trust: likewise, for a file that may run code.

    Returns:
        the file.

    Raises:
        RunError: the run has no samples, or is of another schema.
        ModelError: the classifier cannot be loaded.
        UsageError: the reference data cannot be read or does not fit.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap, write_report
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> folder = invert(target, ["pixels"], steps=5).save("runs/first")
        >>> write_report(folder, target=target).name
        'report.html'
    """
    opened = Run.open(Path(run))
    metrics = opened.metrics()  # before the work, as the file may be torn
    inversion = opened.load(target, None if model is None else Path(model), arch=arch, trust=trust)
    path, most = opened / "samples.safetensors", scoring.at_once(inversion.recipe, inversion.target)
    samples = scoring.read_samples(path, inversion.target, inversion.device, most)
    if samples.probabilities is not None:
        drawn = scoring.draw_for_run(inversion)  # as when the run ended: the same conditions
        if not torch.equal(drawn.labels, samples.labels):  # an older run, with as many samples of each class
            drawn = inversion.draw(**scoring.sample_size(inversion))
        if torch.equal(drawn.labels, samples.labels) and _alike(drawn.images, samples, inversion.target):
            samples = replace(samples, distribution=drawn.distribution)
    real, sections, known = None, [], inversion.target
    if reference is not None and isinstance(known, UnitTarget):
        images = to_unit(
            load_unlabeled(str(reference), known.description.input_shape or known.input_shape, resize=True), known
        )
        sections = [of_units.section(samples, images, known, inversion.device, most)]
    elif reference is not None:
        real = scoring.load_labelled(str(reference), known)
    with opened.locked():
        return render_report(opened, inversion, samples, metrics, real, sections)


def render_report(
    run: Run,
    inversion: Inversion,
    samples: Samples,
    metrics: Mapping[str, Any],
    reference: LabelledImages | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write report.html of a run whose inversion, judged samples and metrics are in memory, and return its path.

    ``sections`` come before those of the inversion and of the metrics.
    """
    target, manifest = inversion.target, run.manifest()
    classes = samples.labels.unique().tolist()
    names = target.class_names
    beside = ([] if reference is None else [_nearest(samples, reference, target)]) + _attributions(
        run, samples, target.class_names
    )
    each = of_classes.CHARACTERS / (len(samples.labels) + sum(len(kind.images) for kind in beside))
    shape = target.description.input_shape or ()
    drawn = encode.drawable(samples.images, shape=shape)
    rows = {label: (samples.labels == label).nonzero()[:, 0].tolist() for label in classes}
    page = render(
        "report.html",
        title=f"{target.name}: what it accepts as each class",
        verdict=text.verdict(metrics, target.name, len(classes)),
        warnings=warnings.warnings(metrics),
        worst=doubts.worst(metrics),
        names=names,
        legend=encode.legend(samples.images, shape),
        units=UNITS if isinstance(target, UnitTarget) else "",
        concepts=_concepts(run, inversion),
        groups=[{"label": label, "name": names[label], "rows": rows[label]} for label in classes],
        figures_of_classes=of_classes.figures(metrics),
        searched=len(classes) > of_classes.SEARCHED,
        layout=of_classes.layout(drawn.shape[3], [len(rows[label]) for label in classes]),
        uris=encode.encode(drawn, each * len(drawn)),
        predicted=samples.predicted.tolist(),
        confidence=samples.confidence.tolist(),
        size=drawn.shape[:1:-1],
        data={"multi_label": target.multi_label, **_data(samples, beside, each)},
        figures=text.rows(metrics),
        left_out=metrics.get("left_out", {}),
        confusion=_confusion(samples, target),
        multi_label=target.multi_label,
        figures_of_samples={name: name.replace(".", ": ").replace("_", " ") for name in samples.figures},
        curves=curves.curves(inversion.history),
        curve_size=(curves.WIDTH, curves.HEIGHT),
        empty=[(names[label], reason) for label, reason in sorted(inversion.empty.items())],
        sections=_sections(
            inversion, samples, [*sections, *contracts.sections(inversion), *warnings.sections(metrics)]
        ),
        recipe=inversion.recipe.to_toml(),
        facts=_facts(inversion, manifest) | _of_evaluators(metrics),
        command=_command(run, inversion.recipe, manifest),
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path


def _alike(images: Tensor, samples: Samples, target: Target) -> bool:
    """Return whether images are the samples, but for rounding: on another device, the same seed draws others."""
    return bool((images - to_unit(samples.images, target)).abs().mean() < 0.01)


def _concepts(run: Run, inversion: Inversion) -> dict[str, Any] | None:
    """Return the figures in concepts/concepts.json of the run, and the sentence on what they mean; None without any.

    ``rows`` is empty if they are of another classifier, or of the samples of an inversion that was replaced since.
    """
    path = run / "concepts" / "concepts.json"
    if not path.exists():
        return None
    record = of_concepts.read_concepts(path)
    digest = weights_digest(inversion.target)
    own = record.get("classifier", digest) == digest
    current = own and record.get("inversion", inversion.fingerprint()) == inversion.fingerprint()
    rows = [
        (kind, figures["variance_explained"], figures["label_kept"])
        for kind, figures in of_concepts.figures(record)
        if current
    ]
    facts = {"layer": record["layer"], "count": len(record["concepts"]), "meaning": of_concepts.MEANING}
    return {**facts, "rows": rows, "own": own}


def _data(samples: Samples, beside: list[_Beside], each: float) -> dict[str, Any]:
    """Return what the page's script shows of a sample that is opened.

    ``shares`` and ``asked`` are, by sample, the largest probabilities as [class, share], and the same of the
    condition; ``figures`` are those of single samples, by name; ``beside`` are lists of pictures, of ``each``
    characters, with the sample's place in each.
    """
    rows = range(len(samples.labels))
    pictures = [
        {
            "title": kind.title,
            "uris": encode.encode(kind.images, each * len(kind.images)),
            "places": [kind.places.get(row, -1) for row in rows],
            "notes": [kind.notes.get(row, "") for row in rows],
        }
        for kind in beside
        if len(kind.images)
    ]
    figures = {name: [round(value, 6) for value in values.tolist()] for name, values in samples.figures.items()}
    return {
        "shares": _largest(samples.probabilities),
        "asked": _largest(samples.distribution),
        "beside": pictures,
        "figures": figures,
    }


def _largest(distribution: Tensor | None) -> list[list[tuple[int, float]]]:
    if distribution is None:
        return []
    shares, classes = distribution.topk(min(5, distribution.shape[1]), dim=1)
    return [
        [(label, round(share, 4)) for label, share in zip(*row, strict=True)]
        for row in zip(classes.tolist(), shares.tolist(), strict=True)
    ]


def _nearest(samples: Samples, reference: LabelledImages, target: Target) -> _Beside:
    """Find the real image nearest to each sample, by Euclidean distance of pixels, large images averaged to 32 x 32."""

    def pooled(images: Tensor) -> Tensor:
        images = to_unit(images, target)
        if images.dim() == 4 and max(images.shape[2:]) > NEAREST_SIDE:
            images = torch.nn.functional.adaptive_avg_pool2d(images, NEAREST_SIDE)
        return images.flatten(1)

    made = pooled(samples.images)
    least, places = torch.full((len(made),), torch.inf), torch.zeros(len(made), dtype=torch.long)
    for start in range(0, len(reference.images), NEAREST_AT_ONCE):
        distance, place = torch.cdist(made, pooled(reference.images[start : start + NEAREST_AT_ONCE])).min(1)
        places, least = torch.where(distance < least, start + place, places), torch.minimum(distance, least)
    nearest, place = places.unique(return_inverse=True)
    labels = reference.labels[nearest][place].tolist()
    real = to_unit(reference.images[nearest], target)
    images = (real * 255).round().clamp(0, 255).to(torch.uint8) if real.dim() == 4 else real
    notes = {row: f"of the class {target.class_names[label]}" for row, label in enumerate(labels)}
    among = to_unit(samples.images, target)
    drawn = encode.drawable(images, among=among, shape=target.description.input_shape or ())
    return _Beside("Nearest reference image", drawn, dict(enumerate(place.tolist())), notes)


def _attributions(run: Run, samples: Samples, names: Sequence[str]) -> list[_Beside]:
    """Read the maps in ``attributions/METHOD.safetensors`` of the run, and find the samples that they are of.

    A file holds ``maps`` (N, C, H, W), and ``images`` (N, C, H, W), uint8 or in [0, 1], of which they are; a sample
    is known by its pixels. A file that is torn, or holds something else, is a `RunError`.
    """
    rows = {image.numpy().tobytes(): row for row, image in enumerate(samples.images)}
    kinds = []
    for path in sorted((run / "attributions").glob("*.safetensors")):
        tensors = read_tensors(path, torn=" Remove it.")
        maps, images = tensors.get("maps"), tensors.get("images")
        if maps is None or images is None or maps.dim() != 4 or images.shape[1:] != samples.images.shape[1:]:
            continue  # of vectors, or something else
        numbers = maps.dtype == torch.float32 and images.dtype in (torch.float32, torch.uint8)
        if len(maps) != len(images) or not (numbers and maps.numel() and maps.isfinite().all()):
            raise RunError(f"{path} is not a file of maps: {maps.dtype} {tuple(maps.shape)}. Remove it.")
        pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
        places = {
            rows[key]: place
            for place, image in enumerate(pixels)
            if (key := image.contiguous().numpy().tobytes()) in rows
        }
        if places:
            explained = _explained(tensors, len(maps), names)
            signed = "red speaks for {}, blue against" if maps.min() < 0 else "the redder, the more it counts for {}"
            notes = {row: signed.format(explained[place]) for row, place in places.items()}
            kinds.append(_Beside(path.stem, encode.heat(maps), places, notes))
            kinds.append(_Beside(f"{path.stem} over the image", encode.heat(maps, pixels), places, notes))
    return kinds


def _explained(tensors: Mapping[str, Tensor], count: int, names: Sequence[str]) -> list[str]:
    """Return what each map of a file explains, in words; files that others write need not say it."""
    numbers: list[list[int | None]] = []
    for key, shape in (("classes", (count,)), ("against", ())):
        labels = tensors.get(key, torch.zeros(0))
        known = labels.dtype == torch.int64 and labels.shape == shape
        known = known and bool(torch.isin(labels, torch.arange(len(names))).all())
        numbers.append(labels.expand(count).tolist() if known else [None] * count)
    return [
        ("the class" if label is None else names[label]) + ("" if other is None else f" over {names[other]}")
        for label, other in zip(*numbers, strict=True)
    ]


@torch.no_grad()
def _sections(inversion: Inversion, samples: Samples, sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return sections for the page, each strip as one picture with what the target says of its images."""
    target = inversion.target
    strips = [strip for section in sections for strip in section.strips]
    if not strips:
        return [{"section": section, "strips": []} for section in sections]
    images = torch.cat([strip.images.float().cpu() for strip in strips])
    with target.frozen(inversion.device):
        probabilities = in_batches(
            target,
            images,
            lambda rows: target.probabilities(target(images[rows].to(inversion.device))).cpu(),
            most=scoring.at_once(inversion.recipe, target),
        )
    confidence, predicted = (column.tolist() for column in torch.cat(probabilities).max(1))
    if images.dim() == 4:
        images = (images * 255).round().to(torch.uint8)
    drawn = encode.drawable(images, among=to_unit(samples.images, target), shape=target.description.input_shape or ())
    ends = [0, *itertools.accumulate(len(strip.images) for strip in strips)]
    rows = [slice(*pair) for pair in itertools.pairwise(ends)]
    uris = encode.encode([encode.strip(drawn[row]) for row in rows], budget=900_000)
    shown = iter(
        {
            "title": strip.title,
            "uri": uri,
            "confidence": confidence[row] if strip.predictions else [],
            "stretches": [
                (label, len(list(run))) for label, run in itertools.groupby(predicted[row] if strip.predictions else [])
            ],
        }
        for strip, row, uri in zip(strips, rows, uris, strict=True)
    )
    return [{"section": s, "strips": list(itertools.islice(shown, len(s.strips)))} for s in sections]


def _confusion(samples: Samples, target: Target) -> dict[str, Any]:
    """Return shares of the class asked for (rows) by the one that the target gives (columns); of many, the largest.

    Of a multi-label target, the columns are the shares of samples in which each label is present.
    """
    names, q, few = target.class_names, samples.probabilities, target.num_classes <= 30
    if target.multi_label:
        if q is None or not few:
            return {"shares": [], "most": []}
        asked = samples.labels.unique().tolist()
        present = [(q[samples.labels == label] > 0.5).double().mean(0).tolist() for label in asked]
        return {"asked": asked, "shares": present, "most": []}
    pairs = Counter(zip(samples.labels.tolist(), samples.predicted.tolist(), strict=True))
    counts = Counter(samples.labels.tolist())
    asked = sorted(counts)
    if few:
        shares = [[pairs[a, p] / counts[a] for p in range(len(names))] for a in asked]
        return {"asked": asked, "shares": shares, "most": []}
    wrong = [(a, p, count, counts[a]) for (a, p), count in pairs.items() if a != p]
    return {"asked": asked, "shares": [], "most": sorted(wrong, key=lambda row: -row[2] / row[3])[:20]}


def _facts(inversion: Inversion, manifest: Manifest) -> dict[str, str]:
    """Return what was inverted, and how, by a few words each."""
    recipe, target, model = inversion.recipe, inversion.target, manifest.model
    shape = " x ".join(map(str, target.description.input_shape or target.input_shape))
    if len(target.input_shape) == 3 and (drawn := composite(target.input_shape[0])):
        shape += f" ({drawn})"
    terms = ", ".join(f"{name} (weight {term.weight:g})" for name, term in recipe.losses.items() if term.weight)
    versions = {"interpkit": manifest.interpkit or "?", **manifest.versions}
    facts = {
        "Classifier": target.name,
        "Its file": model.path or "none: it was wrapped in memory",
        "Its sha256": model.sha256 or "",
        "It takes": f"{shape}, {target.num_classes:,} {'labels, each on its own' if target.multi_label else 'classes'}",
        "Data": ", ".join(f"{place} {data.path} (sha256 {data.sha256})" for place, data in manifest.data.items()),
        "Presets": ", ".join(manifest.presets or []),
        "Method": recipe.inverter.name,
        "Conditioner": recipe.conditioner.name if recipe.conditioner else "",
        "Generator": recipe.generator.name if recipe.generator else "",
        "Losses": terms,
        "Training": f"{manifest.steps_done:,} of {recipe.steps:,} steps"
        + (f" of {recipe.batch_size} images" if isinstance(inversion, GeneratorInversion) else ""),
        "Seed": str(recipe.seed),
        "Machine": f"{manifest.device or '?'}, {manifest.precision or '?'}",
        "Training took": f"{manifest.timings.get('training_seconds', '?')} s",
        "Begun": manifest.created,
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "Plugins": ", ".join(f"{name} {plugin.version or '?'}" for name, plugin in manifest.plugins.items()),
    }
    return {name: value for name, value in facts.items() if value}


def _of_evaluators(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what was done for evaluators of other images or classes than the target's."""
    on = metrics.get("measured_on", {})
    kinds = {"resized_for": "receives images resized {}", "classes_matched_for": "is matched in {}"}
    said = [f"{name} {words.format(how)}" for key, words in kinds.items() for name, how in on.get(key, {}).items()]
    return {"Evaluators": "; ".join(said)} if said else {}


def _command(run: Run, recipe: Recipe, manifest: Manifest) -> str:
    """Return the command that repeats the run."""
    path = manifest.model.path
    config = (run / "recipe.toml").absolute()
    if path is None:
        return f"interpkit.invert(target, config={str(config)!r})"
    with in_shell():
        return " ".join([command("invert", path), setting("config", str(config)), *recipe.to_type_again()])
