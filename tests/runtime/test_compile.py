"""When a generator is compiled, that this does not change its results, and that it runs uncompiled on failure."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

import interpkit
from interpkit.runtime.compile import choose_compile, compiled

Quick = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("asked", "device", "triton", "steps", "chosen"),
    [
        ("auto", "cuda", True, 2000, "on"),
        ("auto", "cuda", True, 1999, "off"),
        ("auto", "cuda", False, 2000, "off"),
        ("auto", "cpu", True, 2000, "off"),
        ("auto", "mps", True, 2000, "off"),
        ("on", "cpu", False, 3, "on"),
        ("off", "cuda", True, 2000, "off"),
    ],
)
def test_auto_compiles_long_runs_on_cuda_if_triton_is_installed(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, triton: bool, steps: int, chosen: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton and name == "triton" else None)
    assert choose_compile(asked, torch.device(device), steps) == chosen


def test_the_recipe_records_the_choice(tiny_target: interpkit.Target, quick: Quick) -> None:
    from interpkit.api.invert import prepare

    assert prepare(tiny_target, **quick()).recipe.compile == "off"
    assert prepare(tiny_target, **quick(compile="on")).recipe.compile == "on"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile with the test's own backend, which runs operations one by one; return the graphs that it receives."""
    graphs: list[Any] = []
    compile_ = torch.compile

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=counting))
    torch._dynamo.reset()
    return graphs


def test_a_compiled_run_equals_an_uncompiled_one(
    tiny_target: interpkit.Target, quick: Quick, backend: list[Any]
) -> None:
    plain = interpkit.invert(tiny_target, **quick(steps=3))
    assert not backend
    fast = interpkit.invert(tiny_target, **quick(steps=3, compile="on"))
    assert len(backend) == 1  # compiled at the first step, and not again
    assert [r.loss for r in fast.history] == pytest.approx([r.loss for r in plain.history], rel=1e-5)
    assert isinstance(fast, interpkit.GeneratorInversion)
    assert "forward" not in vars(fast.generator)


def test_a_failure_to_compile_warns_once_and_the_run_continues(
    tiny_target: interpkit.Target,
    quick: Quick,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compile_ = torch.compile

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=broken))
    torch._dynamo.reset()
    plain = interpkit.invert(tiny_target, **quick(steps=3))
    slow = interpkit.invert(tiny_target, **quick(steps=3, compile="on"))
    assert [r.loss for r in slow.history] == [r.loss for r in plain.history]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "interpkit"]
    assert "cannot be compiled, so it runs uncompiled (compile='off')" in message
    assert "no C++ compiler" in message


def test_an_error_of_the_generator_is_not_blamed_on_the_compiler(
    tiny_target: interpkit.Target, quick: Quick, backend: list[Any]
) -> None:
    from interpkit.api.invert import prepare
    from interpkit.plugins import assembly
    from interpkit.plugins.discovery import installed

    job = prepare(tiny_target, **quick())
    _, generator = assembly.build_generator(job.recipe, tiny_target, installed())
    assert generator is not None
    with compiled(generator, True), pytest.raises(AttributeError):
        generator(torch.zeros(2, generator.latent_dim), None)  # type: ignore[arg-type]
