"""Methods of Captum that need only the scores: gradients, integrals of them, and occlusion.

f is the score that is explained, x an image, x' a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Attribution, AttributionContext, Target

LEAST_STEPS = 12
"""Of a path from one of several baselines."""


def with_gradient(images: Tensor) -> Tensor:
    """Return a copy of the images that takes a gradient, as Captum would else warn that it makes them so."""
    return images.detach().clone().requires_grad_()


class IntegratedGradients(Attribution):
    r"""Integrated gradients, :math:`(x - x') \int_0^1 \nabla f(x' + t (x - x')) \, dt`, the mean over the baselines.

    By Gauss-Legendre quadrature; complete. Several baselines share the steps, but each path has 12 or more. Source:
    Sundararajan et al. 2017, "Axiomatic attribution for deep networks", eq. 1; over several baselines: Erion et al.
    2021, "Improving performance of deep learning models with axiomatic attribution priors and expected gradients".
    """

    name = "integrated-gradients"
    complete = True

    class Options(interpkit.Options):
        """The integral."""

        steps: int = Field(50, ge=2, le=1000, description="points of the path from baseline to image")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import IntegratedGradients as Captum

        method, count = Captum(context.scores), len(context.baselines)
        steps = self.options.steps if count == 1 else max(LEAST_STEPS, self.options.steps // count)
        total = torch.zeros_like(images)
        for baseline in context.baselines.split(1):
            total += method.attribute(
                with_gradient(images),
                baselines=baseline,
                target=classes,
                n_steps=steps,
                internal_batch_size=context.rows,
            ).detach()
        return total / count


class Saliency(Attribution):
    r"""Saliency, :math:`|\nabla f(x)|`. Source: Simonyan et al. 2014, "Deep inside convolutional networks", sec. 3."""

    name = "saliency"
    local = True

    class Options(interpkit.Options):
        """The sign."""

        signed: bool = Field(False, description="keep the gradient's sign")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import Saliency as Captum

        maps: Tensor = Captum(context.scores).attribute(
            with_gradient(images), target=classes, abs=not self.options.signed
        )
        return maps


class InputTimesGradient(Attribution):
    r"""Input x gradient, :math:`x \nabla f(x)`. Source: Shrikumar et al. 2016, "Not just a black box", section 2."""

    name = "input-x-gradient"

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import InputXGradient as Captum

        maps: Tensor = Captum(context.scores).attribute(with_gradient(images), target=classes)
        return maps


class SmoothGrad(Attribution):
    r"""SmoothGrad, :math:`|E \nabla f(x + \sigma z)|`, z standard normal: the mean of signed gradients first.

    Source: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 3; by Captum's NoiseTunnel.
    """

    name = "smoothgrad"
    local = True

    class Options(interpkit.Options):
        """The noise."""

        samples: int = Field(25, ge=1, le=1000, description="noisy copies of each image")
        sigma: float = Field(0.15, gt=0, le=10, description="standard deviation of the noise, of a pixel in [0, 1]")
        signed: bool = Field(False, description="keep the mean gradient's sign")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import NoiseTunnel
        from captum.attr import Saliency as Captum

        maps: Tensor = NoiseTunnel(Captum(context.scores)).attribute(
            with_gradient(images),
            nt_type="smoothgrad",
            nt_samples=self.options.samples,
            nt_samples_batch_size=max(1, min(self.options.samples, context.rows // len(images))),
            stdevs=self.options.sigma,
            target=classes,
            abs=False,
        )
        return maps if self.options.signed else maps.abs()


class GradientShap(Attribution):
    r"""Gradient SHAP, :math:`E (x - x') \nabla f(x' + t (x + \sigma z - x'))`, t uniform in [0, 1], x' drawn.

    x' is one of the baselines. Complete in expectation. Source: Lundberg & Lee 2017, "A unified approach to
    interpreting model predictions", as in Captum's GradientShap.
    """

    name = "gradient-shap"
    complete = True

    class Options(interpkit.Options):
        """The draws."""

        samples: int = Field(25, ge=1, le=1000, description="draws for each image")
        sigma: float = Field(0.0, ge=0, le=10, description="standard deviation of noise on the image")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import GradientShap as Captum

        method, size = Captum(context.scores), max(1, context.rows // self.options.samples)
        total = torch.zeros_like(images)
        with _seeded_numpy():
            for part in torch.arange(len(images)).split(size):
                left = self.options.samples
                while left:  # Captum takes all samples of an image at once
                    samples = min(left, context.rows)
                    found = method.attribute(
                        with_gradient(images[part]),
                        baselines=context.baselines,
                        n_samples=samples,
                        stdevs=self.options.sigma,
                        target=classes[part],
                    )
                    total[part] += found.detach() * samples
                    left -= samples
        return total / self.options.samples


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """Seed numpy's global generator, which Captum draws from, by torch's; leave it as it was."""
    state = np.random.get_state()
    np.random.seed(torch.initial_seed() % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


class Occlusion(Attribution):
    """Occlusion: how far the score falls when a window goes to the first baseline.

    A pixel has the mean over the windows that it lies in. Source: Zeiler & Fergus 2014, "Visualizing and understanding
    convolutional networks", section 4.2.
    """

    name = "occlusion"

    class Options(interpkit.Options):
        """The window."""

        window: int | None = Field(None, ge=1, description="its side in pixels; a seventh of the image's if left out")
        stride: int | None = Field(None, ge=1, description="from one window to the next; half a window if left out")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import Occlusion as Captum

        channels, *sides = images.shape[1:] if images.dim() == 4 else (None, images.shape[1])
        smallest = min(sides)
        window = min(self.options.window or (max(1, smallest // 7) if channels else 1), smallest)
        stride = min(self.options.stride or max(1, window // 2), window)
        of_channel = () if channels is None else (channels,)
        maps: Tensor = Captum(context.scores).attribute(
            images,
            sliding_window_shapes=(*of_channel, *(window for _ in sides)),
            strides=(*of_channel, *(stride for _ in sides)),
            baselines=context.baselines[:1],
            target=classes,
            perturbations_per_eval=max(1, context.rows // len(images)),
        )
        return maps
