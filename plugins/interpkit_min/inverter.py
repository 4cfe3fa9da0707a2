"""The inverter `min`: an inverse map from classes and scores to pictures, learned from the target's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from interpkit import (
    Generator,
    Inverter,
    Parts,
    PictureOptions,
    Queries,
    QueryOptions,
    Recipe,
    Recorder,
    StoredInversion,
    Target,
    TrainingState,
    UsageError,
    derive_seed,
    random_generator,
    set_learning_rate,
)
from interpkit_min.critic import Critic
from interpkit_min.results import MinInversion
from interpkit_min.scores import Score, log_odds

LEAST = 5
"""The fewest pictures from which a class is learned."""
WATCHED, WATCH_EVERY = 16, 10
"""The number of images that the target classifies to monitor the training, and the steps between such batches."""
MEMORY = 0.995
"""The decay of the moving average of the generator's weights, which is the result."""


class Min(Inverter):
    r"""Learns to make pictures of a given class and score, for scores up to and above those in the data.

    The score of a picture is the target's log-odds of the class that it predicts. A conditional GAN learns the inverse
    map :math:`G(z, y, s)` from pictures without labels, by the hinge loss with one critic step for each generator step.
    It sees pictures with high scores more often (`reweighted`). A forward model :math:`\hat f` on the critic's features
    learns the scores of the pictures, and the generator minimizes

    .. math:: -D(G(z, y, s), y, s) + \lambda \, (\hat f_y(G(z, y, s)) - s)^2

    with scores in standard deviations of the class's scores. The result is a moving average of the generator. To draw
    an image, a score is drawn from `Score` and a latent is inferred for it (`MinInversion.reach`). The training uses
    the target's answers alone; the inference follows the target's gradient if it has one and ``inference`` allows it.

    Source: after Kumar & Levine, "Model Inversion Networks for Model-Based Optimization" (2020), with the reweighting
    of their public code. Their scores are of designs, not of classes. The critic, the term of the forward model and
    the search for latents are not theirs.

    Example:
        >>> import numpy, torch
        >>> from interpkit import invert, wrap
        >>> numpy.savez("public.npz", images=numpy.random.rand(200, 4).astype("float32"))  # without labels
        >>> target = wrap(torch.nn.Linear(4, 2, bias=False), input_shape=(4,), mean=0.5)
        >>> inversion = invert(target, inverter="min", steps=10, options={"min.data": "public.npz"})
        >>> images, scores = inversion.reach(torch.tensor([0, 1]), torch.tensor([0.1, 0.2]))
        >>> images.shape, scores.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """

    name = "min"
    needs = ("conditioner", "generator")
    needs_conditioner = Score
    needs_gradient = False
    ignores = ("micro_batch", "classes_per_batch", "compile")
    waivers = {"converges": "a generator and its critic oppose each other, so that neither loss has to fall"}

    class Options(PictureOptions, QueryOptions):
        """The pictures and queries, the critic, and the inference of latents."""

        width: int = Field(24, ge=1, le=1024, description="channels of the critic's first layer")
        agreement: float = Field(1.0, ge=0, le=1000, description="weight of the forward model's term")
        inference: Literal["gradient", "selection", "none"] = Field(
            "gradient",
            description="how latents are inferred: by the classifier's gradient (by selection if it has none), by "
            "selection of the best of several, or not at all",
        )
        tries: int = Field(4, ge=1, le=1000, description="latents tried for each image, each a query")

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> MinInversion:
        """Query the target about the pictures, and train; see `Inverter.invert`."""
        conditioner, generator = parts.conditioner, parts.generator
        assert isinstance(conditioner, Score) and generator is not None  # as `needs_conditioner` and `needs` say
        if target.multi_label:
            raise UsageError(
                f"the inverter 'min' learns from pictures of one class each, and those of {target.name} do not exclude "
                "each other. Use another inverter."
            )
        if recipe.generators > 1:
            raise UsageError("the inverter 'min' trains one generator: leave --generators out.")
        if parts.start is not None:
            raise UsageError("the inverter 'min' learns from the pictures that you name: leave the warm start out.")
        training = _Training(self.options, target, recipe, conditioner, generator)
        recorder.resume(training)
        empty = training.read(self.options.pictures(target, least=LEAST), recorder)
        for step in recorder.training_steps(training):
            training.move(step, recorder)
        average = training.average.module
        return self._inversion(target, recipe, recorder.history, average, conditioner, empty=empty)

    def load(self, stored: StoredInversion) -> MinInversion:
        """Return the inversion with the weights of the run; see `Inverter.load`."""
        generator, conditioner = stored.generator()
        assert isinstance(conditioner, Score)  # which the recipe names
        return self._inversion(stored.target, stored.recipe, stored.history, generator, conditioner, empty=stored.empty)

    def _inversion(self, *parts: Any, empty: Mapping[int, str]) -> MinInversion:
        return MinInversion(*parts, empty=empty, inference=self.options.inference, tries=self.options.tries)


