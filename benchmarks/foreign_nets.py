"""Networks of classifiers that others trained, for ``--arch py:benchmarks/foreign_nets.py:NAME``."""

import torch.nn.functional as F
from torch import Tensor, nn


def svhn_cnn() -> nn.Module:
    """Three blocks of two convolutions with batch norm, 32, 64 and 128 channels; 3 x 32 x 32."""
    blocks, before = [], 3
    for after in (32, 64, 128):
        layers = []
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        before = after
    head = nn.Sequential(nn.Dropout(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(*blocks))
    net.add_module("flatten", nn.Flatten())
    net.add_module("classifier", head)
    return net


class LeNet(nn.Module):
    """LeNet for 3 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class FlatMLP(nn.Module):
    """Two layers without biases on 784 raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(784, 128, bias=False), nn.Linear(128, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.l2(F.leaky_relu(self.l1(x), 0.01))
