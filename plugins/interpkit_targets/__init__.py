"""Loaders of classifiers' files, and the architectures that such a file may name."""

from interpkit import Registration, hookimpl
from interpkit_targets.architectures import ReferenceNets, TimmModels, TorchvisionModels, TransformersModels
from interpkit_targets.folders import HubMixinFolderLoader, TimmFolderLoader, TransformersFolderLoader
from interpkit_targets.graphs import ExportedProgramLoader, OnnxLoader, TorchScriptLoader
from interpkit_targets.loaders import CheckpointLoader, SafetensorsLoader

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the loaders and the architecture families."""
    for loader in (
        SafetensorsLoader,
        CheckpointLoader,
        TimmFolderLoader,
        TransformersFolderLoader,
        HubMixinFolderLoader,
        OnnxLoader,
        TorchScriptLoader,
        ExportedProgramLoader,
    ):
        registry.add(loader)
    for family in (ReferenceNets, TorchvisionModels, TimmModels, TransformersModels):
        registry.add(family)
