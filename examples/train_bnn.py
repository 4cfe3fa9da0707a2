"""Train a binarised network, which the inverter cnf can invert by a SAT solver, and save it for interpkit.

    python examples/train_bnn.py --data mnist.npz --out bnn.safetensors
    python examples/train_bnn.py --data mnist.npz --channels 12 --fan-in 32 --hidden 256 --out conv.safetensors

Inputs are 0 and 1, weights -1 and +1; gradients pass straight through the steps. The .npz file holds x_train, y_train,
x_test, y_test: images as uint8, (N, H, W) or (N, H, W, C), and labels 0..n-1.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from interpkit_sat import BinaryNet
from torch import Tensor
from train_classifier import accuracy, load_data

import interpkit


def fit(net: BinaryNet, x: Tensor, y: Tensor, *, steps: int, batch_size: int = 100, lr: float = 0.01) -> None:
    """Train with Adam, the rate falling to 0, and leave the network in eval mode.

    Args:
        net: the network, trained in place.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        steps: how many.
        batch_size: images per step.
        lr: the first learning rate.
    """
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.randint(len(x), (batch_size,))
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.clamp_(-1, 1)  # beyond, the gradient of a sign is 0 for good
    net.eval()


def main() -> None:
    """Train, test and save a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST, FashionMNIST, or the path of an .npz file.")
    parser.add_argument("--out", required=True, help="The .safetensors file to write.")
    parser.add_argument("--root", default="data", help="Folder for torchvision's downloads (default: data).")
    parser.add_argument("--train-images", type=int, help="Use only the first N training images.")
    parser.add_argument("--steps", type=int, default=3000, help="Steps of training (default: 3000).")
    parser.add_argument("--batch-size", type=int, default=100, help="Images per step (default: 100).")
    parser.add_argument("--lr", type=float, default=0.01, help="First learning rate (default: 0.01).")
    parser.add_argument("--hidden", type=int, nargs="*", default=[200], help="Units of each layer (default: 200).")
    parser.add_argument("--channels", type=int, nargs="*", default=[], help="Units of each convolution before them.")
    parser.add_argument("--kernel", type=int, default=5, help="Sides of the kernels (default: 5).")
    parser.add_argument("--stride", type=int, default=2, help="Strides of the convolutions (default: 2).")
    parser.add_argument("--fan-in", type=int, default=32, help="Inputs that each unit sees; 0 = all (default: 32).")
    parser.add_argument("--threshold", type=float, default=0.3, help="From which value on a pixel is 1 (default: 0.3).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x_train, y_train, x_test, y_test = load_data(args.data, args.root)
    arguments = {
        "input_shape": list(x_train.shape[1:]),
        "num_classes": int(y_train.max()) + 1,
        "channels": args.channels,
        "kernel": args.kernel,
        "stride": args.stride,
        "hidden": args.hidden,
        "fan_in": args.fan_in,
        "threshold": args.threshold,
    }
    net = BinaryNet(**arguments)
    rows = slice(args.train_images)
    fit(net, x_train[rows], y_train[rows], steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    print(f"test accuracy {accuracy(net, x_test, y_test):.4f}")
    path = interpkit.save_target(
        net,
        args.out,
        architecture="bnn:net",
        arch_args=arguments,
        input_shape=x_train.shape[1:],
        output="logits",
        feature_layer=f"{len(net) - 1}:in",
    )
    print(f"saved {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
