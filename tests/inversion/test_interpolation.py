"""Walks within a class and morphs between two, as images and as sections of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interpkit
from interpkit import Condition, ConditionSpec, GeneratorInversion
from interpkit.inversion import results


class Shows(interpkit.Generator):
    """Shows the condition's distribution on the left, and the latent's direction on the right."""

    name = "shows"

    def __init__(self) -> None:
        super().__init__(ConditionSpec(3), (1, 1, 6))
        self.latent_dim = 3
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        return torch.cat([condition.distribution, latent / 8 + 0.5], 1)[:, None, None] * self.scale


@pytest.fixture
def shown(quick: Callable[..., dict[str, Any]]) -> GeneratorInversion:
    target = interpkit.wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)), input_shape=(1, 1, 6))
    inversion = interpkit.invert(target, **quick(steps=1, conditioner="vector"))
    assert isinstance(inversion, GeneratorInversion)
    inversion.generator = Shows()
    return inversion


def strips(inversion: GeneratorInversion, title: str) -> dict[str, Tensor]:
    """Return the strips of the section with that title, by their own titles."""
    (section,) = [section for section in inversion.sections() if section.title == title]
    return {strip.title: strip.images for strip in section.strips}


def test_a_walk_keeps_the_condition_and_turns_the_latent(shown: GeneratorInversion) -> None:
    walks = strips(shown, "Within a class")
    assert list(walks) == ["0", "1", "2"]
    for label, images in enumerate(walks.values()):
        assert images.shape == (7, 1, 1, 6) and not images.requires_grad
        left, latent = images[:, 0, 0, :3], 8 * (images[:, 0, 0, 3:] - 0.5)
        assert torch.allclose(left, left[:1].expand(7, -1)) and left[0].argmax() == label
        unit = latent / latent.norm(dim=1, keepdim=True)
        steps = (latent[1:] - latent[:-1]).norm(dim=1)
        assert (steps > 0).all() and (unit[0] - unit[-1]).norm() > 0.1
        both = torch.stack([latent[0], latent[-1]])  # interpolations between two vectors lie in their plane
        assert torch.linalg.matrix_rank(torch.cat([both, latent]), atol=1e-3) <= 2


def test_a_morph_mixes_the_conditions_evenly_at_one_latent(shown: GeneratorInversion) -> None:
    morphs = strips(shown, "From one class to another")
    assert list(morphs) == ["0 → 1", "0 → 2", "1 → 2"]
    latents = [images[:, 0, 0, 3:] for images in morphs.values()]
    for (start, end), images, latent in zip([(0, 1), (0, 2), (1, 2)], morphs.values(), latents, strict=True):
        mixed = images[:, 0, 0, :3]
        assert mixed[0].argmax() == start and mixed[-1].argmax() == end
        even = torch.stack([torch.lerp(mixed[0], mixed[-1], k / 6) for k in range(7)])
        assert torch.allclose(mixed, even, atol=1e-5)
        assert torch.allclose(latent, latents[0][0].expand(7, -1))


def test_large_images_are_morphed_into_the_next_class_only(
    shown: GeneratorInversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LARGE", 5)
    assert list(strips(shown, "From one class to another")) == ["0 → 1", "1 → 2"]


def test_a_single_class_has_a_walk_but_not_a_morph(tiny_model: Any, quick: Callable[..., dict[str, Any]]) -> None:
    inversion = interpkit.invert(tiny_model, **quick(steps=1, labels=[2]))
    assert [(section.title, len(section.strips)) for section in inversion.sections()] == [("Within a class", 1)]


def test_the_generator_is_left_as_it_was(shown: GeneratorInversion) -> None:
    shown.generator.train()
    before = strips(shown, "Within a class")
    assert shown.generator.training
    after = strips(shown, "Within a class")
    assert all(torch.equal(before[title], after[title]) for title in before)
