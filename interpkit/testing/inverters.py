"""The checks of inverters, and of the inversions that they return."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from interpkit.errors import UsageError
from interpkit.evaluation.scoring import draw_samples, sample_size
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.inverters import Inverter, Parts
from interpkit.interfaces.targets import Target
from interpkit.runs.folder import RESERVED, write_samples
from interpkit.runs.stored import StoredRun
from interpkit.runtime.random import global_seed
from interpkit.runtime.recorder import Recorder
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import expect_images, expect_unit, random_states, same
from interpkit.testing.conditioners import expect_converged
from interpkit.testing.second_device import other_devices

PARTS = ("conditioner", "generator", "loss")
PER_CLASS = 2
"""Images per class, for methods with an option of that name."""
SHORT = 6
"""Steps of a run that need not learn anything."""
STOP, SAVE = 3, 3
"""The steps after which a run is stopped, and saved."""
HALF_A_LEVEL = 0.51 / 255
"""Largest error of an image that is stored in 8 bits."""


class Kept(Recorder):
    """A recorder that stops a run, keeps its checkpoint, or resumes from one.

    Args:
        steps: the number of steps of the run.
        stop: the step after which to stop.
        save: the step at which a checkpoint is due.
        checkpoint: to resume from.
    """

    def __init__(self, steps: int, *, stop: int | None = None, save: int | None = None, checkpoint: Any = None) -> None:
        super().__init__(steps, on_step=self._note)
        self.seen: list[int] = []
        self.saved: dict[str, Any] | None = None
        self._stop = stop
        self._save = save
        self._checkpoint = checkpoint

    def _note(self, step: int) -> None:
        self.seen.append(step)
        self.stop_requested = step == self._stop

    def start(self) -> dict[str, Any] | None:
        """Return the checkpoint."""
        super().start()
        return self._checkpoint  # type: ignore[no-any-return]

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due."""
        return step == self._save

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep a checkpoint as a file would: only plain values and tensors."""
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.saved = torch.load(file, weights_only=True)


def run(
    cls: Any, target: Target, recorder: Recorder, *, device: torch.device = toy_models.CPU, **settings: Any
) -> Inversion:
    """Run an inverter with plain parts, and with toy images where it reads data."""
    with target.frozen(device), global_seed(0, device), toy_models.data_for(cls, target) as options:
        if "per_class" in cls.Options.model_fields:
            options["per_class"] = PER_CLASS
        inverter: Inverter = cls(cls.Options(**options))
        conditioner, generator = plain_parts(target)
        parts = Parts(
            conditioner if "conditioner" in cls.needs else None,
            generator if "generator" in cls.needs else None,
            {"plain": (1.0, toy_models.PlainLoss(target))} if "loss" in cls.needs else {},
        )
        recipe = toy_models.recipe_of(recorder.steps, device=device, **settings)
        return inverter.invert(target, recipe, parts, recorder)


def plain_parts(target: Target) -> tuple[Conditioner, Generator]:
    """Return the conditioner and the generator that inverters are checked with."""
    conditioner = toy_models.PlainConditioner(target.num_classes, target.input_shape)
    return conditioner, toy_models.PlainGenerator(conditioner.spec, target.input_shape)


class PlainRun(StoredRun):
    """A run folder of an inversion, whose recipe names the plain parts."""

    def parts(self) -> tuple[Conditioner, Generator]:
        """Build the plain parts."""
        return plain_parts(self.target)


def reloaded(cls: Any, inversion: Inversion) -> Inversion:
    """Return an inversion as the inverter loads it from its files in a run folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in contracts.files(inversion, RESERVED).items():
            (folder / file).write_bytes(content)
        samples = draw_samples(inversion, **sample_size(inversion))
        write_samples(samples, folder / "samples.safetensors")
        stored = PlainRun(folder, inversion.target, inversion.recipe, inversion.history, {}, inversion.empty)
        with inversion.target.frozen():
            return contracts.loaded_inversion(cls(cls.Options()), stored)


def pictures(inversion: Inversion) -> Any:
    """Return a few images of each class, and their labels."""
    return inversion.sample(2 if inversion.images_per_class is None else min(2, inversion.images_per_class))


