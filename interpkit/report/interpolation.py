"""A latent walk within a class, and a morph between two classes: what lies between two samples of a generator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition
from interpkit.inversion.results import GeneratorInversion, sampling_mode
from interpkit.runtime.random import derive_seed, random_generator

FRAMES = 7
MOST_CLASSES = 10
LARGE = 20_000
"""Numbers in an image above which a class is morphed into the next one only, not into every other."""
BATCH = 64


@dataclass(frozen=True)
class Journey:
    """Images on the way from one class to another, or within one.

    Attributes:
        start: the class that it starts in.
        end: the class that it ends in.
        images: (FRAMES, *input_shape) float32 in [0, 1].
        predicted: the class that the target gives each.
        confidence: the probability that it gives it.
    """

    start: int
    end: int
    images: Tensor
    predicted: list[int]
    confidence: list[float]


def walks(inversion: GeneratorInversion) -> list[Journey]:
    r"""Return a walk in each of the first ten classes, from one latent to another under one condition.

    .. math:: z(t) = \frac{\sin((1 - t)\omega)}{\sin \omega} z_0 + \frac{\sin(t \omega)}{\sin \omega} z_1,
              \qquad \cos \omega = \frac{z_0 \cdot z_1}{|z_0| |z_1|}

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016, "Sampling generative networks".
    """
    classes = inversion.classes[:MOST_CLASSES]
    rng = random_generator(inversion.device, derive_seed(inversion.recipe.seed, "walks"))
    condition = _conditions(inversion, classes, rng)
    size = (len(classes), inversion.generator.latent_dim)
    first, last = (torch.randn(size, device=inversion.device, generator=rng)[:, None] for _ in range(2))
    cosine = torch.nn.functional.cosine_similarity(first, last, dim=-1)[..., None]
    angle = cosine.clamp(-0.999, 0.999).arccos()
    t = torch.linspace(0, 1, FRAMES, device=inversion.device)[:, None]
    latents = (((1 - t) * angle).sin() * first + (t * angle).sin() * last) / angle.sin()
    rows = torch.arange(len(classes), device=inversion.device).repeat_interleave(FRAMES)
    return _journeys(inversion, [(k, k) for k in classes], latents.flatten(0, 1), lambda some: condition[rows[some]])


def morphs(inversion: GeneratorInversion) -> list[Journey]:
    """Return morphs between two classes: one latent, and the condition mixed linearly from one to the other.

    Of every pair of the first ten classes; where images are large, of each class and the next.
    """
    classes = inversion.classes[:MOST_CLASSES]
    if inversion.target.input_shape and torch.Size(inversion.target.input_shape).numel() <= LARGE:
        pairs = list(itertools.combinations(range(len(classes)), 2))
    else:
        pairs = [(place, place + 1) for place in range(len(classes) - 1)]
    if not pairs:
        return []
    device = inversion.device
    rng = random_generator(device, derive_seed(inversion.recipe.seed, "morphs"))
    condition = _conditions(inversion, classes, rng)
    latent = torch.randn(1, inversion.generator.latent_dim, device=device, generator=rng)
    start, end = (torch.tensor(ends, device=device).repeat_interleave(FRAMES) for ends in zip(*pairs, strict=True))
    t = torch.linspace(0, 1, FRAMES, device=device).repeat(len(pairs))

    def mixed(some: Tensor) -> Condition:
        one, other, share = condition[start[some]], condition[end[some]], t[some]

        def mix(a: Tensor, b: Tensor) -> Tensor:
            return torch.lerp(a.float(), b.float(), share.view(-1, *[1] * (a.dim() - 1)))

        maps = None if condition.draw_maps is None else lambda h, w: mix(one.maps(h, w), other.maps(h, w))
        labels = torch.where(share < 0.5, one.labels, other.labels)
        return Condition(labels, mix(one.distribution, other.distribution), mix(one.vector, other.vector), maps)

    named = [(classes[a], classes[b]) for a, b in pairs]
    return _journeys(inversion, named, latent.expand(len(t), -1), mixed)


def _conditions(inversion: GeneratorInversion, classes: list[int], rng: torch.Generator) -> Condition:
    labels = torch.tensor(classes, device=inversion.device)
    with sampling_mode(inversion.conditioner, dropout=False), torch.no_grad():
        return inversion.conditioner.sample(len(classes), labels=labels, rng=rng)


@torch.no_grad()
def _journeys(
    inversion: GeneratorInversion,
    ends: list[tuple[int, int]],
    latents: Tensor,
    condition: Callable[[Tensor], Condition],
) -> list[Journey]:
    """Make the images of all journeys together; dropout is off, so that neighbours differ by their latent alone."""
    generator, target = inversion.generator, inversion.target
    images, confidence, predicted = [], [], []
    with sampling_mode(generator, dropout=False), target.frozen(inversion.device):
        for some in torch.arange(len(latents), device=inversion.device).split(BATCH):
            made = contracts.images(generator, latents[some], condition(some), torch.zeros_like(some))
            sure, given = target(made).softmax(1).max(1)
            images.append(made.cpu())
            confidence += sure.tolist()
            predicted += given.tolist()
    rows = [slice(FRAMES * place, FRAMES * (place + 1)) for place in range(len(ends))]
    made = torch.cat(images)
    return [
        Journey(start, end, made[r], predicted[r], confidence[r]) for (start, end), r in zip(ends, rows, strict=True)
    ]
