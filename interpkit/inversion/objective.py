"""The objective: the target's responses to a batch and the weighted sum of the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition, Generator
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.targets import Response, Target
from interpkit.inversion.ensemble import Ensemble
from interpkit.runtime.distributed import Share
from interpkit.runtime.micro_batch import in_pieces
from interpkit.runtime.profiler import phase


def make(
    generator: Generator, latent: Tensor, condition: Condition, share: Share, micro_batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the images of a whole batch, and those that this process made, its share, ``micro_batch`` at a time."""

    def piece(rows: Tensor) -> Tensor:
        return contracts.images(generator, latent[rows], condition[rows], *made_by(rows))

    def made_by(rows: Tensor) -> list[Tensor]:
        return [rows % len(generator.members)] if isinstance(generator, Ensemble) else []

    if share.size == 1 and micro_batch is None:
        images = contracts.images(generator, latent, condition)
        return images, images
    rows = share.rows(len(latent), latent.device)
    own = torch.cat(in_pieces(piece, rows, micro_batch, generator))
    return share.whole(own, len(latent)), own


def share_buffers(generator: Generator, share: Share) -> None:
    """Give every process the statistics of the generators that others run; weights are equal on all as it is."""
    if share.size > 1 and isinstance(generator, Ensemble):
        for number, member in enumerate(generator.members):
            for buffer in member.buffers():
                buffer.copy_(share.from_rank(number % share.size, buffer))


def objective(
    generated: GeneratedBatch,
    losses: Mapping[str, tuple[float, InversionLoss]],
    layers: Sequence[str],
    rng: torch.Generator,
    autocast: torch.autocast,
    share: Share | None = None,
    micro_batch: int | None = None,
    looking: Target | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor], Response]:
    """Let the target look at a batch and at the terms' views of it, and weigh what it says.

    Args:
        generated: the batch.
        losses: by name, each with its weight.
        layers: all that the losses read beyond the target's default.
        rng: of the losses' views.
        autocast: the precision in which the target looks.
        share: of the images that this process looks at; all if left out.
        micro_batch: how many the target looks at together; all if left out.
        looking: looks in place of the batch's target (`interpkit.targets.fuse_batchnorm`); that itself if left out.
        own: the images that this process looks at, as it made them, which spares an exchange of their gradient.

    Returns:
        the sum of the weighted terms; the terms by name, without their weights; the response to the images.

    Example:
        >>> import torch
        >>> from interpkit import Condition, GeneratedBatch, objective, wrap
        >>> from interpkit_losses import CrossEntropy
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> condition = Condition(torch.tensor([1]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 0))
        >>> batch = GeneratedBatch(target, condition, torch.zeros(1, 8), torch.zeros(1, 2), progress=0.0)
        >>> losses, autocast = {"ce": (2.0, CrossEntropy(target))}, torch.autocast("cpu", enabled=False)
        >>> total, terms, response = objective(batch, losses, [], torch.Generator(), autocast)
        >>> total, terms
        (tensor(1.3863), {'ce': tensor(0.6931)})
    """
    views = {}
    with autocast:
        for name, (_, loss) in losses.items():
            with phase(f"views of {name}"):
                views[name] = contracts.views(loss, generated, rng)
        seen_by = looking or generated.target
        response, view_responses = look(seen_by, generated.images, views, layers, share, micro_batch, own)
    total = generated.images.new_zeros(())
    values = {}
    for name, (weight, term) in losses.items():
        batch = InversionBatch(
            generated.target,
            generated.condition,
            generated.latent,
            generated.images,
            generated.progress,
            response,
            views[name],
            view_responses.get(name),
        )
        with phase(f"term {name}"):
            values[name] = contracts.term(term, batch)
        total = total + weight * values[name]
    return total, values, response


def look(
    target: Target,
    images: Tensor,
    views: dict[str, Tensor | None],
    layers: Sequence[str],
    share: Share | None = None,
    micro_batch: int | None = None,
    own: Tensor | None = None,
) -> tuple[Response, dict[str, Response]]:
    """Let the target look at the images, and at all views together; return the response and each view's slice."""
    share = share or Share()
    with phase("look at images"):
        response = shared_look(target, images, layers, share, micro_batch, own)
    asked = {name: tensor for name, tensor in views.items() if tensor is not None}
    if not asked:
        return response, {}
    # A look of their own: a slice of a common one would cost a gradient of zeros for all the others, layer by layer.
    with phase("look at views"):
        seen = shared_look(target, torch.cat(list(asked.values())), layers, share, micro_batch)
    responses, start = {}, 0
    for name, tensor in asked.items():
        responses[name] = seen[start : start + len(tensor)] if len(asked) > 1 else seen
        start += len(tensor)
    return response, responses


def shared_look(
    target: Target,
    images: Tensor,
    layers: Sequence[str],
    share: Share,
    micro_batch: int | None,
    own: Tensor | None = None,
) -> Response:
    """Return the response to all images, of which this process looks at its share, ``micro_batch`` at a time."""
    if share.size == 1 and micro_batch is None:
        return target.respond(images, layers)
    if own is None:
        own = images[share.rows(len(images), images.device)]
    rows = torch.arange(len(own), device=own.device)
    parts = in_pieces(lambda piece: target.respond(own[piece], layers), rows, micro_batch, target)
    seen = [part.features for part in parts]
    features = {layer: torch.cat([some[layer] for some in seen]) for layer in seen[0]}
    logits, *wholes = share.wholes([torch.cat([part.logits for part in parts]), *features.values()], len(images))
    return Response(logits, dict(zip(features, wholes, strict=True)), parts[0].feature_layer)


def draw(classes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return ``count`` labels, (count,), drawn uniformly from the classes."""
    return classes[torch.randint(len(classes), (count,), device=classes.device, generator=rng)]


def falling(progress: float, decay: float) -> float:
    """Return the factor of the learning rate: 1, then falling linearly to 0 over the last ``decay``.

    Example:
        >>> from interpkit import falling
        >>> [falling(progress, decay=0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    return 1.0 if decay == 0 else min(1.0, (1.0 - progress) / decay)
