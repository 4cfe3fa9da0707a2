"""`harden`: retrain a classifier with a class for what belongs to no other, which its own inversions fill."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.api.invert import invert, prepare
from interpkit.api.outputs import result_file
from interpkit.config import schemas
from interpkit.config.recipe import target_facts
from interpkit.errors import ModelError, RunError, UsageError, percent, setting
from interpkit.evaluation import teaching
from interpkit.evaluation.metrics import Data, labelled_images, refuse_training_images, training_images
from interpkit.interfaces.targets import GARBAGE, Target
from interpkit.io.atomic import digest, read_tensors, write_tensors
from interpkit.io.datasets import LabelledImages
from interpkit.plugins import loading
from interpkit.plugins.architectures import HEAD_WIDTH, build_architecture, mismatch
from interpkit.runtime import progress
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device
from interpkit.runtime.random import derive_seed, global_seed
from interpkit.targets.file_format import ONNX_GRAPH, target_path, write_target_file
from interpkit.targets.module_target import ModuleTarget
from interpkit.targets.wrapping import wrap

log = logging.getLogger("interpkit")

BATCH = 128
"""Images in a batch of the training."""
LEAST_FOUND = 0.05
"""The share of accepted samples below which a round has found nothing."""
LIKE_DATA, NOTHING, ALL = "the samples look like data", "the inverter finds no samples", "all rounds are done"
"""Why the rounds ended."""


@dataclass
class Hardened:
    """A classifier with a garbage class, and how it came about.

    Attributes:
        target: the classifier; `Target.garbage` is the number of the class.
        rounds: a dict per round: ``found``, the share of its samples that the classifier before it accepted as the
            class asked for; ``accepted``, the share of further samples of the same generator that the retrained
            classifier puts into any class but garbage; ``refused``, the share of the training data that it puts there.
        ended: why no further round was made.
        reference: ``accuracy`` on the reference, ``accuracy_before`` and ``refused``, if there was a reference.
    """

    target: Target
    rounds: list[dict[str, float]]
    ended: str
    reference: dict[str, float]


@with_autograd
def harden(
    target: Target | str | Path,
    data: Data,
    plugins: Sequence[str | Path] = (),
    *,
    presets: Sequence[str] = (),
    reference: Data | None = None,
    out: str | Path | None = None,
    rounds: int = 5,
    steps: int = 100,
    samples: int = 600,
    epochs: int = 1,
    rate: float = 0.001,
    stop_at: float = 0.5,
    augment: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    **settings: Any,
) -> Hardened:
    r"""Retrain a classifier to put what is not data into a class "garbage", after Suhail & Sethi (arXiv:2505.23448).

    The classifier gets one more output. It learns to put noise there, half uniform and half Gaussian. Each round then
    inverts its other classes, adds the samples to the garbage, and retrains it on the data and all garbage, by the
    cross-entropy with weights that make each class count alike. The rounds end when more than ``stop_at`` of further
    samples of a round's generator are still put into a class although it was retrained with their like: the classifier
    cannot tell them from data any more. They also end when less than 5 % of a round's samples are accepted.

    Args:
        target: from `load_target`, or the path of a classifier's file; of a registered architecture. One that has a
            garbage class already is hardened further.
        data: the training data: a spec for `interpkit.load_data`, by default of its ``train`` split, or images and
            labels. Without the data, the classifier would forget what it has learned.
        plugins: what to invert with, as in `interpkit.invert`; so are ``presets`` and the further ``settings``.
        presets: names of presets.
        reference: held-out real images, on which to compare the classifier before and after.
        out: the file to write after each round; one beside it, ``NAME.rounds``, holds the garbage until all are done.
        rounds: how many at most; 0 for noise alone.
        steps: of each inversion.
        samples: how many of each inversion to learn from; a sixth more are drawn to see what is still accepted.
        epochs: passes over data and garbage, of each round and of the noise before.
        rate: highest learning rate of the training.
        stop_at: the share of accepted samples at which they look like data.
        augment: turn, shear, scale and shift the images at random; by default images, but not vectors.
        seed: of everything drawn at random.
        device: what it runs on.
        settings: of each inversion, as `interpkit.invert` takes them, except ``labels``: all classes are inverted.
        resume: continue a hardening that was interrupted, with the same arguments; ``rounds`` may differ.

    Raises:
        UsageError: an argument is out of range, the data lack a class or do not fit, or the reference has images of
            the training data.
        ModelError: the classifier cannot be retrained.
        RunError: there is nothing to resume, or it was begun with other arguments.

    Example:
        >>> import torch
        >>> from interpkit import build_architecture, harden, load_target, save_target
        >>> sizes = {"input_shape": [1, 8, 8], "num_classes": 3, "widths": [4], "hidden": 8}
        >>> net = build_architecture("interpkit:cnn", sizes)  # your trained classifier
        >>> facts = {"architecture": "interpkit:cnn", "arch_args": sizes, "input_shape": (1, 8, 8)}
        >>> file = save_target(net, "net.safetensors", **facts)
        >>> data = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
        >>> hardened = harden(file, data, ["vecmat"], rounds=1, steps=3, samples=12, out="hard.safetensors")
        >>> load_target("hard.safetensors").class_names
        ['0', '1', '2', 'garbage']
    """
    if rounds < 0 or min(steps, epochs) < 1 or samples < 12 or not 0 < stop_at <= 1:
        raise UsageError(
            f"hardening requires at least 1 step, 1 epoch, 12 samples and a share to stop at up to 1, not {steps}, "
            f"{epochs}, {samples} and {stop_at}."
        )
    if not 0 < rate < math.inf:
        raise UsageError(
            f"{setting('rate', rate)}: a learning rate is above 0 and finite, e.g. {setting('rate', 1e-3)}."
        )
    if settings.get("labels") is not None:
        raise UsageError(f"hardening inverts all classes: leave {setting('labels', settings['labels'])} out.")
    file = None if out is None else target_path(out)
    if file is not None:
        result_file(file)
    if not isinstance(target, Target):
        target = loading.load_target(target)
    if augment and len(target.input_shape) != 3:
        raise UsageError(f"only images can be turned and moved; {target.name} classifies vectors.")
    pupil, arguments = _with_garbage(target, seed)
    known = training_images(data, target)
    assert known is not None
    lacking = [target.class_names[k] for k in _classes(target) if not (known.labels == k).any()]
    if lacking:
        raise UsageError(
            f"the data have no images of {lacking[0]!r}, which the classifier would forget ({len(lacking)} such "
            f"classes). Pass the data that it was trained on."
        )
    held_out = labelled_images(reference, "the reference data", target)
    refuse_training_images(held_out, known, target)
    place = choose_device(device)
    given = (known, epochs, rate, augment, seed, place)
    typed = [*map(str, (*plugins, *presets)), steps, samples, *given[1:-1], settings]
    begun = {
        "weights": digest(target.state_dict()),
        "data": known.sha256(),
        "settings": json.dumps(typed, default=str),
    }
    settings |= {"presets": presets, "steps": steps, "labels": _classes(pupil), "device": device}
    if rounds:
        prepare(pupil, plugins, **settings)  # what is wrong with it shows before the training
    if resume:
        garbage, done = _resumed(file, begun, pupil)
    else:
        garbage, done = _noise(pupil, samples, seed), []
        _retrain(pupil, garbage, 0, *given)
    found = Hardened(pupil, done, "", {})
    while not found.ended:
        if file is not None:
            _save(file, found, garbage, begun, target, arguments)
        number = len(done) + 1
        found.ended = _verdict(done, stop_at) or (ALL if number > rounds else "")
        if found.ended:
            break
        progress.tell("rounds of hardening", number - 1, rounds)
        inversion = invert(pupil, plugins, seed=derive_seed(seed, "inversion", number) % 2**31, **settings)
        there = inversion.images_per_class
        count = samples + samples // 6
        images, labels = inversion.sample(count=count if there is None else min(count, there * len(inversion.classes)))
        images = images.cpu()
        mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, "fresh", number)))
        fresh = mixed < max(1, len(images) // 7)  # not every seventh: the classes take turns
        share = _share(_answers(pupil, images, place), labels.cpu())
        garbage = torch.cat([garbage, _stored(images[~fresh])])
        _retrain(pupil, garbage, number, *given)
        figures = {
            "found": share,
            "accepted": 1 - _share(_answers(pupil, images[fresh], place), pupil.garbage),
            "refused": _share(_answers(pupil, target.to_unit(known.images), place), pupil.garbage),
        }
        done.append(figures)
        log.info("round %d: %s", number, ", ".join(f"{name} {percent(value)}" for name, value in figures.items()))
    progress.tell("rounds of hardening", 1, 1)
    pupil.to("cpu")
    if file is not None:
        _rounds_file(file).unlink(missing_ok=True)
    if held_out is not None:
        cpu = torch.device("cpu")
        grades = teaching.graded(pupil, target, held_out)
        found.reference = {
            "accuracy": grades["student_accuracy"],
            "accuracy_before": grades["target_accuracy"],
            "refused": _share(_answers(pupil, target.to_unit(held_out.images), cpu), pupil.garbage),
        }
    return found


def _share(answers: Tensor, wanted: Tensor | int | None) -> float:
    return torch.as_tensor(answers == wanted).double().mean().item()


def _classes(target: Target) -> list[int]:
    return [label for label in range(target.num_classes) if label != target.garbage]


def _verdict(done: list[dict[str, float]], stop_at: float) -> str:
    """Return why no further round is needed, if that is so."""
    if done and done[-1]["found"] < LEAST_FOUND:
        return NOTHING
    return LIKE_DATA if done and done[-1]["accepted"] > stop_at else ""


def _with_garbage(target: Target, seed: int) -> tuple[ModuleTarget, dict[str, Any]]:
    """Return the classifier with one more class, and the arguments of its architecture.

    Its other weights are copied, and the new output's are those of a fresh network.

    Raises:
        ModelError: it cannot be retrained, or its architecture cannot have one more class.
    """
    facts, name, n = target.description, target.name, target.num_classes
    if target.multi_label:
        raise ModelError(f"{name} cannot be hardened: its classes do not exclude each other, so none is for the rest.")
    if facts.arch in (None, ONNX_GRAPH) or facts.runs_code or not isinstance(target, ModuleTarget):
        kind = "is a graph" if facts.arch == ONNX_GRAPH else "is code of your own" if facts.runs_code else "has no name"
        raise ModelError(
            f"{name} cannot be retrained: harden builds it again, with one more class, which requires a registered "
            f"architecture, and its own {kind}. Register it by a plugin, write its weights in Python by "
            f"interpkit.save_target(..., architecture='FAMILY:NAME'), and harden that file."
        )
    assert facts.arch is not None
    old, arguments = target.module.state_dict(), dict(facts.arch_args)
    more = 0 if target.garbage is not None else 1
    refused = f"the architecture {facts.arch} has no argument for the number of classes"
    for key in HEAD_WIDTH:
        sized = {k: v for k, v in arguments.items() if k not in HEAD_WIDTH} | {key: n + more}
        with suppress(ModelError), global_seed(seed, torch.device("cpu")):
            module = build_architecture(facts.arch, sized if more else arguments)
            new = module.state_dict()
            fitting = {
                k: torch.cat([old[k], new[k][n:].to(old[k])]) if _grown(old[k], new[k], n) else old[k] for k in old
            }
            refused = mismatch(new, fitting)
            if not refused:
                module.load_state_dict(fitting)
                module.eval()
                return _wrapped(module, target, more), sized if more else arguments
    raise ModelError(f"{name} cannot be hardened, as it cannot be built with {n + more} classes: {refused}.")


def _grown(old: Tensor, new: Tensor, n: int) -> bool:
    return old.dim() > 0 and old.shape[0] == n and new.shape == (n + 1, *old.shape[1:])


def _wrapped(module: nn.Module, target: Target, more: int) -> ModuleTarget:
    kept = {fact.name for fact in target_facts() if not fact.of_file} - {"input_shape", "num_classes", "class_names"}
    facts: dict[str, Any] = {name: getattr(target.description, name) for name in kept}
    names = [*target.class_names, *[GARBAGE] * more]
    shape = target.description.input_shape or target.input_shape
    wrapped = wrap(module, shape, name=target.name, class_names=names, **facts)
    assert isinstance(wrapped, ModuleTarget)
    return wrapped


def _noise(target: Target, count: int, seed: int) -> Tensor:
    """Return noise, half uniform and half Gaussian about gray, as it is stored."""
    rng = torch.Generator().manual_seed(derive_seed(seed, "garbage"))
    uniform = torch.rand((count // 2, *target.input_shape), generator=rng)
    normal = 0.5 + 0.5 * torch.randn((count - count // 2, *target.input_shape), generator=rng)
    return _stored(torch.cat([uniform, normal]).clamp(0, 1))


def _stored(images: Tensor) -> Tensor:
    """Return images in [0, 1] in 8 bits, and vectors as they are."""
    return (images * 255).round().to(torch.uint8) if images.dim() == 4 else images


def _retrain(
    pupil: ModuleTarget,
    garbage: Tensor,
    number: int,
    data: LabelledImages,
    epochs: int,
    rate: float,
    augment: bool | None,
    seed: int,
    device: torch.device,
) -> None:
    """Train the classifier on data and garbage, each class with the same weight."""
    assert pupil.garbage is not None
    images = torch.cat([pupil.to_unit(data.images), garbage / 255 if garbage.dim() == 4 else garbage])
    labels = torch.cat([data.labels, torch.full((len(garbage),), pupil.garbage)])
    weights = (len(labels) / pupil.num_classes / labels.bincount(minlength=pupil.num_classes)).float().to(device)
    rng = torch.Generator().manual_seed(derive_seed(seed, "training", number))
    optimizer = torch.optim.AdamW(pupil.to(device).parameters(), rate, weight_decay=0.01)
    total = epochs * max(1, len(labels) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(2, total))
    moving = images.dim() == 4 if augment is None else augment
    done = 0
    with global_seed(derive_seed(seed, "dropout", number), device):
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=rng)
            for rows in order.tensor_split(total // epochs):
                batch = teaching.moved(images[rows], rng) if moving else images[rows]
                with pupil.learning():
                    logits = pupil(batch.to(device))
                loss = F.cross_entropy(logits, labels[rows].to(device), weights)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                done += 1
                progress.tell("batches taught", done, total)


@torch.no_grad()
def _answers(target: Target, images: Tensor, device: torch.device) -> Tensor:
    """Return the most probable class of each image, (N,), on the CPU."""
    with target.frozen(device):
        parts = in_batches(target, images, lambda rows: target(images[rows].to(device)).argmax(1).cpu())
    return torch.cat(parts)


def _rounds_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.rounds")


def _save(
    file: Path,
    found: Hardened,
    garbage: Tensor,
    begun: Mapping[str, str],
    target: Target,
    arguments: Mapping[str, Any],
) -> None:
    """Write what a resumed hardening needs, and then the classifier as it is."""
    pupil = found.target
    assert isinstance(pupil, ModuleTarget)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pupil.module.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    rounds = _rounds_file(file)
    write_tensors(rounds, {"garbage": garbage, **_prefixed(state)}, {**begun, "rounds": json.dumps(found.rounds)})
    facts = pupil.description.model_copy(update={"arch": target.description.arch, "arch_args": dict(arguments)})
    write_target_file(file, state, facts)


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"weights.{name}": tensor for name, tensor in state.items()}


def _resumed(file: Path | None, begun: Mapping[str, str], pupil: ModuleTarget) -> tuple[Tensor, list[dict[str, float]]]:
    """Load the state after the last finished round into the classifier, and return the garbage and the rounds."""
    if file is None:
        raise UsageError(
            f"only a hardening that writes a file can be resumed: add {setting('out', 'FILE.safetensors')}."
        )
    path = _rounds_file(file)
    tensors = read_tensors(path, f"there is nothing to resume: {path} does not exist. Leave {setting('resume')} out.")
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
    for name, value in begun.items():
        if metadata.get(name) != value:
            raise RunError(
                f"{path} was begun with other {name}: resume it with the same, or remove it and start again."
            )
    state = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    garbage = tensors.get("garbage", torch.zeros(0))
    fault = mismatch(pupil.module.state_dict(), state)
    if garbage.shape[1:] != pupil.input_shape or garbage.dtype != _stored(torch.zeros(1, *pupil.input_shape)).dtype:
        fault = f"its garbage is {garbage.dtype} {tuple(garbage.shape)}"
    try:
        done = schemas.HardeningRounds.validate_json(metadata.get("rounds", ""))
    except ValueError:
        fault = f"its rounds are {metadata.get('rounds')!r:.40}"
    if fault:
        raise RunError(f"{path} is damaged: {fault}. Remove it and start again.")
    pupil.module.load_state_dict(state)
    return garbage, [figures.model_dump() for figures in done]
