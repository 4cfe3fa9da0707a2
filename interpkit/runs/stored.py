"""Read a stored inversion from a run folder, for the inverter that made it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.config.schemas import FILE_NAME
from interpkit.errors import RunError, resume
from interpkit.evaluation import scoring
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.inverters import StoredInversion
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.inversion.results import GENERATOR_FILE, GeneratorInversion, ImageInversion
from interpkit.plugins import architectures, assembly
from interpkit.plugins.discovery import installed
from interpkit.runtime.recorder import StepRecord

log = logging.getLogger("interpkit")


class StoredRun(StoredInversion):
    """The stored inversion of a run folder; ``files`` maps its own files to their sha256 in the manifest."""

    def __init__(
        self,
        folder: Path,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        files: Mapping[str, str],
        empty: Mapping[int, str],
    ) -> None:
        super().__init__(target, recipe, history, empty)
        self.folder = folder
        self._files = files

    def read(self, name: str) -> bytes:
        """Return the content of one of the inversion's own files; see `StoredInversion.read`."""
        path = self.folder / name
        if not FILE_NAME.fullmatch(name):  # another file of a run may have named it
            raise RunError(f"{self.folder} cannot have a file {name!r:.100} of its inverter.")
        if not path.is_file():  # also refuses a pipe, which would never end
            raise RunError(f"{self.folder} has no {name}: the run was not finished. Resume it: {resume(self.folder)}.")
        try:
            content = path.read_bytes()
        except OSError as error:  # not the fault of the inverter that reads it
            raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
        if name in self._files and hashlib.sha256(content).hexdigest() != self._files[name]:
            raise RunError(
                f"{path} is not the file that the run wrote: its sha256 differs from the one in manifest.json. If the "
                f"run was stopped while writing it, resume it: {resume(self.folder)}. Otherwise restore the file."
            )
        return content

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors in one of the inversion's own files; see `StoredInversion.tensors`."""
        content = self.read(name)
        try:
            return safetensors.torch.load(content)
        except Exception as error:  # safetensors' own kinds, and dtypes that this torch lacks
            raise RunError(f"{self.folder / name} is not a complete safetensors file: {error}.") from error

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return the run's samples in [0, 1] and their labels; see `StoredInversion.samples`."""
        images, labels, _ = scoring.read_images(self.folder / "samples.safetensors", self.target)
        return to_unit(images, self.target), labels

    def generator(self) -> tuple[Generator, Conditioner]:
        """Return the trained generator and conditioner; see `StoredInversion.generator`."""
        weights = self.tensors(GENERATOR_FILE)
        try:
            with torch.device("meta"):  # compare without memory first: a recipe may ask for any amount
                self._build(weights)
        except RunError:
            raise
        except Exception:
            log.debug("a component cannot be built on the meta device", exc_info=True)
        generator, conditioner = self._build(weights)
        for prefix, part in (("generator.", generator), ("conditioner.", conditioner)):
            part.load_state_dict(_under(prefix, weights))
            part.eval()
        conditioner.progress = 1.0
        return generator, conditioner

    def losses(self) -> Mapping[str, tuple[float, InversionLoss]]:
        """Build the recipe's terms; see `StoredInversion.losses`."""
        return assembly.build_losses(self.recipe, self.target, installed())

    def default(self) -> Inversion:
        """Return a `GeneratorInversion` if the run has a generator, otherwise an `ImageInversion` of its samples."""
        target, recipe, history = self.target, self.recipe, self.history
        if (self.folder / GENERATOR_FILE).is_file():
            return GeneratorInversion(target, recipe, history, *self.generator(), empty=self.empty)
        return ImageInversion(target, recipe, history, *self.samples(), empty=self.empty)

    def parts(self) -> tuple[Conditioner | None, Generator | None]:
        """Build the conditioner and the generator that the recipe names, untrained."""
        return assembly.build_generator(self.recipe, self.target, installed())

    def _build(self, weights: Mapping[str, Tensor]) -> tuple[Generator, Conditioner]:
        """Build the generator and the conditioner, if the recipe names them and the weights fit them."""
        conditioner, generator = self.parts()
        if generator is None or conditioner is None:
            raise RunError(f"{self.folder / 'recipe.toml'} names no generator for the weights in {GENERATOR_FILE}.")
        for prefix, part in (("generator.", generator), ("conditioner.", conditioner)):
            difference = architectures.mismatch(part.state_dict(), _under(prefix, weights))
            if difference:
                raise RunError(f"{self.folder / GENERATOR_FILE} does not fit the recipe beside it: {difference}.")
        return generator, conditioner


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
