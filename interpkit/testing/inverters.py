"""What an inverter promises, and the inversion that it returns."""

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
"""Images of each class, where the method makes a fixed number of them by an option of that name."""
SHORT = 6
"""Steps where nothing has to be learned."""
STOP, SAVE = 3, 3
"""Steps after which a run is stopped, or saved."""
HALF_A_LEVEL = 0.51 / 255
"""By how much an image that is kept in 8 bits may differ."""


class Kept(Recorder):
    """A recorder that stops a run, keeps its checkpoint, or goes on from one.

    Args:
        steps: of the run.
        stop: the step after which to stop.
        save: the step at which a checkpoint is due.
        checkpoint: to go on from.
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
        """Say whether a checkpoint is due."""
        return step == self._save

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep a checkpoint as a file would: plain values and tensors alone."""
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
    """Return an inversion as the inverter loads it from the files that a run folder keeps of it."""
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
    promise="`needs` names the parts that it takes of a recipe, of conditioner, generator and loss; it works "
    "with those alone",
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
    promise="it inverts targets of any image size and number of classes, or says by a UsageError why not; "
    "samples are (N, *input_shape) float32 in [0, 1] on the CPU, with the labels that were asked for",
    remedy="take sizes from target.input_shape and target.num_classes, and keep images in [0, 1], by a sigmoid "
    "or a clamp",
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
    expect(taken, f"it refuses every target tried; of the first it says: {refusal}")


@promised(
    "labels",
    by="inverter",
    promise="it inverts the classes that the recipe names, and no others",
    remedy="take recipe.labels where it is not None",
)
def labels(cls: Any) -> None:
    """The recipe's labels are inverted."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(2), labels=[2, 0])
    asked = pictures(inversion)[1].tolist()
    expect(set(asked) == {0, 2} - inversion.empty.keys(), f"of classes 0 and 2, images of {sorted(set(asked))}")


@promised(
    "empty",
    by="inverter",
    promise="a class of which it found no image is named in `empty`, with a reason in words, and only classes that the "
    "recipe asks for are",
    remedy="hand empty={label: 'why there is none'} to the inversion",
)
def empty(cls: Any) -> None:
    """Empty classes have a reason."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(2))
    for label, reason in inversion.empty.items():
        expect(type(label) is int and 0 <= label < 3, f"empty names {label!r}, which was not asked for")
        expect(isinstance(reason, str) and reason.strip(), f"class {label} is empty, and the reason is {reason!r}")


@promised(
    "loads",
    by="inverter",
    promise="from `files()` and its samples, `load` makes the same inversion again: its class, its classes and the "
    "same images; the report can show its `sections()`",
    remedy="give all that drawing needs in files(), and read it in Inverter.load by stored.read or stored.tensors",
)
def loads(cls: Any) -> None:
    """It is loaded as it was."""
    inversion = run(cls, toy_models.tiny_target(), Recorder(SHORT))
    again = reloaded(cls, inversion)
    expect(type(again) is type(inversion), f"a {type(inversion).__name__} is loaded as a {type(again).__name__}")
    expect(again.classes == inversion.classes, f"the classes {inversion.classes} are loaded as {again.classes}")
    expect(
        same(pictures(inversion), pictures(again), tolerance=HALF_A_LEVEL), "its images are others once it is loaded"
    )
    one, other = (contracts.files(again, RESERVED) for _ in range(2))
    expect(one == other, "files() gives other bytes the second time")
    shown = [[section.title for section in contracts.sections(each)] for each in (inversion, again)]
    expect(shown[0] == shown[1], f"the sections {shown[0]} are {shown[1]} once it is loaded")


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
    promise="it stops after the step at which recorder.stop_requested is set, and returns what it has",
    remedy="take the steps of recorder.training_steps(state), or end each step by: if recorder.stop_requested: break; "
    "then flush and return the inversion",
)
def stops(cls: Any) -> None:
    """It stops when asked."""
    recorder = Kept(SHORT, stop=STOP)
    inversion = run(cls, toy_models.tiny_target(), recorder)
    expect(recorder.seen == list(range(1, STOP + 1)), f"asked to stop at step {STOP}, it went to {recorder.seen[-1:]}")
    expect(inversion.steps_done == STOP, f"the history ends at step {inversion.steps_done}, not {STOP}")


