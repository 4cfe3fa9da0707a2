"""The inverter ``landscape``: trains a map from Z to images so that a few steps of descent in Z suffice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import (
    GeneratedBatch,
    InversionLoss,
    Inverter,
    ObjectiveValue,
    Parts,
    Recipe,
    Recorder,
    RunError,
    StoredInversion,
    Target,
    TrainingState,
    derive_seed,
    random_generator,
    set_learning_rate,
)
from interpkit_landscape.descent import Descent, Theta, numbers
from interpkit_landscape.result import FILE, LandscapeInversion

END = "after descent"


class Landscape(Inverter):
    r"""Learns a map theta from Z to images with which a few steps of descent in Z reach a low objective.

    .. math:: \min_\theta \; \mathbb{E}_{t, y} \, L(\theta(z_t, y), y), \qquad
              z_{t+1} = z_t - \alpha \, g_t / \mathrm{rms}(g_t), \quad g_t = \nabla_z L(\theta(z_t, y), y)

    L are the recipe's terms, Z has the shape of an image, z_0 is standard normal, and :math:`t = 0, \ldots, T`. Each
    step of the run alternates the two. First, with theta frozen, a batch of points takes T steps, and its paths go into
    a buffer. Then theta takes ``updates`` steps of Adam with the recipe's ``optimizer`` settings: the first at the ends
    of the new paths, the others at random points of the buffer. The history records the mean of L over the new paths
    and, as ``after descent``, L at their ends. An image is drawn by T steps from a new point, so the run can draw any
    number.

    Source: after Liu et al., "Landscape Learning for Neural Network Inversion" (2022), which inverts generators and
    other networks. We could not verify the architecture of theta, the rate and the size of the buffer, because we found
    neither the code nor these details. The steps of equal length are ours; with them, a rate means the same for every
    classifier.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["landscape"], steps=5, batch_size=8)
        >>> inversion.sample(per_class=2)[0].shape, inversion.trained_gradients  # 5 steps of 8 images, 5 + 5 times
        (torch.Size([6, 1, 8, 8]), 400)
    """

    name = "landscape"
    needs = ("loss",)
    ignores = ("classes_per_batch", "compile")

    class Options(interpkit.Options):
        """The descent in Z, and how theta is trained."""

        descent: int = Field(5, ge=1, le=1000, description="steps of descent in Z for each image")
        rate: float = Field(1.0, gt=0, le=100, description="root mean square of a step in Z")
        width: int = Field(16, ge=1, le=1024, description="channels of the two hidden layers of theta")
        updates: int = Field(5, ge=1, le=1000, description="steps of theta after each batch of paths")
        buffer: int = Field(1024, ge=1, le=1_000_000, description="the last points of the paths, from which it learns")

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> LandscapeInversion:
        """Train theta; see `Inverter.invert`."""
        device, opt = torch.device(recipe.device), self.options
        rng = random_generator(device, derive_seed(recipe.seed, self.name))
        descent = self._descent(target, recipe, parts.losses)
        descent.trained.to(device).train()
        betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
        optimizer = torch.optim.Adam(descent.trained.parameters(), lr=recipe.optimizer.lr, betas=betas)
        classes = torch.tensor(range(target.num_classes) if recipe.labels is None else recipe.labels, device=device)
        state = _Training(descent, optimizer, rng, opt.buffer, device)
        recorder.resume(state)
        for step in recorder.training_steps(state):
            progress = (step - 1) / recipe.steps
            set_learning_rate(optimizer, recipe, progress)
            labels = classes[torch.randint(len(classes), (recipe.batch_size,), device=device, generator=rng)]
            z = torch.randn(recipe.batch_size, *target.input_shape, device=device, generator=rng)
            path, values = descent.path(z, labels, progress, rng)
            state.keep(path, labels)
            batch, value = state.learn(path[-1], labels, progress)
            for _ in range(opt.updates - 1):
                state.learn(*state.draw(recipe.batch_size), progress)
            loss, *means = torch.stack([*values, numbers(value)]).mean(0)
            terms = {**dict(zip(value.terms, means, strict=True)), END: value.total}
            recorder.step(step, loss, terms, batch.images, value.response.logits, labels)
        return LandscapeInversion(target, recipe, recorder.history, descent, opt.updates)

    def load(self, stored: StoredInversion) -> LandscapeInversion:
        """Return the inversion with the theta stored in the run; see `Inverter.load`."""
        descent = self._descent(stored.target, stored.recipe, stored.losses())
        inversion = LandscapeInversion(stored.target, stored.recipe, stored.history, descent, self.options.updates)
        inversion.restore(stored.tensors(FILE))
        return inversion

    def _descent(self, target: Target, recipe: Recipe, losses: Mapping[str, tuple[float, InversionLoss]]) -> Descent:
        opt, device = self.options, torch.device(recipe.device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        theta = Theta(target.input_shape, target.num_classes, opt.width)
        return Descent(target, losses, theta, opt.descent, opt.rate, autocast, recipe.micro_batch)


class _Training(TrainingState):
    """Theta, its optimizer, and the buffer of points that it learns from, with their labels."""

    def __init__(
        self,
        descent: Descent,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
        size: int,
        device: torch.device,
    ) -> None:
        super().__init__(descent.trained, optimizer, rng)
        self.descent, self.size = descent, size
        self.points = torch.zeros(0, *descent.target.input_shape, device=device)
        self.labels = torch.zeros(0, dtype=torch.int64, device=device)

    def keep(self, path: list[Tensor], labels: Tensor) -> None:
        """Add paths to the buffer, which drops its oldest points."""
        self.points = torch.cat([self.points, *path])[-self.size :]
        self.labels = torch.cat([self.labels, labels.repeat(len(path))])[-self.size :]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return random points of the buffer and their labels."""
        rows = torch.randint(len(self.labels), (count,), device=self.labels.device, generator=self.rng)
        return self.points[rows], self.labels[rows]

    def learn(self, points: Tensor, labels: Tensor, progress: float) -> tuple[GeneratedBatch, ObjectiveValue]:
        """Update theta once at some points; return their images and the objective before the update."""
        batch, value = self.descent.value(points, labels, progress, self.rng)
        self.optimizer.zero_grad()
        value.total.backward()
        self.optimizer.step()
        return batch, value

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {**super().state_dict(), "points": self.points, "labels": self.labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            RunError: the state is of another run.
        """
        points: Tensor = state_dict.get("points", self.points)
        labels: Tensor = state_dict.get("labels", self.labels)
        fits = points.shape[1:] == self.points.shape[1:] and labels.shape == points.shape[:1]
        if not fits or not 0 < len(points) <= self.size:
            raise RunError("the checkpoint does not fit its recipe.")
        super().load_state_dict(state_dict)
        self.points, self.labels = points.to(self.points), labels.to(self.labels)
