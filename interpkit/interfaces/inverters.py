"""`Inverter`, a whole inversion method; the `Parts` it may be built of, and the `StoredInversion` that it loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.targets import Target

if TYPE_CHECKING:
    from interpkit.config.recipe import Recipe
    from interpkit.interfaces.inversions import Inversion
    from interpkit.runtime.recorder import Recorder, StepRecord


class Inverter(Component, ABC):
    """Target + recipe -> inversion: a whole inversion method. The conditioned generator is the default one."""

    options: Options
    needs: ClassVar[tuple[str, ...]] = ()
    """The parts that a recipe must name: of ``conditioner``, ``generator``, ``loss``."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> Inversion:
        """Invert the target, which is frozen and on the device of the run.

        Args:
            target: the classifier.
            recipe: resolved: every option is filled in.
            parts: the components that the recipe names.
            recorder: takes each step's values, and holds the checkpoint to resume from.
        """

    def load(self, stored: StoredInversion) -> Inversion:
        """Return the inversion that a run folder holds, as `invert` returned it.

        An inverter whose `Inversion` is a class of its own overrides this. By default it is one of interpkit's: a
        `GeneratorInversion` where the run has a generator, else an `ImageInversion` of the run's samples.
        """
        return stored.default()


class StoredInversion(ABC):
    """What a run folder holds of an inversion.

    Attributes:
        target: the classifier.
        recipe: the resolved recipe.
        history: of the run.
        empty: the classes without an image, each with the reason; see `Inversion.empty`.
    """

    def __init__(
        self, target: Target, recipe: Recipe, history: Sequence[StepRecord], empty: Mapping[int, str] | None = None
    ) -> None:
        self.target = target
        self.recipe = recipe
        self.history = list(history)
        self.empty = dict(empty or {})

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file of the inversion's own, one that `Inversion.files` gave.

        Raises:
            RunError: it is missing, or not what the run wrote.
        """

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of such a file in the safetensors format.

        Raises:
            RunError: as for `read`, or it is in another format.
        """

    @abstractmethod
    def samples(self) -> tuple[Tensor, Tensor]:
        """Return the run's samples, (N, *input_shape) float32 in [0, 1], rounded to 8 bits, and their labels (N,).

        Raises:
            RunError: they are missing, or do not fit the target.
        """

    @abstractmethod
    def generator(self) -> tuple[Generator, Conditioner]:
        """Return the trained generator and conditioner of a run that keeps them, as a `GeneratorInversion` does.

        Raises:
            RunError: the run has none, or its weights do not fit its recipe.
        """

    @abstractmethod
    def default(self) -> Inversion:
        """Return the inversion as one of interpkit's own classes; see `Inverter.load`."""


@dataclass(frozen=True)
class Parts:
    """The components of a recipe, built for one target; what an inverter needs none of is None or empty.

    Attributes:
        conditioner: draws the conditions.
        generator: makes the images.
        losses: by name, each with its weight.
    """

    conditioner: Conditioner | None = None
    generator: Generator | None = None
    losses: Mapping[str, tuple[float, InversionLoss]] = field(default_factory=dict)
