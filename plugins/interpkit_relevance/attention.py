"""Attention rollout: which patches reach the score of a vision transformer, through all its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.overrides import TorchFunctionMode

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError

MOST_EXTRA_TOKENS = 8
"""Class and register tokens that may stand before the patches."""


class AttentionRollout(Attribution):
    r"""Attention rollout, :math:`R \leftarrow R + E_h[(\nabla A \odot A)^+] R` over the layers, from R = 1.

    A is a layer's attention, (heads, tokens, tokens), :math:`\nabla A` the gradient of the score with respect to it,
    and :math:`E_h` the mean over the heads. The map is the mean of R - 1 over the rows of the tokens from whose last
    attention the score comes (the class token, or those that are pooled), arranged as the grid of the patches and
    enlarged to the image (bilinear); it is not negative, and the same for every channel. Every self-attention by
    softmax or torch's ``scaled_dot_product_attention`` counts; attention within windows, and tokens that are merged
    between layers, are refused. Source: Chefer et al. 2021, "Generic attention-model explainability", eq. 5 and 6;
    without gradients Abnar & Zuidema 2020, "Quantifying attention flow in transformers", eq. 1, where
    :math:`R \leftarrow (E_h A + 1) R / 2`, and the map is the mean of R: the same for each class.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from interpkit import Explainer, wrap
        >>> net = VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8)
        >>> net.heads = torch.nn.Linear(8, 3)
        >>> explainer = Explainer(wrap(net, input_shape=(3, 16, 16)), "attention-rollout")
        >>> explainer.maps(torch.rand(2, 3, 16, 16), torch.tensor([0, 1])).shape
        torch.Size([2, 3, 16, 16])
        >>> explainer.notes
        ['attention-rollout reads 2 layers of attention over 1 + 4 x 4 tokens.']
    """

    name = "attention-rollout"

    class Options(interpkit.Options):
        """Whether gradients weight the attention."""

        gradients: bool = Field(True, description="weight the attention by its gradient; without, every class is alike")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        if images.dim() != 4:
            raise UsageError(f"attention-rollout needs images; {target.name} classifies vectors. Use another method.")
        with _Attentions() as seen:
            score = context.scores(images.detach().clone().requires_grad_()).gather(1, classes[:, None]).sum()
        attentions = [attention for attention in seen.found if attention.requires_grad]
        (extra, rows, columns), count = _tokens(target, attentions, images, seen.grids)
        one = torch.eye(attentions[0].shape[-1], device=images.device)
        rollout = one.expand(len(images), *one.shape)
        gradients = torch.autograd.grad(score, attentions, allow_unused=True)
        for attention, gradient in zip(attentions, gradients, strict=True):
            weights = attention.detach().float().reshape(len(images), -1, *one.shape)
            if not self.options.gradients:
                rollout = (weights.mean(1) + one) / 2 @ rollout
            elif gradient is not None:
                rollout = rollout + (gradient.reshape(weights.shape) * weights).relu().mean(1) @ rollout
        rollout = rollout - one if self.options.gradients else rollout
        used = _used(gradients, rollout)
        of_patches = ((used @ rollout)[:, 0] / used.sum(2))[:, extra:].unflatten(1, (1, rows, columns))
        tokens = f"{extra} + " * (extra > 0) + f"{rows} x {columns}"
        context.note(f"attention-rollout reads {count} layers of attention over {tokens} tokens.")
        return F.interpolate(of_patches, images.shape[2:], mode="bilinear", align_corners=False).expand_as(images)


def _used(gradients: Sequence[Tensor | None], rollout: Tensor) -> Tensor:
    """Return 1 for each token of which the last attention moves the score, else 0, (B, 1, tokens); 1 if none does."""
    last = next((each for each in reversed(gradients) if each is not None), torch.zeros_like(rollout))
    moves = last.reshape(len(rollout), -1, *rollout.shape[1:]).ne(0).any(3).any(1)
    return (moves | ~moves.any(1, keepdim=True))[:, None].to(rollout)


def _tokens(
    target: Target, attentions: list[Tensor], images: Tensor, grids: set[tuple[int, ...]]
) -> tuple[tuple[int, int, int], int]:
    """Return the tokens before the patches, the grid of the patches, and the number of attentions.

    Where convolutions make the patches, their outputs include that grid; attention between channels, as in XCiT, is
    over as many "tokens" as a head has channels.

    Raises:
        UsageError: there is no attention, or not over the same tokens of a whole image everywhere.
    """
    refusal = f"attention-rollout cannot explain {target.name}: "
    instead = " Use another method, such as grad-cam."
    if not attentions:
        raise UsageError(f"{refusal}no attention over tokens of the image is seen in its forward pass.{instead}")
    lengths = sorted({attention.shape[-1] for attention in attentions})
    whole = all(len(each) == len(images) or (each.dim() == 3 and not len(each) % len(images)) for each in attentions)
    if len(lengths) > 1 or not whole:
        raise UsageError(
            f"{refusal}its attention is within windows of the image, or tokens are merged between layers (attention "
            f"over {', '.join(map(str, lengths))} tokens).{instead}"
        )
    height, width = images.shape[2:]
    for extra in range(MOST_EXTRA_TOKENS + 1):
        for patch in range(1, min(height, width) + 1):
            rows, columns = height // patch, width // patch
            if rows * columns == lengths[0] - extra > 1 and (not grids or (rows, columns) in grids):
                return (extra, rows, columns), len(attentions)
    raise UsageError(
        f"{refusal}its {lengths[0]} tokens are not a grid of square patches of the image (attention between channels, "
        f"as in XCiT, has none).{instead}"
    )


class _Attentions(TorchFunctionMode):
    """Keeps the weights of every self-attention, which the score depends on, and the grids that may be patches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.grids: set[tuple[int, ...]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # its calls of these functions pass by this mode
            with (
                mock.patch.object(F, "scaled_dot_product_attention", self._attend),
                mock.patch.object(F, "softmax", self._softmax),
            ):
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("conv2d", "pixel_unshuffle", "interpolate") or "pool2d" in name:
            self.grids.add(tuple(result.shape[-2:]))
        return self._keep(result) if name in ("softmax", "_safe_softmax") else result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        attend: Any = F.scaled_dot_product_attention,
        **kw: Any,
    ) -> Tensor:
        """Compute attention with its weights, which are what it returns for the unit vectors as values."""
        units = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
        weights: Tensor = attend(query, key, units.expand(*value.shape[:-2], *units.shape), *args, **kw)
        return self._keep(weights) @ value

    def _softmax(self, *args: Any, softmax: Any = F.softmax, **kwargs: Any) -> Tensor:
        return self._keep(softmax(*args, **kwargs))

    def _keep(self, weights: Tensor) -> Tensor:
        if weights.dim() in (3, 4) and weights.shape[-1] == weights.shape[-2] > 1:
            self.found.append(weights)
        return weights
