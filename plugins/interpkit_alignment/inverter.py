"""Inversion by background knowledge alignment: a decoder learns to map a classifier's answers to pictures."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from interpkit import (
    GeneratorInversion,
    Inverter,
    Parts,
    PictureOptions,
    Queries,
    QueryOptions,
    Recipe,
    Recorder,
    Target,
    TrainingState,
    UsageError,
    derive_seed,
    random_generator,
    set_learning_rate,
)

log = logging.getLogger("interpkit")

LEAST = 10
WATCHED, WATCHES = 16, 100
"""How many reconstructions the target classifies at a time, for the inversion accuracy in the history, and how many
times it does so in a run."""


class Alignment(Inverter):
    r"""Trains a decoder of the target's answers on pictures that an outsider has.

    .. math:: \min_G \; E_{x \sim \text{data}} \, \|G(\operatorname{trunc}_m(F(x))) - x\|^2

    The target F classifies each picture once, and its gradient is not used. Further queries monitor the training: 16
    reconstructions, about a hundred times. The conditioner converts answers to conditions (`Conditioner.of_answers`);
    ``predictions`` keeps the m largest probabilities. Any generator that accepts a vector will do. The pictures need no
    labels and need not show the target's classes. A class to which the target assigns none of them stays empty.

    Source: after Yang et al., "Neural Network Inversion in Adversarial Setting via Background Knowledge Alignment"
    (2019).

    Example:
        >>> import numpy, torch
        >>> from interpkit import invert, wrap
        >>> numpy.savez("public.npz", images=numpy.random.rand(40, 2).astype("float32"))
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> inversion = invert(target, inverter="alignment", data="public.npz", steps=20, batch_size=16)
        >>> inversion.sample(per_class=3)[0].shape, sorted(inversion.history[-1].terms)
        (torch.Size([6, 2]), ['mse'])
    """

    name = "alignment"
    needs = ("conditioner", "generator")
    needs_gradient = False
    ignores = ("micro_batch", "classes_per_batch", "compile")

    class Options(PictureOptions, QueryOptions):
        """Which pictures to learn from, and how many queries they may cost."""

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> GeneratorInversion:
        """Ask the target about the pictures, and train the decoder; see `Inverter.invert`."""
        conditioner, generator = parts.conditioner, parts.generator
        assert conditioner is not None and generator is not None  # as `needs` says
        if target.multi_label:
            raise UsageError(
                f"{self.name} decodes one distribution over the classes, and each label of {target.name} has a "
                f"probability of its own. Wrap a classifier whose classes exclude each other."
            )
        if parts.start is not None:
            raise UsageError(f"{self.name} learns from the pictures that you name: leave the warm start out.")
        if recipe.labels is not None and recipe.conditions != "all":
            raise UsageError(f"an answer is a distribution over all classes: {self.name} needs conditions = 'all'.")
        device = torch.device(recipe.device)
        rng = random_generator(device, derive_seed(recipe.seed, self.name))
        pictures = self._chosen(target, derive_seed(recipe.seed, "pictures"))
        trained = nn.ModuleList([conditioner, generator])
        trained.to(device).to(memory_format=torch.channels_last).train()
        betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
        optimizer = torch.optim.Adam(trained.parameters(), lr=recipe.optimizer.lr, betas=betas, amsgrad=True)
        queries = Queries(target, self.options, batch_size=recipe.batch_size, device=device)
        state = _State(trained, optimizer, rng, queries)
        recorder.resume(state)
        answers = queries.collect(pictures, recorder, state)
        pictures, answers = pictures.to(device), answers.to(device)
        conditioner.learn_answers(answers)
        every = max(10, recipe.steps // WATCHES)
        for step in recorder.training_steps(state):
            conditioner.progress = (step - 1) / recipe.steps
            set_learning_rate(optimizer, recipe, conditioner.progress)
            rows = torch.randint(len(pictures), (recipe.batch_size,), device=device, generator=rng)
            condition = conditioner.of_answers(answers[rows], rng=rng)
            latent = torch.randn(len(rows), generator.latent_dim, device=device, generator=rng)
            member = [rows % generator.num_members] if generator.num_members > 1 else []
            images = generator(latent, condition, *member)
            error = (images - pictures[rows]).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            if (step - 1) % every == 0 or step == recipe.steps:
                state.watch(images.detach()[:WATCHED], condition.labels[:WATCHED])
            recorder.step(step, error, {"mse": error}, *state.watched)
        conditioner.progress = 1.0
        recorder.note(queries=queries.asked)
        log.info("the classifier was asked about %s images", f"{queries.asked:,}")
        counts = answers.argmax(1).bincount(minlength=target.num_classes).tolist()
        labels = range(target.num_classes) if recipe.labels is None else recipe.labels
        reason = f"the classifier assigns none of the {len(answers):,} pictures to it"
        empty = {label: reason for label in labels if not counts[label]}
        return GeneratorInversion(target, recipe, recorder.history, generator, conditioner, empty=empty)

    def _chosen(self, target: Target, seed: int) -> Tensor:
        """Return the pictures, shuffled, as many as the budget allows."""
        pictures, budget = self.options.pictures(target, least=LEAST), self.options.budget
        if budget is not None and budget < LEAST + WATCHED:
            raise UsageError(
                f"{self.name}.budget is {budget}, and {LEAST} pictures and the {WATCHED} reconstructions of the first "
                f"step take {LEAST + WATCHED} queries. Raise it."
            )
        order = torch.randperm(len(pictures), generator=random_generator(torch.device("cpu"), seed))
        return pictures[order if budget is None else order[: budget - WATCHED]]


class _State(TrainingState):
    """The training state, with the target's answers and the reconstructions that it classified last."""

    def __init__(
        self, trained: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator, queries: Queries
    ) -> None:
        super().__init__(trained, optimizer, rng)
        self.queries = queries
        self.watched: list[Tensor] = []
        """Reconstructions, the target's logits for them, and the classes of the answers that they were decoded from."""

    def watch(self, images: Tensor, labels: Tensor) -> None:
        """Classify reconstructions with the target, unless the budget is used up."""
        if self.queries.left is None or self.queries.left >= len(images):
            self.watched = [images, self.queries(images), labels]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {**super().state_dict(), **self.queries.state_dict(), "watched": self.watched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.queries.load_state_dict(state_dict)
        device = self.queries.device
        self.watched = [tensor.to(device) for tensor in state_dict["watched"]]
