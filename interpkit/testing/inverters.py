"""The checks of inverters, and of the inversions that they return."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interpkit.config.recipe import Recipe
from interpkit.evaluation.scoring import draw_for_run, judge
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.inverters import Inverter, Parts
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.targets import Target
from interpkit.runs.folder import RESERVED, write_samples
from interpkit.runs.stored import StoredRun
from interpkit.runtime.random import global_seed
from interpkit.runtime.recorder import Recorder
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import expect_learned, expect_no_draws, expect_on, expect_unchanged, expect_unit, same
from interpkit.testing.parts import PARTS
from interpkit.testing.second_device import other_devices

PER_CLASS = 2
"""Images per class, for methods with an option of that name."""
SHORT = 6
"""Steps of a run that need not learn anything."""
HALFWAY = 3
"""The step after which a run is stopped, or saved."""
HALF_A_LEVEL = 0.51 / 255
"""Largest error of an image that is stored in 8 bits."""


class Kept(Recorder):
    """A recorder that stops after a step, keeps the checkpoint of a step, or resumes from one."""

    def __init__(self, *, stop: int | None = None, save: int | None = None, checkpoint: Any = None) -> None:
        super().__init__(SHORT, on_step=self._note)
        self.seen: list[int] = []
        self.saved: dict[str, Any] | None = None
        self._stop, self._save, self._checkpoint = stop, save, checkpoint

    def _note(self, step: int) -> None:
        self.seen.append(step)
        self.stop_requested = step == self._stop

    def start(self) -> dict[str, Any] | None:
        """Return the checkpoint."""
        super().start()
        return self._checkpoint  # type: ignore[no-any-return]

    def due(self, step: int | None) -> bool:
        """Return whether a checkpoint is due."""
        return step == self._save

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep a checkpoint as a file would: only plain values and tensors."""
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.saved = torch.load(file, weights_only=True)


def target_for(cls: Any, shape: toy_models.Shape, num_classes: int) -> Target:
    """Return a small classifier that the inverter accepts: its own example, or else any; a fresh copy each time."""
    with global_seed(0, toy_models.CPU):
        own: Target | None = cls.example(shape, num_classes)
    return toy_models.target_of(shape, num_classes) if own is None else own


def tiny_target(cls: Any) -> Target:
    """Return such a classifier of 1 x 12 x 12 images and 3 classes."""
    return target_for(cls, toy_models.TINY, 3)


def run(
    cls: Any,
    target: Target,
    recorder: Recorder,
    *,
    device: torch.device = toy_models.CPU,
    watched: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    **settings: Any,
) -> Inversion:
    """Run an inverter with plain parts, and with toy images where it reads data."""
    data = toy_models.data_for(cls, target.input_shape, target.num_classes)
    with target.frozen(device), global_seed(0, device), data as options:
        inverter: Inverter = cls(cls.Options(**options, **toy_models.shortest(cls, per_class=PER_CLASS)))
        conditioner, generator = plain_parts(target, cls.needs_conditioner)
        parts = Parts(
            conditioner if "conditioner" in cls.needs else None,
            generator if "generator" in cls.needs else None,
            plain_losses(target) if "loss" in cls.needs else {},
        )
        recipe = toy_models.recipe_of(recorder.steps, device=device, **settings)
        return inverter.invert(target, watched(recipe), parts, recorder)


def plain_parts(target: Target, own: type[Conditioner] | None) -> tuple[Conditioner, Generator]:
    """Return the conditioner and generator that inverters are checked with, or the conditioner that one requires."""
    conditioner = (own or toy_models.PlainConditioner)(target.num_classes, target.input_shape)
    return conditioner, toy_models.PlainGenerator(conditioner.spec, target.input_shape)


def plain_losses(target: Target) -> dict[str, tuple[float, InversionLoss]]:
    """Return the terms that inverters are checked with."""
    return {"plain": (1.0, toy_models.PlainLoss(target))}


class PlainRun(StoredRun):
    """A run folder of an inversion, whose recipe names the plain parts."""

    own: type[Conditioner] | None = None

    def losses(self) -> dict[str, tuple[float, InversionLoss]]:
        """Build the plain terms."""
        return plain_losses(self.target)

    def parts(self) -> tuple[Conditioner, Generator]:
        """Build the plain parts."""
        return plain_parts(self.target, self.own)


