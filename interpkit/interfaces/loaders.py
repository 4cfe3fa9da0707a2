"""`Loader` and `Architectures`: how classifiers' files become targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from interpkit.interfaces.targets import Target

if TYPE_CHECKING:
    from interpkit.config.recipe import TargetOptions


class Loader(ABC):
    """Reads classifiers of one file format."""

    name: ClassVar[str]
    help: ClassVar[str] = ""

    @abstractmethod
    def accepts(self, path: Path) -> bool:
        """Say whether the file or folder looks like this loader's format; cheap, and runs nothing of it."""

    @abstractmethod
    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load a target.

        Args:
            path: accepted by `accepts`.
            options: what the user says of the classifier, each winning over what the file says.

        Raises:
            ModelError: with what was seen and what to type instead.
        """

    @staticmethod
    def example(folder: Path) -> Path | tuple[Path, TargetOptions]:
        """Write a small classifier of this format, for `interpkit.testing`, which loads it; optional otherwise.

        Args:
            folder: an empty one.

        Returns:
            the file or folder; and where it does not say all by itself, what a user would have to say.
        """
        raise NotImplementedError


class Architectures(ABC):
    """A family of network architectures that a classifier's file may name, as ``FAMILY:NAME``.

    Building one must run nothing but the plugin's own code, whatever the arguments say: they come from files.
    """

    name: ClassVar[str]
    """The family, the part before the colon."""
    help: ClassVar[str] = ""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names in the family."""

    @abstractmethod
    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a network with fresh weights; ``arguments`` are JSON values.

        Raises:
            ModelError: the name or an argument is not known.
        """
