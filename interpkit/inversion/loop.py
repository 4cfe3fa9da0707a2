"""The default inverter: a conditioned generator is trained against the frozen target.

Network inversion (Suhail & Sethi, "Network Inversion of Convolutional Neural Nets", section 2): minimize

    L = sum_t  w_t * L_t(batch)        over the generator, the conditioner and the terms' own parameters,

where a batch is a condition, the images generated for it and the target's response. The recipe names the conditioner,
the generator and the terms.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.errors import UsageError, setting
from interpkit.interfaces import components, contracts
from interpkit.interfaces.generation import Condition, Conditioner, Generator
from interpkit.interfaces.inverters import Inverter, Parts, StoredInversion
from interpkit.interfaces.losses import GeneratedBatch
from interpkit.interfaces.targets import Target
from interpkit.inversion.batch_norms import estimate_batch_norms
from interpkit.inversion.ensemble import sync_buffers
from interpkit.inversion.fitted_start import fit_images, fit_start
from interpkit.inversion.objective import Objective, set_learning_rate
from interpkit.inversion.photographs import shift_and_flip
from interpkit.inversion.recovery import RecoverableTraining
from interpkit.inversion.results import GeneratorInversion
from interpkit.inversion.warm_start import warm_start
from interpkit.runtime.compile import compiled
from interpkit.runtime.devices import autocast
from interpkit.runtime.random import derive_seed, global_seed, random_generator, seed_streams
from interpkit.runtime.recorder import Recorder
from interpkit.runtime.sync_batchnorm import sync_batch_norms


class GeneratorInverter(Inverter):
    """Trains a conditioned generator of inputs that the target assigns to each class.

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
    shares_batch = True

    class Options(components.Options):
        """How images (not vectors) are moved before the target classifies them, and how several generators train."""

        jitter: float | None = Field(
            None, ge=0, le=1, description="largest random shift in a step, as a share of the side; none if omitted"
        )
        flip: bool | None = Field(
            None, description="mirror the batch left to right in half of the steps, if the classes allow it"
        )
        alternate: bool | None = Field(
            None, description="train one of several generators in each step, in turn, instead of all on shared batches"
        )

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> GeneratorInversion:
        """Set up the training, run it, and return the trained generator; see `Inverter.invert`."""
        conditioner, generator, losses = parts.conditioner, parts.generator, parts.losses
        assert conditioner is not None and generator is not None  # as `needs` says
        device = torch.device(recipe.device)
        objective = Objective(target, losses, autocast(device, recipe.precision), recipe.micro_batch)
        rng = random_generator(device, derive_seed(recipe.seed, "training"))

        terms = nn.ModuleDict({name: loss for name, (_, loss) in losses.items()})
        trained = nn.ModuleDict({"conditioner": conditioner, "generator": generator, "terms": terms})
        trained.to(device).to(memory_format=torch.channels_last).train()
        world = objective.world
        if world.size > 1 and self.options.alternate:
            raise UsageError(
                "several processes cannot train one generator after the other: run one process, or "
                f"{setting('inverter.alternate', 'false')}."
            )
        if world.size > 1:
            if recipe.generators < world.size:  # else each process runs generators of its own
                sync_batch_norms(generator, world.subgroup(recipe.generators))
            seed_streams(derive_seed(recipe.seed, f"process {world.rank}"), device)  # each draws its own dropout
        optimizer = torch.optim.Adam(
            trained.parameters(),
            lr=recipe.optimizer.lr,
            betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
            fused=device.type in ("cpu", "cuda"),
        )

        run = RecoverableTraining(trained, optimizer, rng, objective, recipe, recorder)
        resumed = recorder.resume(run)
        if not resumed:
            level = warm_start(target, generator)
            if level is not None:
                fit_start(target, conditioner, generator, recipe, level)
        if parts.start is not None and (not resumed or run.fit is not None):
            images, labels = parts.start
            fit_images(run, conditioner, generator, images, labels)
        run.keep_good_state()
        recorder.note(folded=objective.fuse_batchnorm())
        # The images of a micro-batch, or of one process, have to outlive the next replay of a CUDA graph.
        whole = recipe.micro_batch is None or recipe.micro_batch >= recipe.batch_size
        graphs = device.type == "cuda" and world.size == 1 and whole
        with compiled(generator, recipe.compile == "on", mode="reduce-overhead" if graphs else "default"):
            run.drive(train, run, conditioner, generator, objective, recipe, self.options)
        conditioner.progress = 1.0
        seed = derive_seed(recipe.seed, "batch norms")
        drawn = random_generator(device, seed)
        with global_seed(derive_seed(seed, world.rank), device):  # the dropout
            draw = partial(draw_batch, conditioner, generator, objective, recipe, classes_of(recipe), drawn)
            estimate_batch_norms(nn.ModuleList([conditioner, generator]), draw, recipe.batch_size)
        sync_buffers(generator, world)
        return GeneratorInversion(target, recipe, recorder.history, generator, conditioner)

    def load(self, stored: StoredInversion) -> GeneratorInversion:
        """Return the generator with the weights of the run; see `Inverter.load`."""
        return GeneratorInversion(stored.target, stored.recipe, stored.history, *stored.generator(), empty=stored.empty)