def reloaded(cls: Any, inversion: Inversion) -> Inversion:
    """Return an inversion as the inverter loads it from its files in a run folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in contracts.files(inversion, RESERVED).items():
            (folder / file).write_bytes(content)
        samples = judge(inversion, draw_for_run(inversion))
        write_samples(samples, folder / "samples.safetensors")
        stored = PlainRun(folder, inversion.target, inversion.recipe, inversion.history, {}, inversion.empty)
        stored.own = cls.needs_conditioner
        with inversion.target.frozen():
            return contracts.loaded_inversion(cls(cls.Options()), stored)


def pictures(inversion: Inversion) -> Any:
    """Return a few images of each class, and their labels."""
    return inversion.sample(2 if inversion.images_per_class is None else min(2, inversion.images_per_class))


@promised("inverter", "write needs = ('loss',), say, in the class, and use no other part")
def needs(cls: Any) -> None:
    """`needs` names the parts of a recipe that it uses, of conditioner, generator and loss; those are enough."""
    unknown = [part for part in cls.needs if part not in PARTS]
    expect(isinstance(cls.needs, tuple) and not unknown, f"needs is {cls.needs!r}")
    run(cls, tiny_target(cls), Recorder(1))


@promised("inverter", "leave needs_gradient = True, or ask the target for its logits alone")
def needs_gradient(cls: Any) -> None:
    """With `needs_gradient` = False it inverts a target that no gradient passes."""
    if not cls.needs_gradient:
        target = tiny_target(cls)
        target.forward = torch.no_grad()(target.forward)  # type: ignore[method-assign]
        target.respond = torch.no_grad()(target.respond)  # type: ignore[method-assign]
        run(cls, target, Recorder(2))


@promised("inverter", "name in ignores only what it does not read of the recipe, or leave ignores out")
def ignores(cls: Any) -> None:
    """`ignores` names only what it does not read of optimizer, micro_batch, classes_per_batch and compile."""
    known = {"optimizer", "micro_batch", "classes_per_batch", "compile"}
    expect(isinstance(cls.ignores, tuple) and known.issuperset(cls.ignores), f"ignores is {cls.ignores!r}")
    read: set[str] = set()

    class Watched(Recipe):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    run(cls, tiny_target(cls), Recorder(2), watched=lambda recipe: Watched.model_construct(**dict(recipe)))
    expect(read.isdisjoint(cls.ignores), f"it reads {sorted(read.intersection(cls.ignores))}, which ignores names")


@promised("inverter", "take sizes from target.input_shape and target.num_classes; clamp images to [0, 1]")
def shapes(cls: Any) -> None:
    """It inverts targets of any image size and number of classes, or raises a UsageError with the reason.

    Samples are (N, *input_shape) float32 in [0, 1] on the CPU, with the requested labels.
    """

    def attempt(shape: toy_models.Shape, count: int) -> Any:
        inversion = run(cls, target_for(cls, shape, count), Recorder(2), labels=[0, count - 1])
        return inversion.empty, *pictures(inversion)

    for shape, count, (empty, images, labels) in toy_models.accepted(attempt, toy_models.VARIED):
        where = f"for images of {shape} and {count} classes"
        found, wanted = (tuple(images.shape), images.dtype), ((len(labels), *shape), torch.float32)
        expect(found == wanted, f"{found} instead of {wanted}, {where}")
        expect_on(toy_models.CPU, images=images)
        expect_unit(images, where)
        classes = set(labels.tolist())
        expect(classes == {0, count - 1} - empty.keys(), f"images of the classes {classes}, {where}")


@promised("inverter", "use recipe.labels if it is not None")
def labels(cls: Any) -> None:
    """It inverts only the classes that the recipe names."""
    inversion = run(cls, tiny_target(cls), Recorder(2), labels=[2, 0])
    found = set(pictures(inversion)[1].tolist())
    expect(found == {0, 2} - inversion.empty.keys(), f"classes 0 and 2 requested, images of {sorted(found)}")


@promised("inverter", "pass empty={label: 'why there is none'} to the inversion")
def empty(cls: Any) -> None:
    """A class without an image is in `empty`, with a reason in words, and only classes that were requested are."""
    inversion = run(cls, tiny_target(cls), Recorder(2))
    for label, reason in inversion.empty.items():
        expect(type(label) is int and 0 <= label < 3, f"empty names {label!r}, which was not requested")
        expect(isinstance(reason, str) and reason.strip(), f"class {label} is empty, and the reason is {reason!r}")


@promised("inverter", "return what sampling needs from files(), and read it in load by stored.read or stored.tensors")
def loads(cls: Any) -> None:
    """From `files()` and its samples, `load` returns the same inversion: its type, classes, images and sections."""
    inversion = run(cls, tiny_target(cls), Recorder(SHORT))
    again = reloaded(cls, inversion)
    expect(type(again) is type(inversion), f"a {type(inversion).__name__} is loaded as a {type(again).__name__}")
    expect(again.classes == inversion.classes, f"the classes {inversion.classes} are loaded as {again.classes}")
    expect(same(pictures(inversion), pictures(again), tolerance=HALF_A_LEVEL), "its images differ after loading")
    one, other = (contracts.files(again, RESERVED) for _ in range(2))
    expect(one == other, "files() returns other bytes the second time")
    before, after = ([section.title for section in contracts.sections(each)] for each in (inversion, again))
    expect(before == after, f"the sections {before} are {after} after loading")


@promised("inverter", "after recorder.resume(state), call recorder.step in each of recorder.training_steps(state)")
def recorded(cls: Any) -> None:
    """It calls recorder.start() once, recorder.step(...) with each step from 1 to recipe.steps, and recorder.flush().

    The inversion has the recorder's history.
    """
    expect_steps(cls, Kept(), SHORT)


@promised(
    "inverter",
    "iterate over recorder.training_steps(state), or end each step with: if recorder.stop_requested: break; then flush "
    "and return the inversion",
)
def stops(cls: Any) -> None:
    """It stops after the step in which recorder.stop_requested is set, and returns the inversion so far."""
    expect_steps(cls, Kept(stop=HALFWAY), HALFWAY)


def expect_steps(cls: Any, recorder: Kept, last: int) -> None:
    """Raise `Broken` unless a run takes and records the steps from 1 to ``last``."""
    inversion = run(cls, tiny_target(cls), recorder)
    expect(recorder.seen == list(range(1, last + 1)), f"it ran the steps {recorder.seen} instead of 1 to {last}")
    expect(inversion.steps_done == last, f"the history ends at step {inversion.steps_done} instead of {last}")


@promised(
    "inverter",
    "pass an interpkit.TrainingState to recorder.resume and recorder.training_steps, or save everything that the "
    "remaining steps depend on, including random states",
)
def resumes(cls: Any) -> None:
    """It saves a checkpoint of tensors and plain values when recorder.due(step), and resumes from it.

    Resuming from the one that recorder.start() returns leads to the same result as without the interruption.
    """
    target = tiny_target(cls)
    whole = Kept(save=HALFWAY)
    wanted = pictures(run(cls, target, whole))
    expect(whole.saved is not None, f"no checkpoint was saved, though one was due at step {HALFWAY}")
    rest = Kept(checkpoint=whole.saved)
    found = pictures(run(cls, target, rest))
    remaining = list(range(HALFWAY + 1, SHORT + 1))
    expect(rest.seen == remaining, f"from a checkpoint of step {HALFWAY} it ran the steps {rest.seen}")
    expect(same(wanted, found, tolerance=1e-6), "the images differ from those without the interruption")


@promised("inverter", "draw with interpkit.random_generator(device, interpkit.derive_seed(recipe.seed, 'a purpose'))")
def seeded(cls: Any) -> None:
    """recipe.seed and torch's global generator determine the result; those of numpy and Python are unchanged."""
    target = tiny_target(cls)
    with expect_no_draws("numpy", "Python"):
        one, other = (pictures(run(cls, target, Recorder(SHORT))) for _ in range(2))
    expect(same(one, other), "two runs with one seed differ")