@promised(
    "resumes",
    by="inverter",
    promise="it saves a checkpoint of tensors and plain values when recorder.due(step), and from one that "
    "recorder.start() gives it goes on to the same end as without the interruption",
    remedy="give recorder.resume and recorder.training_steps an interpkit.TrainingState, or save all that the rest "
    "depends on, random states included",
)
def resumes(cls: Any) -> None:
    """It goes on where it was."""
    target = toy_models.tiny_target()
    whole = Kept(SHORT, save=SAVE)
    wanted = pictures(run(cls, target, whole))
    expect(whole.saved is not None, f"no checkpoint was saved, though one was due at step {SAVE}")
    rest = Kept(SHORT, checkpoint=whole.saved)
    found = pictures(run(cls, target, rest))
    expect(
        rest.seen == list(range(SAVE + 1, SHORT + 1)), f"from a checkpoint of step {SAVE} it did the steps {rest.seen}"
    )
    expect(same(wanted, found, tolerance=1e-6), "the images are others than without the interruption")


@promised(
    "seeded",
    by="inverter",
    promise="recipe.seed and torch's global generator decide the result; numpy's and Python's global "
    "generators are left alone",
    remedy="draw by interpkit.random_generator(device, interpkit.derive_seed(recipe.seed, 'a purpose'))",
)
def seeded(cls: Any) -> None:
    """A seed decides."""
    target, before = toy_models.tiny_target(), random_states()
    one, other = (pictures(run(cls, target, Recorder(SHORT))) for _ in range(2))
    expect(same(one, other), "one seed gives two results")
    after = random_states()
    moved = [name for name in ("numpy", "Python") if before[name] != after[name]]
    expect(not moved, f"the global random state of {' and '.join(moved)} was changed")


@promised(
    "target-untouched",
    by="inverter",
    promise="the user's classifier is left as it was: parameters, buffers, modes, hooks, requires_grad",
    remedy="change nothing of the target, and remove hooks in a finally",
)
def target_untouched(cls: Any) -> None:
    """The target is as before."""
    target = toy_models.tiny_target()
    with target.frozen():
        before = toy_models.state_of(target)
        run(cls, target, Recorder(SHORT))
        changed = toy_models.changes(before, toy_models.state_of(target))
    expect(not changed, f"changed: {changed}")


@promised(
    "device",
    by="inverter",
    promise="it computes on recipe.device, where the target is",
    remedy="make tensors with device=torch.device(recipe.device), and move modules there",
)
def device(cls: Any) -> None:
    """It computes where the recipe says."""
    target = toy_models.tiny_target()
    for place in other_devices():
        with place as other:
            images, _ = pictures(run(cls, toy_models.moved(target, other), Recorder(2), device=other))
        expect(images.device == toy_models.CPU, f"samples are on {images.device}, not on the CPU")


@promised(
    "converges",
    by="inverter",
    promise=f"it inverts: in {toy_models.STEPS} steps the loss falls, and the target puts most images in the class "
    "asked for",
    remedy="see that what is optimised is the class asked for, and that steps go down",
)
def converges(cls: Any) -> None:
    """It converges."""
    target = toy_models.tiny_target()
    inversion = run(cls, target, Recorder(toy_models.STEPS), optimizer={"lr": 0.05})
    expect_converged(inversion.history, target.num_classes)
    images, asked = pictures(inversion)
    with target.frozen(), torch.no_grad():
        right = (target(images).argmax(1) == asked).float().mean().item()
    expect(right >= 0.6, f"the target puts {right:.0%} of the samples in the class asked for")
