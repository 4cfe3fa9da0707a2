"""`evaluate`: measure the samples of an inversion or a run with the metrics of all plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpkit.errors import UsageError, setting
from interpkit.evaluation import scoring
from interpkit.evaluation.judges import AdaptedTarget, load_judges
from interpkit.evaluation.metrics import (
    PER_CLASS,
    Data,
    _chosen,
    _outliers,
    labelled_images,
    measured,
    measured_on,
    refuse_training_images,
    training_images,
)
from interpkit.interfaces.data import ReadingOptions, fetch
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.metrics import Study
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import digest, to_json, write_atomically
from interpkit.io.datasets import refuse_shared
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device

if TYPE_CHECKING:
    from interpkit.runs.folder import Run


@with_autograd
def evaluate(
    inversion: Inversion | Run | str | Path,
    *,
    evaluators: Sequence[Target | str | Path] = (),
    reference: Data | None = None,
    training: Data | None = None,
    canaries: Data | None = None,
    ood: str | Path | Tensor | None = None,
    metrics: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    target: Target | None = None,
    model: str | Path | None = None,
    arch: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Measure the samples of an inversion, and hold them against other classifiers and real images.

    Args:
        inversion: an inversion in memory, of which 100 images a class are drawn, or a run folder, whose stored
            samples are read and whose metrics.json is written.
        evaluators: independent classifiers of the same classes, or their self-describing files. For one of another
            size, images are resized (``measured_on.resized_for`` says how); one that has its classes in another order,
            or more or fewer, is matched by their names (``measured_on.classes_matched_for``).
        reference: held-out real images: an ``.npz``, one folder per class, ``torchvision:NAME``, or (images, labels).
        training: images that the target was trained on, likewise, by default of the ``train`` split.
        canaries: a few images that it may remember, likewise; they are ranked among those of ``reference``.
        ood: images that it should refuse, without labels: any of these forms or a folder of pictures, resized where
            they have another size; or (M, *input_shape), uint8 or in [0, 1], of vectors in the units of the target's
            input range. They are held against ``reference``, and must not be images of it or of ``training``.
        metrics: names of metrics; if left out all that have what they need, but for the slow (`Metric.on_request`).
        options: settings by ``METRIC.OPTION``.
        target: the classifier, for a run of one that was wrapped in memory.
        model: the classifier's file, if it has moved.
        arch: as in `load_target`, where the run records code of the user's own.
        trust: likewise, for a file that may run code.

    Returns:
        the content of metrics.json.

    Raises:
        UsageError: a metric or option is unknown, a metric lacks what it needs, data or an evaluator do not fit the
            target, or the reference has images of the training data.
        RunError: the run is not finished.
        ModelError: a classifier cannot be loaded.

    Example:
        >>> import torch
        >>> from interpkit import evaluate, invert, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(3,))  # its logits are its inputs
        >>> other = wrap(torch.nn.Softmax(dim=1), input_shape=(3,), name="other")
        >>> inversion = invert(target, ["pixels"], steps=20, losses={"tv": 0})
        >>> metrics = evaluate(inversion, evaluators=[other], metrics=["agreement"])
        >>> metrics["inversion_accuracy"], metrics["evaluators"][0]["agreement"]
        (1.0, 1.0)
    """
    from interpkit.runs.folder import Run

    if isinstance(metrics, str):
        raise UsageError(f"metrics is a list of names: {setting('metric', metrics)}.")
    data = {"reference": reference, "training": training, "canaries": canaries, "ood": ood}
    given = [name for name, images in data.items() if images is not None] + ["evaluator"] * bool(evaluators)
    chosen = _chosen(metrics, given, options or {})
    fetch(options or {})
    run = None
    if not isinstance(inversion, Inversion):
        run = inversion if isinstance(inversion, Run) else Run.open(Path(inversion))
    with nullcontext() if run is None else run.locked():
        old: dict[str, Any] = {}
        if isinstance(inversion, Inversion):
            target = inversion.target
            device, recipe = inversion.device, inversion.recipe
        else:
            assert run is not None
            old = run.metrics()
            target = target or run.load_target(None if model is None else Path(model), arch=arch, trust=trust)
            device, recipe = choose_device("auto"), run.recipe()
        most = scoring.at_once(recipe, target)
        judges = load_judges(evaluators, target)
        reference_images = labelled_images(reference, "the reference data", target)
        trained = training_images(training, target)
        canary_images = labelled_images(canaries, "the canaries", target)
        outliers = _outliers(ood, target)
        refuse_training_images(reference_images, trained, target)
        for name, known in (("reference", reference_images), ("training", trained)):
            if outliers is not None and known is not None:
                refuse_shared(outliers, to_unit(known.images, target), "the outliers", f"the {name} data")
        if isinstance(inversion, Inversion):
            samples = scoring.judge(inversion, inversion.draw_up_to(PER_CLASS))
        else:
            assert run is not None
            samples = scoring.read_samples(run / "samples.safetensors", target, device, most)

        def loaded() -> Inversion:
            if isinstance(inversion, Inversion):
                return inversion
            assert run is not None
            return run.load(target)

        study = Study(
            target,
            samples,
            reference_images,
            trained,
            judges,
            canaries=canary_images,
            outliers=outliers,
            seed=recipe.seed,
            device=device,
            most=most,
            inversion=loaded,
        )
        sources = {
            name: str(d) if isinstance(d, str | Path) else "in memory" for name, d in data.items() if d is not None
        }
        # A name may stand for other data than before: "in memory", or a file that was written again.
        read = {"reference": reference_images, "training": trained, "canaries": canary_images}
        sources |= {f"{name}.sha256": known.sha256()[:16] for name, known in read.items() if known is not None}
        if outliers is not None:
            sources["ood.sha256"] = digest({"images": outliers})[:16]
        found = measured(study, chosen, old, sources)
        changes = {name: judge.changes for name, judge in judges.items() if isinstance(judge, AdaptedTarget)}
        own_data = [(m, m.options) for m in chosen if isinstance(m.options, ReadingOptions) and m.options.data]
        now: dict[str, Any] = {
            **sources,
            **({"options": dict(options)} if options else {}),
            **{
                kind: {name: words[kind] for name, words in changes.items() if kind in words}
                for kind in sorted(set().union(*changes.values()))
            },
            **{f"{metric.name}.data": read.record(target) for metric, read in own_data},
        }
        found["measured_on"] = measured_on(old.get("measured_on", {}), now, chosen, bool(evaluators))
        if run is not None:
            write_atomically(run / "metrics.json", to_json(found))
        return found
