"""`Inverter`, a whole inversion method, and the `Parts` that it may be built of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.targets import Target

if TYPE_CHECKING:
    from interpkit.config.recipe import Recipe
    from interpkit.interfaces.inversions import Inversion
    from interpkit.runtime.recorder import Recorder


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
            recorder: takes each step's values, and holds the checkpoint to go on from.
        """


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
