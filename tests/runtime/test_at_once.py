"""Batches outside the training: bounded by memory and by the user, halved when memory runs out, with equal results."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from interpkit.runtime import at_once
from interpkit.runtime.at_once import in_batches


def sizes(classifier: nn.Module, images: Tensor, most: int | None = None) -> list[int]:
    return in_batches(classifier, images, lambda rows: len(images[rows]), most=most)


def test_small_images_run_256_at_a_time_or_as_many_as_the_user_allows() -> None:
    net, images = nn.Linear(4, 2), torch.rand(600, 4)
    assert sizes(net, images) == [256, 256, 88]
    assert sizes(net, images, most=250) == [250, 250, 100]
    assert sizes(net, images, most=500) == [256, 256, 88]
    assert sizes(net, images[:0]) == []


def test_the_values_of_a_batch_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 numbers of the convolution and as many of the ReLU are 320 bytes; the view and the change in place are none.
    net = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.ReLU(), nn.ReLU(inplace=True), nn.Flatten())
    monkeypatch.setattr(at_once, "MOST_BYTES", 1000)
    assert sizes(net, torch.rand(7, 1, 2, 2)) == [3, 3, 1]
    assert sizes(net, torch.zeros(7, 1, 2, 2, dtype=torch.uint8), most=2) == [2, 2, 2, 1]
    monkeypatch.setattr(at_once, "MOST_BYTES", 1)
    assert sizes(net, torch.rand(2, 1, 2, 2)) == [1, 1]


def test_functions_count_like_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.relu(), x.exp()], 1)

    monkeypatch.setattr(at_once, "MOST_BYTES", 64)
    assert sizes(Functional(), torch.rand(5, 2)) == [2, 2, 1]  # (2 + 2 + 4) x 4 bytes an image


def test_a_batch_that_runs_out_of_memory_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    images, done = torch.rand(10, 4), []

    def run(rows: slice) -> Tensor:
        if len(images[rows]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return images[rows]

    results = in_batches(nn.Linear(4, 2), images, run, on_done=done.append)
    assert torch.equal(torch.cat(results), images)
    assert done == [3, 6, 9, 10]
    assert caplog.messages == [f"out of memory: the classifier now runs on {n} images at a time" for n in (5, 3)]


@pytest.mark.parametrize("error", [ValueError("mine"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_another_error_and_one_image_too_many_are_raised(error: Exception) -> None:
    def fail(rows: slice) -> None:
        raise error

    with pytest.raises(type(error)):
        in_batches(nn.Linear(4, 2), torch.rand(3, 4), fail)


def test_observing_a_classifier_changes_no_randomness_and_happens_once() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + torch.rand(())

    net, state = Counted(), torch.get_rng_state()
    for _ in range(2):
        sizes(net, torch.rand(3, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state) and net.calls == 1
    del net
    gc.collect()
    assert not [other for other in at_once._bytes_of if isinstance(other, Counted)]


def test_a_classifier_that_cannot_be_observed_still_runs() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 3:
                raise ValueError("three at least")
            return x

    assert sizes(Strict(), torch.rand(5, 4)) == [5]