@promised(
    "needs",
    by="inverter",
    promise="`needs` names the parts of a recipe that it uses, among conditioner, generator and loss; it works "
    "with only those",
    remedy="write needs = ('loss',), say, in the class, and use no other part",
)
def needs(cls: Any) -> None:
    """`needs` is true."""
    unknown = [part for part in cls.needs if part not in PARTS]
    expect(isinstance(cls.needs, tuple) and not unknown, f"needs is {cls.needs!r}")
    run(cls, toy_models.tiny_target(), Recorder(1))


@promised(
    "shapes",
    by="inverter",
    promise="it inverts targets of any image size and number of classes, or raises a UsageError with the reason; "
    "samples are (N, *input_shape) float32 in [0, 1] on the CPU, with the requested labels",
    remedy="take sizes from target.input_shape and target.num_classes, and keep images in [0, 1] with a "
    "sigmoid or a clamp",
)
def shapes(cls: Any) -> None:
    """Samples are images."""
    taken, refusal = 0, ""
    for shape, count in ((toy_models.TINY, 3), ((3, 32, 32), 2), ((5, 17, 40), 10), ((12,), 37)):
        target, where = toy_models.target_of(shape, count), f"for images of {shape} and {count} classes"
        try:
            inversion = run(cls, target, Recorder(2), labels=[0, count - 1])
            images, labels = pictures(inversion)
        except UsageError as error:
            refusal = refusal or str(error)
            continue
        taken += 1
        expect_images(images, shape, len(labels), where)
        expect(
            images.dtype == torch.float32 and images.device == toy_models.CPU,
            f"{images.dtype}, {images.device}, {where}",
        )
        expect_unit(images, where)
        wanted = {0, count - 1} - inversion.empty.keys()
        expect(set(labels.tolist()) == wanted, f"images of the classes {set(labels.tolist())}, {where}")
    expect(taken, f"it refuses every target tried; the first with: {refusal}")


@promised(
    "labels",
    by="inverter",
    promise="it inverts only the classes that the recipe names",
    remedy="use recipe.labels if it is not None",
)
def labels(cls: Any) -> None:
    """The recipe's labels are inverted."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(2), labels=[2, 0])
    asked = pictures(inversion)[1].tolist()
    expect(set(asked) == {0, 2} - inversion.empty.keys(), f"classes 0 and 2 requested, images of {sorted(set(asked))}")


@promised(
    "empty",
    by="inverter",
    promise="a class without an image is in `empty`, with a reason in words, and only classes that the recipe "
    "requests are",
    remedy="pass empty={label: 'why there is none'} to the inversion",
)
def empty(cls: Any) -> None:
    """Empty classes have a reason."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(2))
    for label, reason in inversion.empty.items():
        expect(type(label) is int and 0 <= label < 3, f"empty names {label!r}, which was not requested")
        expect(isinstance(reason, str) and reason.strip(), f"class {label} is empty, and the reason is {reason!r}")


