"""Train a small CNN (convolutions, leaky ReLU, dropout, as in the paper) and save it for interpkit.

    python examples/train_classifier.py MNIST --out mnist.safetensors                  # downloads with torchvision
    python examples/train_classifier.py mnist.npz --train-images 6000 --out mnist.safetensors
    python examples/train_classifier.py mnist.npz --noise 0.5 --out smoothed.safetensors

With --noise the classifier is trained on noisy images, as for randomized smoothing (Cohen et al. 2019). That makes it
robust to L2 perturbations; see how differently it inverts.

An .npz file holds x_train, y_train, x_test, y_test: images as uint8, (N, H, W) or (N, H, W, C), and labels 0..n-1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from interpkit_targets.architectures import SmallCNN
from torch import Tensor, nn
from torchvision.transforms.v2 import RandomAffine, RandomHorizontalFlip

import interpkit

FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CLASS_NAMES = {"fashionmnist": FASHION, "fashion_mnist": FASHION, "cifar10": CIFAR10}
MIRRORED = ("fashionmnist", "fashion_mnist", "cifar10")


def load_data(data: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images and labels, test images and labels; images (N, C, H, W) in [0, 1]."""
    if data.endswith(".npz"):
        with np.load(data) as arrays:
            x_train, y_train, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    elif data == "SVHN":
        sets = [torchvision.datasets.SVHN(root, split, download=True) for split in ("train", "test")]
        (x_train, y_train), (x_test, y_test) = ((s.data.transpose(0, 2, 3, 1), s.labels) for s in sets)
    else:
        dataset = getattr(torchvision.datasets, data)
        sets = [dataset(root, train=train, download=True) for train in (True, False)]
        (x_train, y_train), (x_test, y_test) = ((np.asarray(s.data), np.asarray(s.targets)) for s in sets)

    def images(x: np.ndarray) -> Tensor:
        x = x[..., None] if x.ndim == 3 else x
        return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255

    return images(x_train), torch.tensor(y_train).long(), images(x_test), torch.tensor(y_test).long()


def fit(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    mirrored: bool = False,
    jittered: bool = True,
    noise: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Train a classifier on normalized images (N, C, H, W): AdamW, one-cycle learning rate, random affine jitter.

    Args:
        model: the classifier, trained in place and left in eval mode.
        x_train: normalized training images.
        y_train: labels (N,).
        epochs: passes over the images.
        batch_size: images per step.
        lr: the highest learning rate.
        mirrored: whether to mirror images at random.
        jittered: whether to turn, shift and scale images at random.
        noise: standard deviation of Gaussian noise on the normalized images, (C, 1, 1); no noise if omitted.
        loss: the loss of a batch, from its normalized images and labels; the model's cross-entropy if omitted.
        test: normalized images and labels; if given, the accuracy on them is printed after each epoch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    steps = epochs * -(-len(x_train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    fill = x_train.amin((0, 2, 3)).tolist()
    affine = RandomAffine(8, translate=(0.08, 0.08), scale=(0.92, 1.08), fill=fill)
    jitter: list[nn.Module] = [affine] if jittered else []
    if mirrored:
        jitter.append(RandomHorizontalFlip())
    for epoch in range(epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(x_train)).split(batch_size):
            # One transform per piece is cheaper than one per image, and varied enough.
            pieces = list(x_train[rows].split(16))
            for transform in jitter:
                pieces = [transform(piece) for piece in pieces]
            x = torch.cat(pieces)
            if noise is not None:
                x = x + noise * torch.randn_like(x)
            labels = y_train[rows]
            error = F.cross_entropy(model(x), labels) if loss is None else loss(x, labels)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
            losses.append(error.detach())
        model.eval()
        suffix = f"  test accuracy {accuracy(model, *test):.4f}" if test else ""
        print(f"epoch {epoch + 1:2d}  loss {torch.stack(losses).mean():.4f}{suffix}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of normalized images (N, C, H, W) that the model classifies correctly."""
    right = [model(rows).argmax(1) == labels for rows, labels in zip(x.split(500), y.split(500), strict=True)]
    return torch.cat(right).float().mean().item()


def main() -> None:
    """Train, test and save a classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="MNIST, FashionMNIST, SVHN, CIFAR10, or the path of an .npz file.")
    parser.add_argument("--out", required=True, help="The .safetensors file to write.")
    parser.add_argument("--root", default="data", help="Folder for torchvision's downloads (default: data).")
    parser.add_argument("--train-images", type=int, help="Use only the first N training images.")
    parser.add_argument("--epochs", type=int, default=20, help="Passes over the images (default: 20).")
    parser.add_argument("--batch-size", type=int, default=128, help="Images per step (default: 128).")
    parser.add_argument("--lr", type=float, default=2e-3, help="Highest learning rate (default: 0.002).")
    parser.add_argument("--batch-norm", action="store_true", help="Add batch norm after each convolution.")
    parser.add_argument("--noise", type=float, default=0.0, help="Standard deviation of noise on pixels in [0, 1].")
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x_train, y_train, x_test, y_test = load_data(args.data, args.root)
    x_train, y_train = x_train[: args.train_images], y_train[: args.train_images]
    kind = Path(args.data).stem.lower()
    classes = int(y_train.max()) + 1
    mean, std = x_train.mean((0, 2, 3)), x_train.std((0, 2, 3))
    arch_args = {
        "input_shape": list(x_train.shape[1:]),
        "num_classes": classes,
        "widths": [32, 64] if x_train.shape[1] == 1 else [32, 64, 96],
        "batch_norm": args.batch_norm,
    }
    model = SmallCNN(**arch_args)

    def normalized(x: Tensor) -> Tensor:
        return (x - mean[:, None, None]) / std[:, None, None]

    fit(
        model,
        normalized(x_train),
        y_train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        mirrored=kind in MIRRORED,
        noise=args.noise / std[:, None, None] if args.noise else None,
        test=(normalized(x_test), y_test),
    )

    names = CLASS_NAMES.get(kind, [str(i) for i in range(classes)])
    path = interpkit.save_target(
        model,
        args.out,
        architecture="interpkit:cnn",
        arch_args=arch_args,
        input_shape=x_train.shape[1:],
        mean=mean.tolist(),
        std=std.tolist(),
        class_names=names,
    )
    print(f"saved {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
