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

from interpkit import promises
from interpkit.compiling import compiled, stop_compiling
from interpkit.devices import is_out_of_memory
from interpkit.ensemble import Ensemble
from interpkit.errors import DivergedError, RunError
from interpkit.fallbacks import Fallbacks
from interpkit.folding import folded
from interpkit.interfaces import (
    Condition,
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
from interpkit.profiling import phase
from interpkit.recipe import Recipe
from interpkit.recorder import RECORD_EVERY, Recorder
from interpkit.seeding import derive_seed, random_generator
from interpkit.sharing import Share, in_pieces, share_batch_norms

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
    """Run the loop to the recipe's last step, from the recorder's checkpoint if it has one.

    Where several processes share the batch (see `interpkit.sharing`), all of them draw it, each makes and looks at its
    rows, and all take the same step; the first one records.
    """
    device = torch.device(recipe.device)
    share = Share.current()
    rng = random_generator(device, derive_seed(recipe.seed, "training"))
    terms = nn.ModuleDict({name: loss for name, (_, loss) in losses.items()})
    trained = nn.ModuleDict({"conditioner": conditioner, "generator": generator, "terms": terms})
    trained.to(device).to(memory_format=torch.channels_last).train()
    if share.size > 1:
        share_batch_norms(generator, share.group(recipe.generators))
        torch.manual_seed(derive_seed(recipe.seed, f"process {share.rank}"))  # of dropout
    optimizer = torch.optim.Adam(
        trained.parameters(),
        lr=recipe.optimizer.lr,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        fused=device.type in ("cpu", "cuda"),
    )
    layers = sorted({layer for _, loss in losses.values() for layer in promises.layers(loss, target)})
    classes = None if recipe.labels is None else torch.tensor(recipe.labels, device=device)
    looking, folds = folded(target, layers)
    fallbacks = Fallbacks(recipe, recorder, share)

    def state(step: int) -> dict[str, Any]:
        return snapshot(step, trained, optimizer, rng, share)

    def advance(step: int) -> tuple[Any, ...]:
        """Take a step; return what the recorder is told of it."""
        progress = (step - 1) / recipe.steps
        conditioner.progress = progress
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * fallbacks.rate * falling(progress, recipe.optimizer.decay)

        autocast, micro_batch = fallbacks.autocast, fallbacks.micro_batch
        with autocast:
            with phase("conditioner"):
                labels = None if classes is None else draw(classes, recipe.batch_size, rng)
                condition = promises.condition(conditioner, recipe.batch_size, labels, rng)
                latent = torch.randn(recipe.batch_size, generator.latent_dim, device=device, generator=rng)
            with phase("generator"):
                images, own = make(generator, latent, condition, share, micro_batch)
        generated = GeneratedBatch(target, condition, latent, images, progress)
        loss, values, response = objective(generated, losses, layers, rng, autocast, share, micro_batch, looking, own)

        with phase("backward"):
            optimizer.zero_grad()
            loss.backward()
        with phase("optimizer"):
            share.average(trained.parameters())
            optimizer.step()
        return loss, values, images, response.logits, condition.labels

    def keep(step: int, taken: tuple[Any, ...]) -> bool:
        """Record a step that was taken, and save what is due; say whether it is the last."""
        recorder.step(step, *taken)
        with phase("checkpoints"):
            if step % RECORD_EVERY == 0:
                fallbacks.keep(step, lambda: state(step))
            due, stop = recorder.due(step), recorder.stop_requested
            if share.size > 1:
                # Asked rarely, as the answer waits for the device.
                due, stop = share.any(due, stop) if step % RECORD_EVERY == 0 or step == recipe.steps else (False, False)
            if due:
                share_buffers(generator, share)
                recorder.save(step, state(step) | fallbacks.state(step))
        if stop:
            recorder.flush()
        return stop or step == recipe.steps

    done = 0
    checkpoint = share.from_first(recorder.start())
    recorder.note(folded=folds)
    if checkpoint is not None:
        done = restore(checkpoint, trained, optimizer, rng, share)
        fallbacks.take_up(checkpoint)
        if share.rank > 0:
            recorder.take_up(checkpoint)  # all have to agree on what an explosion is
    else:
        wake(target, generator)
    fallbacks.keep(done, lambda: state(done))

    # Of pieces of a batch, and of processes, the images have to outlive the next run of a graph.
    graphs = device.type == "cuda" and share.size == 1 and recipe.micro_batch is None
    finished = done >= recipe.steps
    with compiled(generator, recipe.compile == "on", mode="reduce-overhead" if graphs else "default"):
        while not finished:
            drawn = randomness(rng)
            try:
                taken = advance(done + 1)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fallbacks.halve(done + 1, error)
                stop_compiling(generator)
                # The same step once more, with what it drew. Running statistics may have seen its batch already.
                set_randomness(drawn, rng)
                continue
            try:
                finished = keep(done + 1, taken)
                done += 1
            except DivergedError as error:
                done = restore(fallbacks.go_back(error), trained, optimizer, rng, share)
                recorder.go_back(done)
            del taken  # its images are not to lie beside the next ones
    share_buffers(generator, share)
    conditioner.progress = 1.0


def make(
    generator: Generator, latent: Tensor, condition: Condition, share: Share, micro_batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the images of a whole batch, and those that this process made, its share, ``micro_batch`` at a time."""

    def piece(rows: Tensor) -> Tensor:
        return promises.images(generator, latent[rows], condition[rows], *made_by(rows))

    def made_by(rows: Tensor) -> list[Tensor]:
        return [rows % len(generator.members)] if isinstance(generator, Ensemble) else []

    if share.size == 1 and micro_batch is None:
        images = promises.images(generator, latent, condition)
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
        looking: looks in place of the batch's target, from `interpkit.folding.folded`; that itself if left out.
        own: the images that this process looks at, as it made them, which spares an exchange of their gradient.

    Returns:
        the sum of the weighted terms; the terms by name, without their weights; the response to the images.
    """
    views = {}
    with autocast:
        for name, (_, loss) in losses.items():
            with phase(f"views of {name}"):
                views[name] = promises.views(loss, generated, rng)
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
            values[name] = promises.term(term, batch)
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
                with promises.blamed(generator):
                    generator.start_at(level)
                log.warning("the target is dead to grey images, so the generator starts at brightness %g", level)
            return
    log.warning("the target has no gradient at any plain image: it may not be possible to invert it")


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
    """Return the factor of the learning rate: 1, then falling linearly to 0 over the last ``decay``."""
    return 1.0 if decay == 0 else min(1.0, (1.0 - progress) / decay)


def snapshot(
    step: int,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    share: Share | None = None,
) -> dict[str, Any]:
    """Return all that the rest of the run depends on, as tensors and plain values.

    Args:
        step: that was the last.
        trained: all networks that are trained.
        optimizer: of their parameters.
        rng: the run's own randomness.
        share: of this process, where several run; each calls this, and its own randomness is kept.
    """
    drawn = randomness(rng)
    return {
        "step": step,
        "trained": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": drawn.pop("rng"),
        "processes": (share or Share()).all(drawn),
    }


def randomness(rng: torch.Generator) -> dict[str, Tensor]:
    """Return the state of the run's randomness and of this process's own, which dropout draws from."""
    drawn = {"rng": rng.get_state(), "global_rng": torch.get_rng_state()}
    if rng.device.type == "cuda":
        drawn["cuda_rng"] = torch.cuda.get_rng_state(rng.device)
    return drawn


def set_randomness(drawn: Mapping[str, Tensor], rng: torch.Generator) -> None:
    """Go back to a state of randomness, or to the parts of it that there are."""
    if "rng" in drawn:
        rng.set_state(drawn["rng"].cpu())
    if "global_rng" in drawn:
        torch.set_rng_state(drawn["global_rng"].cpu())
    if "cuda_rng" in drawn:
        torch.cuda.set_rng_state(drawn["cuda_rng"].cpu(), rng.device)


def restore(
    state: dict[str, Any],
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    share: Share | None = None,
) -> int:
    """Go back to a snapshot; return the number of steps that are done.

    With as many processes as then, each gets its own randomness back; with more or fewer, dropout draws anew.

    Raises:
        RunError: it is of other networks.
    """
    share = share or Share()
    try:
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        set_randomness({"rng": state["rng"]}, rng)
        if len(state["processes"]) == share.size:
            set_randomness(state["processes"][share.rank], rng)
        return int(state["step"])
    except Exception as error:  # whatever torch raises on values that are not its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise RunError(f"the checkpoint does not fit its recipe: {reason}. Start anew by --force.") from error
