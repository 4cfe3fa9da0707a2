"""`Target`, the wrapped classifier, and the `Response` that it returns."""

from __future__ import annotations

import difflib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interpkit.errors import UsageError, listed
from interpkit.runtime.mha_layout import contiguous_attention

if TYPE_CHECKING:
    from interpkit.config.recipe import TargetOptions

log = logging.getLogger("interpkit")


def tell_nan(name: str, logits: Tensor) -> None:
    """Warn if a classifier has returned NaN among the logits (N, n) of images."""
    count = int(logits.isnan().any(1).sum())
    if count:
        log.warning("%s returns NaN for %d of %d images, which counts as none of its classes", name, count, len(logits))


@dataclass(frozen=True)
class Response:
    """A target's output for B images.

    Attributes:
        logits: (B, n) float32.
        features: features by layer, each (B, ...), float32.
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


NOT_A_FAMILY = ("graph", "graphmodule", "sequential", "net", "network", "model", "module", "classifier", "wrapper")
VARIANTS = re.compile(r"(tf_|wide_)*([a-z]+?)(forimageclassification|v?[\d_.-].*)?")


def family_of(name: str) -> str:
    """Return the family in the name of an architecture or of its class; empty if the name does not say.

    Example:
        >>> from interpkit.interfaces.targets import family_of
        >>> [family_of(name) for name in ("timm:tf_efficientnet_lite0", "torchvision:mobilenet_v3_large", "ResNet")]
        ['efficientnet', 'mobilenet', 'resnet']
        >>> family_of("onnx:graph")
        ''
    """
    found = VARIANTS.fullmatch(name.rpartition(":")[2].lower())
    return found[2] if found and found[2] not in NOT_A_FAMILY else ""


GARBAGE = "garbage"
"""The name of a class for whatever belongs to no other."""


class Target(nn.Module, ABC):
    """The trained, frozen classifier under study, including its preprocessing.

    A target is an ordinary module from images in [0, 1] to logits, so any tool that accepts the user's module (Captum,
    for instance) accepts a target. Layers have their dotted names in the user's module; ``NAME`` stands for the
    layer's output and ``NAME:in`` for its input.

    Attributes:
        name: the name used in headings and folder names.
        input_shape: (C, H, W), or (D,) for vectors.
        num_classes: n.
        class_names: n names, in the order of the logits.
        multi_label: whether each class is a yes or no of its own, with the probability sigmoid(z_k) of its logit z_k.
            If not, the classes exclude each other, with the probabilities softmax(z). Read logits through
            `probabilities`, `accepts`, `predictions`, `cross_entropy` and `divergence`, which know the difference.
        feature_layer: the default features, usually the input of the last linear layer.
        description: everything that was resolved about the classifier, as in a recipe's ``[target]``.
        origin: the file or folder that the classifier was loaded from; None if it was wrapped in memory.
        sources: the origin of each entry of ``description``, in a few words.
        no_gradient: why no gradient passes from the logits to the images; empty if one does.
        lacks: the classes, by number, that it cannot answer, whose logit is always -inf; see `Study`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from interpkit import wrap
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8), mean=0.5)
        >>> response = target.respond(torch.rand(2, 1, 8, 8), layers=["1"])
        >>> response.logits.shape, response.penultimate.shape, response.features["1"].shape
        (torch.Size([2, 3]), torch.Size([2, 144]), torch.Size([2, 4, 6, 6]))
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str]
    multi_label: bool = False
    feature_layer: str
    description: TargetOptions
    origin: Path | None = None
    sources: dict[str, str]
    no_gradient: str = ""
    lacks: frozenset[int] = frozenset()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, n) float32 of images (B, *input_shape) in [0, 1]."""

    @abstractmethod
    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and the features of `feature_layer` and of ``layers``.

        Raises:
            UsageError: a layer does not exist; the message lists similar names.
        """

    @property
    def family(self) -> str:
        """The family of its architecture, such as ``resnet``, stated or by the name; empty if it is not known."""
        return (self.description.family or "").lower() or family_of(self.description.arch or "")

    @property
    def garbage(self) -> int | None:
        """The number of the class named "garbage", which stands for whatever belongs to no other; None without one."""
        names = [name.casefold() for name in self.class_names]
        return names.index(GARBAGE) if GARBAGE in names else None

    def class_number(self, label: int | str) -> int:
        """Return the number of a class, which may be given by its name or its number.

        Digits are a number, also where another class has them as its name; a warning then says so. Names are compared
        without regard to case, unless several differ in nothing else.

        Raises:
            UsageError: there is no such class, or several have that name.

        Example:
            >>> from torch import nn
            >>> from interpkit import wrap
            >>> wrap(nn.Identity(), input_shape=(2,), class_names=["cat", "dog"]).class_number("dog")
            1
        """
        text = str(label).strip()
        if re.fullmatch(r"-?\d{1,9}", text):
            number, called = int(text), self.class_names.index(text) if text in self.class_names else None
            other = "" if called in (None, number) else f" The class called {text!r} is number {called}."
            if not 0 <= number < self.num_classes:
                raise UsageError(f"there is no class {text}; {self.name}'s are 0 to {self.num_classes - 1}.{other}")
            if other and isinstance(label, str):
                log.warning("%s: class %d is called %r.%s", self.name, number, self.class_names[number], other)
            return number
        names = [name.casefold() for name in self.class_names]
        exact = [number for number, name in enumerate(self.class_names) if name == text]
        alike = exact or [number for number, name in enumerate(names) if name == text.casefold()]
        if len(alike) > 1:
            raise UsageError(f"{len(alike)} classes are called {text!r}: {listed(map(str, alike))}. Use their numbers.")
        if not alike:
            close = [names.index(name) for name in difflib.get_close_matches(text.casefold(), names, n=3, cutoff=0.5)]
            found = [f"{self.class_names[number]!r} ({number})" for number in close]
            nearest = f" Did you mean {' or '.join(found)}?" if found else f" Its names are {listed(self.class_names)}."
            raise UsageError(f"{self.name} has no class called {text!r}.{nearest}")
        return alike[0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the classes' probabilities, (B, n): each in [0, 1]; rows sum to 1 unless `multi_label`."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def accepts(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether the target assigns each image to its class of ``labels``, (B,) bool.

        It does if the class is the most probable one, and no logit is NaN; of a `multi_label` target, if its
        probability is above 1/2.
        """
        if self.multi_label:
            return logits.gather(1, labels[:, None])[:, 0] > 0
        return (logits.argmax(1) == labels) & ~logits.isnan().any(1)

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the class that the target assigns to each image, (B,) int64: ``labels`` where it `accepts` them.

        Elsewhere it is the most probable other class.
        """
        others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        return torch.where(self.accepts(logits, labels), labels, others)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return -log p of each image's class, (B,), in nats; the other labels of a `multi_label` target are free.

        Example:
            >>> import torch
            >>> from interpkit import wrap
            >>> target = wrap(torch.nn.Identity(), input_shape=(3,), output="sigmoid_logits")
            >>> target.cross_entropy(torch.tensor([[0.0, -9.0, 9.0]]), torch.tensor([0]))  # log 2
            tensor([0.6931])
        """
        if self.multi_label:
            return F.softplus(-logits.gather(1, labels[:, None])[:, 0])
        return F.cross_entropy(logits, labels, reduction="none")

    def divergence(self, logits: Tensor, distribution: Tensor) -> Tensor:
        """Return KL(P || Q), (B,) in nats, of requested probabilities P, (B, n), and the target's Q.

        Of a `multi_label` target it is the sum of the labels' own divergences, of (P_k, 1 - P_k) from (Q_k, 1 - Q_k).
        """
        if self.multi_label:
            cross = F.binary_cross_entropy_with_logits(logits, distribution, reduction="none")
            entropy = torch.special.entr(distribution) + torch.special.entr(1 - distribution)
            apart: Tensor = (cross - entropy).sum(1)
            return apart
        return F.kl_div(logits.log_softmax(1), distribution, reduction="none").sum(1)

    @property
    def low(self) -> Tensor:
        """The lower end of the input range in the classifier's own units: a scalar, or (D,) for vectors."""
        return torch.tensor(self.description.input_range or (0.0, 1.0))[..., 0]

    @property
    def high(self) -> Tensor:
        """The upper end of the input range, in the same form as `low`."""
        return torch.tensor(self.description.input_range or (0.0, 1.0))[..., 1]

    def to_unit(self, images: Tensor) -> Tensor:
        """Return inputs, in the form in which datasets store them, in [0, 1].

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1]; or vectors (N, D) in the units of the input range.
        """
        if images.dim() == 2:
            low, high = self.low.to(images.device), self.high.to(images.device)
            return (images - low) / (high - low)
        return images / 255 if images.dtype == torch.uint8 else images

    def from_unit(self, images: Tensor) -> Tensor:
        """Convert vectors (N, D) in [0, 1] to the units of the input range; return images unchanged."""
        low, high = self.low.to(images.device), self.high.to(images.device)
        return low + (high - low) * images if images.dim() == 2 else images

    @abstractmethod
    def layers(self) -> Mapping[str, nn.Module]:
        """Return the layers of the user's module by dotted name, in order of definition."""

    @contextmanager
    def frozen(
        self, device: torch.device | str | None = None, layout: torch.memory_format = torch.preserve_format
    ) -> Iterator[None]:
        """Freeze the target in eval mode, on ``device``, and restore it at the end, even after an exception.

        This restores each submodule's mode, each parameter's ``requires_grad``, device and layout, and each buffer,
        also one that a forward pass replaces by one of the same shape.

        Args:
            device: the device to move to; unchanged if None.
            layout: memory layout of image kernels, (O, I, H, W). ``torch.channels_last`` is faster (pooling by far)
                and rounds differently.
        """
        modes = [(module, module.training) for module in self.modules()]
        gradients = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        places = [(tensor, tensor.data) for tensor in (*self.parameters(), *self.buffers())]
        contents = [(buffer.data, buffer.data.clone()) for buffer in self.buffers()]
        own = [module for module, _ in modes if not isinstance(module, torch.jit.ScriptModule)]
        named = [(module, dict(module._buffers)) for module in own]
        try:
            for module, _ in modes:  # not self.eval(), which exported programs do not support
                module.training = False
            for parameter, _ in gradients:
                parameter.requires_grad_(False)
            for tensor, data in places:
                kernels = layout if data.dim() == 4 else torch.preserve_format
                tensor.data = data.to(device or data.device, memory_format=kernels)
            with contiguous_attention(self):
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in gradients:
                parameter.requires_grad_(requires_grad)
            for module, buffers in named:
                for name, old in buffers.items():
                    new = module._buffers.get(name)
                    # not what is built for the size of a batch, as the module knows that it has been
                    if old is not None and new is not None and new.shape == old.shape:
                        module._buffers[name] = old
            for tensor, data in places:
                tensor.data = data
            for data, content in contents:
                data.copy_(content)

    @contextmanager
    def differentiable(self) -> Iterator[list[nn.Parameter]]:
        """Let gradients of the logits with respect to the weights be computed, within `frozen` too, and differentiated.

        Within the block, the weights that it yields, those of floating point, require a gradient; compute theirs there,
        by ``torch.autograd.grad``. After it the target is as it was, and a backward pass leaves the ``grad`` of frozen
        weights alone.

        Example:
            >>> import torch
            >>> from interpkit import wrap
            >>> target = wrap(torch.nn.Linear(2, 3), input_shape=(2,))
            >>> with target.frozen(), target.differentiable() as weights:
            ...     slopes = torch.autograd.grad(target(torch.ones(1, 2)).sum(), weights, create_graph=True)
            >>> [tuple(slope.shape) for slope in slopes]
            [(3, 2), (3,)]
        """
        weights = [weight for weight in self.parameters() if weight.is_floating_point()]
        before = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):  # the faster kernels of attention cannot be differentiated twice
                yield weights
        finally:
            for weight, requires_grad in zip(weights, before, strict=True):
                weight.requires_grad_(requires_grad)
