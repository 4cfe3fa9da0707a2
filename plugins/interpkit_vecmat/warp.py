"""A generator whose latent also bends the picture: what is drawn, and how it stands, are learned apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interpkit import Condition, ConditionSpec
from interpkit_vecmat.upconv import UpConvGenerator


class WarpGenerator(UpConvGenerator):
    r"""The paper's generator, its picture resampled through a smooth map that the latent chooses.

    .. math:: x(p) = g(z, c)\big(A(z)\, p + d(z, p)\big)

    p runs over [-1, 1]^2; A is affine (rotation, shear, scale, shift) and d a displacement interpolated
    bicubically from a coarse grid. Their numbers come from a small network of the first ``pose`` latents, bounded
    by tanh. Objects of a class differ much by such maps, and a generator of pictures alone finds them hard to
    make one by one. Sources: spatial transformers (Jaderberg et al. 2015); deforming autoencoders (Shu et al.
    2018), which also draw a template and deform it.
    """

    name = "warp"

    class Options(UpConvGenerator.Options):
        """Sizes and dropout of the picture, and bounds of the map."""

        pose: int = Field(16, ge=1, le=65536, description="latents that choose the map")
        affine: float = Field(0.3, ge=0, le=1, description="largest change of an entry of the linear map")
        shift: float = Field(0.1, ge=0, le=1, description="largest shift, as a share of half the side")
        elastic: float = Field(0.1, ge=0, le=1, description="largest displacement at a grid point, of half the side")
        grid: int = Field(4, ge=2, le=64, description="side of the coarse grid of displacements")

    options: Options

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        opt = self.options
        self.read = min(opt.pose, opt.latent)
        first, last = nn.Linear(self.read, 64), nn.Linear(64, 6 + 2 * opt.grid**2)
        nn.init.orthogonal_(first.weight, 2.0)  # so that the maps differ from the first step on
        nn.init.zeros_(last.bias)
        self.pose = nn.Sequential(first, nn.LeakyReLU(opt.slope), last)

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        picture = super().forward(latent, condition).float()
        opt, (height, width) = self.options, picture.shape[2:]
        with torch.autocast(latent.device.type, enabled=False):  # positions take more digits than bf16 has
            numbers = self.pose(latent[:, : self.read].float()).tanh()
            identity = torch.eye(2, 3, device=latent.device)
            reach = torch.tensor([opt.affine, opt.affine, opt.shift], device=latent.device)
            where = F.affine_grid(identity + reach * numbers[:, :6].view(-1, 2, 3), list(picture.shape), False)
            coarse = opt.elastic * numbers[:, 6:].view(-1, 2, opt.grid, opt.grid)
            bent = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
            images = F.grid_sample(picture, where + bent.permute(0, 2, 3, 1), "bilinear", "reflection", False)
        return images.clamp(0, 1)
