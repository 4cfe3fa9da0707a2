"""The checks of conditioners."""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from interpkit.interfaces.generation import Condition, Conditioner
from interpkit.runtime.random import global_seed, random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import (
    builder,
    expect_gradients,
    expect_on,
    expect_untouched,
    one_of,
    random_states,
    same,
    with_seed,
)
from interpkit.testing.second_device import other_devices
from interpkit.testing.two_processes import Importable, in_both

BATCH = 6


def parts_of(condition: Condition, conditioner: Conditioner) -> dict[str, Tensor]:
    """Return the tensors of a condition, maps of the smallest size among them."""
    side = conditioner.spec.map_size
    return {
        "labels": condition.labels,
        "distribution": condition.distribution,
        "vector": condition.vector,
        "maps": condition.maps(side, side),
    }


def drawn(conditioner: Conditioner, count: int = BATCH, seed: int = 0, labels: Tensor | None = None) -> Condition:
    """Return conditions drawn under a seed."""
    return conditioner.sample(count, labels=labels, rng=random_generator(toy_models.CPU, seed))


@promised(
    "shapes",
    by="conditioner",
    promise="for any image size and number of classes, at any progress, labels are (B,) int64, distribution "
    "(B, n), vector (B, vector_dim) and maps (B, map_channels, height, width), all but the labels "
    "floats, as its `spec` says",
    remedy="derive `spec` and the tensors of `sample` from the same numbers, and draw maps at the requested size",
)
def shapes(cls: Any) -> None:
    """Shapes match the spec."""
    for shape, count, conditioner in toy_models.settings_of(cls, builder(cls))[0]:
        where = f"for {count} classes and images of {shape}"
        for batch, progress in ((1, 0.0), (BATCH, 0.5), (2, 1.0)):
            conditioner.progress = progress
            spec, condition = conditioner.spec, drawn(conditioner, batch)
            side = spec.map_size
            found = {
                "labels": (condition.labels, (batch,)),
                "distribution": (condition.distribution, (batch, count)),
                "vector": (condition.vector, (batch, spec.vector_dim)),
                "maps": (condition.maps(side, side), (batch, spec.map_channels, side, side)),
                "larger maps": (condition.maps(side + 3, side + 8), (batch, spec.map_channels, side + 3, side + 8)),
            }
            for name, (tensor, wanted) in found.items():
                expect(tensor.shape == wanted, f"{name} {tuple(tensor.shape)} instead of {wanted}, {where}")
                kind = tensor.dtype == torch.int64 if name == "labels" else tensor.is_floating_point()
                expect(kind, f"{name} of {tensor.dtype}, {where}")


@promised(
    "distribution",
    by="conditioner",
    promise="each row of the distribution sums to 1 and is largest at the label",
    remedy="end with softmax(1), and use its argmax as labels, or swap the largest entry into the label's place",
)
def distribution(cls: Any) -> None:
    """It is a distribution with the label on top."""
    for shape, count, conditioner in toy_models.settings_of(cls, builder(cls))[0]:
        for given in (None, torch.arange(64) % count):
            for progress in (0.0, 1.0):
                conditioner.progress = progress
                found = drawn(conditioner, 64, labels=given)
                p, where = found.distribution, f"for {count} classes and images of {shape}"
                expect(p.isfinite().all(), f"an entry that is not finite, {where}")
                expect((p >= 0).all(), f"a negative entry, {where}")
                worst = (p.double().sum(1) - 1).abs().max().item()
                expect(worst < 1e-4, f"the sum of a row differs from 1 by {worst:.3g}, {where}")
                least = (p.amax(1) - p.gather(1, found.labels[:, None])[:, 0]).max().item()
                expect(least <= 0, f"a row is larger by {least:.3g} elsewhere than at its label, {where}")


@promised(
    "labels-kept",
    by="conditioner",
    promise="the condition has the labels that are passed",
    remedy="use `labels` as they are where they are not None",
)
def labels_kept(cls: Any) -> None:
    """Labels that are passed are used."""
    for _, count, conditioner in toy_models.settings_of(cls, builder(cls))[0]:
        asked = torch.tensor([count - 1, 0, 1, count - 1])
        found = drawn(conditioner, 4, labels=asked.clone()).labels
        expect(found.tolist() == asked.tolist(), f"{asked.tolist()} requested, {found.tolist()} drawn")


