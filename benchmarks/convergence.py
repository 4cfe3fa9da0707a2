"""Seconds to 95 % inversion accuracy over the plain loop, and what equal steps come to.

Both train the same networks from the same weights, a step in turn. A loop is there once three batches in a row, dropout
on, come to 95 % together. Then both go on to equal steps, and each is sampled in the same way.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from pathlib import Path

from benchmarks.measuring import OurLoop
from benchmarks.peers import PlainLoop
from interpkit import api

MODEL = Path(__file__).parent.parent / "examples/models/mnist.safetensors"
THERE = 0.95


class Clocked:
    """A loop with a clock of its own: how many seconds and steps it took until it was there."""

    def __init__(self, loop) -> None:
        self.loop, self.seconds, self.steps = loop, 0.0, 0
        self.there: tuple[float, int] | None = None
        self._last: deque[float] = deque(maxlen=3)

    def step(self) -> None:
        """Take a step."""
        begun = time.perf_counter()
        result = self.loop()
        self.seconds += time.perf_counter() - begun
        self.steps += 1
        self._last.append(result)
        if self.there is None and len(self._last) == 3 and sum(self._last) / 3 >= THERE:
            self.there = self.seconds, self.steps


def main(steps: int = 300, seeds: int = 3) -> None:
    """Run both for each seed."""
    for seed in range(seeds):
        job = api.prepare(MODEL, ["vecmat"], steps=steps, seed=seed)
        ours, plain = Clocked(OurLoop(job)), Clocked(PlainLoop(job))
        for number in range(steps):
            for rival in (ours, plain) if number % 2 else (plain, ours):
                rival.step()
            if number % 10 == 9:
                print(seed, number + 1, ours.there, plain.there, ours._last, plain._last, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    main(args.steps, args.seeds)
