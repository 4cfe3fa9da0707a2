"""Interpolate between two samples of a generator: latent walks within a class, and morphs between two classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition, Conditioner, Generator
from interpkit.runtime.random import derive_seed, random_generator

FRAMES = 7
BATCH = 64


def walks(generator: Generator, conditioner: Conditioner, classes: Sequence[int], seed: int) -> Tensor:
    r"""Return a walk in each class from one latent to another under one condition, (K, FRAMES, *input_shape).

    .. math:: z(t) = \frac{\sin((1 - t)\omega)}{\sin \omega} z_0 + \frac{\sin(t \omega)}{\sin \omega} z_1,
              \qquad \cos \omega = \frac{z_0 \cdot z_1}{|z_0| |z_1|}

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016, "Sampling generative networks".

    Args:
        generator: a generator in eval mode, so that neighbors differ only in their latent.
        conditioner: a conditioner in eval mode.
        classes: the K classes.
        seed: random seed of the latents and conditions.
    """
    device = conditioner.device
    rng = random_generator(device, derive_seed(seed, "walks"))
    condition = conditioner.sample(len(classes), labels=torch.tensor(classes, device=device), rng=rng)
    size = (len(classes), generator.latent_dim)
    first, last = (torch.randn(size, device=device, generator=rng)[:, None] for _ in range(2))
    cosine = torch.nn.functional.cosine_similarity(first, last, dim=-1)[..., None]
    angle = cosine.clamp(-0.999, 0.999).arccos()
    t = torch.linspace(0, 1, FRAMES, device=device)[:, None]
    latents = (((1 - t) * angle).sin() * first + (t * angle).sin() * last) / angle.sin()
    rows = torch.arange(len(classes), device=device).repeat_interleave(FRAMES)
    return _images(generator, latents.flatten(0, 1), lambda some: condition[rows[some]])


def morphs(
    generator: Generator,
    conditioner: Conditioner,
    classes: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    seed: int,
) -> Tensor:
    """Return morphs between two classes, (P, FRAMES, *input_shape): one latent, and linearly mixed conditions.

    Args:
        generator: a generator in eval mode.
        conditioner: a conditioner in eval mode.
        classes: the classes that the pairs refer to.
        pairs: P pairs of indices into ``classes``; each morph goes from the first to the second.
        seed: random seed of the latent and the conditions.
    """
    device = conditioner.device
    if not pairs:
        return torch.empty(0)
    rng = random_generator(device, derive_seed(seed, "morphs"))
    condition = conditioner.sample(len(classes), labels=torch.tensor(classes, device=device), rng=rng)
    latent = torch.randn(1, generator.latent_dim, device=device, generator=rng)
    start, end = (torch.tensor(ends, device=device).repeat_interleave(FRAMES) for ends in zip(*pairs, strict=True))
    t = torch.linspace(0, 1, FRAMES, device=device).repeat(len(pairs))

    def mixed(some: Tensor) -> Condition:
        one, other, share = condition[start[some]], condition[end[some]], t[some]

        def mix(a: Tensor, b: Tensor) -> Tensor:
            return torch.lerp(a.float(), b.float(), share.view(-1, *[1] * (a.dim() - 1)))

        maps = None if condition.draw_maps is None else lambda h, w: mix(one.maps(h, w), other.maps(h, w))
        labels = torch.where(share < 0.5, one.labels, other.labels)
        return Condition(labels, mix(one.distribution, other.distribution), mix(one.vector, other.vector), maps)

    return _images(generator, latent.expand(len(t), -1), mixed)


def _images(generator: Generator, latents: Tensor, condition: Callable[[Tensor], Condition]) -> Tensor:
    """Generate the images of all rows batch by batch, on the CPU; in an ensemble, the first member makes them."""
    images = []
    for some in torch.arange(len(latents), device=latents.device).split(BATCH):
        images.append(contracts.images(generator, latents[some], condition(some), torch.zeros_like(some)).cpu())
    made = torch.cat(images)
    return made.view(-1, FRAMES, *made.shape[1:])
