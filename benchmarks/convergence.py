"""Seconds to 95 % inversion accuracy compared with the plain loop, and accuracy and variety after equal steps.

Both loops train the same networks from the same weights. They take turns, one step each, each in its own process. A
loop has reached 95 % once three batches in a row, with dropout on, average that much. After equal steps each is sampled
in the same way: 1,000 images, the classes in turn.
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
GOAL = 0.95
UNTUNED = {"optimizer.lr": 1e-3, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999}
"""The defaults of torch.optim.Adam; the paper does not specify learning rates."""
MARGIN = 0.01
"""Difference of inversion accuracy that counts as equal: 1,000 samples have a standard error of at most 0.5 %."""


class Clocked:
    """A loop with its own clock.

    Attributes:
        seconds: total time of its steps.
        reached: the seconds and steps that it took to 95 %; None until then.
    """

    def __init__(self, loop: Callable[[], float]) -> None:
        self.loop, self.seconds, self.steps = loop, 0.0, 0
        self.reached: tuple[float, int] | None = None
        self._last: deque[float] = deque(maxlen=3)

    def step(self) -> None:
        """Take a step."""
        begun = time.perf_counter()
        accuracy = self.loop()
        self.seconds += time.perf_counter() - begun
        self.steps += 1
        self._last.append(accuracy)
        if self.reached is None and len(self._last) == 3 and mean(self._last) >= GOAL:
            self.reached = self.seconds, self.steps


def quality(loop: OurLoop | PlainLoop) -> tuple[float, float]:
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
    """Return a loop, with the recipe's learning rates unless the options override them."""
    return kind(invert.prepare(MODEL, ["vecmat"], steps=steps, seed=seed, options=options))


def figures(steps: int = 300, seeds: int = 3) -> Iterator[Figure]:
    """Yield the figures: seconds and steps to 95 %, and accuracy and variety after ``steps`` steps."""
    times, counts, our_quality, plain_quality = [], [], [], []
    untuned_times, untuned_counts = [], []
    for seed in range(seeds):
        makers = [functools.partial(rival, kind, steps, seed) for kind in (OurLoop, PlainLoop)]
        loops = [Apart(make) for make in (*makers, functools.partial(makers[1], **UNTUNED))]
        ours, plain, untuned = (Clocked(loop) for loop in loops)
        for loop in loops:
            loop.ask(type)  # waits until the process is ready
        for number in range(steps):
            for one in (ours, plain) if number % 2 else (plain, ours):
                one.step()
            if not untuned.reached:
                untuned.step()
        assert ours.reached and plain.reached and untuned.reached, f"did not reach {GOAL:.0%} after {steps} steps"
        times.append(ours.reached[0] / plain.reached[0])
        counts.append((ours.reached[1], plain.reached[1]))
        untuned_times.append(ours.reached[0] / untuned.reached[0])
        untuned_counts.append(untuned.reached[1])
        our_quality.append(loops[0].ask(quality))
        plain_quality.append(loops[1].ask(quality))
        for loop in loops:
            loop.end()
    detail = "steps: " + ", ".join(f"{a} and {b}" for a, b in counts)
    yield Figure.of("seconds to 95 % inversion accuracy, over the plain loop", times, "<= 0.35", detail)
    what = "the same, over the plain loop at torch's default rates of Adam"
    yield Figure.of(what, untuned_times, "", "its steps: " + ", ".join(map(str, untuned_counts)))
    for number, what in enumerate(("inversion accuracy", "variety (Vendi score of a class's pooled pictures)")):
        a, b = ([row[number] for row in rows] for rows in (our_quality, plain_quality))
        # "No worse" means within the spread over the seeds, or within the sampling error.
        room = MARGIN if number == 0 else stdev(b)
        detail = f"{_mean_and_deviation(a)} over {_mean_and_deviation(b)}, {seeds} seeds"
        what = f"{what} after {steps} steps, over the plain loop's"
        yield Figure(what, mean(a) / mean(b), f">= {1 - room / mean(b):.3f}", detail=detail)


def _mean_and_deviation(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="Steps of each loop (default: 300).")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds (default: 3).")
    args = parser.parse_args()
    print(machine(torch.device("cpu")))
    for figure in figures(args.steps, args.seeds):
        print(figure.row(), flush=True)
