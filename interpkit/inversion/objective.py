"""The objective: the target's response to a batch of images, and the weighted sum of the loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition, Generator
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.targets import Response, Target
from interpkit.runtime.distributed import World
from interpkit.runtime.micro_batch import in_micro_batches
from interpkit.runtime.profiler import phase
from interpkit.targets.fuse_batchnorm import fuse


@dataclass(frozen=True)
class ObjectiveValue:
    """The objective of one batch.

    Attributes:
        total: the weighted sum of the terms, a scalar with gradient.
        terms: the terms by name, without their weights.
        response: the target's response to the batch's images.
    """

    total: Tensor
    terms: dict[str, Tensor]
    response: Response


class Objective:
    r"""The objective that an inversion minimizes.

    .. math:: L = \sum_t w_t \, L_t(\text{batch})

    The target runs once on the images of a batch, and once on all views that the terms request; each term receives
    the responses to the images and to its own views.

    Args:
        target: the frozen classifier.
        losses: the terms by name, each with its weight.
        autocast: the precision of the networks; the terms themselves are always computed in fp32.
        micro_batch: the number of images in memory at a time; all of them if None.
        layers: the layers that the terms read in addition to the target's default; collected from the terms if omitted.

    Attributes:
        autocast: as above; like ``micro_batch``, it may change between steps.
        world: the processes that share a batch.

    Example:
        >>> import torch
        >>> from interpkit import Condition, GeneratedBatch, Objective, wrap
        >>> from interpkit_losses import CrossEntropy
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> losses, autocast = {"ce": (2.0, CrossEntropy(target))}, torch.autocast("cpu", enabled=False)
        >>> objective = Objective(target, losses, autocast)
        >>> condition = Condition(torch.tensor([1]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 0))
        >>> images = torch.zeros(1, 2, requires_grad=True)
        >>> value = objective(GeneratedBatch(target, condition, torch.zeros(1, 8), images, 0.0), torch.Generator())
        >>> value.terms["ce"].item(), value.response.logits.shape
        (0.6931471824645996, torch.Size([1, 2]))
        >>> value.total.backward()
        >>> images.grad
        tensor([[ 1., -1.]])
    """

    def __init__(
        self,
        target: Target,
        losses: Mapping[str, tuple[float, InversionLoss]],
        autocast: torch.autocast,
        micro_batch: int | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.target = target
        self.losses = losses
        self.autocast = autocast
        self.micro_batch = micro_batch
        if layers is None:
            layers = sorted({layer for _, loss in losses.values() for layer in contracts.layers(loss, target)})
        self.layers = layers
        self.world = World.current()
        self._running = target
        """The classifier that runs instead of the target, with the same responses but possibly faster."""
        self._generated: tuple[Tensor, Tensor] | None = None
        """The last batch of images, and those of its rows that this process generated."""

    def fuse_batchnorm(self) -> int:
        """From now on, run a copy of the target with fused batch norms; return how many were fused."""
        self._running, count = fuse(self.target, self.layers)
        return count

    @phase("generator")
    def generate(self, generator: Generator, latent: Tensor, condition: Condition, member: int | None = None) -> Tensor:
        """Return the images of a whole batch; each process generates its own rows, one micro-batch at a time.

        Args:
            generator: generates the images.
            latent: (B, latent_dim).
            condition: the condition of the same B images.
            member: the only member of an ensemble that generates images; the members take turns if omitted.
        """
        members = torch.arange(len(latent), device=latent.device) % generator.num_members
        if member is not None:
            members = torch.full_like(members, member)
        if self.world.size == 1 and self.micro_batch is None:
            return contracts.images(generator, latent, condition, members)

        def generate(rows: Tensor) -> Tensor:
            return contracts.images(generator, latent[rows], condition[rows], members[rows])

        rows = self.world.rows(len(latent), latent.device)
        local = torch.cat(in_micro_batches(generate, rows, self.micro_batch, generator, "images generated"))
        (images,) = self.world.all_gather(len(latent), local)
        self._generated = images, local
        return images

    def __call__(self, batch: GeneratedBatch, rng: torch.Generator) -> ObjectiveValue:
        """Return the objective of a batch.

        Args:
            batch: the images, with the latents and conditions that they were generated from.
            rng: source of the randomness of the terms' views.
        """
        views, view_responses = {}, {}
        with self.autocast:
            for name, (_, loss) in self.losses.items():
                with phase(f"views of {name}"):
                    views[name] = contracts.views(loss, batch, rng)
            with phase("look at images"):
                response = self._respond(batch.images)
            requests = {name: images for name, images in views.items() if images is not None}
            if requests:
                # Not in one batch with the images: the backward pass of a slice of a joint response would fill the
                # gradient of all other rows with zeros, layer by layer.
                with phase("look at views"):
                    joint = self._respond(torch.cat(list(requests.values())))
                start = 0
                for name, images in requests.items():
                    view_responses[name] = joint[start : start + len(images)] if len(requests) > 1 else joint
                    start += len(images)
        total = batch.images.new_zeros(())
        terms = {}
        for name, (weight, term) in self.losses.items():
            with phase(f"term {name}"):
                full = InversionBatch(
                    **vars(batch), response=response, views=views[name], view_response=view_responses.get(name)
                )
                terms[name] = contracts.term(term, full)
            total = total + weight * terms[name]
        return ObjectiveValue(total, terms, response)

    def _respond(self, images: Tensor) -> Response:
        """Return the response to all images; each process computes it for its own rows, one micro-batch at a time."""
        if self.world.size == 1 and self.micro_batch is None:
            return self._running.respond(images, self.layers)
        generated, self._generated = self._generated, None
        if generated is not None and generated[0] is images:  # this avoids exchanging their gradient
            local = generated[1]
        else:
            local = images[self.world.rows(len(images), images.device)]
        rows = torch.arange(len(local), device=local.device)
        parts = in_micro_batches(
            lambda some: self._running.respond(local[some], self.layers),
            rows,
            self.micro_batch,
            self._running,
            "images classified",
        )
        layers = list(parts[0].features)
        features = [torch.cat([part.features[layer] for part in parts]) for layer in layers]
        logits, *features = self.world.all_gather(len(images), torch.cat([part.logits for part in parts]), *features)
        return Response(logits, dict(zip(layers, features, strict=True)), parts[0].feature_layer)


def objective(
    generated: GeneratedBatch,
    losses: Mapping[str, tuple[float, InversionLoss]],
    layers: Sequence[str],
    rng: torch.Generator,
    autocast: torch.autocast,
    share: World | None = None,
    micro_batch: int | None = None,
    looking: Target | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor], Response]:
    """Return the objective of one batch; for a whole run, an `Objective` is simpler.

    Args:
        generated: the batch.
        losses: the terms by name, each with its weight.
        layers: all layers that the losses read in addition to the target's default.
        rng: source of the randomness of the losses' views.
        autocast: the precision in which the target runs.
        share: the processes that share the batch; a single process if omitted.
        micro_batch: the number of images in memory at a time; all of them if omitted.
        looking: a classifier to run instead of the batch's target, if specified.
        own: the rows of the images that this process generated, which avoids exchanging their gradient.

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
    minimized = Objective(generated.target, losses, autocast, micro_batch, layers)
    minimized.world = share or World()
    minimized._running = looking or generated.target
    minimized._generated = None if own is None else (generated.images, own)
    value = minimized(generated, rng)
    return value.total, value.terms, value.response


def falling(progress: float, decay: float) -> float:
    """Return the factor of the learning rate: 1, then falling linearly to 0 over the last share ``decay`` of the run.

    Example:
        >>> from interpkit import falling
        >>> [falling(progress, decay=0.5) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    return 1.0 if decay == 0 else min(1.0, (1.0 - progress) / decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float, scale: float = 1.0) -> None:
    """Set the learning rate of a step: the recipe's, falling linearly to 0 over the last part of a run.

    Args:
        optimizer: the optimizer to change.
        recipe: provides ``optimizer.lr`` and ``optimizer.decay``, the last share of the run, in which the rate falls.
        progress: completed share of the run, in [0, 1).
        scale: an additional factor of the rate.

    Example:
        >>> import torch
        >>> from interpkit import Recipe, set_learning_rate
        >>> optimizer = torch.optim.SGD([torch.zeros(1)])
        >>> set_learning_rate(optimizer, Recipe(optimizer={"lr": 0.1, "decay": 0.5}), progress=0.75)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """
    for group in optimizer.param_groups:
        group["lr"] = recipe.optimizer.lr * scale * falling(progress, recipe.optimizer.decay)
