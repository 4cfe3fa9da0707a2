"""Calls of several threads take turns, so each has the result that it has alone; nothing else waits."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import Explainer, ImageInversion, Recipe, Target, wrap
from interpkit.runtime import turns
from interpkit.runtime.random import global_seed
from interpkit.runtime.turns import turn

SECONDS = 20.0
"""After which a test fails rather than waits forever."""
CPU = torch.device("cpu")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return what is set as soon as a call waits for another thread."""
    event = threading.Event()

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "calls take turns" in record.getMessage():
                event.set()

    monkeypatch.setattr(turns, "PATIENCE", 0)
    hear = Hear()
    logging.getLogger("interpkit").addHandler(hear)
    yield event
    logging.getLogger("interpkit").removeHandler(hear)


@contextmanager
def held_elsewhere() -> Iterator[None]:
    """Let another thread have its turn during a block."""
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            begun.set()
            assert ended.wait(SECONDS), "the block waits for this thread"

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert begun.wait(SECONDS)
        try:
            yield
        finally:
            ended.set()
            holder.result()


# -------------------------------------------------------------------------------------- results are one's own


class Slow(nn.Module):
    """A network in which dark images wait for bright ones to come, and those for the dark ones to be done."""

    def __init__(self, met: threading.Event) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 16))
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.inside, self.met, self.done = threading.Event(), met, threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if x.mean() > 0.5:
            self.met.set()
            self.done.wait(SECONDS)
        else:
            self.inside.set()
            self.met.wait(SECONDS)
        logits: Tensor = self.head(self.norm(features))
        return logits


def meet(net: Slow, dark: Callable[[], Tensor], bright: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return what two calls return, of which one begins while the other is within the network."""
    for event in (net.inside, net.met, net.done):
        event.clear()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(dark)
        one.add_done_callback(lambda _: net.done.set())
        assert net.inside.wait(SECONDS)
        other = pool.submit(bright)
        return one.result(), other.result()


@pytest.fixture
def slow(waiting: threading.Event) -> tuple[Slow, Target]:
    """Return a network and its target."""
    net = Slow(waiting)
    for event in (net.met, net.done):
        event.set()
    return net, wrap(net.train(), input_shape=(1, 4, 4))


DARK, BRIGHT = torch.full((2, 1, 4, 4), 0.2), torch.full((2, 1, 4, 4), 0.9)


def test_features_are_those_of_ones_own_images(slow: tuple[Slow, Target]) -> None:
    net, target = slow
    dark, bright = meet(net, *(lambda x=x: target.respond(x, ["body"]).features["body"] for x in (DARK, BRIGHT)))
    assert torch.equal(dark, target.respond(DARK, ["body"]).features["body"])
    assert torch.equal(bright, target.respond(BRIGHT, ["body"]).features["body"])


def test_a_network_in_training_mode_runs_in_eval_mode_in_both(slow: tuple[Slow, Target]) -> None:
    net, target = slow
    statistics = net.norm.running_mean.clone()  # type: ignore[union-attr]
    dark, bright = meet(net, lambda: target(DARK), lambda: target(BRIGHT))
    assert torch.equal(dark, target(DARK)) and torch.equal(bright, target(BRIGHT))
    assert torch.equal(net.norm.running_mean, statistics) and net.norm.training  # type: ignore[arg-type]


def test_frozen_in_two_threads_a_network_is_afterwards_as_it_was(waiting: threading.Event) -> None:
    net = nn.Linear(2, 2).train()
    target, begun, ended = wrap(net, input_shape=(2,)), threading.Event(), threading.Event()

    def first() -> None:
        with target.frozen():
            begun.set()
            waiting.wait(SECONDS)
        ended.set()

    def second() -> None:
        begun.wait(SECONDS)
        with target.frozen():
            waiting.set()
            ended.wait(SECONDS)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(first), pool.submit(second)]:
            future.result()
    assert net.training and net.weight.requires_grad


def test_random_numbers_are_those_of_ones_own_seed(waiting: threading.Event) -> None:
    begun, ended = threading.Event(), threading.Event()

    def first() -> Tensor:
        with global_seed(0, CPU):
            begun.set()
            waiting.wait(SECONDS)
            numbers = torch.rand(3)
        ended.set()
        return numbers

    def second() -> Tensor:
        begun.wait(SECONDS)
        with global_seed(1, CPU):
            numbers = torch.rand(3)
            waiting.set()
            ended.wait(SECONDS)
            return numbers

    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(first), pool.submit(second)]]
    assert torch.equal(torch.get_rng_state(), before)
    for seed, numbers in enumerate(found):
        with global_seed(seed, CPU):
            assert torch.equal(numbers, torch.rand(3))


# ------------------------------------------------------------------------------------------ who waits

IMAGES, LABELS = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(3)


def made(target: Target) -> ImageInversion:
    """Return a result of three images."""
    return ImageInversion(target, Recipe(device="cpu"), [], IMAGES, LABELS)


CALLS: dict[str, Callable[[Target], Any]] = {
    "target": lambda target: target(IMAGES),
    "respond": lambda target: target.respond(IMAGES),
    "frozen": lambda target: target.frozen().__enter__(),
    "differentiable": lambda target: target.differentiable().__enter__(),
    "units": lambda target: interpkit.Units(target, ["nothing:0"]),
    "sample": lambda target: made(target).sample(1),
    "figures": lambda target: made(target).figures(IMAGES),
    "page": lambda target: made(target)._repr_html_(),
    "explainer": lambda target: Explainer(target, "nothing"),
    "attribute": lambda target: interpkit.attribute(target, IMAGES, method="nothing"),
    **{
        verb: lambda target, verb=verb: getattr(interpkit, verb)("nothing")  # type: ignore[misc]
        for verb in ("invert", "evaluate", "audit", "concepts", "load_inversion", "load_target")
    },
    **{
        verb: lambda target, verb=verb: getattr(interpkit, verb)(target, None)  # type: ignore[misc]
        for verb in ("wrap", "counterfactual", "distill", "harden", "nearest", "pack_target", "reconstruct", "units")
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_waits_until_that_of_another_thread_has_ended(
    call: Callable[[Target], Any], tiny_target: Target, waiting: threading.Event
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with held_elsewhere():
            called = pool.submit(call, tiny_target)
            called.add_done_callback(lambda _: waiting.set())
            waiting.wait(SECONDS)
            assert not called.done()
        called.exception()  # most have wrong arguments, to be quick


def test_a_backward_pass_does_not_wait_as_its_thread_may_be_one_of_torch(tiny_target: Target) -> None:
    images, found = IMAGES.clone().requires_grad_(), []
    with torch.enable_grad():
        loss = images.sum()
    loss.register_hook(lambda _: found.append(tiny_target(IMAGES)))
    with held_elsewhere():
        loss.backward()
    assert torch.equal(found[0], tiny_target(IMAGES))


def test_compiled_code_does_not_wait(tiny_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with held_elsewhere():
        tiny_target(IMAGES)


def test_ctrl_c_ends_the_waiting(waiting: threading.Event) -> None:
    def interrupt() -> None:
        waiting.wait(SECONDS)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as pool, held_elsewhere():
            pool.submit(interrupt)
            with pytest.raises(KeyboardInterrupt), turn():
                pass
    finally:
        signal.signal(signal.SIGINT, before)
    with held_elsewhere():  # nothing of the turn is left to this thread
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    with held_elsewhere():
        if (child := os.fork()) == 0:
            signal.alarm(int(SECONDS))
            with turn():
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
