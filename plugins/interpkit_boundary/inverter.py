"""Images of the data, each changed as little as possible until the target assigns it to another class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import Field, field_validator
from torch import Tensor

from interpkit import (
    DataOptions,
    GeneratorInversion,
    ImageInversion,
    Inverter,
    Parts,
    Recipe,
    Recorder,
    RunError,
    Section,
    StepRecord,
    StoredInversion,
    Strip,
    Target,
    UsageError,
    derive_seed,
    load_inversion,
    nearest,
    nearest_along,
    random_generator,
)

FILE = "boundary.safetensors"
COLUMNS = ("starts", "images", "before", "labels", "distances")
LEVELS = 255
"""Images change by whole levels of 8 bits, in which a run stores its samples."""
SHOWN = 30


class BoundaryInversion(ImageInversion):
    """Changed images, with the images that they come from.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the run's history.
        found: ``starts`` and ``images``, (N, *input_shape) in [0, 1]; ``before`` and ``labels`` (N,) int64, their
            classes; ``distances`` (N,) between them.
        empty: the classes without an image, each with the reason.
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        found: Mapping[str, Tensor],
        *,
        empty: Mapping[int, str],
    ) -> None:
        super().__init__(target, recipe, history, found["images"], found["labels"], empty=empty)
        self.found = {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def files(self) -> dict[str, bytes]:
        """Return the images before and after, and a readable table of the distances."""
        columns = (self.found[name].tolist() for name in ("before", "labels", "distances"))
        rows = "".join(f"{before},{label},{distance:.6f}\n" for before, label, distance in zip(*columns, strict=True))
        return {FILE: safetensors.torch.save(self.found), "boundary.csv": f"before,after,distance\n{rows}".encode()}

    def sections(self) -> list[Section]:
        """Return some images before and after, and the mean distances by class."""
        names = self.target.class_names
        rows, strips = [], []
        for label in self.classes:
            own = (self.found["labels"] == label).nonzero()[:, 0]
            rows.append((names[label], len(own), round(self.found["distances"][own].mean().item(), 3)))
            first = int(own[self.found["distances"][own].argmin()])
            ends = torch.stack([self.found["starts"][first], self.found["images"][first]])
            strips.append(Strip(f"{names[int(self.found['before'][first])]} → {names[label]}", ends))
        text = (
            "Each image was changed as little as possible until the target assigned it to another class. The distance "
            "is Euclidean, between values in [0, 1]. The pictures show the smallest change to each class, before and "
            "after."
        )
        return [Section("To the boundary", text, ("class", "images", "mean distance"), rows, strips[:SHOWN])]


class Boundary(Inverter):
    r"""Changes images of the data as little as possible until the target assigns them to another class.

    .. math:: \min_x \|x - x_1\|_2 \quad \text{subject to} \quad z_k(x) \geq z_j(x), \; x \in [0, 1]^D

    for each image x_1 of the data, by `interpkit.nearest`; with ``run``, by `interpkit.nearest_along` the generator of
    that run. Each step of the run handles an equal share of the images. The target confirms each result, so the
    inversion accuracy is 1, and an image without one is left out. Pixels change by whole levels of 8 bits.

    Source: after the boundary points of Saad & Wunsch, "Neural network explanation using inversion" (2007).

    Example:
        >>> import numpy, torch
        >>> from interpkit import invert, wrap
        >>> numpy.savez("known.npz", images=numpy.random.rand(20, 2).astype("float32"), labels=[0] * 20)
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> inversion = invert(target, ["boundary"], options={"boundary.data": "known.npz"})
        >>> across = inversion.found["starts"].diff(dim=1).abs()[:, 0] / 2**0.5  # to the diagonal
        >>> torch.allclose(inversion.found["distances"], across, atol=1e-3)
        True
    """

    name = "boundary"
    ignores = ("optimizer", "micro_batch", "classes_per_batch", "compile")

    class Options(DataOptions):
        """Which images to change, to which class, and how."""

        count: int = Field(200, ge=1, description="images of the data, drawn at random if it has more")
        to: str | None = Field(None, description="class to change them to, by name or number; any other by default")
        smooth: float = Field(0.0, ge=0, le=100, description="blur of the change, in pixels; 0 for none")
        starts: int = Field(0, ge=0, le=100, description="further random starting points for each image")
        run: str | None = Field(None, description="run folder of a generator whose samples the results must be")
        confidence: float = Field(0.99, gt=0, lt=1, description="least probability of the class, with run")

        @field_validator("to", mode="before")
        @classmethod
        def _text(cls, to: Any) -> Any:
            return str(to) if isinstance(to, int) else to

        @field_validator("run")
        @classmethod
        def _absolute_run(cls, run: str | None) -> str | None:
            return run if run is None else str(Path(run).absolute())

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> BoundaryInversion:
        """Change all images; see `Inverter.invert`."""
        search = _Searched(self.options, target, recipe)
        recorder.resume(search)
        for step in recorder.training_steps(search):
            images, labels, distances = search.move(len(search.given) * step // recipe.steps)
            with torch.no_grad():
                logits = target(images.to(recipe.device))
            left = torch.tensor(1 - search.done / len(search.given), device=recipe.device)
            terms = {"left": left, "distance": distances.mean().to(recipe.device)}
            recorder.step(step, left, terms, images.to(recipe.device), logits, labels.to(recipe.device))
        return search.result(recorder)

    def load(self, stored: StoredInversion) -> BoundaryInversion:
        """Return the inversion with the images stored in the run; see `Inverter.load`."""
        found = stored.tensors(FILE)
        if found.keys() != set(COLUMNS):
            raise RunError(f"{FILE} contains {sorted(found)} instead of the images that this inverter writes.")
        target, classes = stored.target, torch.arange(stored.target.num_classes)
        count, images = len(found["labels"]), ("starts", "images")
        fits = all(found[n].shape == (count, *(target.input_shape if n in images else ())) for n in COLUMNS)
        fits = fits and all(found[name].dtype == torch.float32 for name in ("starts", "images", "distances"))
        if not fits or not all(torch.isin(found[name], classes).all() for name in ("before", "labels")):
            raise RunError(f"{FILE} does not hold images of {target.name} with their classes. Run again with --force.")
        return BoundaryInversion(target, stored.recipe, stored.history, found, empty=stored.empty)


class _Searched:
    """The results so far, a state to resume from.

    Attributes:
        given: the images of the data.
        done: how many of them have been searched.
        found: the results by column, (M, ...).
        first: why the first image without a result has none.
        step: the last completed step.
    """

    def __init__(self, options: Boundary.Options, target: Target, recipe: Recipe) -> None:
        if options.run is not None and (options.smooth or options.starts):
            raise UsageError("the options smooth and starts are for images that change freely: leave them or run out.")
        self.options, self.target, self.recipe = options, target, recipe
        self.given = options.load(target).images
        if len(self.given) > options.count:  # data may be sorted by class
            rng = random_generator(torch.device("cpu"), derive_seed(recipe.seed, "boundary images"))
            self.given = self.given[torch.randperm(len(self.given), generator=rng)[: options.count].sort().values]
        if self.given.dim() == 4:  # in the levels in which a run stores its samples
            self.given = (self.given * LEVELS).round() / LEVELS
        self.to = None if options.to is None else target.class_number(options.to)
        self.step = self.done = 0
        whole, none = self.given[:0], torch.zeros(0, dtype=torch.int64)
        self.found = {"starts": whole, "images": whole, "before": none, "labels": none, "distances": torch.zeros(0)}
        self.first = ""
        self.last = self.given[:1], none.new_zeros(1), torch.zeros(1)
        self.generator: GeneratorInversion | None = None
        if options.run is not None:
            along = load_inversion(options.run, target=target)
            if not isinstance(along, GeneratorInversion):
                raise UsageError(f"{options.run} has no generator to move along. Name the run of one that does.")
            self.generator = along

    def move(self, until: int) -> tuple[Tensor, Tensor, Tensor]:
        """Search from the next images, up to a number; return the images found, their classes and distances."""
        given = self.given[self.done : until]
        self.done = max(self.done, until)
        if len(given):
            seed, device = derive_seed(self.recipe.seed, f"boundary {self.done}"), torch.device(self.recipe.device)
            wanted = list(range(self.target.num_classes) if self.recipe.labels is None else self.recipe.labels)
            if self.generator is not None:
                among = [label for label in wanted if label in self.generator.classes]
                result = nearest_along(
                    self.generator,
                    given,
                    self.to,
                    among=among,
                    confidence=self.options.confidence,
                    seed=seed,
                    device=device,
                )
            else:
                result = nearest(
                    self.target,
                    given,
                    self.to,
                    among=wanted,
                    steps=1 / LEVELS if given.dim() == 4 else 0.0,
                    smooth=self.options.smooth,
                    starts=self.options.starts,
                    seed=seed,
                    device=device,
                )
            self.first = self.first or next(iter(result.reasons.values()), "")
            kept = result.found & torch.isin(result.answers, torch.tensor(wanted))
            new = (given, result.images, result.before, result.answers, result.distances)
            for name, column in zip(COLUMNS, new, strict=True):
                self.found[name] = torch.cat([self.found[name], column[kept]])
            if kept.any():
                self.last = result.images[kept], result.answers[kept], result.distances[kept]
        return self.last

    def result(self, recorder: Recorder) -> BoundaryInversion:
        """Return what was found so far."""
        if self.done == len(self.given) and not len(self.found["labels"]):
            raise UsageError(
                f"none of the {self.done} images of the data was changed to another class. The first reason: "
                f"{self.first or 'the classes that they change to are not among those to invert'}."
            )
        labels = range(self.target.num_classes) if self.recipe.labels is None else self.recipe.labels
        missing = set(labels) - set(self.found["labels"].tolist())
        reason = f"none of the {self.done} images of the data was changed to it"
        if self.to is not None:
            reason += f", as the option to asks for {self.target.class_names[self.to]!r}"
        order = self.found["labels"].argsort(stable=True)
        found = {name: column[order] for name, column in self.found.items()}
        empty = dict.fromkeys(sorted(missing), reason)
        return BoundaryInversion(self.target, self.recipe, recorder.history, found, empty=empty)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        generator = None if self.generator is None else self.generator.fingerprint()
        state = {"step": self.step, "done": self.done, "found": self.found, "last": list(self.last)}
        return {**state, "first": self.first, "generator": generator}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore such a state.

        Raises:
            RunError: it is of another run.
        """
        found = state_dict.get("found", {})
        if found.keys() != set(COLUMNS) or found["images"].shape[1:] != self.given.shape[1:]:
            raise RunError("the checkpoint does not fit its recipe.")
        if self.generator is not None and state_dict.get("generator") not in (None, self.generator.fingerprint()):
            raise RunError(f"the generator in {self.options.run} has changed since this run was begun: restore it.")
        self.step, self.done, self.found = state_dict["step"], state_dict["done"], dict(found)
        images, labels, distances = state_dict["last"]
        self.last, self.first = (images, labels, distances), state_dict["first"]
