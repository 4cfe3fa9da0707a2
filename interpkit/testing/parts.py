"""The checks that conditioners, generators and losses share: they are modules, which an inversion trains together."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from interpkit.interfaces.generation import Condition, Conditioner, Generator
from interpkit.interfaces.losses import InversionLoss
from interpkit.inversion.results import GeneratorInversion
from interpkit.runtime.random import random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, kind_of, promised
from interpkit.testing.components import (
    builder,
    expect_learned,
    expect_on,
    expect_unit,
    generator_of,
    loss_of,
    same,
    with_seed,
)
from interpkit.testing.second_device import other_devices
from interpkit.testing.two_processes import Importable, in_both

PARTS = ("conditioner", "generator", "loss")
BATCH = 6


class Trial(ABC):
    """A part at work, for the first classifier that it takes.

    Args:
        cls: the class of the part.
        device: where the part and the classifier are.
    """

    def __init__(self, cls: Any, device: torch.device = toy_models.CPU) -> None:
        self.cls, self.device = cls, device
        self.shape, self.count, _ = next(toy_models.accepted(builder(cls), toy_models.HOMES))
        target = toy_models.target_of(self.shape, self.count)
        self.target = target if device == toy_models.CPU else toy_models.moved(target, device)

    def build(self, seed: int = 0) -> Any:
        """Return a part that is built under a seed, as an inversion trains it."""
        part = with_seed(seed, self._build)
        return part.to(self.device).to(memory_format=torch.channels_last).train()

    def _build(self) -> Any:
        return builder(self.cls)(self.shape, self.count)

    @abstractmethod
    def run(self, part: Any, *, seed: int = 0, bf16: bool = False) -> dict[str, Tensor]:
        """Return what a part makes of inputs that are drawn under a seed."""

    @abstractmethod
    def invert(self) -> GeneratorInversion:
        """Return an inversion with such a part."""

    def settled(self, part: Any) -> list[Tensor]:
        """Return what a part makes in eval mode and under a seed, without gradients."""
        return [tensor.detach() for tensor in with_seed(0, lambda: self.run(part.eval())).values()]


class ConditionerTrial(Trial):
    """A conditioner draws conditions, of labels that are drawn and of labels that are passed."""

    def run(self, part: Conditioner, *, seed: int = 0, bf16: bool = False) -> dict[str, Tensor]:
        """Return the tensors of both."""
        made: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for of, labels in (("", None), (" of labels passed", torch.arange(BATCH, device=self.device) % self.count)):
                condition = part.sample(BATCH, labels=labels, rng=random_generator(self.device, seed))
                made |= {f"{name}{of}": tensor for name, tensor in tensors_of(condition, part).items()}
        return made

    def invert(self) -> GeneratorInversion:
        """Condition an inversion by it."""
        return toy_models.invert(self.target, conditioner=self._build())


class GeneratorTrial(Trial):
    """A generator makes images."""

    def run(self, part: Generator, *, seed: int = 0, bf16: bool = False) -> dict[str, Tensor]:
        """Return the images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return {"images": part(*asked(part, seed=seed, device=self.device))}

    def invert(self) -> GeneratorInversion:
        """Train it."""
        return toy_models.invert(self.target, generator=lambda spec: generator_of(self.cls, spec, self.shape))


class LossTrial(Trial):
    """A loss has a value for images, which have a gradient."""

    def _build(self) -> InversionLoss:
        return loss_of(self.cls, self.target)

    def images(self, count: int = BATCH, seed: int = 0) -> Tensor:
        """Return random images."""
        return toy_models.images_of(self.shape, count, seed).to(self.device).requires_grad_()

    def run(self, part: InversionLoss, *, seed: int = 0, bf16: bool = False) -> dict[str, Tensor]:
        """Return the value."""
        with self.target.frozen():
            return {"value": toy_models.value_of(part, self.target, self.images(seed=seed), bf16=bf16)}

    def invert(self) -> GeneratorInversion:
        """Add it to cross-entropy, with a weight that makes it no larger than that at the start."""
        loss, plain = self._build(), toy_models.PlainLoss(self.target)
        with torch.no_grad():
            size, usual = (
                abs(toy_models.value_of(term, self.target, self.images(24)).item()) for term in (loss, plain)
            )
        return toy_models.invert(
            self.target, losses={"plain": (1.0, plain), "it": (min(1.0, usual / max(size, 1e-9)), loss)}
        )


def trial_of(cls: Any, device: torch.device = toy_models.CPU) -> Trial:
    """Return the trial of a part of any kind."""
    trials: dict[str, type[Trial]] = {"conditioner": ConditionerTrial, "generator": GeneratorTrial, "loss": LossTrial}
    return trials[kind_of(cls)](cls, device)


def tensors_of(condition: Condition, conditioner: Conditioner) -> dict[str, Tensor]:
    """Return the tensors of a condition, maps of the smallest size among them."""
    side = conditioner.spec.map_size
    return {
        "labels": condition.labels,
        "distribution": condition.distribution,
        "vector": condition.vector,
        "maps": condition.maps(side, side),
    }