@promised(
    "labels-uniform",
    by="conditioner",
    promise="if labels are omitted, they are drawn uniformly from all classes",
    remedy="draw them with torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng), or "
    "take the argmax of identically distributed entries",
)
def labels_uniform(cls: Any) -> None:
    """Labels are uniform."""
    shape, count = toy_models.home_of(builder(cls))
    conditioner, draws = builder(cls)(shape, count), 4000
    shares = drawn(conditioner, draws).labels.bincount(minlength=count) / draws
    # six standard deviations of a fair draw
    slack = 6 * (1 / count * (1 - 1 / count) / draws) ** 0.5
    odd = int((shares - 1 / count).abs().argmax())
    expect(
        abs(shares[odd].item() - 1 / count) < slack,
        f"class {odd} of {count} has {shares[odd].item():.1%} of {draws} draws",
    )


@promised(
    "same-law",
    by="conditioner",
    promise="distributions are as soft for labels that are passed as for labels that are drawn",
    remedy="draw in the same way, and swap the largest entry into the place of the label",
)
def same_law(cls: Any) -> None:
    """Passing labels does not change the distribution of the rest."""
    shape, count = toy_models.home_of(builder(cls))
    conditioner, draws = builder(cls)(shape, count), 2000
    free, given = (drawn(conditioner, draws, labels=asked) for asked in (None, torch.arange(draws) % count))
    tops = [condition.distribution.amax(1).double() for condition in (free, given)]
    apart = (tops[0].mean() - tops[1].mean()).abs().item()
    slack = 6 * max(top.std().item() for top in tops) * (2 / draws) ** 0.5 + 1e-6
    means = ", ".join(f"{top.mean().item():.3f}" for top in tops)
    expect(apart < slack, f"the largest entry is on average (labels omitted, labels passed): {means}")


@promised(
    "maps-tell-labels",
    by="conditioner",
    promise="maps with sides of map_size differ between all labels",
    remedy="raise map_size in the spec, or spread the label over more map_channels",
)
def maps_tell_labels(cls: Any) -> None:
    """Maps distinguish the labels."""
    for shape, count, conditioner in toy_models.settings_of(cls, builder(cls))[0]:
        if conditioner.spec.map_channels:
            maps = parts_of(drawn(conditioner, count, labels=torch.arange(count)), conditioner)["maps"]
            apart = len(maps.flatten(1).unique(dim=0))
            expect(apart == count, f"{apart} different maps for {count} labels, for images of {shape}")


@promised(
    "seeded",
    by="conditioner",
    promise="draws depend only on `rng` if it is passed, without changing a global generator, and otherwise "
    "on torch's global one",
    remedy="pass generator=rng to every torch.rand, randn and randint, and draw with no other library",
)
def seeded(cls: Any) -> None:
    """Draws are seeded."""
    conditioner = one_of(cls)
    before = random_states()
    one = parts_of(drawn(conditioner, 64), conditioner)
    expect_untouched(before)
    other = with_seed(1, lambda: parts_of(drawn(conditioner, 64), conditioner))
    expect(same(one, other), "one seed of `rng` leads to different draws")
    third = parts_of(drawn(conditioner, 64, seed=1), conditioner)
    expect(not same(one["labels"], third["labels"]), "another seed of `rng` leads to the same labels")
    free = [with_seed(2, lambda: parts_of(conditioner.sample(8), conditioner)) for _ in range(2)]
    expect(same(*free), "one seed of torch's global generator leads to different draws if rng is omitted")


@promised(
    "gradients",
    by="conditioner",
    promise="its parameters, if it has any, can be trained: each gets a finite gradient through the "
    "vector, the maps or the distribution",
    remedy="remove parameters that nothing depends on, or register them as buffers",
)
def gradients(cls: Any) -> None:
    """Parameters get gradients."""
    conditioner = one_of(cls)
    if not list(conditioner.parameters()):
        return
    _surrogate(conditioner, drawn(conditioner)).backward()
    expect_gradients(conditioner, "from its draws")


def _surrogate(conditioner: Conditioner, condition: Condition) -> Tensor:
    parts = parts_of(condition, conditioner)
    total = torch.zeros((), device=condition.vector.device)
    for name in ("distribution", "vector", "maps"):
        total = (
            total
            + (
                parts[name]
                * torch.linspace(0.5, 1.5, parts[name].shape[1], device=total.device).view(
                    -1, *(1,) * (parts[name].dim() - 2)
                )
            ).sum()
        )
    return total


@promised(
    "device",
    by="conditioner",
    promise="it draws everything on the module's device, `self.device`, also if labels on it are passed",
    remedy="pass device=self.device wherever a tensor is made, and register its own tensors with register_buffer",
)
def device(cls: Any) -> None:
    """Draws are on the module's device."""
    for place in other_devices():
        with place as other:
            conditioner = one_of(cls).to(other)
            for labels in (None, torch.zeros(BATCH, dtype=torch.int64, device=other)):
                condition = conditioner.sample(BATCH, labels=labels, rng=random_generator(other, 0))
                expect_on(other, **parts_of(condition, conditioner))


