"""Architectures that a classifier's file may name: interpkit's small reference CNNs and torchvision's models."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
from torch import nn

import interpkit
from interpkit import Architectures, ModelError


class SmallCNN(nn.Sequential):
    """The reference classifier: convolutions, leaky ReLU, pooling and dropout, as in the paper.

    For each width: 3x3 convolution, (batch norm,) (group norm of 8 groups,) leaky ReLU, twice; 2x2 max pooling; dropout
    of channels. Then a hidden linear layer, leaky ReLU, dropout, and the linear head. Each pooling halves the sides,
    rounding down.
    """

    class Options(interpkit.Options):
        """The arguments, as they stand in a file."""

        input_shape: tuple[int, int, int] = (1, 28, 28)
        num_classes: int = pydantic.Field(10, ge=2, le=100_000)
        widths: list[Annotated[int, pydantic.Field(ge=1, le=8192)]] = pydantic.Field(
            [32, 64], min_length=1, max_length=8
        )
        hidden: int = pydantic.Field(96, ge=1, le=65_536)
        dropout: float = pydantic.Field(0.25, ge=0, lt=1)
        batch_norm: bool = False
        group_norm: bool = False

    def __init__(self, **arguments: Any) -> None:
        opt = self.Options(**arguments)
        channels, height, width = opt.input_shape
        layers: list[nn.Module] = []
        for after in opt.widths:
            for before in (channels, after):
                layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not opt.batch_norm))
                if opt.batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                if opt.group_norm:
                    layers.append(nn.GroupNorm(math.gcd(8, after), after))
                layers.append(nn.LeakyReLU(0.1))
            layers += [nn.MaxPool2d(2), nn.Dropout2d(opt.dropout)]
            channels, height, width = after, height // 2, width // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, opt.hidden), nn.LeakyReLU(0.1)]
        layers += [
            nn.Dropout(2 * opt.dropout if opt.dropout < 0.5 else opt.dropout),
            nn.Linear(opt.hidden, opt.num_classes),
        ]
        super().__init__(*layers)


class ReferenceNets(Architectures):
    """interpkit's own: ``interpkit:cnn``.

    Example:
        >>> from interpkit import build_architecture
        >>> net = build_architecture("interpkit:cnn", {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [8, 16]})
        >>> net[-1]
        Linear(in_features=96, out_features=3, bias=True)
    """

    name = "interpkit"
    help = "interpkit's small reference networks"

    def names(self) -> Sequence[str]:
        """Return the names."""
        return ["cnn"]

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a `SmallCNN`; its Options say which arguments there are."""
        return SmallCNN(**arguments)


class Zoo(Architectures):
    """Base of the libraries of models: builds by name, with fresh weights and without downloads."""

    refused: tuple[str, ...] = ()
    """Arguments that would fetch weights or read files."""

    def check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments, at any depth, that reach beyond the network's shape.

        Raises:
            ModelError: one does.
        """
        for key, value in arguments.items():
            if key in self.refused:
                raise ModelError(
                    f"{self.name}:{name}: the argument {key!r} is refused: it would fetch or read weights or code."
                )
            if isinstance(value, Mapping):
                self.check(name, value)


class TorchvisionModels(Zoo):
    """torchvision's classifiers, by the names of `torchvision.models.list_models`.

    Example:
        >>> from interpkit import build_architecture
        >>> net = build_architecture("torchvision:resnet18", {"num_classes": 7})
        >>> net.fc
        Linear(in_features=512, out_features=7, bias=True)
    """

    name = "torchvision"
    help = "torchvision's image classifiers, by name"
    refused = ("weights", "weights_backbone", "progress")

    def names(self) -> Sequence[str]:
        """Return the names of the image classifiers."""
        from torchvision import models  # slow to import, and few classifiers need it

        return list(models.list_models(module=models))

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the model."""
        self.check(name, arguments)
        from torchvision import models

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        module: nn.Module = models.get_model(name, weights=None, **extra, **arguments)
        return module


class TimmModels(Zoo):
    """timm's classifiers, by the names of `timm.list_models`; the extra ``timm``.

    Example:
        >>> from interpkit import build_architecture
        >>> net = build_architecture("timm:resnet18", {"num_classes": 7})
        >>> net.fc
        Linear(in_features=512, out_features=7, bias=True)
    """

    name = "timm"
    help = "timm's image classifiers, by name"
    refused = (
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
        "features_only",
    )

    def names(self) -> Sequence[str]:
        """Return the names of the models."""
        return list(need("timm", "timm").list_models())

    def resolve(self, name: str) -> str:
        """Take off the tag of pretrained weights and the hub's prefix: ``timm/resnet18.a1_in1k`` is ``resnet18``."""
        return name.removeprefix("timm/").partition(".")[0]

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the model."""
        self.check(name, arguments)
        module: nn.Module = need("timm", "timm").create_model(name, pretrained=False, **arguments)
        return module


class TransformersModels(Zoo):
    """transformers' image classifiers, by model type; the extra ``transformers``.

    The arguments are those of the model's config; an ``auto_map``, which names code to run, is refused.

    Example:
        >>> from interpkit import build_architecture
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> net = build_architecture("transformers:vit", {**sizes, "num_classes": 7})
        >>> net.classifier
        Linear(in_features=8, out_features=7, bias=True)
    """

    name = "transformers"
    help = "transformers' image classifiers, by model type"
    refused = (
        "auto_map",
        "trust_remote_code",
        "quantization_config",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "backbone_config",
        "use_timm_backbone",
        "use_kernels",
        "_name_or_path",
        "backbone",
        "use_pretrained_backbone",
    )

    def names(self) -> Sequence[str]:
        """Return the model types that have an image classifier."""
        need("transformers", "transformers")
        auto = importlib.import_module("transformers.models.auto.modeling_auto")
        names = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        return [name for name in names if not name.startswith("timm")]  # those are loaders of their own

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the model from its config."""
        self.check(name, arguments)
        transformers = need("transformers", "transformers")
        arguments = dict(arguments)
        if "num_classes" in arguments:
            arguments["num_labels"] = arguments.pop("num_classes")
        config = transformers.AutoConfig.for_model(name, **arguments)
        module: nn.Module = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        return module.eval()


def need(package: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        ModelError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(f"this requires the package {package}: {interpkit.install_extra(extra)}.") from error