def train(
    run: RecoverableTraining,
    conditioner: Conditioner,
    generator: Generator,
    objective: Objective,
    recipe: Recipe,
    options: GeneratorInverter.Options,
) -> None:
    """Run the remaining steps.

    If several processes share the batch (`interpkit.runtime.distributed`), each draws the whole batch and generates and
    classifies its own rows; all take the same step, and the first process records it.
    """
    rng, optimizer, classes = run.rng, run.optimizer, classes_of(recipe)

    for step in run.steps():  # resumes, saves checkpoints, and stops when asked
        progress = (step - 1) / recipe.steps
        conditioner.progress = progress
        member = (step - 1) % recipe.generators if options.alternate else None
        set_learning_rate(optimizer, recipe, progress, scale=run.lr_scale)

        with objective.autocast:
            condition, latent, images = draw_batch(
                conditioner, generator, objective, recipe, classes, rng, member, check_values=step == 1
            )
        seen = shift_and_flip(images, options.jitter or None, options.flip or False, rng)
        value = objective(GeneratedBatch(objective.target, condition, latent, seen, progress), rng)

        optimizer.zero_grad()
        value.total.backward()
        objective.world.average_gradients(run.trained.parameters())
        optimizer.step()

        run.recorder.step(step, value.total, value.terms, images, value.response.logits, condition.labels)
        del condition, latent, images, seen, value  # frees their memory before the next step needs it


def classes_of(recipe: Recipe) -> Tensor | None:
    """Return the classes to invert, on the recipe's device; None for all."""
    return None if recipe.labels is None else torch.tensor(recipe.labels, device=torch.device(recipe.device))


def draw_batch(
    conditioner: Conditioner,
    generator: Generator,
    objective: Objective,
    recipe: Recipe,
    classes: Tensor | None,
    rng: torch.Generator,
    member: int | None = None,
    check_values: bool = False,
) -> tuple[Condition, Tensor, Tensor]:
    """Draw conditions, of `classes_of` the recipe, and latents, and generate their images.

    If a member is specified, it alone of the ensemble generates them.

    Returns:
        the condition; the latents, (B, latent_dim); the images, (B, *input_shape).
    """
    device, size = torch.device(recipe.device), recipe.batch_size
    if recipe.classes_per_batch is not None:
        known = torch.arange(conditioner.num_classes, device=device) if classes is None else classes
        classes = known[torch.randperm(len(known), device=device, generator=rng)[: recipe.classes_per_batch]]
    labels = None
    if classes is not None:
        labels = classes[torch.randint(len(classes), (size,), device=device, generator=rng)]
    condition = contracts.condition(conditioner, size, labels, rng, check_values=check_values)
    latent = torch.randn(size, generator.latent_dim, device=device, generator=rng)
    return condition, latent, objective.generate(generator, latent, condition, member)
