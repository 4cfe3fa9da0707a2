"""The end of a run: what is written, and from memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
