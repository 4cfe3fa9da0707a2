"""`with_autograd` switches gradients on and autocast off inside, and restores the caller's modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import interpkit
from interpkit import GeneratorInversion, ImageInversion, Target, UsageError
from interpkit.runtime.autograd import with_autograd

Quick = Callable[..., dict[str, Any]]


def around() -> torch.autocast:
    """Return the autocast that a caller may have on."""
    return torch.autocast("cpu", torch.bfloat16)


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


# ------------------------------------------------------------------------------------------- autocast


def test_autocast_is_off_inside_and_on_again_after() -> None:
    @with_autograd
    def product() -> torch.dtype:
        with torch.autocast("cpu", torch.float16):  # what the function chooses itself is obeyed
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float16
        return (torch.rand(2, 2) @ torch.rand(2, 2)).dtype

    with around():
        assert product() == torch.float32
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16


def test_samples_drawn_inside_autocast_equal_those_outside(finished_run: Path) -> None:
    inversion = interpkit.load_inversion(finished_run)
    outside = inversion.sample(per_class=2)[0]
    with around():
        inside = inversion.sample(per_class=2)[0]
        loaded = interpkit.load_inversion(finished_run).sample(per_class=2)[0]
    assert torch.equal(inside, outside) and torch.equal(loaded, outside)


def test_a_run_inside_autocast_equals_one_outside(tiny_model: Path, quick: Quick) -> None:
    outside = interpkit.invert(tiny_model, **quick(steps=3))
    with around():
        inside = interpkit.invert(tiny_model, **quick(steps=3))
    assert [record.loss for record in inside.history] == [record.loss for record in outside.history]
    assert isinstance(inside, GeneratorInversion) and isinstance(outside, GeneratorInversion)
    assert all(map(torch.equal, inside.generator.state_dict().values(), outside.generator.state_dict().values()))


def test_figures_measured_inside_autocast_equal_those_outside(tiny_target: Target) -> None:
    images, labels = torch.rand(30, 1, 12, 12), torch.arange(30) % 3
    inversion = ImageInversion(tiny_target, interpkit.Recipe(device="cpu"), [], images, labels)
    outside = interpkit.evaluate(inversion)
    with around():
        assert interpkit.evaluate(inversion) == outside


def test_inputs_of_another_class_found_inside_autocast_equal_those_outside(tiny_target: Target) -> None:
    images = torch.rand(3, 1, 12, 12)
    outside = interpkit.counterfactual(tiny_target, images, device="cpu")
    with around():
        inside = interpkit.counterfactual(tiny_target, images, device="cpu")
    assert torch.equal(inside.free.images, outside.free.images)


# -------------------------------------------------------------------------------------- default dtype


@contextmanager
def in_double() -> Iterator[None]:
    """Let torch make float64 tensors by default."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda target: interpkit.invert(target, ["vecmat"], steps=1),
        lambda target: interpkit.wrap(target.module, target.input_shape),
        lambda target: interpkit.attribute(target, torch.rand(1, *target.input_shape)),
        lambda target: interpkit.counterfactual(target, torch.rand(1, *target.input_shape)),
        lambda target: interpkit.audit(target),
    ],
    ids=["invert", "wrap", "attribute", "counterfactual", "audit"],
)
def test_another_default_dtype_is_refused(tiny_target: Target, call: Callable[[Target], Any]) -> None:
    words = r"default dtype is torch\.float64.*call torch\.set_default_dtype\(torch\.float32\)"
    with in_double(), pytest.raises(UsageError, match=words):
        call(tiny_target)


def test_samples_under_another_default_dtype_are_refused(finished_run: Path) -> None:
    inversion = interpkit.load_inversion(finished_run)
    with in_double(), pytest.raises(UsageError, match="default dtype"):
        inversion.sample(per_class=1)
