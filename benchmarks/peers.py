"""The competitors of the speed benchmarks: inversion as people would write it without interpkit.

Each runs in fp32, in the default memory format and eager mode, without optimizations.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit import Target
from interpkit.api import invert
from interpkit.plugins import assembly
from interpkit.plugins.discovery import installed


class PlainLoop:
    """The script that one would write from the paper: the three losses on a recipe's networks, read every step.

    As in most scripts, the classifier is in ``eval`` mode and its weights are not passed to the optimizer.

    Args:
        job: the run whose networks, term weights, learning rates and batch size are used.
        frozen: whether to disable gradients for the classifier's weights too, which few scripts do.
        device: device to train on.

    Attributes:
        conditioner: the recipe's conditioner.
        generator: the recipe's generator.
    """

    def __init__(self, job: invert.Job, *, frozen: bool = False, device: str = "cpu") -> None:
        self.job, recipe = job, job.recipe
        torch.manual_seed(recipe.seed)
        _, parts = assembly.build(recipe, job.target, installed())
        assert parts.conditioner is not None and parts.generator is not None
        self.recipe, self.device = recipe, torch.device(device)
        self.conditioner = parts.conditioner.train().to(device)
        self.generator = parts.generator.train().to(device)
        self.target: Target = copy.deepcopy(job.target).to(device).eval()
        self.target.requires_grad_(not frozen)
        self._features: dict[str, Tensor] = {}
        layer = self.target.module.get_submodule(job.target.feature_layer.removesuffix(":in"))
        layer.register_forward_pre_hook(lambda _, inputs: self._features.update(x=inputs[0]))
        adam = recipe.optimizer
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2))
        self.weights = {name: term.weight for name, term in recipe.losses.items()}

    def __call__(self) -> float:
        """Take one step; return the inversion accuracy of its batch."""
        n = self.recipe.batch_size
        p = torch.randn(n, self.target.num_classes, device=self.device).softmax(1)
        labels = p.argmax(1)
        loss, logits = self.objective(self.generate(labels, p), p, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()
        return (logits.argmax(1) == labels).float().mean().item()

    def objective(self, images: Tensor, p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of images and the classifier's logits."""
        n = len(images)
        logits = self.classify(images)
        kl = F.kl_div(logits.log_softmax(1), p, reduction="batchmean")
        ce = F.cross_entropy(logits, labels)
        units = F.normalize(self._features["x"].float().flatten(1), dim=1)
        pairs = units @ units.T
        cosine = pairs[~torch.eye(n, dtype=torch.bool, device=self.device)].mean()
        return self.weights["kl"] * kl + self.weights["ce"] * ce + self.weights["cosine"] * cosine, logits

    def generate(self, labels: Tensor, p: Tensor) -> Tensor:
        """Return images for class distributions ``p`` whose argmax is ``labels``."""
        condition = interpkit.Condition(labels, p, p, lambda h, w: self.conditioner.matrix.draw(labels, h, w))
        return self.generator(torch.randn(len(p), self.generator.latent_dim, device=self.device), condition)

    def classify(self, images: Tensor) -> Tensor:
        """Return the classifier's logits."""
        return self.target(images)


class ImageDescent:
    """Gradient descent on the pixels of a batch of images, as in most notebooks: cross-entropy, Adam, a fixed rate.

    Args:
        target: the classifier.
        batch: images at a time, the classes in turn.
        rate: Adam's learning rate for the parameters from which a sigmoid makes the image.
        fourier: optimize Fourier coefficients scaled by frequency, with random shifts of up to two pixels: the method
            of Lucid and torch-lucent ("Feature Visualization", Olah et al. 2017), which handle one image at a time.
    """

    def __init__(self, target: Target, batch: int = 128, rate: float = 0.05, fourier: bool = False) -> None:
        from interpkit_baselines.free_images import FreeImages

        self.target, self.batch, self.rate, self.fourier = copy.deepcopy(target).eval(), batch, rate, fourier
        self._make = lambda rng: FreeImages(batch, target.input_shape, "fourier" if fourier else "pixel", 1.0, rng)

    def __call__(self, seed: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return images, (batch, C, H, W) in [0, 1], and the requested classes."""
        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(self.batch) % self.target.num_classes
        images: nn.Module = self._make(rng)
        optimizer = torch.optim.Adam(images.parameters(), lr=self.rate)
        for _ in range(steps):
            x = images()
            if self.fourier:
                x = x.roll([int(shift) for shift in torch.randint(-2, 3, (2,), generator=rng)], (2, 3))
            loss = F.cross_entropy(self.target(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return images().detach(), labels
