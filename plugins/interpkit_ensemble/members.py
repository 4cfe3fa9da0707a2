"""The members of an ensemble: classifiers from files, and small networks that are trained for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit import LabelledImages, Target, UsageError, load_target, shift_and_flip

BATCH = 64
RATE = 4e-3
SHIFT = 0.07
"""The most that a training image is shifted, as a share of its side."""
BLENDED = 0.7
"""The share of the training images that are blended with a random field."""
WIDTH, HIDDEN = 16, 64
SIDE = 8
"""Convolutions halve the sides of an image until the shorter one is at most this."""


def load_members(paths: Sequence[str], target: Target) -> list[Target]:
    """Load classifiers that accept the target's images and have its classes.

    Raises:
        UsageError: a member differs from the target in its inputs or classes, passes no gradient, or is the same
            classifier as the target or an earlier member.
        ModelError: a file cannot be loaded.
    """
    members: list[Target] = []
    device = device_of(target)
    images = torch.rand(8, *target.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    for path in paths:
        member = load_target(path)
        shapes = [one.description.input_shape or one.input_shape for one in (member, target)]
        if member.input_shape != target.input_shape or (min(map(len, shapes)) > 1 and shapes[0] != shapes[1]):
            raise UsageError(
                f"the member {path} takes inputs of {shapes[0]}; {target.name} takes {shapes[1]}. "
                "Members receive the same images as the target: name classifiers of that size."
            )
        ours, theirs = ([name.casefold() for name in one.class_names] for one in (target, member))
        named = sorted(ours) == sorted(theirs) or not any(all(map(str.isdigit, names)) for names in (ours, theirs))
        if len(ours) != len(theirs) or (named and ours != theirs) or member.multi_label != target.multi_label:
            raise UsageError(
                f"the member {path} has {len(theirs)} classes ({', '.join(member.class_names[:4])}, ...); "
                f"{target.name} has {len(ours)} ({', '.join(target.class_names[:4])}, ...). Members have the target's "
                "classes in the same order: name others."
            )
        if member.no_gradient:
            raise UsageError(f"the member {path} passes no gradient: {member.no_gradient}. Name another file of it.")
        member.requires_grad_(False).to(device)
        for other in (target, *members):
            with torch.no_grad(), other.frozen():
                alike = torch.equal(answers(member, images, target), answers(other, images, target))
            if alike:
                raise UsageError(
                    f"the member {path} answers as {other.origin or other.name} does, so the two can never disagree. "
                    "Name each classifier once, and not the target."
                )
        members.append(member)
    return members


def answers(member: nn.Module, images: Tensor, target: Target) -> Tensor:
    """Return a member's logits for images in [0, 1]; vectors are converted from the target's range to its own."""
    if isinstance(member, Target) and images.dim() == 2 and member is not target:
        images = member.to_unit(target.from_unit(images))
    logits: Tensor = member(images)
    return logits


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's weights."""
    return next(module.parameters(), torch.empty(0)).device


@torch.enable_grad()
def train_members(target: Target, data: LabelledImages, count: int, steps: int, *, taught: bool) -> nn.ModuleList:
    r"""Train small networks to recognize the classes, and to be unsure of images that show none.

    Each starts from its own random weights and is trained on its own sample of the images, as many as there are, drawn
    with replacement (bagging, Breiman 1996). Most images x are blended with a random field u, which shows no class:

    .. math:: \tilde x = (1 - a) x + a u, \qquad \tilde q = (1 - a) q + a / n, \qquad a \sim U(0, 1)

    with q the label, or the target's answer, and n classes (1/2 instead of 1/n if they do not exclude each other). The
    members thus become gradually surer on the way from noise to an image, whereas a network that has only seen images
    is sure almost everywhere. After mixup (Zhang et al. 2018).

    Args:
        target: the classifier whose classes they learn.
        data: labeled images in [0, 1].
        count: the number of members.
        steps: number of batches that each is trained on.
        taught: whether to train them on the target's probabilities instead of the labels.

    Raises:
        UsageError: a class has no image, so the members could not learn it.
    """
    device = device_of(target)
    images, labels = data.images, data.labels
    if target.sources.get("units") == "given" and not taught:
        raise UsageError(
            f"the classes of {target.name} are units, of which the images have no labels. Set the option 'answers' of "
            "the loss 'disagreement', which teaches the members the target's answers."
        )
    missing = [target.class_names[label] for label in sorted(set(range(target.num_classes)) - set(labels.tolist()))]
    if missing and not taught:
        raise UsageError(
            f"the members learn from images of which none shows {', '.join(missing[:5])} ({len(missing)} missing). "
            "Add some, or set the option 'answers' of the loss 'disagreement', which teaches the target's answers."
        )
    members = nn.ModuleList()
    for number in range(count):
        rng = torch.Generator().manual_seed(number)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(number)
            member = network(target.input_shape, target.num_classes).to(device)
        optimizer = torch.optim.AdamW(member.parameters())
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(2, steps))
        own = torch.randint(len(images), (len(images),), generator=rng)
        for _ in range(steps):
            rows = own[torch.randint(len(own), (min(BATCH, len(own)),), generator=rng)]
            clean = shift_and_flip(images[rows], SHIFT, False, rng) if images.dim() == 4 else images[rows]
            share = torch.rand(len(rows), generator=rng) * (torch.rand(len(rows), generator=rng) < BLENDED)
            column = share.view(-1, *[1] * (images.dim() - 1))
            blended = (1 - column) * clean + column * random_fields(clean, rng)
            wanted = F.one_hot(labels[rows], target.num_classes).float().to(device)
            if taught:
                with torch.no_grad(), target.frozen():
                    wanted = target.probabilities(target(clean.to(device)))
            share = share[:, None].to(device)
            wanted = (1 - share) * wanted + share * target.probabilities(torch.zeros_like(wanted))
            loss = target.divergence(member(blended.to(device)), wanted).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
        members.append(member)
    return members.requires_grad_(False)


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return a small network without layers that behave differently in training and evaluation."""
    layers: list[nn.Module] = []
    if len(input_shape) == 1:
        layers += [nn.Linear(input_shape[0], HIDDEN), nn.ReLU()]
        values = HIDDEN
    else:
        channels, height, width = input_shape
        after = WIDTH
        while min(height, width) > SIDE or not layers:
            layers += [nn.Conv2d(channels, after, 3, 2, 1), nn.ReLU()]
            channels, after, height, width = after, min(2 * after, 128), -(-height // 2), -(-width // 2)
        layers.append(nn.Flatten())
        values = channels * height * width
    return nn.Sequential(*layers, nn.Linear(values, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))


def random_fields(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return random fields in [0, 1] of the shape of the images, from smooth to noisy and from dark to bright."""
    each = (len(images), *[1] * (images.dim() - 1))
    noise = torch.randn(images.shape, generator=rng)
    if images.dim() == 4:
        coarse = torch.randn(*images.shape[:2], *(-(-side // 4) for side in images.shape[2:]), generator=rng)
        share = torch.rand(each, generator=rng)
        smooth = F.interpolate(coarse, images.shape[2:], mode="bicubic")
        noise = share * smooth + (1 - share) * noise
    return (2 * noise + 2 * torch.randn(each, generator=rng)).sigmoid()
