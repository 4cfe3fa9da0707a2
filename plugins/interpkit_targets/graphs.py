"""Loaders of classifiers that may run code of their own: TorchScript and exported programs."""

from __future__ import annotations

import importlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interpkit import Loader, ModelError, Target, TargetOptions, make_target
from interpkit_targets import examples


def is_archive(path: Path) -> bool:
    """Say whether a file is a TorchScript archive or an exported program rather than a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()[:10_000]]
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return "constants.pkl" in names or any(name.startswith(("code/", "models/")) for name in names)


class TorchScriptLoader(Loader):
    """A TorchScript archive; loading one can run code, so only with ``--trust``.

    Example:
        >>> import torch
        >>> from interpkit import load_target
        >>> torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(2, 4)).save("net.pt")
        >>> load_target("net.pt", input_shape=(4,), trust=True).num_classes
        3
    """

    name = "torchscript"
    help = "TorchScript (.pt, .pth, .ts, .jit), with --trust and --input-shape"
    example = staticmethod(examples.torchscript_file)

    def accepts(self, path: Path) -> bool:
        """Say whether it is such an archive."""
        return path.suffix in (".pt", ".pth", ".ts", ".jit") and path.is_file() and is_archive(path)

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load the archive; see `Loader.load`."""
        return load_trusted(path, options, "TorchScript", lambda: torch.jit.load(path, map_location="cpu").eval())


class ExportedProgramLoader(Loader):
    """A program saved by `torch.export.save`; loading one can run code, so only with ``--trust``.

    Example:
        >>> import torch
        >>> from interpkit import load_target
        >>> batch = torch.export.Dim("batch")
        >>> program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
        >>> torch.export.save(program, "net.pt2")
        >>> load_target("net.pt2", input_shape=(4,), trust=True).num_classes
        3
    """

    name = "exported-program"
    help = ".pt2, with --trust and --input-shape"
    example = staticmethod(examples.exported_program)

    def accepts(self, path: Path) -> bool:
        """Say whether it is a file that ends in .pt2."""
        return path.suffix == ".pt2" and path.is_file()

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Load the program; see `Loader.load`."""
        return load_trusted(path, options, "an exported program", lambda: torch.export.load(path).module())


def load_trusted(path: Path, options: TargetOptions, what: str, load: Any) -> Target:
    """Load what may run code, if the user says that it may.

    Raises:
        ModelError: it is not trusted, or cannot be loaded.
    """
    if not options.trust:
        raise ModelError(f"{path} is {what}, and loading it can run code that is in it. If you trust it, add --trust.")
    if options.input_shape is None:
        raise ModelError(f"{path} does not say its input shape. Add --input-shape C,H,W.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} cannot be loaded as {what}: it is not a complete archive.")
    importlib.import_module("torchvision")  # its operators, which such a file may use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated: the user has one all the same
            module: nn.Module = load()
    except Exception as error:  # whatever is in it raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be loaded as {what}: {reason[:200]}") from error
    sources = dict.fromkeys(options.said(), "given")
    return make_target(module, path.stem, options, sources, trust=True)
