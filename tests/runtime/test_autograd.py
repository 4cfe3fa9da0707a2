"""`with_autograd` switches gradients on inside, and restores the caller's modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interpkit.runtime.autograd import with_autograd


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_inside_and_off_again_after(mode: Any) -> None:
    @with_autograd
    def slope(x: float) -> float:
        variable = torch.tensor(x, requires_grad=True)
        (variable**2).backward()
        assert variable.grad is not None
        return variable.grad.item()

    with mode():
        inference = torch.is_inference_mode_enabled()
        assert slope(3.0) == 6.0
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == inference
