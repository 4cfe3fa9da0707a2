"""Seconds to 95 % inversion accuracy over the plain loop, and what equal steps come to.

Both train the same networks from the same weights, a step in turn, each in a process of its own. A loop is there once
three batches in a row, dropout on, come to 95 % together. After equal steps each is sampled in the same way: 1,000
images, the classes in turn.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from interpkit_metrics.similarity import directions, pooled, vendi

from benchmarks.measuring import Apart, Figure, OurLoop, machine
from benchmarks.peers import PlainLoop
from interpkit.api import invert
from interpkit.evaluation import scoring
from interpkit.inversion.results import GeneratorInversion

MODEL = Path(__file__).parent.parent / "examples" / "models" / "mnist.safetensors"
THERE = 0.95
UNTUNED = {"optimizer.lr": 1e-3, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999}
"""What torch.optim.Adam does if it is told nothing; the paper names no rates."""
MARGIN = 0.01
"""Of inversion accuracy, within which two loops are as good: 1,000 samples have a standard error of 0.5 % and less."""


class Clocked:
    """A loop with a clock of its own.

    Attributes:
        seconds: of its steps.
        there: the seconds and steps that it took to 95 %; None until then.
    """

    def __init__(self, loop: Callable[[], float]) -> None:
        self.loop, self.seconds, self.steps = loop, 0.0, 0
        self.there: tuple[float, int] | None = None
        self._last: deque[float] = deque(maxlen=3)

    def step(self) -> None:
        """Take a step."""
        begun = time.perf_counter()
        accuracy = self.loop()
        self.seconds += time.perf_counter() - begun
        self.steps += 1
        self._last.append(accuracy)
        if self.there is None and len(self._last) == 3 and mean(self._last) >= THERE:
            self.there = self.seconds, self.steps


def judged(loop: OurLoop | PlainLoop) -> tuple[float, float]:
    """Return inversion accuracy and variety: the Vendi score of a class's pooled pictures, mean over the classes."""
    parts = loop.parts if isinstance(loop, OurLoop) else loop
    assert parts.generator is not None and parts.conditioner is not None
    inversion = GeneratorInversion(loop.job.target, loop.job.recipe, [], parts.generator, parts.conditioner)
    samples = scoring.draw_samples(inversion, per_class=100, seed=1_000)
    right = (samples.predicted == samples.labels).double().mean().item()
    pictures = pooled(samples.images.double() / 255, 4).flatten(1)
    pictures = pictures - pictures.mean(1, keepdim=True)
    return right, mean(vendi(directions(pictures[samples.labels == label])) for label in samples.labels.unique())


def rival(kind: type[OurLoop] | type[PlainLoop], steps: int, seed: int, **options: float) -> OurLoop | PlainLoop:
    """Return a loop, with the recipe's rates where no options say otherwise."""
    return kind(invert.prepare(MODEL, ["vecmat"], steps=steps, seed=seed, options=options))


def figures(steps: int = 300, seeds: int = 3) -> Iterator[Figure]:
    """Yield the figures: seconds and steps to 95 %, and accuracy and variety after so many steps."""
    times, counts, ours_judged, plain_judged = [], [], [], []
    untuned_times, untuned_counts = [], []
    for seed in range(seeds):
        makers = [functools.partial(rival, kind, steps, seed) for kind in (OurLoop, PlainLoop)]
        loops = [Apart(make) for make in (*makers, functools.partial(makers[1], **UNTUNED))]
        ours, plain, untuned = (Clocked(loop) for loop in loops)
        for loop in loops:
            loop.ask(type)  # is there
        for number in range(steps):
            for one in (ours, plain) if number % 2 else (plain, ours):
                one.step()
            if not untuned.there:
                untuned.step()
        assert ours.there and plain.there and untuned.there, f"not at {THERE:.0%} after {steps} steps"
        times.append(ours.there[0] / plain.there[0])
        counts.append((ours.there[1], plain.there[1]))
        untuned_times.append(ours.there[0] / untuned.there[0])
        untuned_counts.append(untuned.there[1])
        ours_judged.append(loops[0].ask(judged))
        plain_judged.append(loops[1].ask(judged))
        for loop in loops:
            loop.end()
    told = "steps: " + ", ".join(f"{a} and {b}" for a, b in counts)
    yield Figure.of("seconds to 95 % inversion accuracy, over the plain loop", times, "<= 0.35", told)
    what = "the same, over the plain loop at torch's default rates of Adam"
    yield Figure.of(what, untuned_times, "", "its steps: " + ", ".join(map(str, untuned_counts)))
    for number, what in enumerate(("inversion accuracy", "variety (Vendi score of a class's pooled pictures)")):
        a, b = ([row[number] for row in rows] for rows in (ours_judged, plain_judged))
        # No worse: within what the seeds differ by, or the error of the samples.
        room = MARGIN if number == 0 else stdev(b)
        told = f"{_told(a)} over {_told(b)}, {seeds} seeds"
        what = f"{what} after {steps} steps, over the plain loop's"
        yield Figure(what, mean(a) / mean(b), f">= {1 - room / mean(b):.3f}", detail=told)


def _told(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(machine(torch.device("cpu")))
    for figure in figures(args.steps, args.seeds):
        print(figure.row(), flush=True)
