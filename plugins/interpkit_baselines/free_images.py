"""Images that are nothing but free parameters: of their pixels, or of their Fourier coefficients."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from interpkit import UsageError

Parametrisation = Literal["pixel", "fourier"]


class FreeImages(nn.Module):
    r"""B images, each the sigmoid of a free field u.

    .. math:: x = \mathrm{sigmoid}(u), \qquad u = \theta \ (\text{pixel}) \quad \text{or} \quad
              u = F^{-1}\left(\theta_f / \max(f, f_{min})\right) \ (\text{fourier})

    f is a frequency in cycles per pixel, f_min = 1 / max(H, W), F the orthonormal Fourier transform. The factors
    1 / f are scaled to a root mean square of 1. Under one learning rate for all, coarse structure moves first, as
    in photographs, whose spectrum falls as 1 / f. Source: Olah, Mordvintsev & Schubert, "Feature Visualization"
    (2017), "Preconditioning and Parameterization"; their decorrelation of colors is omitted.

    The shape is (C, H, W), or (D,) for vectors, for which ``fourier`` is a `UsageError`. Theta begins as white noise of
    standard deviation ``spread``, drawn from ``rng``, on whose device it lies.
    """

    def __init__(
        self, count: int, shape: tuple[int, ...], parametrisation: Parametrisation, spread: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        noise = spread * torch.randn(count, *shape, device=rng.device, generator=rng)
        self.size = shape[1:]
        self.fourier = parametrisation == "fourier"
        self.frequency = self.scale = torch.empty(0)
        if self.size:
            height, width = self.size
            down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
            self.frequency = torch.hypot(down[:, None], across).to(rng.device)
            scale = 1 / self.frequency.clamp_min(1 / max(self.size))
            self.scale = scale / scale.square().mean().sqrt()
        elif self.fourier:
            raise UsageError("the parametrisation 'fourier' is for images; this classifier takes vectors. Use pixel.")
        theta = torch.view_as_real(torch.fft.rfft2(noise, norm="ortho")) if self.fourier else noise
        self.theta = nn.Parameter(theta)

    def forward(self) -> Tensor:
        """Return the images, (B, *shape) in [0, 1]."""
        field = self.theta
        if self.fourier:
            field = torch.fft.irfft2(torch.view_as_complex(self.theta) * self.scale, self.size, norm="ortho")
        return field.sigmoid()

    @torch.no_grad()
    def blur(self, sigma: float) -> None:
        """Blur the field by a Gaussian of standard deviation ``sigma`` pixels; what leaves on one side comes in again.

        Vectors are left alone. Source: Yosinski et al., "Understanding Neural Networks Through Deep Visualization"
        (2015), section 3.
        """
        if not self.size:
            return
        passed = torch.exp(-2 * (math.pi * sigma * self.frequency).square())
        if self.fourier:
            self.theta.mul_(passed[..., None])
        else:
            self.theta.copy_(torch.fft.irfft2(torch.fft.rfft2(self.theta) * passed, self.size))
