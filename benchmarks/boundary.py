"""Measures `nearest` beside a long projected-gradient search: ``python -m benchmarks.boundary --data FILE``.

It prints the share of images whose answer changes as promised, and the ratio of the distances: that of `nearest` over
that of the rival, for the images where both succeed. The rival is a projected-gradient search for the least distance
(after Rony et al., "Decoupling direction and norm", 2019): each step follows the gradient of the margin, then projects
onto a sphere around the image whose radius shrinks beyond the boundary and grows before it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from interpkit import Target, load_data, load_target, nearest

MODELS = Path(__file__).parent.parent / "examples" / "models"


def projected_gradient(target: Target, images: Tensor, steps: int, starts: int) -> Tensor:
    """Return the least distance at which the answer changed, over all steps and starts, (N,)."""
    with target.frozen(), torch.no_grad():
        present = target(images).argmax(1)
    least = torch.full((len(images),), torch.inf)
    wide = (-1, *[1] * (images.dim() - 1))
    rng = torch.Generator().manual_seed(0)
    for start in range(starts):
        change = torch.zeros_like(images)
        if start:
            change = (images + 0.3 * torch.randn(images.shape, generator=rng)).clamp(0, 1) - images
        radius = torch.ones(len(images))
        for step in range(steps):
            x = (images + change).requires_grad_()
            with target.frozen(), torch.enable_grad():
                logits = target(x)
                rival = logits.scatter(1, present[:, None], -torch.inf).amax(1)
                margin = rival - logits.gather(1, present[:, None])[:, 0]
                (slope,) = torch.autograd.grad(margin.sum(), x)
            norm = change.flatten(1).norm(dim=1)
            least = torch.where(margin > 0, least.minimum(norm), least)
            rate = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            radius = torch.where(margin > 0, norm.minimum(radius) * (1 - 0.05 * rate), radius * (1 + 0.05 * rate))
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
            change = change + slope * (rate * radius / length).view(wide)
            change = change * (radius / change.flatten(1).norm(dim=1).clamp_min(1e-12)).view(wide)
            change = (images + change).clamp(0, 1) - images
    return least


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS / "mnist_bn.safetensors", help="Classifier (default: mnist_bn).")
    parser.add_argument("--data", required=True, help="Labeled images, as FILE.npz.")
    parser.add_argument("--images", type=int, default=200, help="How many of them (default: 200).")
    parser.add_argument("--steps", type=int, default=1000, help="Steps of the rival (default: 1000).")
    parser.add_argument("--starts", type=int, default=10, help="Starts of the rival (default: 10).")
    args = parser.parse_args()
    target = load_target(args.model)
    images = load_data(args.data, (1, 28, 28)).images[: args.images].reshape(-1, *target.input_shape)
    began = time.process_time()
    result = nearest(target, images, device="cpu")
    took = time.process_time() - began
    with torch.no_grad(), target.frozen():
        changed = target(result.images).argmax(1) != result.before
    rival = projected_gradient(target, images, args.steps, args.starts)
    both = result.found & rival.isfinite()
    print("| classifier | images | changed as promised | distance | over the rival's | per image | CPU time, ratio |")
    print("|---|---|---|---|---|---|---|")
    own = result.distances[both]
    print(
        f"| {target.name} | {len(images)} | {(changed & result.found).double().mean():.3f} | {own.mean():.3f} | "
        f"{own.sum() / rival[both].sum():.3f} | {(own / rival[both]).mean():.3f} | "
        f"{(time.process_time() - began - took) / took:.0f} |"
    )


if __name__ == "__main__":
    main()
