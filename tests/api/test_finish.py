"""The end of a run: what is written, and from memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interpkit

Quick = Callable[..., dict[str, Any]]


def test_nothing_that_a_run_wrote_is_read_back(
    tmp_path: Path, tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    text = Path.read_text

    def noted(path: Path, *arguments: Any, **named: Any) -> str:
        if path.parent == tmp_path:
            read.append(path.name)
        return text(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", noted)
    interpkit.invert(tiny_model, out=tmp_path, **quick(steps=2))
    assert not set(read) & {"manifest.json", "metrics.json", "recipe.toml", "history.jsonl"}


def test_classes_that_are_empty_for_one_reason_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = interpkit.wrap(torch.nn.Linear(2, 4), (2,), class_names=["a", "b", "c", "d"])
    empty = {0: "stopped", 2: "no input reaches it", 3: "stopped"}
    recipe, images, labels = interpkit.Recipe(device="cpu"), torch.tensor([[0.5, 0.5]]), torch.tensor([1])
    interpkit.ImageInversion(target, recipe, [], images, labels, empty=empty).save(tmp_path / "run")
    said = [message for message in caplog.messages if "empty" in message]
    assert said == ["classes 0 (a), 3 (d) are empty: stopped", "class 2 (c) is empty: no input reaches it"]
