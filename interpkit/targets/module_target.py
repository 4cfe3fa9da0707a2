"""`ModuleTarget`: a PyTorch module as a target, with its preprocessing, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpkit.config.recipe import Output, TargetOptions
from interpkit.errors import UsageError, did_you_mean, listed
from interpkit.interfaces.targets import Response, Target, family_of
from interpkit.targets.outputs import select
from interpkit.targets.scores import as_logits, in_single
from interpkit.targets.watch import first_of, watch

Layout = Literal["nchw", "nhwc", "flat"]

OUTPUT = "output"
"""Stands for the classifier's own output if it does not have a layer that can be watched."""


class ModuleTarget(Target):
    """A target that wraps a PyTorch module; created by `wrap`.

    The module receives images x in [0, 1] as ``(lo + (hi - lo) * x - mean) / std``, in its own layout, channel order
    and dtype; its output is converted to logits (`as_logits`).

    It always runs in eval mode, also if its owner has put it in training mode, which is restored after each call,
    except within `learning`.

    Attributes:
        module: the user's module.
        module_shape: of one input of the module: ``input_shape``, but (C, L) for signals and (C, D, H, W) for volumes.
        layout: of the images that it expects.
        output_name: which of several outputs are the logits; see `interpkit.targets.outputs.named_tensors`.
        one_by_one: whether it takes one image at a time.
        channels_last: whether it gives the same logits for images and kernels in that memory layout.
        keeps_input: whether it leaves its input as it is, not changed in place.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, facts: TargetOptions, name: str) -> None:
        super().__init__()
        assert facts.input_shape is not None and facts.target_shape is not None
        self.module = module
        self.name = name
        self.input_shape = facts.target_shape
        self.module_shape = facts.input_shape
        self.sources = {}
        self.layout: Layout = "nchw"
        self.output: Output = "logits"
        self.without_features = False
        """Whether no layer can be watched, so that the logits stand for the features, as the layer `OUTPUT`."""
        self.output_name = ""
        self.one_by_one = False
        self.channels_last = False
        self.keeps_input = True
        self._learning = False
        self._recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
        self._flip = facts.channel_order == "bgr"
        per_channel = (1, -1, *(1,) * (len(self.module_shape) - 1))
        lo, hi, mean_, std_ = (
            torch.tensor(values, dtype=torch.float64).view(per_channel)
            for values in (*zip(*facts.ranges, strict=True), facts.mean or [0.0], facts.std or [1.0])
        )
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.register_buffer("scale", ((hi - lo) / std_).float().to(device))
        self.register_buffer("shift", ((lo - mean_) / std_).float().to(device))
        self._as_is = bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def family(self) -> str:
        """The family of the architecture's name or of the module's class; see `Target.family`."""
        return super().family or family_of(type(self.module).__name__)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, n) float32; see `Target.forward`. Signals and volumes may have their shape already."""
        return as_logits(self.raw(images), self.output)

    def raw(self, images: Tensor) -> Tensor:
        """Return the module's output for images, (B, n) or (B, 1)."""
        parts = [select(output, self.output_name, count) for output, count in self.outputs(images)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def outputs(self, images: Tensor) -> list[tuple[Any, int]]:
        """Return what the module returns, and for how many images: for all of them, or one at a time."""
        x = images.flip(1) if self._flip else images
        if x.dim() == 2 and len(self.module_shape) > 1:
            x = x.unflatten(1, self.module_shape)
        if not self._as_is:
            x = x * self.scale + self.shift
        if self.layout == "nhwc":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "flat":
            x = x.flatten(1)
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), x.dtype)
        x = x.to(dtype)
        if not self.channels_last:
            x = x.contiguous()
        if not self.keeps_input:
            x = x.clone()
        parts = x.split(1) if self.one_by_one and len(x) > 1 else [x]
        with nullcontext() if self._learning else _in_eval_mode(self.module), self._without_cudnn(x):
            return [(self.module(part), len(part)) for part in parts]

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Run the module in training mode: within, batch norms use and record the statistics of each batch.

        Parts that the user has put in eval mode in a module in training mode stay in it. All modes are restored.
        """
        modes = [(part, part.training) for part in self.module.modules()]
        frozen = [part for part, training in modes if self.module.training and not training]
        self.module.train()
        for part in frozen:
            part.training = False
        self._learning = True
        try:
            yield
        finally:
            self._learning = False
            for part, training in modes:
                part.training = training

    def _without_cudnn(self, x: Tensor) -> AbstractContextManager[None]:
        """CuDNN refuses the backward pass of recurrent layers in eval mode; torch's own kernels do it."""
        off = self._recurrent and x.is_cuda and torch.is_grad_enabled()
        return torch.backends.cudnn.flags(enabled=False) if off else nullcontext()

    @contextmanager
    def frozen(
        self, device: torch.device | str | None = None, layout: torch.memory_format = torch.preserve_format
    ) -> Iterator[None]:
        """Freeze the target; see `Target.frozen`. A layout that the module does not support is ignored."""
        with super().frozen(device, layout if self.channels_last else torch.preserve_format):
            yield

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and features; see `Target.respond`."""
        if self.one_by_one and len(images) > 1:
            each = [self.respond(image, layers) for image in images.split(1)]
            joined = {name: torch.cat([one.features[name] for one in each]) for name in each[0].features}
            return Response(torch.cat([one.logits for one in each]), joined, self.feature_layer)
        wanted = list(dict.fromkeys([self.feature_layer, *layers]))
        # Unless a layer of the user has that name.
        for_logits = OUTPUT in wanted and (self.without_features or OUTPUT not in self.layers())
        wanted = [layer for layer in wanted if not (for_logits and layer == OUTPUT)]
        passed: dict[str, list[Tensor]] = {layer: [] for layer in wanted}

        def keep(layer: str, value: Any) -> None:
            value = first_of(value)
            if isinstance(value, Tensor):
                # Later layers may change an output in place, and an in-place layer changes its own input.
                safe = layer.endswith(":in") and not getattr(modules[layer], "inplace", False)
                passed[layer].append(in_single(value if safe else value.clone()))

        modules = {layer: self.layer(layer) for layer in wanted}
        with watch(modules, keep):
            logits = self(images)
        missing = [layer for layer in wanted if not passed[layer]]
        if missing:
            raise UsageError(f"{self.name}: the layer {missing[0]!r} does not run in the forward pass.")
        features = {layer: parts[-1] for layer, parts in passed.items()}  # if one runs more than once, the last counts
        if self.one_by_one:  # which may have no axis for the batch
            features = {name: one if one.dim() > 1 and len(one) == 1 else one[None] for name, one in features.items()}
        if for_logits:
            features[OUTPUT] = logits
        return Response(logits, features, self.feature_layer)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the user's layers by dotted name; see `Target.layers`. Those of TorchScript cannot be watched."""
        layers = self.module.named_modules()
        return {name: layer for name, layer in layers if name and not isinstance(layer, torch.jit.ScriptModule)}

    def layer(self, layer: str) -> nn.Module:
        """Return the module of a layer, NAME or NAME:in.

        Raises:
            UsageError: there is no such layer; the message lists similar names.
        """
        name = layer.removesuffix(":in")
        try:
            return self.module.get_submodule(name)
        except (AttributeError, RuntimeError) as error:  # TorchScript raises RuntimeError
            known = list(self.layers())
            raise UsageError(
                f"{self.name} has no layer {name!r}.{did_you_mean(name, known)} Layers: {listed(known)}."
            ) from error


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False  # not module.eval(), which exported programs do not support
        yield
    finally:
        for part in training:
            part.training = True