def asked(
    generator: Generator, count: int = BATCH, *, seed: int = 0, device: torch.device = toy_models.CPU
) -> tuple[Tensor, Condition]:
    """Return a latent and a condition for a generator; the labels take turns."""
    latent = torch.randn(count, generator.latent_dim, generator=random_generator(toy_models.CPU, seed))
    labels = torch.arange(count) % 3
    return latent.to(device), toy_models.condition_of(generator.spec, labels.to(device), 3)


def backward(made: dict[str, Tensor]) -> None:
    """Send a gradient back from all that a part made, where something in it has one."""
    sums = [
        (tensor * torch.linspace(0.5, 1.5, tensor.numel(), device=tensor.device).view(tensor.shape)).sum()
        for tensor in made.values()
    ]
    total = torch.stack(sums).sum()
    if total.requires_grad:
        total.backward()


# ---------------------------------------------------------------------------------------------- checks


@promised(
    ("conditioner", "generator"), "remove parameters that nothing depends on; use no argmax, round, detach() or .data"
)
def gradients(cls: Any) -> None:
    """Every parameter that it has is trained: it gets a finite gradient from what it makes."""
    trial = trial_of(cls)
    part = trial.build()
    backward(trial.run(part))
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            slope = parameter.grad
            expect(slope is not None, f"the parameter {name!r} gets no gradient")
            expect(slope is None or slope.isfinite().all(), f"the gradient of the parameter {name!r} is not finite")


@promised("loss", "drop parameters that the value does not depend on, or register them as buffers")
def parameters(cls: Any) -> None:
    """Its own parameters, if it has any, are trained along: every one gets a finite gradient."""
    gradients(cls)


@promised(PARTS, "make tensors with the device of the module or the inputs, and register its own by register_buffer")
def device(cls: Any) -> None:
    """It computes on the device that it was moved to, as do its inputs."""
    for place in other_devices():
        with place as other:
            trial = trial_of(cls, other)
            made = trial.run(trial.build())
            expect_on(other, **made)
            backward(made)


@promised(PARTS, "cast before operations that need equal dtypes: x.float(), or other.to(x.dtype)")
def bf16(cls: Any) -> None:
    """It works under bf16 autocast, or where a loss's target and views are computed so, and what it makes is finite."""
    trial = trial_of(cls)
    made = trial.run(trial.build(), bf16=True)
    for name, tensor in made.items():
        expect(tensor.isfinite().all(), f"{name} is not finite under bf16 autocast")
    if "images" in made:
        expect_unit(made["images"], "under bf16 autocast")
    backward(made)


@promised(PARTS, "keep learned and random tensors as nn.Parameter or by register_buffer, not as plain attributes")
def state_dict(cls: Any) -> None:
    """Its state dict holds all that it depends on: another one that loads it makes the same."""
    trial = trial_of(cls)
    one, other = trial.build(0), trial.build(1)
    trial.run(one)  # moves running statistics off their initial values
    other.load_state_dict(one.state_dict())
    expect(
        same(trial.settled(one), trial.settled(other), tolerance=1e-6),
        "one that was built under another seed makes something else with the same state dict",
    )


@promised(PARTS, "keep no lambdas, open files or locks as attributes, and define the class in a module")
def picklable(cls: Any) -> None:
    """It can be pickled, and makes the same afterwards."""
    trial = trial_of(cls)
    part = trial.build()
    again = pickle.loads(pickle.dumps(part))  # noqa: S301  # our own
    expect(
        same(trial.settled(part), trial.settled(again), tolerance=1e-6),
        "it makes something else after it was pickled",
    )


@promised(PARTS, "let nothing depend on process, host or time; call collectives in every process or in none")
def two_processes(cls: Any) -> None:
    """In two processes it is and makes the same under one seed, and stays so in steps with averaged gradients."""
    one, other = in_both(step_in_process, Importable.of(cls))
    expect(same(one["weights"], other["weights"]), "the two have different weights under one seed")
    expect(same(one["made"], other["made"]), "the two make different things under one seed")
    expect(same(one["stepped"], other["stepped"]), "their weights differ after two steps with averaged gradients")


def step_in_process(cls: Importable) -> dict[str, list[Tensor]]:
    """Build a part, use it, and take two steps with gradients that are averaged over the processes."""
    torch.manual_seed(dist.get_rank())  # only what is seeded may be the same in both
    trial = trial_of(cls.load())
    part = trial.build()
    trained = list(part.parameters())
    found = {"weights": [weight.detach().clone() for weight in trained], "made": trial.settled(part)}
    part.train()
    for step in range(2):
        part.zero_grad()
        backward(trial.run(part, seed=10 * step + dist.get_rank()))
        for weight in trained:
            slope = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(slope)
            weight.data.sub_(0.01 * slope / dist.get_world_size())
        dist.barrier()
    return {**found, "stepped": [weight.detach() for weight in trained]}


@promised(
    PARTS,
    "see that the condition has a strong effect on the images, that a loss falls as images get better and does not "
    "drown the others, and that initial images are not all black or white",
)
def converges(cls: Any) -> None:
    """An inversion with it converges: the loss falls, and the target gives most images the class asked for."""
    expect_learned(trial_of(cls).invert())
