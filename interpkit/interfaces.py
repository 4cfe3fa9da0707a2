"""The interfaces that a plugin implements, and what passes between them.

    condition = conditioner.sample(B)
    images    = generator(latent, condition)        # in [0, 1], (B, C, H, W)
    response  = target.respond(images)              # logits, features: {layer: tensor}
    loss      = sum(weight * term(batch))           # batch = condition, images, response, target

Shapes: B images in a batch, n classes, C channels, H x W pixels; a classifier of vectors has D features in
place of C x H x W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from interpkit.attention import one_product

if TYPE_CHECKING:
    from interpkit.inversion import Inversion
    from interpkit.recipe import Recipe, TargetOptions
    from interpkit.recorder import Recorder

INTERFACE_VERSION = 1


class Options(pydantic.BaseModel):
    """Base of every component's ``Options``: one declaration gives validation, defaults, help and TOML."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component:
    """What the core builds by name from a recipe: it has a ``name`` and ``Options``."""

    name: ClassVar[str]
    """What the user types; lower case letters, digits, ``-`` and ``_``."""

    Options: ClassVar[type[Options]] = Options

    waivers: ClassVar[Mapping[str, str]] = {}
    """Checks of `interpkit.testing` that it does not keep on purpose, each with the reason."""


# ---------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class ConditionSpec:
    """The sizes of a condition, from which a generator is built.

    Attributes:
        vector_dim: length of `Condition.vector`; 0 if there is none.
        map_channels: channels M of `Condition.maps`; 0 if there are none.
        map_size: the smallest side at which the maps still tell the labels apart; a generator asks for maps
            at least this high and wide.
    """

    vector_dim: int
    map_channels: int = 0
    map_size: int = 1


@dataclass(frozen=True)
class Condition:
    """What the generator is asked for, for a batch of B images.

    Attributes:
        labels: (B,) int64, the class asked for.
        distribution: (B, n) float, the soft distribution P over the classes; rows sum to 1, argmax = labels.
        vector: (B, vector_dim) float, what the generator is shown.
        draw_maps: (height, width) -> (B, M, height, width); None if the condition has no maps.
    """

    labels: Tensor
    distribution: Tensor
    vector: Tensor
    draw_maps: Callable[[int, int], Tensor] | None = None

    def maps(self, height: int, width: int) -> Tensor:
        """Return the spatial maps, (B, M, height, width) float; M = 0 where the condition has none."""
        if self.draw_maps is None:
            return self.vector.new_zeros(len(self.labels), 0, height, width)
        return self.draw_maps(height, width)

    def __getitem__(self, rows: Tensor) -> Condition:
        maps = self.draw_maps
        some = None if maps is None else lambda height, width: maps(height, width)[rows]
        return Condition(self.labels[rows], self.distribution[rows], self.vector[rows], some)


class Conditioner(Component, nn.Module, ABC):
    """Draws conditions.

    Args:
        num_classes: n, at least 2.
        input_shape: (C, H, W) or (D,), the shape of one image.
        options: an instance of the class's ``Options``; defaults if left out.
    """

    options: Options
    progress: float = 0.0
    """Share of the training that is done, in [0, 1]; the loop sets it before each step, sampling at 1."""
    anchor: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.options = self.Options() if options is None else options
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that conditions are drawn on; the module's own."""
        return self.anchor.device

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec:
        """The sizes of the conditions that `sample` draws."""

    @abstractmethod
    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw conditions.

        Args:
            batch_size: B.
            labels: (B,) int64, the classes to ask for; drawn uniformly if left out.
            rng: source of the randomness, on `device`; the global one if left out.
        """


class Generator(Component, nn.Module, ABC):
    """(latent, condition) -> images in [0, 1].

    Args:
        spec: the sizes of the conditions.
        input_shape: (C, H, W) or (D,), the shape of one image.
        options: an instance of the class's ``Options``; defaults if left out.
    """

    options: Options
    latent_dim: int

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.input_shape = input_shape
        self.options = self.Options() if options is None else options

    def start_at(self, level: float) -> None:
        """Make fresh images come out near ``level``, in (0, 1), all over; a generator that cannot, need not.

        The loop asks for it where the target is dead to grey images, the usual start: see
        `interpkit.training.wake`.
        """

    @abstractmethod
    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images (B, *input_shape) in [0, 1].

        Args:
            latent: (B, latent_dim), standard normal.
            condition: for the same B images.
        """


# ------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Response:
    """What a target says of B images.

    Attributes:
        logits: (B, n) float32.
        features: by layer, each (B, ...), float32.
        feature_layer: the target's default layer, always among ``features``.
    """

    logits: Tensor
    features: Mapping[str, Tensor]
    feature_layer: str

    @property
    def penultimate(self) -> Tensor:
        """(B, F), the default features, flattened: the input of the target's last linear layer."""
        return self.features[self.feature_layer].flatten(1)

    def __getitem__(self, rows: slice) -> Response:
        features = {layer: tensor[rows] for layer, tensor in self.features.items()}
        return Response(self.logits[rows], features, self.feature_layer)