@promised(
    "loads",
    by="inverter",
    promise="from `files()` and its samples, `load` returns the same inversion: its type, its classes and the "
    "same images; the report can show its `sections()`",
    remedy="return what drawing needs from files(), and read it in Inverter.load with stored.read or stored.tensors",
)
def loads(cls: Any) -> None:
    """It survives saving and loading."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(SHORT))
    again = reloaded(cls, inversion)
    expect(type(again) is type(inversion), f"a {type(inversion).__name__} is loaded as a {type(again).__name__}")
    expect(again.classes == inversion.classes, f"the classes {inversion.classes} are loaded as {again.classes}")
    expect(same(pictures(inversion), pictures(again), tolerance=HALF_A_LEVEL), "its images differ after loading")
    one, other = (contracts.files(again, RESERVED) for _ in range(2))
    expect(one == other, "files() returns other bytes the second time")
    shown = [[section.title for section in contracts.sections(each)] for each in (inversion, again)]
    expect(shown[0] == shown[1], f"the sections {shown[0]} are {shown[1]} after loading")


@promised(
    "recorded",
    by="inverter",
    promise="it calls recorder.start() once, recorder.step(...) with each step from 1 to recipe.steps, and "
    "recorder.flush() at the end; the inversion has the recorder's history",
    remedy="write recorder.resume(state), then for step in recorder.training_steps(state): one step and "
    "recorder.step(...)",
)
def recorded(cls: Any) -> None:
    """Steps are recorded."""
    recorder = Kept(SHORT)
    inversion = run(cls, toy_models.tiny_target(), recorder)
    expect(recorder.seen == list(range(1, SHORT + 1)), f"steps {recorder.seen} of {SHORT}")
    expect(inversion.steps_done == SHORT, f"the history ends at step {inversion.steps_done} of {SHORT}")


@promised(
    "stops",
    by="inverter",
    promise="it stops after the step in which recorder.stop_requested is set, and returns the inversion so far",
    remedy="iterate over recorder.training_steps(state), or end each step with: if recorder.stop_requested: break; "
    "then flush and return the inversion",
)
def stops(cls: Any) -> None:
    """It stops when asked."""
    recorder = Kept(SHORT, stop=STOP)
    inversion = run(cls, toy_models.tiny_target(), recorder)
    expect(recorder.seen == list(range(1, STOP + 1)), f"told to stop at step {STOP}, it ran to {recorder.seen[-1:]}")
    expect(inversion.steps_done == STOP, f"the history ends at step {inversion.steps_done}, not {STOP}")


@promised(
    "resumes",
    by="inverter",
    promise="it saves a checkpoint of tensors and plain values when recorder.due(step), and resuming from the "
    "one that recorder.start() returns leads to the same result as without the interruption",
    remedy="pass an interpkit.TrainingState to recorder.resume and recorder.training_steps, or save everything that "
    "the remaining steps depend on, including random states",
)
def resumes(cls: Any) -> None:
    """It resumes from a checkpoint."""
    target = toy_models.tiny_target()
    whole = Kept(SHORT, save=SAVE)
    wanted = pictures(run(cls, target, whole))
    expect(whole.saved is not None, f"no checkpoint was saved, though one was due at step {SAVE}")
    rest = Kept(SHORT, checkpoint=whole.saved)
    found = pictures(run(cls, target, rest))
    expect(
        rest.seen == list(range(SAVE + 1, SHORT + 1)), f"from a checkpoint of step {SAVE} it ran the steps {rest.seen}"
    )
    expect(same(wanted, found, tolerance=1e-6), "the images differ from those without the interruption")


@promised(
    "seeded",
    by="inverter",
    promise="recipe.seed and torch's global generator determine the result; numpy's and Python's global "
    "generators are unchanged",
    remedy="draw with interpkit.random_generator(device, interpkit.derive_seed(recipe.seed, 'a purpose'))",
)
def seeded(cls: Any) -> None:
    """The seed determines the result."""
    target, before = toy_models.tiny_target(), random_states()
    one, other = (pictures(run(cls, target, Recorder(SHORT))) for _ in range(2))
    expect(same(one, other), "two runs with one seed differ")
    after = random_states()
    moved = [name for name in ("numpy", "Python") if before[name] != after[name]]
    expect(not moved, f"the global random state of {' and '.join(moved)} was changed")


@promised(
    "target-untouched",
    by="inverter",
    promise="the user's classifier is unchanged: parameters, buffers, modes, hooks, requires_grad",
    remedy="change nothing of the target, and remove hooks in a finally",
)
def target_untouched(cls: Any) -> None:
    """The target is unchanged."""
    target = toy_models.tiny_target()
    with target.frozen():
        before = toy_models.state_of(target)
        run(cls, target, Recorder(SHORT))
        changed = toy_models.changes(before, toy_models.state_of(target))
    expect(not changed, f"changed: {changed}")


@promised(
    "device",
    by="inverter",
    promise="it computes on recipe.device, the target's device",
    remedy="make tensors with device=torch.device(recipe.device), and move modules there",
)
def device(cls: Any) -> None:
    """It computes on the recipe's device."""
    target = toy_models.tiny_target()
    for place in other_devices():
        with place as other:
            images, _ = pictures(run(cls, toy_models.moved(target, other), Recorder(2), device=other))
        expect(images.device == toy_models.CPU, f"samples are on {images.device}, not on the CPU")


@promised(
    "converges",
    by="inverter",
    promise=f"in {toy_models.STEPS} steps the loss falls, and the target assigns most images to the class that was "
    "asked for",
    remedy="optimize the requested class, and make steps descend the loss",
)
def converges(cls: Any) -> None:
    """It converges."""
    target = toy_models.tiny_target()
    inversion = run(cls, target, Recorder(toy_models.STEPS), optimizer={"lr": 0.05})
    expect_converged(inversion.history, target.num_classes)
    images, asked = pictures(inversion)
    with target.frozen(), torch.no_grad():
        right = (target(images).argmax(1) == asked).float().mean().item()
    expect(right >= 0.6, f"the target assigns {right:.0%} of the samples to the requested class")