@promised("inverter", "change nothing of the target, and remove hooks in a finally")
def target_untouched(cls: Any) -> None:
    """The user's classifier is unchanged: parameters, buffers, modes, hooks, requires_grad."""
    target = tiny_target(cls)
    with target.frozen(), expect_unchanged(target):
        run(cls, target, Recorder(SHORT))


@promised("inverter", "make tensors with device=torch.device(recipe.device), and move modules there")
def device(cls: Any) -> None:
    """It computes on recipe.device, the target's device."""
    target = tiny_target(cls)
    for place in other_devices():
        with place as other:
            images, _ = pictures(run(cls, toy_models.moved(target, other), Recorder(2), device=other))
        expect_on(toy_models.CPU, samples=images)


@promised("inverter", "optimize the requested class, and make steps descend the loss")
def converges(cls: Any) -> None:
    """In a short run the loss falls, and the target assigns most images to the class that was asked for."""
    target = tiny_target(cls)
    inversion = run(cls, target, Recorder(toy_models.STEPS), optimizer={"lr": 0.05})
    expect_learned(inversion)
    images, asked = pictures(inversion)
    with target.frozen(), torch.no_grad():
        right = target.accepts(target(images), asked).float().mean().item()
    expect(right >= 0.6, f"the target assigns {right:.0%} of the samples to the requested class")
