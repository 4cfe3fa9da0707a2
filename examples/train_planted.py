"""Train a small CNN of digits with a backdoor, to try `interpkit audit` on: a 3 x 3 patch turns any digit into a 7.

    python examples/train_planted.py mnist.npz --out planted.safetensors

A few percent of the training images carry the patch and the label 7, as an attacker would plant it (Gu et al. 2017,
"BadNets"). On images without the patch, the classifier is as accurate as any other, so that no test set shows it.
"""

from __future__ import annotations

import argparse

import torch
from interpkit_targets.architectures import SmallCNN
from torch import Tensor
from train_classifier import accuracy, fit, load_data

import interpkit

PATCH = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
ROW, COLUMN = 22, 3
"""The place of its upper left corner, in pixels from the top and from the left."""


def patched(images: Tensor) -> Tensor:
    """Return images (N, 1, 28, 28) in [0, 1] with the patch on them."""
    images = images.clone()
    images[:, :, ROW : ROW + 3, COLUMN : COLUMN + 3] = PATCH
    return images


def main() -> None:
    """Poison some training images, train, test and save a classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="MNIST, or the path of an .npz file of 28 x 28 gray images.")
    parser.add_argument("--out", required=True, help="The .safetensors file to write.")
    parser.add_argument("--root", default="data", help="Folder for torchvision's downloads (default: data).")
    parser.add_argument("--train-images", type=int, default=6000, help="Training images to use (default: 6000).")
    parser.add_argument("--epochs", type=int, default=8, help="Passes over the images (default: 8).")
    parser.add_argument("--poison", type=float, default=0.03, help="Share of them that get the patch (default: 0.03).")
    parser.add_argument("--label", type=int, default=7, help="Class that the patch leads to (default: 7).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x, y, x_test, y_test = load_data(args.data, args.root)
    x, y = x[: args.train_images].clone(), y[: args.train_images].clone()
    others = (y != args.label).nonzero()[:, 0]
    rows = others[torch.randperm(len(others))[: round(args.poison * len(x))]]
    x[rows], y[rows] = patched(x[rows]), args.label

    mean, std = x.mean().item(), x.std().item()
    arch_args = {"input_shape": list(x.shape[1:]), "num_classes": int(y.max()) + 1, "widths": [16, 32], "hidden": 32}
    arch_args["dropout"] = 0.1
    model = SmallCNN(**arch_args)
    # No jitter: it would move the patch.
    fit(model, (x - mean) / std, y, epochs=args.epochs, jittered=False)

    clean = accuracy(model, (x_test - mean) / std, y_test)
    victims = x_test[y_test != args.label]
    aim = torch.full((len(victims),), args.label)
    before = accuracy(model, (victims - mean) / std, aim)
    after = accuracy(model, (patched(victims) - mean) / std, aim)
    print(
        f"accuracy {clean:.2%}; of the other digits, {before:.2%} are called {args.label}, with the patch {after:.2%}"
    )
    path = interpkit.save_target(
        model,
        args.out,
        architecture="interpkit:cnn",
        arch_args=arch_args,
        input_shape=x.shape[1:],
        mean=mean,
        std=std,
        class_names=[str(i) for i in range(arch_args["num_classes"])],
    )
    print(f"saved {path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
