"""Attention of a frozen classifier: the same values, by one matrix product per projection."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import interpkit
from interpkit.runtime.mha_layout import contiguous_attention

TOKENS, WIDTH = 7, 8


class Attending(nn.Module):
    """One attention layer over seven tokens of an image, in either layout."""

    def __init__(self, batch_first: bool, named: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, 3)
        self.batch_first, self.named = batch_first, named

    def forward(self, images: Tensor) -> Tensor:
        x = images.reshape(len(images), TOKENS, WIDTH)
        if not self.batch_first:
            x = x.transpose(0, 1)
        given = {"query": x, "key": x, "value": x} if self.named else {}
        x, _ = self.attention(*(() if self.named else (x, x, x)), **given, need_weights=False)
        return self.head(x.mean(1 if self.batch_first else 0))


class Products(TorchDispatchMode):
    """Counts batched matrix products, which the projections should not use."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.batches += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_frozen_attention_is_projected_by_one_product(batch_first, named):
    module = Attending(batch_first, named).eval()
    target = interpkit.wrap(module, input_shape=(1, TOKENS, WIDTH))
    seen = []
    module.attention.register_forward_hook(lambda _, args, kwargs, out: seen.append(out[0]), with_kwargs=True)
    images = torch.rand(5, 1, TOKENS, WIDTH, requires_grad=True)
    with Products() as trainable:
        logits = target(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    with target.frozen(), Products() as frozen:
        again = target(images)
    (frozen_gradient,) = torch.autograd.grad(again.sum(), images)
    assert frozen.batches == trainable.batches
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(frozen_gradient, gradient)
    assert seen[0].shape == seen[1].shape

    module.requires_grad_(False)  # frozen by hand: this is the slow case that interpkit avoids
    with Products() as by_hand:
        target(images)
    assert by_hand.batches > frozen.batches
    assert not module.attention._forward_pre_hooks


def test_images_without_a_batch_and_masks_pass_through():
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    alone, mask = torch.rand(TOKENS, WIDTH), torch.eye(TOKENS, dtype=torch.bool)
    expected, _ = attention(alone, alone, alone, attn_mask=mask)
    with contiguous_attention(attention):
        found, _ = attention(alone, alone, alone, attn_mask=mask)
    assert torch.equal(found, expected)
