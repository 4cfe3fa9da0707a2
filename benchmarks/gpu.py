"""All figures that a GPU changes, in one run of under eight minutes on a large one: ``python -m benchmarks gpu``.

Needs the repository and its required dependencies, but no data and no other files. A run of the preset vecmat in fp32,
in bf16, and in bf16 with the generator compiled, which on CUDA replays one graph per step, is compared with the plain
loop; then follow the preset photo and a whole run on 1,000 classes. ``python -m benchmarks --device cpu gpu`` tries the
script on a CPU with tiny settings, and its figures mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import interpkit
from benchmarks.growth import Classes
from benchmarks.large import IMAGENET
from benchmarks.measuring import Figure, best_matrix_product, synchronize
from benchmarks.peers import PlainLoop
from benchmarks.step import Flops, target
from interpkit.api import invert
from interpkit.plugins import assembly
from interpkit.plugins.discovery import installed
from interpkit.runtime.recorder import Recorder

SECONDS = 420.0
"""No further case begins after this time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "compile": "off"},
    "bf16": {"precision": "bf16", "compile": "off"},
    "bf16, compiled": {"precision": "bf16", "compile": "on"},
}
TINY: dict[str, Any] = {"options": {"upconv.width": 4, "upconv.min_width": 4, "upconv.hidden": 4}}


@dataclass(frozen=True)
class Scale:
    """How much is measured: on a GPU, or to try the script on a CPU.

    Attributes:
        steps: timed steps of a case; half as many run before them, which is when a generator is compiled.
        names: the small classifiers.
        batches: images per step.
        products: sides of the matrices whose product is the machine's best.
        side: of the images of the large classifier.
        classes: of the whole run.
        run: the steps of the whole run.
        compile: whether to compile where a variant does; on a CPU that takes a minute.
    """

    steps: int = 200
    names: tuple[str, ...] = ("mnist_bn", "ResNet-20")
    batches: tuple[int, ...] = (128, 2048)
    products: tuple[int, ...] = (4096, 8192, 16384)
    side: int = 224
    classes: int = 1000
    run: int = 1000
    compile: bool = True


DRY = Scale(2, ("mnist_bn",), (4,), (64,), 32, 20, 4, compile=False)


class Clock(Recorder):
    """A recorder that times the steps after the first ``warm_up`` and waits for the device only at both ends."""

    def __init__(self, steps: int, warm_up: int, device: torch.device) -> None:
        super().__init__(warm_up + steps)
        self._warm_up, self._device = warm_up, device
        self._since = self.per_step = 0.0

    def step(self, step: int, *values: Any) -> None:
        """Record a step."""
        super().step(step, *values)
        if step == self._warm_up:
            synchronize(self._device)
            self._since = time.perf_counter()
        if step == self.steps:
            synchronize(self._device)
            self.per_step = (time.perf_counter() - self._since) / (self.steps - self._warm_up)


