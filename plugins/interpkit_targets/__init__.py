"""Loaders of classifiers' files, and the architectures that such a file may name."""

from interpkit import Registration, hookimpl
from interpkit_targets.architectures import ReferenceNets, TorchvisionModels
from interpkit_targets.loaders import SafetensorsLoader


@hookimpl
def register(registry: Registration) -> None:
    """Add the loaders and the architecture families."""
    registry.add(SafetensorsLoader)
    registry.add(ReferenceNets)
    registry.add(TorchvisionModels)
