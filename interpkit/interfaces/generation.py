"""`Conditioner`, which draws conditions, and `Generator`, which turns them into images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interpkit.interfaces.components import Component, Options


@dataclass(frozen=True)
class ConditionSpec:
    """The sizes of a condition, from which a generator is built.

    Attributes:
        vector_dim: length of `Condition.vector`; 0 if there is none.
        map_channels: channels M of `Condition.maps`; 0 if there are none.
        map_size: the smallest side at which the maps still distinguish the labels; a generator requests maps at
            least this high and wide.
    """

    vector_dim: int
    map_channels: int = 0
    map_size: int = 1


@dataclass(frozen=True)
class Condition:
    """The images that the generator should make: the condition of a batch of B images.

    Attributes:
        labels: (B,) int64, the requested classes.
        distribution: (B, n) float, the soft distribution P over the classes; rows sum to 1, argmax = labels.
            For a `Target.multi_label` target, P_k is the requested probability that label k is present.
        vector: (B, vector_dim) float, the generator's input.
        draw_maps: (height, width) -> (B, M, height, width); None if the condition has no maps.

    Example:
        >>> import torch
        >>> from interpkit import Condition
        >>> soft = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
        >>> condition = Condition(labels=soft.argmax(1), distribution=soft, vector=soft)
        >>> condition.labels, condition.maps(4, 4).shape  # without maps
        (tensor([0, 2]), torch.Size([2, 0, 4, 4]))
    """

    labels: Tensor
    distribution: Tensor
    vector: Tensor
    draw_maps: Callable[[int, int], Tensor] | None = None

    def maps(self, height: int, width: int) -> Tensor:
        """Return the spatial maps, (B, M, height, width) float; M = 0 if the condition has none."""
        if self.draw_maps is None:
            return self.vector.new_zeros(len(self.labels), 0, height, width)
        return self.draw_maps(height, width)

    def __getitem__(self, rows: Tensor) -> Condition:
        maps = self.draw_maps
        some = None if maps is None else lambda height, width: maps(height, width)[rows]
        return Condition(self.labels[rows], self.distribution[rows], self.vector[rows], some)


class Conditioner(Component, nn.Module, ABC):
    """Draws conditions.

    Args:
        num_classes: n, at least 2.
        input_shape: (C, H, W) or (D,), the shape of one image.
        options: an instance of the class's ``Options``; defaults if omitted.
    """

    options: Options
    progress: float = 0.0
    """Completed share of the training, in [0, 1]; the loop sets it before each step, and it is 1 for sampling."""
    anchor: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.options = self.Options() if options is None else options
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The module's device, on which conditions are drawn."""
        return self.anchor.device

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec:
        """The sizes of the conditions that `sample` draws."""

    @abstractmethod
    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw conditions.

        Args:
            batch_size: B.
            labels: (B,) int64, the requested classes; drawn uniformly if omitted.
            rng: source of the randomness, on `device`; the global one if omitted.
        """

    def learn_answers(self, answers: Tensor) -> None:
        """Learn what a target answers, before the training; overriding this is optional.

        A method that has asked a target about many images calls this, so that `sample` can draw such answers.

        Args:
            answers: (N, n), the target's logits, on `device`.
        """

    def of_answers(self, answers: Tensor, *, rng: torch.Generator | None = None) -> Condition:
        """Return the conditions of given answers of a target; overriding this is optional.

        By default, they are drawn for the most probable classes, so they contain nothing else of the answers.

        Args:
            answers: (B, n), logits or log-probabilities, on `device`.
            rng: as for `sample`.
        """
        return self.sample(len(answers), labels=answers.argmax(1), rng=rng)


class Generator(Component, nn.Module, ABC):
    """(latent, condition) -> images in [0, 1].

    Args:
        spec: the sizes of the conditions.
        input_shape: (C, H, W) or (D,), the shape of one image.
        options: an instance of the class's ``Options``; defaults if omitted.
    """

    options: Options
    latent_dim: int
    num_members: int = 1
    """The number of generators in the submodule ``members``. If there are several, `forward` accepts a third argument
    ``member``, (B,) int64: which of them generates each image."""
    modes: int = 0
    """The number of first latents whose largest determines which picture of a class is generated; 0 if none do."""
    poses: int = 0
    """The number of last latents that move a finished picture, say mirror it; at zero they leave it as it is. A fit to
    images keeps them there."""

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.input_shape = input_shape
        self.options = self.Options() if options is None else options

    def start_at(self, level: float) -> None:
        """Make the first images uniformly close to ``level``, in (0, 1); overriding this is optional.

        The loop calls this if the target has no gradient at gray images, the usual start: see
        `interpkit.inversion.warm_start.warm_start`.
        """

    @abstractmethod
    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images (B, *input_shape) in [0, 1].

        Args:
            latent: (B, latent_dim), standard normal.
            condition: the condition of the same B images.
        """
