"""`Loader` and `Architectures`: how classifier files become targets."""

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
    """Reads classifiers of one file format.

    The first loader that accepts a file reads it. Loaders of plugin files are asked first, then those of installed
    packages, and the bundled ones last, so that yours may replace a bundled one for some files.
    """

    name: ClassVar[str]
    help: ClassVar[str] = ""

    @abstractmethod
    def accepts(self, path: Path) -> bool:
        """Return whether the file or folder appears to have this format; cheap, and must not run code from it."""

    @abstractmethod
    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load a target.

        Args:
            path: a file or folder for which `accepts` returned True.
            options: what the user specified about the classifier, which overrides what the file says.

        Raises:
            ModelError: with what was found and what to type instead.
        """

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files that `load` reads, so that a run notices when one of them changes.

        Args:
            path: a file or folder for which `accepts` returned True.

        Returns:
            ``path``, and any other files beside it; only ``path`` by default.
        """
        return [path]

    @staticmethod
    def example(folder: Path) -> Path | tuple[Path, TargetOptions]:
        """Write a small classifier in this format; only `interpkit.testing` requires this, to load it.

        Args:
            folder: an empty folder.

        Returns:
            the file or folder and, if it is not self-contained, the options that a user would have to specify.
        """
        raise NotImplementedError


class Architectures(ABC):
    """A family of network architectures that a classifier's file may name, as ``FAMILY:NAME``.

    Building one must run only the plugin's own code, whatever the arguments are: they come from files.
    """

    name: ClassVar[str]
    """The family, the part before the colon."""
    help: ClassVar[str] = ""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names in the family."""

    def resolve(self, name: str) -> str:
        """Return the name in `names` that another spelling stands for (a version, say); by default itself."""
        return name

    @abstractmethod
    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a network with fresh weights; ``arguments`` are JSON values.

        Raises:
            ModelError: the name or an argument is unknown.
        """
