"""Measures whether the pixels that methods point to matter more than random ones, on six photographs.

    python -m benchmarks.relevance            # EfficientNet-Lite0, see examples/photographs.py

The photographs are crops of the two that scikit-learn ships. *Deletion* is the area under the curve of the probability
of the predicted class while pixels are removed, those with the most evidence first; lower is better. It is measured for
the maps, and for the maps averaged over 9 x 9 pixels, as single pixels that are removed disturb a network anywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

import interpkit
from examples.photographs import efficientnet_lite0
from interpkit.attribution import faithfulness

CROPS = ((0, 0, 0, 420), (0, 0, 200, 420), (1, 0, 0, 420), (1, 0, 200, 420), (0, 100, 300, 300), (1, 60, 150, 300))
"""Photograph, top, left and side of each."""
METHODS = (("lrp", {}), ("lrp", {"rule": "epsilon"}), ("grad-cam", {}), ("input-x-gradient", {}))


def crop(photograph: int, top: int, left: int, side: int) -> Tensor:
    """Return a square of a photograph as an image of 224 pixels, (1, 3, 224, 224)."""
    pixels = torch.from_numpy(load_sample_images().images[photograph].copy()).permute(2, 0, 1)[None] / 255
    part = pixels[..., top : top + side, left : left + side]
    return F.interpolate(part, (224, 224), mode="bilinear", antialias=True)


def main() -> None:
    """Print a table."""
    target, images = efficientnet_lite0(), torch.cat([crop(*each) for each in CROPS])
    with torch.no_grad():
        scores, classes = target(images).max(1)
    noise = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) for shape in (images.shape, (6, 1, 14, 14))]
    coarse = F.interpolate(noise[1], (224, 224), mode="bilinear").expand_as(images)
    maps = {"random": (noise[0], coarse)}
    print("| method | deletion | of averaged maps | sum of a map / logit |\n|---|---|---|---|", flush=True)
    for method, options in METHODS:
        explainer = interpkit.Explainer(target, method, options=options, device="cpu")
        found = explainer.maps(images, classes)
        maps[" ".join([method, *options.values()])] = found, F.avg_pool2d(found, 9, 1, 4)
    for name, both in maps.items():
        areas = [faithfulness.deletion(explainer, images, classes, each, steps=10).mean() for each in both]
        share = (both[0].flatten(1).sum(1) / scores).mean()
        total = f"{share:.2f}" if name.startswith("lrp") else "-"
        print(f"| {name} | {areas[0]:.3f} | {areas[1]:.3f} | {total} |", flush=True)


if __name__ == "__main__":
    main()