class Target(nn.Module, ABC):
    """The trained, frozen classifier under study, with its preprocessing inside.

    A target is an ordinary module from images in [0, 1] to logits, so that whatever takes the user's module
    (Captum, say) takes a target. Layers are named by their dotted name in the user's module; ``NAME`` stands
    for the layer's output and ``NAME:in`` for its input.

    Attributes:
        name: for headings and folders.
        input_shape: (C, H, W), or (D,) for vectors.
        num_classes: n.
        class_names: n names, in the order of the logits.
        feature_layer: the default features, usually the input of the last linear layer.
        description: all that was resolved about the classifier, in the words of a recipe's ``[target]``.
        origin: the file or folder it was loaded from; None if it was wrapped in memory.
        sources: where each entry of ``description`` came from, in a few words.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str]
    feature_layer: str
    description: TargetOptions
    origin: Path | None = None
    sources: dict[str, str]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, n) float32 of images (B, *input_shape) in [0, 1]."""

    @abstractmethod
    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and the features of `feature_layer` and of ``layers``.

        Raises:
            UsageError: no such layer; the message lists near ones.
        """

    @property
    def low(self) -> Tensor:
        """What 0 is in the classifier's own units, a scalar or (D,) for vectors: the lower end of its input range."""
        return torch.tensor(self.description.input_range or (0.0, 1.0))[..., 0]

    @property
    def high(self) -> Tensor:
        """What 1 is, likewise."""
        return torch.tensor(self.description.input_range or (0.0, 1.0))[..., 1]

    @abstractmethod
    def layers(self) -> Mapping[str, nn.Module]:
        """Return the layers of the user's module by dotted name, in order of definition."""

    @contextmanager
    def frozen(
        self, device: torch.device | str | None = None, layout: torch.memory_format = torch.preserve_format
    ) -> Iterator[None]:
        """Freeze the target in eval mode, on ``device``; leave it as found, also after an exception.

        Restored are each submodule's mode, each parameter's ``requires_grad``, device and layout, and each buffer.

        Args:
            device: where to; left where it is if None.
            layout: of kernels of images, (O, I, H, W). ``torch.channels_last`` is faster, pooling many times, and
                rounds differently.
        """
        modes = [(module, module.training) for module in self.modules()]
        gradients = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        places = [(tensor, tensor.data) for tensor in (*self.parameters(), *self.buffers())]
        contents = [(buffer.data, buffer.data.clone()) for buffer in self.buffers()]
        try:
            for module, _ in modes:  # not self.eval(): exported programs refuse it
                module.training = False
            for parameter, _ in gradients:
                parameter.requires_grad_(False)
            for tensor, data in places:
                kernels = layout if data.dim() == 4 else torch.preserve_format
                tensor.data = data.to(device or data.device, memory_format=kernels)
            with one_product(self):
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in gradients:
                parameter.requires_grad_(requires_grad)
            for tensor, data in places:
                tensor.data = data
            for data, content in contents:
                data.copy_(content)


# -------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class GeneratedBatch:
    """B generated images, before the target has looked at them.

    Attributes:
        target: the frozen target.
        condition: what was asked for.
        latent: (B, latent_dim).
        images: (B, *input_shape) float32 in [0, 1], with gradient.
        progress: share of the training that is done, in [0, 1).
    """

    target: Target
    condition: Condition
    latent: Tensor
    images: Tensor
    progress: float


@dataclass(frozen=True)
class InversionBatch(GeneratedBatch):
    """A generated batch and the target's response: what a loss is given.

    Attributes:
        response: to ``images``.
        views: (V, *input_shape), the extra images that this loss asked for; None if it asked for none.
        view_response: to ``views``.
    """

    response: Response
    views: Tensor | None = None
    view_response: Response | None = None


class InversionLoss(Component, nn.Module, ABC):
    """One term of the training objective: a scalar from one batch. Its parameters are trained along.

    Args:
        target: the target that will be inverted; not to be kept.
        options: an instance of the class's ``Options``; defaults if left out.

    Raises:
        UsageError: the term means nothing for this target.
    """

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options

    @abstractmethod
    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the term, a scalar with gradient; the weight is applied by the loop.

        It is a mean over the batch, so that a weight means the same for any batch size.
        """

    def layers(self, target: Target) -> list[str]:
        """Return the layers whose features the term reads, beyond the target's default."""
        return []

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
        """Return extra images for the target to look at, (V, *input_shape) in [0, 1], or None.

        The loop makes one ``target.respond`` of the images and one of all terms' views, and hands each term its
        slice. Only an inner search calls ``batch.target`` itself.
        """
        return None


# ----------------------------------------------------------------------------------------- inverters


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


# ----------------------------------------------------------------------------------- classifier files


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
