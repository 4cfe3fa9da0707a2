"""The default inverter: a conditioned generator is trained against the frozen target.

Network inversion (Suhail & Sethi, "Network Inversion of Convolutional Neural Nets", section 2): minimise

    L = sum_t  w_t * L_t(batch)        over the generator, the conditioner and the terms' own parameters,

where a batch is a condition, the images generated for it and the target's response. Which conditioner,
generator and terms is the recipe's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from interpkit.config.recipe import Recipe
from interpkit.errors import DivergedError
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inverters import Inverter, Parts
from interpkit.interfaces.losses import GeneratedBatch, InversionLoss
from interpkit.interfaces.targets import Target
from interpkit.inversion.checkpoint import randomness, restore, set_randomness, snapshot
from interpkit.inversion.objective import draw, falling, make, objective, share_buffers
from interpkit.inversion.recovery import Fallbacks
from interpkit.inversion.results import GeneratorInversion
from interpkit.inversion.warm_start import wake
from interpkit.runtime.compile import compiled, stop_compiling
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.distributed import Share
from interpkit.runtime.profiler import phase
from interpkit.runtime.random import derive_seed, random_generator
from interpkit.runtime.recorder import RECORD_EVERY, Recorder
from interpkit.runtime.sync_batchnorm import share_batch_norms
from interpkit.targets.fuse_batchnorm import fuse

log = logging.getLogger("interpkit")


class GeneratorInverter(Inverter):
    """Trains a conditioned generator of everything that the target takes for each class.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> target = wrap(torch.nn.Linear(4, 3), input_shape=(4,))
        >>> parts = {"conditioner": "vector", "generator": "dense", "losses": {"cosine": 0.0}}
        >>> inversion = invert(target, ["vecmat"], **parts, steps=10, batch_size=16, seed=0)
        >>> sorted(inversion.history[-1].terms), inversion.sample(per_class=2)[0].shape
        (['ce', 'kl'], torch.Size([6, 4]))
    """

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

    Where several processes share the batch (`interpkit.runtime.distributed`), all of them draw it, each makes
    and looks at its rows, and all take the same step; the first one records.
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
    layers = sorted({layer for _, loss in losses.values() for layer in contracts.layers(loss, target)})
    classes = None if recipe.labels is None else torch.tensor(recipe.labels, device=device)
    looking, folds = fuse(target, layers)
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
                condition = contracts.condition(conditioner, recipe.batch_size, labels, rng)
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
