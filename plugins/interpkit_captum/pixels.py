"""Methods that need only the scores: gradients, their integrals, and occlusion.

In the formulas, f is the score that is explained, x an image, and x' a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Attribution, AttributionContext, Target


def with_gradient(images: Tensor) -> Tensor:
    """Return a copy of the images that requires a gradient; Captum would warn if it had to set that itself."""
    return images.detach().clone().requires_grad_()


def explained(method: Any, images: Tensor, classes: Tensor, **settings: Any) -> Tensor:
    """Return the maps by one of Captum's methods."""
    maps: Tensor = method.attribute(with_gradient(images), target=classes, **settings)
    return maps


class IntegratedGradients(Attribution):
    r"""Integrated gradients, :math:`(x - x') \int_0^1 \nabla f(x' + t (x - x')) \, dt`, averaged over the baselines.

    The integral is computed by Gauss-Legendre quadrature; the method is complete. Several baselines share the steps,
    but each path has at least 12. Source: Sundararajan et al. 2017, "Axiomatic attribution for deep networks", eq. 1;
    for several baselines Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients".

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> target = wrap(linear, input_shape=(3,))
        >>> attribute(target, torch.tensor([[1.0, 0.5, 1.0]]), [0], method="integrated-gradients").round(decimals=3)
        tensor([[ 2.0000, -0.5000,  0.0000]])
    """

    name = "integrated-gradients"
    default = True
    complete = True

    class Options(interpkit.Options):
        """How the integral is computed."""

        steps: int = Field(50, ge=2, le=1000, description="points on the path from the baseline to the image")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import IntegratedGradients as Captum

        method, count = Captum(context.scores), len(context.baselines)
        steps = self.options.steps if count == 1 else max(12, self.options.steps // count)
        total = torch.zeros_like(images)
        for baseline in context.baselines.split(1):
            settings = {"baselines": baseline, "n_steps": steps, "internal_batch_size": context.rows}
            total += explained(method, images, classes, **settings).detach()
        return total / count


class Saliency(Attribution):
    r"""Saliency: the absolute gradient of the score, :math:`|\nabla f(x)|`.

    Source: Simonyan et al. 2014, "Deep inside convolutional networks", section 3.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> target, images = wrap(linear, input_shape=(3,)), torch.rand(1, 3)
        >>> attribute(target, images, [0], method="saliency")
        tensor([[2., 1., 0.]])
        >>> attribute(target, images, [0], method="saliency", options={"signed": True})
        tensor([[ 2., -1.,  0.]])
    """

    name = "saliency"
    local = True

    class Options(interpkit.Options):
        """Whether the sign is kept."""

        signed: bool = Field(False, description="keep the gradient's sign")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import Saliency as Captum

        return explained(Captum(context.scores), images, classes, abs=not self.options.signed)


class InputTimesGradient(Attribution):
    r"""Input times gradient, :math:`x \nabla f(x)`.

    Source: Shrikumar et al. 2016, "Not just a black box", section 2.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> target = wrap(linear, input_shape=(3,))
        >>> attribute(target, torch.tensor([[0.5, 0.5, 1.0]]), [0], method="input-x-gradient")
        tensor([[ 1.0000, -0.5000,  0.0000]])
    """

    name = "input-x-gradient"

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import InputXGradient as Captum

        return explained(Captum(context.scores), images, classes)


class SmoothGrad(Attribution):
    r"""SmoothGrad, :math:`|E \nabla f(x + \sigma z)|`: the gradient, averaged over noisy copies of the image.

    z is standard normal. The signed gradients are averaged before the absolute value is taken. Source: Smilkov et al.
    2017, "SmoothGrad: removing noise by adding noise", section 3; computed by Captum's NoiseTunnel.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4))
        >>> attribute(target, torch.rand(2, 1, 4, 4), [0, 2], method="smoothgrad", options={"samples": 8}).shape
        torch.Size([2, 1, 4, 4])
    """

    name = "smoothgrad"
    local = True
    by_image = True

    class Options(interpkit.Options):
        """How much noise, and how many copies."""

        samples: int = Field(25, ge=1, le=1000, description="noisy copies of each image")
        sigma: float = Field(0.15, gt=0, le=10, description="standard deviation of the noise, for pixels in [0, 1]")
        signed: bool = Field(False, description="keep the mean gradient's sign")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import NoiseTunnel
        from captum.attr import Saliency as Captum

        maps = explained(
            NoiseTunnel(Captum(context.scores)),
            images,
            classes,
            nt_type="smoothgrad",
            nt_samples=self.options.samples,
            nt_samples_batch_size=max(1, min(self.options.samples, context.rows // len(images))),
            stdevs=self.options.sigma,
            abs=False,
        )
        return maps if self.options.signed else maps.abs()


class GradientShap(Attribution):
    r"""Gradient SHAP, :math:`E (x + \sigma z - x') \nabla f(x' + t (x + \sigma z - x'))`, t uniform in [0, 1].

    x' is one of the baselines, chosen at random. Without noise the method is complete in expectation; with it, the sum
    is that for noisy images, so that the completeness error does not vanish. Source: Lundberg & Lee 2017,
    "A unified approach to interpreting model predictions", as in Captum's GradientShap.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4))
        >>> images, real = torch.rand(2, 1, 4, 4), torch.rand(50, 1, 4, 4)
        >>> attribute(target, images, method="gradient-shap", baseline=real).shape
        torch.Size([2, 1, 4, 4])
    """

    name = "gradient-shap"
    complete = True
    by_image = True

    class Options(interpkit.Options):
        """How many random draws, and how much noise."""

        samples: int = Field(25, ge=1, le=1000, description="draws for each image")
        sigma: float = Field(0.0, ge=0, le=10, description="standard deviation of the noise that is added to the image")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import GradientShap as Captum

        method, size = Captum(context.scores), max(1, context.rows // self.options.samples)
        total = torch.zeros_like(images)
        with _seeded_numpy():
            for part in torch.arange(len(images)).split(size):
                left = self.options.samples
                while left:  # Captum processes all samples of an image at once
                    samples = min(left, context.rows)
                    settings = {"baselines": context.baselines, "n_samples": samples, "stdevs": self.options.sigma}
                    total[part] += explained(method, images[part], classes[part], **settings).detach() * samples
                    left -= samples
        return total / self.options.samples


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """Seed numpy's global generator, which Captum uses, from torch's; restore its state afterwards."""
    state = np.random.get_state()
    np.random.seed(torch.initial_seed() % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


class Occlusion(Attribution):
    """Occlusion: how far the score falls when a window of the image is replaced with the first baseline.

    The value of a pixel is the mean over the windows that contain it. In signals and volumes, a window covers one
    channel, and in tables, columns that follow each other (one by default). It needs no gradients. Source: Zeiler &
    Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> linear = torch.nn.Linear(4, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), linear), input_shape=(1, 2, 2))
        >>> attribute(target, torch.ones(1, 1, 2, 2), [0], method="occlusion", options={"window": 1})
        tensor([[[[ 1.,  0.],
                  [ 0., -1.]]]])
    """

    name = "occlusion"

    class Options(interpkit.Options):
        """Size and stride of the window."""

        window: int | None = Field(
            None, ge=1, description="side of the window in pixels; a seventh of the image's side if omitted"
        )
        stride: int | None = Field(
            None, ge=1, description="pixels from one window to the next; half a window if omitted"
        )

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import Occlusion as Captum

        pictures = images.dim() == 4
        shape = tuple(images.shape[1:] if pictures else target.description.input_shape or images.shape[1:])
        sides = shape if len(shape) == 1 else shape[1:]
        smallest = min(sides)
        window = min(self.options.window or (max(1, smallest // 7) if pictures else 1), smallest)
        stride = min(self.options.stride or max(1, window // 2), window)
        # a window covers all channels of an image, and one of a signal or volume
        of_channel = () if len(shape) == 1 else (shape[0] if pictures else 1,)
        maps: Tensor = Captum(lambda inputs: context.scores(inputs.reshape(len(inputs), *images.shape[1:]))).attribute(
            images.reshape(-1, *shape),
            sliding_window_shapes=(*of_channel, *(window for _ in sides)),
            strides=(*of_channel, *(stride for _ in sides)),
            baselines=context.baselines[:1].reshape(1, *shape),
            target=classes,
            perturbations_per_eval=max(1, context.rows // len(images)),
        )
        return maps.reshape(images.shape)
