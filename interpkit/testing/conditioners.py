"""The checks of conditioners; see `parts` for those that they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition, Conditioner
from interpkit.runtime.random import random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import builder, expect_no_draws, one_of, same, with_seed
from interpkit.testing.parts import tensors_of


def drawn(conditioner: Conditioner, count: int, seed: int = 0, labels: Tensor | None = None) -> Condition:
    """Return conditions drawn under a seed."""
    return conditioner.sample(count, labels=labels, rng=random_generator(toy_models.CPU, seed))


def all_of(cls: Any) -> Iterator[tuple[Conditioner, str]]:
    """Yield a conditioner for every shape and number of classes that it accepts, with a description of both."""
    for shape, count, conditioner in toy_models.settings_of(builder(cls)):
        yield conditioner, f"for {count} classes and images of {shape}"


@promised("conditioner", "take the sizes in `spec` and in `sample` from the same numbers; draw maps as large as asked")
def shapes(cls: Any) -> None:
    """For any image size, number of classes and progress, what it draws has the shapes that `spec` says.

    Labels are (B,) int64, and the others floats: distribution (B, n), vector (B, vector_dim), maps (B, map_channels,
    height, width).
    """
    for conditioner, where in all_of(cls):
        for batch, progress in ((1, 0.0), (6, 0.5), (2, 1.0)):
            conditioner.progress = progress
            spec, condition = conditioner.spec, contracts.condition(conditioner, batch, None, None)
            for size in ((spec.map_size, spec.map_size), (spec.map_size + 3, spec.map_size + 8)):
                maps, wanted = condition.maps(*size), (batch, spec.map_channels, *size)
                expect(maps.shape == wanted, f"maps {tuple(maps.shape)} instead of {wanted}, {where}")
                expect(maps.is_floating_point(), f"maps of {maps.dtype}, {where}")


@promised("conditioner", "end with softmax(1); take its argmax as labels, or swap the largest entry to the label")
def distribution(cls: Any) -> None:
    """Each row of the distribution sums to 1 and is largest at the label."""
    for conditioner, where in all_of(cls):
        for given in (None, torch.arange(64) % conditioner.num_classes):
            for progress in (0.0, 1.0):
                conditioner.progress = progress
                found = drawn(conditioner, 64, labels=given)
                p = found.distribution
                expect(p.isfinite().all(), f"an entry that is not finite, {where}")
                expect((p >= 0).all(), f"a negative entry, {where}")
                worst = (p.double().sum(1) - 1).abs().max().item()
                expect(worst < 1e-4, f"the sum of a row differs from 1 by {worst:.3g}, {where}")
                least = (p.amax(1) - p.gather(1, found.labels[:, None])[:, 0]).max().item()
                expect(least <= 0, f"a row is larger by {least:.3g} elsewhere than at its label, {where}")


@promised("conditioner", "use `labels` as they are where they are not None")
def labels_kept(cls: Any) -> None:
    """The condition has the labels that are passed."""
    for conditioner, _ in all_of(cls):
        last = conditioner.num_classes - 1
        asked = torch.tensor([last, 0, 1, last])
        found = drawn(conditioner, 4, labels=asked.clone()).labels
        expect(found.tolist() == asked.tolist(), f"{asked.tolist()} requested, {found.tolist()} drawn")


@promised(
    "conditioner",
    "draw them with torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng), or take the "
    "argmax of identically distributed entries",
)
def labels_uniform(cls: Any) -> None:
    """If labels are omitted, they are drawn uniformly from all classes."""
    conditioner, draws = one_of(cls), 4000
    fair = 1 / conditioner.num_classes
    shares = drawn(conditioner, draws).labels.bincount(minlength=conditioner.num_classes) / draws
    odd = int((shares - fair).abs().argmax())
    slack = 6 * (fair * (1 - fair) / draws) ** 0.5  # six standard deviations of a fair draw
    share = shares[odd].item()
    expect(abs(share - fair) < slack, f"class {odd} of {len(shares)} has {share:.1%} of {draws} draws")


@promised("conditioner", "draw in the same way, and swap the largest entry into the place of the label")
def same_law(cls: Any) -> None:
    """Distributions are as soft for labels that are passed as for labels that are drawn."""
    conditioner, draws = one_of(cls), 2000
    passed = torch.arange(draws) % conditioner.num_classes
    free, given = (drawn(conditioner, draws, labels=labels).distribution.amax(1).double() for labels in (None, passed))
    slack = 6 * max(free.std().item(), given.std().item()) * (2 / draws) ** 0.5 + 1e-6
    apart = abs(free.mean().item() - given.mean().item())
    expect(apart < slack, f"the largest entry is on average {free.mean():.3f} omitting labels, else {given.mean():.3f}")


@promised("conditioner", "return what `sample` returns, with the classes of the answers' largest entries as labels")
def of_answers(cls: Any) -> None:
    """Answers of a target, (B, n), have valid conditions for their most probable classes, before and after it learned.

    After `learn_answers` it draws conditions as before.
    """
    if cls.of_answers is Conditioner.of_answers and cls.learn_answers is Conditioner.learn_answers:
        return
    for conditioner, where in all_of(cls):
        answers = 3 * torch.randn(40, conditioner.num_classes, generator=random_generator(toy_models.CPU, 0))
        with torch.no_grad():
            contracts.condition_of(conditioner, answers)
            conditioner.learn_answers(answers)
            contracts.condition(conditioner, 6, None, None)
            found = contracts.condition_of(conditioner, answers).labels
        wrong = int((found != answers.argmax(1)).sum())
        expect(wrong == 0, f"{wrong} of 40 conditions are of another class than their answer, {where}")


@promised("conditioner", "raise map_size in the spec, or spread the label over more map_channels")
def maps_tell_labels(cls: Any) -> None:
    """Maps with sides of map_size differ between all labels."""
    for conditioner, where in all_of(cls):
        if conditioner.spec.map_channels:
            count, side = conditioner.num_classes, conditioner.spec.map_size
            maps = drawn(conditioner, count, labels=torch.arange(count)).maps(side, side)
            apart = len(maps.flatten(1).unique(dim=0))
            expect(apart == count, f"{apart} different maps {where}")


@promised("conditioner", "pass generator=rng to every torch.rand, randn and randint, and draw with no other library")
def seeded(cls: Any) -> None:
    """Draws depend on `rng` alone where it is passed, and leave global generators alone; else on torch's global one."""
    conditioner = one_of(cls)

    def draw(seed: int) -> dict[str, Tensor]:
        return tensors_of(drawn(conditioner, 64, seed), conditioner)

    with expect_no_draws():
        one = draw(0)
    expect(same(one, with_seed(1, lambda: draw(0))), "one seed of `rng` leads to different draws")
    expect(not same(one["labels"], draw(1)["labels"]), "another seed of `rng` leads to the same labels")
    free = [with_seed(2, lambda: tensors_of(conditioner.sample(8), conditioner)) for _ in range(2)]
    expect(same(*free), "one seed of torch's global generator leads to different draws if rng is omitted")
