"""`Inverter`, a complete inversion method; the `Parts` that it may use, and the `StoredInversion` that it loads."""

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
    """Target + recipe -> inversion: a complete inversion method. The default is the conditioned generator."""

    options: Options
    needs: ClassVar[tuple[str, ...]] = ()
    """The parts that it uses and a recipe must specify, from ``conditioner``, ``generator`` and ``loss``; a run warns
    of any others in its recipe, which have no effect."""
    needs_conditioner: ClassVar[type[Conditioner] | None] = None
    """The class of the only conditioner that it accepts, if it has one of its own; any will do if None."""
    needs_gradient: ClassVar[bool] = True
    """Whether it uses gradients of the target's logits with respect to images; see `Target.no_gradient`."""
    shares_batch: ClassVar[bool] = False
    """Whether several processes (``torchrun``) can share its batches: it computes its loss by an `Objective`, and then
    averages gradients by ``objective.world.average_gradients(parameters)``. If not, it runs in one process only."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Those of a recipe's ``optimizer``, ``micro_batch``, ``classes_per_batch`` and ``compile`` that it does not read;
    a run warns if one is set."""
    in_groups: ClassVar[bool] = False
    """Whether it finishes its images in groups of at most the recipe's ``batch_size`` and its checkpoints keep only the
    present group in full; then less disk space is reserved for a run."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> Inversion:
        """Invert the target, which is frozen and on the device of the run.

        Args:
            target: the classifier.
            recipe: the resolved recipe, with a value for every option.
            parts: the components that the recipe names.
            recorder: receives each step's values, and holds the checkpoint to resume from.
        """

    def load(self, stored: StoredInversion) -> Inversion:
        """Return the inversion that a run folder holds, as `invert` returned it.

        Override this if `invert` returns an `Inversion` class of your own. By default, the result is a
        `GeneratorInversion` if the run has a generator, else an `ImageInversion` of the run's samples.
        """
        return stored.default()

    @staticmethod
    def example(input_shape: tuple[int, ...], num_classes: int) -> Target | None:
        """Return a small classifier that the inverter accepts; only `interpkit.testing` requires this, to run it.

        Override this if the inverter refuses most classifiers. The example may be random, drawn from torch's global
        generator. By default None: any classifier will do.
        """
        return None


class StoredInversion(ABC):
    """The inversion that a run folder holds.

    Attributes:
        target: the classifier.
        recipe: the resolved recipe.
        history: the history of the run.
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
        """Return one of the inversion's own files, which `Inversion.files` returned.

        Raises:
            RunError: the file is missing, or has changed since the run wrote it.
        """

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of such a file in the safetensors format.

        Raises:
            RunError: as for `read`, or the file has another format.
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
            RunError: the run does not have them, or its weights do not fit its recipe.
        """

    @abstractmethod
    def losses(self) -> Mapping[str, tuple[float, InversionLoss]]:
        """Return the recipe's terms by name, each with its weight, newly built as for `Inverter.invert`.

        Raises:
            UsageError: a term cannot be built any more, say because its data are gone.
        """

    @abstractmethod
    def default(self) -> Inversion:
        """Return the inversion as one of interpkit's own classes; see `Inverter.load`."""


@dataclass(frozen=True)
class Parts:
    """The components of a recipe, built for one target; those that the recipe does not name are None or empty.

    Attributes:
        conditioner: draws the conditions.
        generator: makes the images.
        losses: the loss terms by name, each with its weight.
        start: images to begin with, (N, *input_shape) in [0, 1], and their labels, (N,), from ``recipe.warm_start``;
            an inverter that trains a generator gets them, with some of each class to invert.
    """

    conditioner: Conditioner | None = None
    generator: Generator | None = None
    losses: Mapping[str, tuple[float, InversionLoss]] = field(default_factory=dict)
    start: Sequence[Tensor] | None = None
