"""Time and arithmetic of one step, over the plain loop, a hand-written optimized loop, and the machine's best.

    python -m benchmarks.step [--device cuda] [--profile]

The competitors take turns, one step each, each in its own process. FLOPs are those of convolutions and matrix products,
counted in a step without gradients for the frozen classifier's weights. The machine's best is the fastest matrix
product in the same precision. ``--profile`` prints the operators of our step, sorted by the time that they take.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import interpkit
from benchmarks.foreign_nets import resnet20
from benchmarks.measuring import Apart, Figure, OurLoop, best_matrix_product, in_turn, machine, ratios, synchronize
from benchmarks.peers import PlainLoop
from interpkit.api import invert

MODELS = Path(__file__).parent.parent / "examples" / "models"
MANY = 100_000
"""More steps than a benchmark ever takes."""


class Flops(TorchDispatchMode):
    """Counts the FLOPs of convolutions and matrix products, backward pass included, while the context is active."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its FLOPs."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


NAMES = ("mnist", "mnist_bn", "ResNet-20")


def target(name: str) -> interpkit.Target:
    """Return the target: a shipped classifier of MNIST, or a ResNet-20 for CIFAR-10 with random weights."""
    if name == "ResNet-20":
        torch.manual_seed(0)
        return interpkit.wrap(resnet20(), input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3)
    return interpkit.load_target(MODELS / f"{name}.safetensors")


def job(name: str, device: str = "cpu", precision: str = "auto", steps: int = MANY) -> invert.Job:
    """Return a run of the preset vecmat that the benchmark does not finish."""
    return invert.prepare(target(name), ["vecmat"], steps=steps, device=device, precision=precision)


def rival(kind: str, name: str, device: str) -> Callable[[], object]:
    """Return a loop whose step, GPU work included, is finished when the call returns."""
    run = job(name, device, "fp32" if kind == "ours in fp32" else "auto")
    loop = {"plain": PlainLoop, "by hand": HandWritten}.get(kind)
    return functools.partial(_whole, loop(run, device=device) if loop else OurLoop(run), torch.device(device))


def figures(device: str = "cpu", rounds: int = 20) -> Iterator[Figure]:
    """Yield the figures of each target."""
    place = torch.device(device)
    for name in NAMES:
        default = job(name, device)
        precision = default.recipe.precision
        counted = PlainLoop(default, frozen=True, device=device)
        counted()
        with Flops() as flops:
            counted()
        best = best_matrix_product(torch.bfloat16 if precision == "bf16" else torch.float32, place)
        kinds = ("ours", "ours in fp32", "plain", "by hand")
        loops = {kind: Apart(functools.partial(rival, kind, name, device)) for kind in kinds}
        seconds = in_turn(loops, rounds)
        for loop in loops.values():
            loop.end()
        ms = {kind: 1e3 * statistics.median(values) for kind, values in seconds.items()}
        goal = "<= 0.25" if device == "cuda" else "<= 0.4" if precision == "bf16" else "<= 0.55"
        detail = f"{ms['ours']:.0f} over {ms['plain']:.0f} ms, {precision}, batch {default.recipe.batch_size}"
        ours, plain = seconds["ours"], seconds["plain"]
        yield Figure.of(f"{name}: step over the plain fp32 loop's", ratios(ours, plain), goal, detail)
        in_fp32 = ratios(seconds["ours in fp32"], plain)
        yield Figure.of(f"{name}: the same, with ours in fp32 too", in_fp32, "", f"{ms['ours in fp32']:.0f} ms")
        by_hand = ratios(ours, seconds["by hand"])
        what = f"{name}: step over a hand-written loop with the same optimizations"
        yield Figure.of(what, by_hand, "<= 1.03", f"{ms['by hand']:.0f} ms")
        reached = flops.total / ms["ours"] * 1e3
        detail = f"{flops.total / 1e9:.1f} GFLOP; {reached / 1e12:.3f} of {best / 1e12:.3f} TFLOP/s in {precision}"
        shares = [flops.total / took / best for took in ours]
        yield Figure.of(f"{name}: FLOP/s of the step over the best matrix product's", shares, ">= 0.55", detail)


def _whole(loop: Any, device: torch.device) -> None:
    loop()
    synchronize(device)


class HandWritten(PlainLoop):
    """The plain loop with our optimizations written in by hand; the difference to ours is interpkit's own overhead."""

    def __init__(self, job: invert.Job, device: str = "cpu") -> None:
        super().__init__(job, frozen=True, device=device)
        self.generator.to(memory_format=torch.channels_last)
        self.target.to(memory_format=torch.channels_last)
        adam = self.recipe.optimizer
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2), fused=True
        )
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, computed in the precision of the recipe."""
        with self.autocast:
            return super().classify(images)

    def generate(self, labels: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        """Return images, generated in the precision of the recipe."""
        with self.autocast:
            return super().generate(labels, p).float()


def profile(device: str = "cpu", rows: int = 25) -> str:
    """Return a table of the operators of our step, sorted by their own time."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.measuring import stepwise

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    profiler = profile(activities=kinds, record_shapes=True)

    def between(step: int, loss: float) -> None:
        if step == 5:
            profiler.__enter__()
        elif step == 10:
            profiler.__exit__(None, None, None)

    stepwise(job("mnist", device, steps=11), between)
    by = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    return profiler.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=rows)


def main() -> None:
    """Print the figures, or the profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="Device to measure on (default: cpu).")
    parser.add_argument("--profile", action="store_true", help="Print the operators of a step instead.")
    arguments = parser.parse_args()
    if arguments.profile:
        print(profile(arguments.device))
        return
    print(machine(torch.device(arguments.device)))
    for figure in figures(arguments.device):
        print(figure.row(), flush=True)


if __name__ == "__main__":
    main()
