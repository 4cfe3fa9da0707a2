"""Photographs as free Fourier coefficients in decorrelated colors, rendered at any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interpkit import PHOTOGRAPH_COLORS


class Spectrum(nn.Module):
    r"""B images, each the sigmoid of a field whose Fourier coefficients are free.

    .. math:: x = \mathrm{sigmoid}\left(M \, F^{-1}\left(\theta_f / \max(f, f_{min})^a\right)\right)

    f is a frequency in cycles per pixel, f_min = 1 / max(H, W), a is ``falloff`` and F the orthonormal Fourier
    transform. The factors 1 / f^a are scaled to a root mean square of 1, so that under one learning rate for all,
    coarse structure moves first, as in photographs, whose spectrum falls as 1 / f. M mixes decorrelated colors into R,
    G and B; images of other than three channels are not mixed. Its columns are those of `PHOTOGRAPH_COLORS`, their
    lengths raised to the power ``chroma``: 1 leaves colors as faint as they are in the average photograph, and 0 lets
    them move as fast as the brightness. Source: Olah, Mordvintsev & Schubert, "Feature Visualization" (2017),
    "Preconditioning and Parameterization".

    Theta begins as white noise of standard deviation ``spread``, drawn from ``rng``, on whose device it lies.
    """

    scale: Tensor
    mix: Tensor | None

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        *,
        falloff: float,
        chroma: float,
        spread: float,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        channels, *self.size = shape
        height, width = self.size
        down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        scale = torch.hypot(down[:, None], across).clamp_min(1 / max(self.size)).pow(-falloff)
        self.register_buffer("scale", (scale / scale.square().mean().sqrt()).to(rng.device), persistent=False)
        mix = torch.tensor(PHOTOGRAPH_COLORS)
        lengths = mix.norm(dim=0)
        mix = mix / lengths * (lengths / lengths.max()) ** chroma * 3**0.5
        self.register_buffer("mix", mix.to(rng.device) if channels == 3 else None, persistent=False)
        noise = spread * torch.randn(count, *shape, device=rng.device, generator=rng)
        self.theta = nn.Parameter(torch.view_as_real(torch.fft.rfft2(noise, norm="ortho")))

    def forward(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Return the images, (B, C, *size) in [0, 1]; of another size than their own, they are resampled exactly."""
        height, width = size or self.size
        known = torch.view_as_complex(self.theta) * self.scale
        # the frequencies that both sizes have
        rows, columns = min(height, self.size[0]), min(width, self.size[1]) // 2 + 1
        low, high = (rows + 1) // 2, rows // 2
        coefficients = known.new_zeros(*known.shape[:2], height, width // 2 + 1)
        coefficients[..., :low, :columns] = known[..., :low, :columns]
        coefficients[..., height - high :, :columns] = known[..., self.size[0] - high :, :columns]
        if width > self.size[1] and self.size[1] % 2 == 0:  # there the highest column stands for two frequencies
            coefficients[..., columns - 1] /= 2
        growth = (height * width / (self.size[0] * self.size[1])) ** 0.5
        field = torch.fft.irfft2(coefficients * growth, (height, width), norm="ortho")
        if self.mix is not None:
            field = torch.einsum("bchw,dc->bdhw", field, self.mix)
        images: Tensor = field.sigmoid()
        return images
