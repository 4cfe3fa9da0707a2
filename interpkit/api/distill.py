"""`distill`: a smaller classifier from an inversion, without data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interpkit.api.load import load_inversion
from interpkit.api.outputs import result_file
from interpkit.errors import ModelError, UsageError, first_line, setting
from interpkit.evaluation.teaching import Lesson, teach
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.targets import Target
from interpkit.plugins.architectures import build_architecture
from interpkit.plugins.packing import save_target
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device, device_of
from interpkit.runtime.random import global_seed
from interpkit.targets.file_format import target_path
from interpkit.targets.wrapping import wrap

log = logging.getLogger("interpkit")

STEPS = 2000


@with_autograd
def distill(
    inversion: Inversion | str | Path,
    student: nn.Module | str,
    *,
    out: str | Path | None = None,
    arch_args: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    batch_size: int = 100,
    rate: float = 0.002,
    labels: bool = True,
    logits: bool = True,
    augment: bool | None = None,
    seed: int = 0,
    target: Target | None = None,
) -> Target:
    """Train a classifier to answer as the target does, on the samples of its inversion alone.

    Each step draws fresh samples and asks the target for its logits; see `Lesson` for what the student learns from
    them. How good it is, only real images tell: a sample shows what the target accepts, not what there is.

    Args:
        inversion: an inversion, or a run folder. Where images were made one by one, these come again and again.
        student: an architecture FAMILY:NAME, whose weights are drawn at random, or a module, which is trained in place.
        out: a self-describing file to write, which needs ``student`` to be an architecture.
        arch_args: arguments of the architecture; the number of classes and the input's shape are passed where it
            accepts them.
        steps: batches that the student sees.
        batch_size: samples in a batch.
        rate: highest learning rate.
        labels: teach it the classes asked for, if they exclude each other.
        logits: teach it the target's logits.
        augment: turn, shear, scale and shift the samples at random; by default those of image classifiers.
        seed: of its first weights, the samples and what moves them.
        target: the classifier, for a run of one that was wrapped in memory.

    Raises:
        UsageError: an argument is out of range, there is a single sample, or ``out`` is given with a module or is not
            the name of a classifier's file.
        ModelError: the student cannot be built, or takes other inputs or has other classes than the target.

    Example:
        >>> import torch
        >>> from interpkit import distill, invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["vecmat"], steps=10, batch_size=16)
        >>> small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2), torch.nn.Linear(2, 3))
        >>> distill(inversion, small, steps=5)(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 3])
    """
    if steps < 1 or batch_size < 2:
        raise UsageError(f"a student learns from at least 1 step of 2 samples, not {steps} of {batch_size}.")
    if not (labels or logits):
        raise UsageError(f"the student has nothing to learn from: leave {setting('labels')} or {setting('logits')} on.")
    if out is not None and not isinstance(student, str):
        raise UsageError(
            "a file names the architecture of its weights: pass FAMILY:NAME, or write the result yourself."
        )
    file = None if out is None else target_path(out)
    if file is not None:
        result_file(file)
    if not isinstance(inversion, Inversion):
        inversion = load_inversion(inversion, target=target)
    target, device = inversion.target, _device_of(inversion)
    if target.multi_label and not logits:
        raise UsageError(
            f"the classes of {target.name} do not exclude each other, and the one that a sample was made for does not "
            f"say which others it shows: leave {setting('logits')} on."
        )
    labels = labels and not target.multi_label
    shape = target.description.input_shape or target.input_shape
    images = len(target.input_shape) == 3
    if augment and not images:
        raise UsageError(f"only images can be turned and moved; {target.name} classifies vectors.")
    arguments = dict(arch_args or {})
    if isinstance(student, str):
        name = student
        with global_seed(seed, torch.device("cpu")):
            module, arguments = _built(student, arguments, target.num_classes, shape)
        module.eval()
    else:
        name, module = type(student).__name__, student
        frozen = sum(not part.training for part in module.modules())
        if module.training and frozen:
            log.warning("%d parts of the student are in eval mode and stay so; student.eval() trains all", frozen)
    facts = _facts(target)
    pupil = _wrapped(module, shape, name, facts, target)
    shown = len(inversion.classes)
    if shown < target.num_classes:
        log.warning("the samples show %d of %d classes; the student learns no others", shown, target.num_classes)
    lesson = Lesson(pupil, labels=labels, logits=logits, augment=images if augment is None else augment)
    place = device_of(pupil)
    try:
        teach(target, [lesson], inversion, steps=steps, batch_size=batch_size, rate=rate, seed=seed, device=device)
    finally:
        pupil.to(place)
    if file is not None:
        save_target(module, file, architecture=name, arch_args=arguments, input_shape=shape, **facts)
    return pupil


def _device_of(inversion: Inversion) -> torch.device:
    """Return the device of the inversion, or another if this machine does not have it."""
    try:
        return choose_device(inversion.recipe.device)
    except UsageError:
        return choose_device("auto")


def _facts(target: Target) -> dict[str, Any]:
    """Return what a student shares with its target."""
    kept = ("mean", "std", "input_range", "channel_order", "crop_pct")
    facts = {key: getattr(target.description, key) for key in kept}
    return {**facts, "output": "sigmoid_logits" if target.multi_label else "logits", "class_names": target.class_names}


def _built(
    spec: str, arguments: Mapping[str, Any], classes: int, shape: tuple[int, ...]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return an architecture with as many classes and channels as the target, as far as it has such arguments."""
    if spec.startswith("py:"):
        raise ModelError(
            f"a student is a registered architecture, FAMILY:NAME, not {spec}. Train a module of your own from Python: "
            f"interpkit.distill(RUN, module), and write it with interpkit.pack_target."
        )
    refused: ModelError | None = None
    for size in ({"input_shape": list(shape)}, {"in_chans": shape[0]} if shape[0] != 3 else {}, {}):
        for head in ({"num_classes": classes}, {}):
            given = {**size, **head, **arguments}
            try:
                return build_architecture(spec, given), given
            except ModelError as error:
                refused = error
    assert refused is not None
    raise refused


def _wrapped(module: nn.Module, shape: tuple[int, ...], name: str, facts: dict[str, Any], target: Target) -> Target:
    """Return the student as a target, if it takes the target's inputs and has its number of classes."""
    unnamed = {key: value for key, value in facts.items() if key != "class_names"}
    try:
        classes = wrap(module, shape, name=name, **unnamed).num_classes
    except ModelError as error:
        raise ModelError(
            f"{name} cannot learn from {target.name}, whose inputs have the shape {shape}: "
            f"{first_line(error.__cause__ or error)}. Choose a student that takes them."
        ) from error
    if classes != target.num_classes:
        raise ModelError(
            f"{name} has {classes} classes, and {target.name} has {target.num_classes}: a student needs as many."
        )
    return wrap(module, shape, name=name, **facts)
