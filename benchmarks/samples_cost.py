"""Cost of 100,000 distinct accepted samples, training included, over gradient descent on images.

Accepted means that the classifier assigns the image, in 8 bits, to the requested class. Distinct means that no other
image of its class has a cosine of 0.99 or more with it, after pooling in squares of 4 pixels and subtracting the mean.
Images that are not distinct do not count.

Ours is an inversion with the preset vecmat followed by the sampling of `interpkit sample`. Gradient descent takes as
few steps as it needs to reach our accuracy, and all of its images count as distinct. It runs in fp32, once with a batch
at a time, and once with one image at a time, Fourier coefficients and jitter as in torch-lucent
(`benchmarks.peers.ImageDescent`).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from interpkit_metrics.similarity import pooled
from torch import Tensor

from benchmarks.measuring import Figure, machine
from benchmarks.peers import ImageDescent
from interpkit.api import invert
from interpkit.evaluation import scoring

MODEL = Path(__file__).parent.parent / "examples" / "models" / "mnist.safetensors"
ALIKE = 0.99
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)


def distinct(images: Tensor, labels: Tensor, rows: int = 1000) -> float:
    """Return the share of images, (N, C, H, W) uint8, that resemble no other image of their class."""
    alone = 0
    for label in labels.unique():
        pictures = pooled(images[labels == label].float() / 255, 4).flatten(1)
        units = F.normalize(pictures - pictures.mean(1, keepdim=True), dim=1)
        for start in range(0, len(units), rows):
            cosines = units[start : start + rows] @ units.T
            cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -1
            alone += int((cosines.amax(1) < ALIKE).sum())
    return alone / len(images)


def figures(count: int = 100_000, batches: int = 4) -> Iterator[Figure]:
    """Yield the figures."""
    begun = time.perf_counter()
    inversion = invert.prepare(MODEL, ["vecmat"]).run()
    trained = time.perf_counter() - begun
    target = inversion.target
    kept: list[tuple[Tensor, Tensor]] = []
    drawn, begun = 0, time.perf_counter()
    for seed in itertools.count():
        if sum(len(labels) for _, labels in kept) >= count:
            break
        samples = scoring.draw_samples(inversion, per_class=1000, seed=seed)
        right = samples.predicted == samples.labels
        kept.append((samples.images[right], samples.labels[right]))
        drawn += len(samples.labels)
    sampled = time.perf_counter() - begun
    images, labels = (torch.cat(column) for column in zip(*kept, strict=True))
    accuracy, share = len(labels) / drawn, distinct(images, labels)
    ours = trained + sampled * count / (len(labels) * share)
    detail = (
        f"{trained:.0f} s of training, {len(labels):,} accepted in {sampled:.0f} s, {accuracy:.1%} of those drawn, "
        f"{share:.1%} of them distinct"
    )
    for what, size, options, goal in (
        ("gradient descent on 128 images at a time", 128, {}, "<= 0.25"),
        ("torch-lucent's method, one image at a time", 1, {"fourier": True}, ""),
    ):
        descent = ImageDescent(target, batch=size, **options)
        steps = next((n for n in STEPS if _accuracy(descent, n, size) >= accuracy), STEPS[-1])
        took, accepted = 0.0, 0
        for seed in range(batches):
            begun = time.perf_counter()
            batch, classes = descent(100 + seed, steps)
            took += time.perf_counter() - begun
            accepted += _accepted(descent, batch, classes)
        theirs = count * took / max(accepted, 1)
        rival = f"{steps} steps, {accepted} of {batches * size} accepted in {took:.2f} s: {theirs:.0f} s"
        yield Figure(
            f"cost of {count:,} distinct accepted samples, over {what}", ours / theirs, goal,
            detail=f"{ours:.0f} s ({detail}) over {rival}",
        )  # fmt: skip


@torch.no_grad()
def _accepted(descent: ImageDescent, images: Tensor, labels: Tensor) -> int:
    quantized = (images * 255).round() / 255
    return int((descent.target(quantized).argmax(1) == labels).sum())


def _accuracy(descent: ImageDescent, steps: int, size: int, of: int = 256) -> float:
    """Return the share of images accepted after ``steps`` steps."""
    many = max(2, of // size) if size > 1 else 20
    return sum(_accepted(descent, *descent(seed, steps)) for seed in range(many)) / (many * size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="Samples to draw (default: 100,000).")
    print(machine(torch.device("cpu")))
    for figure in figures(parser.parse_args().count):
        print(figure.row(), flush=True)
