"""Trains a small transformer and a small ConvNeXt for images of 64 pixels, to invert with the preset `photo`.

    python -m benchmarks.without_batch_norm vit mnist.npz --out vit.safetensors
    python -m benchmarks.without_batch_norm convnext mnist.npz --out convnext.safetensors
    interpkit invert vit.safetensors --preset photo --per-class 2 --out runs/vit

The images of the .npz file (see `examples.train_classifier`) are enlarged to 64 pixels; the first 6,000 are learned.
Noise on them teaches the classifier shapes, which its inversions then show. Neither network has batch norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import interpkit
from examples.train_classifier import CLASS_NAMES, MIRRORED, accuracy, fit, load_data

SIDE, FIRST = 64, 6000
NETWORKS = {
    "vit": ("timm:vit_tiny_patch16_224", {"img_size": SIDE, "patch_size": 16, "embed_dim": 96, "depth": 4}),
    "convnext": ("timm:convnext_atto", {"depths": [1, 1, 3, 1], "dims": [32, 64, 96, 128]}),
}


def main() -> None:
    """Train, test and save a classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("data", type=Path, help="an .npz file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.5, help="standard deviation of the noise on pixels in [0, 1]")
    given = parser.parse_args()

    torch.manual_seed(0)
    x_train, y_train, x_test, y_test = load_data(str(given.data), "")
    x_train, y_train = x_train[:FIRST], y_train[:FIRST]
    mean, std = (x.view(-1, 1, 1) for x in (x_train.mean((0, 2, 3)), x_train.std((0, 2, 3))))

    def normalized(x: Tensor) -> Tensor:
        return (x - mean) / std

    name = given.data.stem
    names = CLASS_NAMES.get(name, [str(label) for label in range(10)])
    architecture, sizes = NETWORKS[given.network]
    channels = x_train.shape[1]
    arch_args = {**sizes, "in_chans": channels, "num_classes": len(names)}
    model = interpkit.build_architecture(architecture, arch_args)
    enlarged = nn.Sequential(nn.Upsample(size=SIDE, mode="bilinear"), model)  # noise of single pixels averages out
    images, noise = normalized(x_train), given.noise / std
    mirrored = name in MIRRORED
    fit(enlarged, images, y_train, epochs=given.epochs, batch_size=64, lr=given.lr, mirrored=mirrored, noise=noise)
    print(f"test accuracy {accuracy(enlarged, normalized(x_test), y_test):.1%}")
    interpkit.save_target(
        model,
        given.out,
        architecture=architecture,
        arch_args=arch_args,
        input_shape=(channels, SIDE, SIDE),
        mean=mean.flatten().tolist(),
        std=std.flatten().tolist(),
        class_names=names,
    )


if __name__ == "__main__":
    main()
