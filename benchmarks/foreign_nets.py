"""Architectures of classifiers that others trained, for ``--arch py:benchmarks/foreign_nets.py:NAME``."""

import torch.nn.functional as F
from torch import Tensor, nn


def svhn_cnn() -> nn.Module:
    """Three blocks of two convolutions with batch norm and 32, 64 and 128 channels, for images of 3 x 32 x 32."""
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
    """LeNet for images of 3 x 32 x 32."""

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
    """Two linear layers without biases on 784 raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(784, 128, bias=False), nn.Linear(128, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.l2(F.leaky_relu(self.l1(x), 0.01))


class Block(nn.Module):
    """Two convolutions plus a shortcut without weights, which subsamples and pads new channels with zeros."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.stride, self.new = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new)))


def resnet20() -> nn.Module:
    """The ResNet-20 of CIFAR-10: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2."""
    stages = [Block(16, 16, 1) for _ in range(3)]
    for before, after in ((16, 32), (32, 64)):
        stages += [Block(before, after, 2), Block(after, after, 1), Block(after, after, 1)]
    start = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*start, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
