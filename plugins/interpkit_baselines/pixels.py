"""Gradient descent on the images themselves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import interpkit
from interpkit import (
    Condition,
    GeneratedBatch,
    ImageInversion,
    Inverter,
    Objective,
    Parts,
    Recipe,
    Recorder,
    Target,
    TrainingState,
    derive_seed,
    random_generator,
    set_learning_rate,
    shift_and_flip,
)
from interpkit_baselines.free_images import FreeImages, Parametrisation


class Pixels(Inverter):
    r"""Gradient descent on the pixels of each image.

    .. math:: \min_{x \in [0, 1]^D} \sum_t w_t L_t(x, y)

    with the recipe's own terms t, usually the cross-entropy of the label asked for and priors, and Adam as the
    recipe's ``optimizer`` says. Before each forward pass, the images are shifted by a random number of pixels. Terms
    that compare the images of a batch, or take statistics over it, see up to ``batch_size`` images, the classes in
    equal shares. Every step moves all images.

    Source: Kindermann & Linden, "Inversion of neural networks by gradient descent" (1990); for the priors
    Mahendran & Vedaldi 2015 (total variation, jitter), Yosinski et al. 2015 (blur), Olah et al. 2017 (Fourier).

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> inversion = invert(target, inverter="pixels", steps=20, options={"pixels.per_class": 4})
        >>> inversion.images.shape, inversion.labels.bincount()
        (torch.Size([12, 1, 8, 8]), tensor([4, 4, 4]))
    """

    name = "pixels"
    needs = ("loss",)
    ignores = ("classes_per_batch", "compile")

    class Options(interpkit.Options):
        """How many images, and what is done to them; the last four are for images, not for vectors."""

        per_class: int = Field(10, ge=1, description="images of each class")
        spread: float = Field(1.0, ge=0, le=10, description="of the noise that they start from, before the sigmoid")
        parametrisation: Parametrisation = Field("pixel", description="pixel, or fourier: coarse structure first")
        jitter: float = Field(0.07, ge=0, le=1, description="largest random shift in a step, as a share of the side")
        flip: bool = Field(False, description="mirror all of them left to right in a step, with probability 1/2")
        blur: float = Field(0.0, ge=0, le=100, description="standard deviation of a Gaussian blur, in pixels; 0 = none")
        blur_every: int = Field(4, ge=1, description="steps from one blur to the next")

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> ImageInversion:
        """Move all images to the recipe's last step; see `Inverter.invert`."""
        opt, losses = self.options, parts.losses
        device = torch.device(recipe.device)
        rng = random_generator(device, derive_seed(recipe.seed, self.name))
        classes = range(target.num_classes) if recipe.labels is None else recipe.labels
        labels = torch.tensor(classes, device=device).repeat(opt.per_class)
        batches = []
        # Batches of nearly one size: statistics over a few left over would say little.
        for part in labels.tensor_split(math.ceil(len(labels) / recipe.batch_size)):
            one_hot = F.one_hot(part, target.num_classes).float()
            free = FreeImages(len(part), target.input_shape, opt.parametrisation, opt.spread, rng)
            batches.append((Condition(part, one_hot, one_hot), free))
        modules = nn.ModuleDict({name: loss for name, (_, loss) in losses.items()})
        trained = nn.ModuleDict({"images": nn.ModuleList(free for _, free in batches), "terms": modules})
        trained.to(device).train()
        betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
        optimizer = torch.optim.Adam(trained.parameters(), lr=recipe.optimizer.lr, betas=betas)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        objective = Objective(target, losses, autocast, recipe.micro_batch)

        state = TrainingState(trained, optimizer, rng)
        recorder.resume(state)
        for step in recorder.training_steps(state):
            progress = (step - 1) / recipe.steps
            set_learning_rate(optimizer, recipe, progress)
            optimizer.zero_grad()
            outcomes = []
            for condition, free in batches:
                images = shift_and_flip(free(), opt.jitter, opt.flip, rng)
                generated = GeneratedBatch(target, condition, images.new_zeros(len(images), 0), images, progress)
                value = objective(generated, rng)
                value.total.backward()
                numbers = torch.stack([value.total, *value.terms.values()])
                outcomes.append((numbers.detach(), images.detach(), value.response.logits.detach()))
            optimizer.step()
            if opt.blur and step % opt.blur_every == 0 and step < recipe.steps:
                for _, free in batches:
                    free.blur(opt.blur)

            figures, shown, logits = (list(column) for column in zip(*outcomes, strict=True))
            total, *means = torch.stack(figures).mean(0)
            terms = dict(zip(losses, means, strict=True))
            recorder.step(step, total, terms, torch.cat(shown), torch.cat(logits), labels)
        return ImageInversion(target, recipe, recorder.history, torch.cat([free() for _, free in batches]), labels)


class DeepInversion(Pixels):
    """Gradient descent on the pixels under the priors of DeepInversion; its preset brings them.

    The terms are cross-entropy, the target's batch-norm statistics (``batchnorm``), total variation (``tv``) and
    the norm of the image (``l2``), with random shifts and, where a mirrored image is of the same class, ``flip``.
    It is the method of `Pixels` under a name of its own. The statistics are those of a batch, so a large
    ``batch_size`` leaves each image more freedom. Source: Yin et al., "Dreaming to Distill: Data-free Knowledge
    Transfer via DeepInversion" (2020), eq. 2 to 4; without the adaptive part, which takes a student network.

    Example:
        >>> from torch import nn
        >>> from interpkit import invert, wrap
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> inversion = invert(target, inverter="deepinversion", steps=20, options={"deepinversion.per_class": 2})
        >>> sorted(inversion.history[-1].terms), inversion.images.shape
        (['batchnorm', 'ce', 'l2', 'tv'], torch.Size([6, 1, 8, 8]))
    """

    name = "deepinversion"
