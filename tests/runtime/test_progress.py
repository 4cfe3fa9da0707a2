"""What a computation says of itself, and who says it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interpkit
from interpkit.runtime import at_once, progress
from interpkit.runtime.micro_batch import in_micro_batches
from interpkit.testing.toy_models import tiny_inversion


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives every call of `tell`."""
    lines: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        lines.append(str(progress.Progress(what, done, total)))

    monkeypatch.setattr(progress, "tell", tell)
    monkeypatch.setattr(at_once, "tell", tell)
    return lines


def test_a_part_is_current_until_all_of_it_is_done() -> None:
    progress.tell("images", 1, 1000)
    assert str(progress.current()) == "1 of 1,000 images"
    progress.tell("images", 1000, 1000)
    assert progress.current() is None


def test_the_time_for_the_rest_is_stated_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 105.0, 160.0, 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    lines = []
    for done in (10, 12, 40, 5):  # the last begins again
        progress.tell("steps", done, 100)
        lines.append(str(progress.current()))
    assert lines == [
        "10 of 100 steps",
        "12 of 100 steps",
        "40 of 100 steps (about 2 min for the rest)",  # 30 took a minute
        "5 of 100 steps",
    ]
    progress.restart()


def test_few_pieces_may_take_different_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    progress.tell("metrics", 0, 9)
    progress.tell("metrics", 1, 9)
    assert str(progress.current()) == "1 of 9 metrics"
    progress.restart()


def test_the_innermost_part_is_current() -> None:
    progress.tell("metrics", 0, 2)
    progress.tell("images", 1, 2)
    assert str(progress.current()) == "1 of 2 images"
    progress.tell("images", 2, 2)
    assert str(progress.current()) == "0 of 2 metrics"
    progress.restart()
    assert progress.current() is None


def test_a_classifier_tells_of_the_images_it_has_classified(said: list[str]) -> None:
    images = torch.zeros(5, 2)
    at_once.in_batches(nn.Linear(2, 2), images, lambda rows: images[rows], most=2)
    assert said == [f"{n} of 5 images classified" for n in (2, 4, 5)]


def test_the_pieces_of_a_batch_tell_of_themselves_forward_and_backward(said: list[str]) -> None:
    layer = nn.Linear(3, 3)
    x = torch.randn(5, 3)
    torch.cat(in_micro_batches(lambda rows: layer(x[rows]), torch.arange(5), 2, layer)).sum().backward()
    assert said[:3] == [f"{n} of 5 images" for n in (2, 4, 5)]
    assert len(said) == 6 and said[-1] == "5 of 5 images, and once more for the gradient"


@pytest.fixture
def inversion() -> interpkit.Inversion:
    return tiny_inversion()


def test_sampling_tells_of_the_samples_drawn(inversion: interpkit.Inversion, said: list[str]) -> None:
    inversion.draw(count=150)
    assert said == ["100 of 150 samples drawn", "150 of 150 samples drawn"]