def measured(
    classifier: interpkit.Target, preset: str, scale: Scale, device: torch.device, **settings: Any
) -> tuple[float, float]:
    """Return the seconds per step of a run of a preset, and the most MB that its tensors occupy on a GPU, else 0."""
    warm_up = max(1, scale.steps // 2)
    job = invert.prepare(classifier, [preset], steps=warm_up + scale.steps, device=str(device), **settings)
    torch.manual_seed(0)
    clock = Clock(scale.steps, warm_up, device)

    def run() -> None:
        with classifier.frozen(device, torch.channels_last):
            inverter, parts = assembly.build(job.recipe, classifier, installed())
            inverter.invert(classifier, job.recipe, parts, clock)

    memory = peak(device, run)
    return clock.per_step, memory


def peak(device: torch.device, run: Callable[[], object]) -> float:
    """Return the most MB that tensors occupy on a GPU during a call; 0 on a CPU."""
    if device.type != "cuda":
        run()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e6


def plain(job: invert.Job, scale: Scale, device: torch.device) -> tuple[float, int]:
    """Return the seconds per step of the plain loop, and the FLOPs of a step without gradients for the classifier."""
    counted = PlainLoop(job, frozen=True, device=str(device))
    counted()
    with Flops() as flops:
        counted()
    loop = PlainLoop(job, device=str(device))
    for _ in range(3):
        loop()
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(scale.steps):
        loop()
    synchronize(device)
    return (time.perf_counter() - begun) / scale.steps, flops.total


def steps(name: str, batch: int, scale: Scale, device: torch.device, best: dict[str, float]) -> Iterator[Figure]:
    """Yield the steps per second of each variant, its ratio to the plain loop, its share of the peak, its memory."""
    given: dict[str, Any] = {"batch_size": batch, **(TINY if scale is DRY else {})}
    classifier = target(name)
    took, flops = plain(invert.prepare(classifier, ["vecmat"], steps=1, device=str(device), **given), scale, device)
    what = f"{name}, batch {batch:,}"
    yield Figure(f"{what}: steps per second of the plain fp32 loop", 1 / took, detail=f"{flops / 1e9:.3g} GFLOP a step")
    for variant, chosen in VARIANTS.items():
        given |= chosen if scale.compile else {**chosen, "compile": "off"}
        seconds, memory = measured(classifier, "vecmat", scale, device, **given)
        share = flops / seconds / best[variant[:4]]
        detail = f"{1e3 * seconds:.3g} ms, {share:.3g} of the best matrix product's FLOP/s, {memory:,.0f} MB"
        yield Figure(f"{what}: steps per second, {variant}", 1 / seconds, detail=detail)
        goal = "<= 0.25" if device.type == "cuda" and variant == "bf16, compiled" else ""
        yield Figure(f"{what}: step over the plain fp32 loop's, {variant}", seconds / took, goal)


def large(scale: Scale, device: torch.device) -> Iterator[Figure]:
    """Yield the time and memory of the preset photo and of vecmat on a ResNet-50 with random weights."""
    import torchvision

    torch.manual_seed(0)
    facts = {**IMAGENET, "input_shape": (3, scale.side, scale.side)}
    network = torchvision.models.resnet18 if scale is DRY else torchvision.models.resnet50
    classifier = interpkit.wrap(network(weights=None), **facts)
    size = 4 if scale is DRY else 64
    images = torch.rand(size, *classifier.input_shape, device=device, requires_grad=True)

    def own() -> None:
        with classifier.frozen(device, torch.channels_last), torch.autocast(device.type, torch.bfloat16):
            logits = classifier(images)
        torch.autograd.grad(logits.float().logsumexp(1).sum(), images)

    alone = peak(device, own)
    few = Scale(max(2, scale.steps // 10))
    for preset in ("photo", "vecmat"):
        given: dict[str, Any] = {"batch_size": size, "compile": "off"}
        if preset == "photo":
            given |= {"labels": list(range(size)), "per_class": 1}  # one group of images
        elif scale is DRY:
            given |= TINY
        seconds, memory = measured(classifier, preset, few, device, **given)
        what = f"ResNet-50, {scale.side} x {scale.side}, batch {size}, preset {preset}"
        yield Figure(f"{what}: steps per second", 1 / seconds, detail=f"{memory:,.0f} MB")
        if alone:
            yield Figure(f"{what}: peak memory over the classifier's own forward and backward pass", memory / alone)


def classes(scale: Scale, device: torch.device) -> Iterator[Figure]:
    """Yield the seconds of a whole run on many classes, its report aside."""
    torch.manual_seed(0)
    classifier = interpkit.wrap(Classes(scale.classes), input_shape=(1, 32, 32))
    given = TINY if scale is DRY else {}
    begun = time.perf_counter()
    inversion = interpkit.invert(classifier, ["vecmat"], steps=scale.run, device=str(device), **given)
    trained = time.perf_counter() - begun
    count = 10 * scale.classes
    inversion.sample(count=count)
    drawn = time.perf_counter() - begun - trained
    what = f"{scale.classes:,} classes, {scale.run:,} steps: seconds of the run"
    yield Figure(what, trained, detail=f"and {drawn:.3g} s for {count:,} samples")


def figures(device: str = "cuda") -> Iterator[Figure]:
    """Yield the figures, the most important cases first."""
    place = torch.device(device)
    scale = Scale() if place.type == "cuda" else DRY
    begun = time.perf_counter()
    best = {
        name: best_matrix_product(dtype, place, scale.products)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    for name, rate in best.items():
        yield Figure(f"best matrix product in {name}, TFLOP/s", rate / 1e12)
    cases: list[tuple[str, Iterator[Figure]]] = [
        (f"{name}, batch {batch}", steps(name, batch, scale, place, best))
        for name in scale.names
        for batch in scale.batches
    ]
    cases[len(scale.batches) : len(scale.batches)] = [
        ("large", large(scale, place)),
        ("classes", classes(scale, place)),
    ]
    for what, case in cases:
        if time.perf_counter() - begun > SECONDS:
            yield Figure(f"{what}: left out, since this part had taken these seconds", time.perf_counter() - begun)
        else:
            yield from case
    yield Figure("seconds of this whole part", time.perf_counter() - begun, "<= 480")
