"""The default inverter: a conditioned generator is trained against the frozen target.

Network inversion (Suhail & Sethi, "Network Inversion of Convolutional Neural Nets", section 2): minimise

    L = sum_t  w_t * L_t(batch)        over the generator, the conditioner and the terms' own parameters,

where a batch is a condition, the images generated for it and the target's response. Which conditioner,
generator and terms is the recipe's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import RunError
from interpkit.interfaces import (
    Conditioner,
    GeneratedBatch,
    Generator,
    InversionBatch,
    InversionLoss,
    Inverter,
    Parts,
    Response,
    Target,
)
from interpkit.inversion import GeneratorInversion
from interpkit.recipe import Recipe
from interpkit.recorder import Recorder
from interpkit.seeding import derive_seed, random_generator

log = logging.getLogger("interpkit")


class GeneratorInverter(Inverter):
    """Trains a conditioned generator of everything that the target takes for each class."""

    name = "generator"
    needs = ("conditioner", "generator", "loss")

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> GeneratorInversion:
        """Train the generator; see `Inverter.invert`."""
        assert parts.conditioner is not None and parts.generator is not None  # `assembly.build` saw to it
        train(target, parts.conditioner, parts.generator, parts.losses, recipe, recorder)
        return GeneratorInversion(target, recipe, recorder.history, parts.generator, parts.conditioner)


def train(
    target: Target,
    conditioner: Conditioner,
    generator: Generator,
    losses: Mapping[str, tuple[float, InversionLoss]],
    recipe: Recipe,
    recorder: Recorder,
) -> None:
    """Run the loop to the recipe's last step, from the recorder's checkpoint if it has one."""
    device = torch.device(recipe.device)
    rng = random_generator(device, derive_seed(recipe.seed, "training"))
    terms = nn.ModuleDict({name: loss for name, (_, loss) in losses.items()})
    trained = nn.ModuleDict({"conditioner": conditioner, "generator": generator, "terms": terms})
    trained.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(
        trained.parameters(),
        lr=recipe.optimizer.lr,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        fused=device.type in ("cpu", "cuda"),
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    layers = sorted({layer for _, loss in losses.values() for layer in loss.layers(target)})
    classes = None if recipe.labels is None else torch.tensor(recipe.labels, device=device)

    done = 0
    checkpoint = recorder.start()
    if checkpoint is not None:
        done = restore(checkpoint, trained, optimizer, rng)
    else:
        wake(target, generator)

    for step in range(done + 1, recipe.steps + 1):
        progress = (step - 1) / recipe.steps
        conditioner.progress = progress
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * falling(progress, recipe.optimizer.decay)

        with autocast:
            labels = None if classes is None else draw(classes, recipe.batch_size, rng)
            condition = conditioner.sample(recipe.batch_size, labels=labels, rng=rng)
            latent = torch.randn(recipe.batch_size, generator.latent_dim, device=device, generator=rng)
            images = generator(latent, condition).float()
        generated = GeneratedBatch(target, condition, latent, images, progress)
        loss, values, response = objective(generated, losses, layers, rng, autocast)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        recorder.step(step, loss, values, images, response.logits, condition.labels)
        if recorder.due(step):
            recorder.save(step, snapshot(step, trained, optimizer, rng))
        if recorder.stop_requested:
            break
    recorder.flush()
    conditioner.progress = 1.0


def objective(
    generated: GeneratedBatch,
    losses: Mapping[str, tuple[float, InversionLoss]],
    layers: Sequence[str],
    rng: torch.Generator,
    autocast: torch.autocast,
) -> tuple[Tensor, dict[str, Tensor], Response]:
    """Let the target look at a batch and at the terms' views of it, and weigh what it says.

    Args:
        generated: the batch.
        losses: by name, each with its weight.
        layers: all that the losses read beyond the target's default.
        rng: of the losses' views.
        autocast: the precision in which the target looks.

    Returns:
        the sum of the weighted terms; the terms by name, without their weights; the response to the images.
    """
    with autocast:
        views = {name: loss.views(generated, rng) for name, (_, loss) in losses.items()}
        response, view_responses = look(generated.target, generated.images, views, layers)
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
        values[name] = term(batch)
        total = total + weight * values[name]
    return total, values, response


LEVELS = (0.5, 0.25, 0.1, 0.02, 0.005, 0.001, 0.75, 0.9, 0.98)
"""Brightnesses to start at: grey as ever, then darker, then brighter."""


def wake(target: Target, generator: Generator) -> None:
    """Start the generator where the target is alive: where its logits have a gradient with respect to the image.

    All units of a classifier of ReLUs may be off for a grey image, and then nothing is ever learned. The first of
    `LEVELS` with a gradient is taken; where that is grey, nothing is done.
    """
    device = next((t.device for t in (*target.parameters(), *target.buffers())), torch.device("cpu"))
    for level in LEVELS:
        image = torch.full((1, *target.input_shape), level, device=device, requires_grad=True)
        logits = target(image)
        (slope,) = torch.autograd.grad(logits.logsumexp(1).sum(), image, allow_unused=True)
        if slope is not None and slope.any():
            if level != LEVELS[0]:
                generator.start_at(level)
                log.warning("the target is dead to grey images, so the generator starts at brightness %g", level)
            return
    log.warning("the target has no gradient at any plain image: it may not be possible to invert it")


def look(
    target: Target, images: Tensor, views: dict[str, Tensor | None], layers: Sequence[str]
) -> tuple[Response, dict[str, Response]]:
    """Let the target look at the images, and at all views together; return the response and each view's slice."""
    response = target.respond(images, layers)
    asked = {name: tensor for name, tensor in views.items() if tensor is not None}
    if not asked:
        return response, {}
    # A look of their own: a slice of a common one would cost a gradient of zeros for all the others, layer by layer.
    seen = target.respond(torch.cat(list(asked.values())), layers)
    responses, start = {}, 0
    for name, tensor in asked.items():
        responses[name] = seen[start : start + len(tensor)] if len(asked) > 1 else seen
        start += len(tensor)
    return response, responses


def draw(classes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return ``count`` labels, (count,), drawn uniformly from the classes."""
    return classes[torch.randint(len(classes), (count,), device=classes.device, generator=rng)]


def falling(progress: float, decay: float) -> float:
    """Return the factor of the learning rate: 1, then falling linearly to 0 over the last ``decay``."""
    return 1.0 if decay == 0 else min(1.0, (1.0 - progress) / decay)


def snapshot(step: int, trained: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> dict[str, Any]:
    """Return all that the rest of the run depends on, as tensors and plain values."""
    state: dict[str, Any] = {
        "step": step,
        "trained": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": rng.get_state(),
        "global_rng": torch.get_rng_state(),
    }
    if rng.device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(rng.device)
    return state


def restore(state: dict[str, Any], trained: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> int:
    """Go back to a snapshot; return the number of steps that are done.

    Raises:
        RunError: it is of other networks.
    """
    try:
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        rng.set_state(state["rng"].cpu())
        torch.set_rng_state(state["global_rng"].cpu())
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), rng.device)
        return int(state["step"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"the checkpoint does not fit its recipe: {reason}. Start anew by --force.") from error