@promised(
    "bf16",
    by="conditioner",
    promise="it draws under bf16 autocast as well",
    remedy="cast before operations that need equal dtypes: x.float(), or other.to(x.dtype)",
)
def bf16(cls: Any) -> None:
    """It runs under autocast."""
    conditioner = one_of(cls)
    with torch.autocast("cpu", torch.bfloat16):
        parts = parts_of(drawn(conditioner), conditioner)
    for name, tensor in parts.items():
        expect(tensor.isfinite().all(), f"{name} is not finite under bf16 autocast")


@promised(
    "state-dict",
    by="conditioner",
    promise="its state dict holds everything that its draws depend on: another one that loads it draws the same",
    remedy="keep learned and random tensors as nn.Parameter or with register_buffer, not as plain attributes",
)
def state_dict(cls: Any) -> None:
    """The state dict is complete."""
    build = builder(cls)
    home = toy_models.home_of(build)
    one, other = (with_seed(seed, lambda: build(*home)) for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    found = [parts_of(drawn(conditioner), conditioner) for conditioner in (one, other)]
    expect(same(*found), "one built under another seed draws differently with the same state dict")


@promised(
    "picklable",
    by="conditioner",
    promise="it can be pickled, and draws the same afterwards",
    remedy="keep no lambdas, open files or locks as attributes, and define the class in a module",
)
def picklable(cls: Any) -> None:
    """It pickles."""
    conditioner = one_of(cls)
    again = pickle.loads(pickle.dumps(conditioner))  # noqa: S301  # our own
    found = [parts_of(drawn(c), c) for c in (conditioner, again)]
    expect(same(*found), "it draws differently after it was pickled")


@promised(
    "two-processes",
    by="conditioner",
    promise="in two processes with one seed it has the same weights and draws, and the same weights after a "
    "step with averaged gradients",
    remedy="let nothing depend on the process, the host or the time; draw with `rng`",
)
def two_processes(cls: Any) -> None:
    """Two processes agree."""
    shape, count = toy_models.home_of(builder(cls))
    one, other = in_both(step_in_process, Importable.of(cls), shape, count)
    expect(same(one["drawn"], other["drawn"]), "the two draw differently under one seed")
    expect(same(one["stepped"], other["stepped"]), "their parameters differ after a step with averaged gradients")


def step_in_process(cls: Importable, shape: toy_models.Shape, count: int) -> dict[str, Any]:
    """Draw, and take a step with gradients that are averaged over the processes."""
    with global_seed(0, toy_models.CPU):
        conditioner: Conditioner = builder(cls.load())(shape, count)
    first = parts_of(drawn(conditioner), conditioner)
    parameters = [p for p in conditioner.parameters() if p.requires_grad]
    if parameters:
        _surrogate(conditioner, drawn(conditioner, seed=dist.get_rank())).backward()
    average_step(parameters)
    return {
        "drawn": {name: tensor.detach() for name, tensor in first.items()},
        "stepped": [p.detach() for p in parameters],
    }


def average_step(parameters: list[torch.nn.Parameter]) -> None:
    """Take a step down gradients that are averaged over all processes."""
    for parameter in parameters:
        slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(slope)
        parameter.data.sub_(0.01 * slope / dist.get_world_size())
    dist.barrier()


@promised(
    "converges",
    by="conditioner",
    promise=f"an inversion conditioned by it learns: in {toy_models.STEPS} steps the loss falls, and the target "
    "assigns most images to the requested class",
    remedy="make vector or maps differ between labels, and match the labels and the distribution",
)
def converges(cls: Any) -> None:
    """An inversion converges."""
    shape, count = toy_models.home_of(builder(cls))
    target = toy_models.target_of(shape, count)
    expect_converged(toy_models.invert(target, conditioner=builder(cls)(shape, count)).history, target.num_classes)


def expect_converged(history: Any, num_classes: int, accuracy: float = 0.6) -> None:
    """Raise `Broken` unless the loss fell and the target assigns most images to the requested class."""
    first, last = history[0], history[-1]
    expect(last.loss < first.loss, f"the loss went from {first.loss:.4g} to {last.loss:.4g}")
    expect(
        last.inversion_accuracy >= accuracy,
        f"inversion accuracy {last.inversion_accuracy:.0%} at step {last.step}, of {num_classes} classes",
    )