class _Training(TrainingState):
    """The training and the state from which it resumes: the networks, and the target's answers so far."""

    def __init__(
        self, options: Min.Options, target: Target, recipe: Recipe, conditioner: Score, generator: Generator
    ) -> None:
        self.options, self.target, self.recipe = options, target, recipe
        self.conditioner, self.generator = conditioner, generator
        self.device = torch.device(recipe.device)
        self.critic = Critic(target.input_shape, conditioner.spec.vector_dim, target.num_classes, options.width)
        self.average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(MEMORY), use_buffers=True)
        parts: dict[str, nn.Module] = {
            "conditioner": conditioner,
            "generator": generator,
            "critic": self.critic,
            "average": self.average,
        }
        trained = nn.ModuleDict(parts).to(self.device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(
            [*generator.parameters(), *self.critic.parameters()],
            lr=recipe.optimizer.lr,
            betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
            fused=self.device.type in ("cpu", "cuda"),
        )
        super().__init__(trained, optimizer, random_generator(self.device, derive_seed(recipe.seed, "min")))
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        self.queries = Queries(target, options, batch_size=recipe.batch_size, device=self.device)
        self.watched: tuple[Tensor, Tensor, Tensor] | None = None

    def read(self, pictures: Tensor, recorder: Recorder) -> dict[int, str]:
        """Query the target about the pictures and learn their scores; return the classes without enough of them.

        Raises:
            UsageError: no class has enough.
        """
        answers = self.queries.collect(pictures, recorder, self)
        labels = answers.argmax(1)
        scores, weights = log_odds(self.target, answers, labels), torch.zeros(len(labels))
        empty = {}
        for label in range(self.target.num_classes) if self.recipe.labels is None else self.recipe.labels:
            own = labels == label
            if (count := int(own.sum())) >= LEAST:
                weights[own] = self.conditioner.learn(label, scores[own]) / count
            else:
                empty[label] = f"the classifier assigns {count} of the {len(labels)} pictures to it, fewer than {LEAST}"
        if not weights.any():
            raise UsageError(
                f"{self.options.data} has too few pictures of each class: the classifier assigns fewer than {LEAST} of "
                f"its {len(labels)} pictures to any. Name more pictures, or pictures more like those of the classes."
            )
        self.pictures, self.labels = pictures, labels.to(self.device)
        self.scores, self.weights = scores.to(self.device), weights.to(self.device)
        return empty

    def move(self, step: int, recorder: Recorder) -> None:
        """Train the critic, then the generator, on one batch."""
        set_learning_rate(self.optimizer, self.recipe, (step - 1) / self.recipe.steps)
        size = self.recipe.batch_size
        rows = self.weights.multinomial(size, replacement=True, generator=self.rng)
        condition = self.conditioner.at(self.labels[rows], self.scores[rows])
        labels, vector, scores = condition.labels, condition.vector, condition.vector[:, -1]
        real = self.pictures[rows.cpu()].to(self.device)
        latent = torch.randn(size, self.generator.latent_dim, device=self.device, generator=self.rng)
        with self.autocast:
            made = self.generator(latent, condition).float()
        value, expected = self._judge(torch.cat([real, made.detach()]), labels.repeat(2), vector.repeat(2, 1))
        told_apart = (F.relu(1 - value[:size]) + F.relu(1 + value[size:])).mean()
        known = F.mse_loss(expected[:size], scores)
        self.optimizer.zero_grad()
        (told_apart + known).backward()
        self.optimizer.step()

        self.critic.requires_grad_(False)
        value, expected = self._judge(made, labels, vector)
        realism, agreement = -value.mean(), F.mse_loss(expected, scores)
        loss = realism + self.options.agreement * agreement
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.critic.requires_grad_(True)
        self.average.update_parameters(self.generator)

        if self.watched is None or step % WATCH_EVERY == 0:
            images = made[:WATCHED].detach()
            self.watched = images, self.queries(images), labels[:WATCHED]
        terms = {"critic": told_apart, "forward model": known, "realism": realism, "agreement": agreement}
        recorder.step(step, loss, terms, *self.watched)

    def _judge(self, images: Tensor, labels: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast:
            value, expected = self.critic(images, labels, vector)
        return value.float(), expected.float()

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see `TrainingState.state_dict`."""
        own = {"queries": self.queries.state_dict(), "watched": self.watched and list(self.watched)}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; see `TrainingState.load_state_dict`."""
        super().load_state_dict(state_dict)
        self.queries.load_state_dict(state_dict["queries"])
        self.watched = state_dict["watched"] and tuple(part.to(self.device) for part in state_dict["watched"])
