"""A generator that also warps its image: appearance and pose are learned separately."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interpkit import Condition, ConditionSpec
from interpkit_vecmat.upconv import UpConvGenerator


class WarpGenerator(UpConvGenerator):
    r"""The paper's generator, followed by a smooth warp of its image that depends on the latent.

    .. math:: x(p) = g(z, c)\big(A(z)\, p + d(z, p)\big)

    p runs over [-1, 1]^2; A is affine (rotation, shear, scale, shift) and d a displacement interpolated
    bicubically from a coarse grid. A small network computes both from the first ``pose`` latents, bounded by tanh.
    Objects of one class often differ by such a warp, and a generator of pixels alone finds it hard to learn each
    pose separately. With ``drawn``, A and d are uniform within their bounds instead, from latents of their own: the
    generator cannot settle on one pose of each class, and has to draw what the target recognizes in all of them.
    Sources: spatial transformers (Jaderberg et al. 2015); deforming autoencoders (Shu et al.
    2018), which also draw a template and deform it.

    Example:
        >>> import torch
        >>> from interpkit_vecmat import VectorConditioner, WarpGenerator
        >>> conditioner = VectorConditioner(num_classes=10, input_shape=(3, 16, 24))
        >>> options = WarpGenerator.Options(affine=0.2, elastic=0.0)
        >>> generator = WarpGenerator(conditioner.spec, (3, 16, 24), options)
        >>> generator(torch.randn(4, generator.latent_dim), conditioner.sample(4)).shape
        torch.Size([4, 3, 16, 24])
    """

    name = "warp"

    class Options(UpConvGenerator.Options):
        """Sizes and dropout of the generator, and bounds of the warp."""

        pose: int = Field(16, ge=1, le=65536, description="number of latents that determine the warp")
        affine: float = Field(0.3, ge=0, le=1, description="largest change of an entry of the linear map")
        shift: float = Field(0.1, ge=0, le=1, description="largest shift, as a fraction of half the side")
        elastic: float = Field(
            0.1, ge=0, le=1, description="largest displacement at a grid point, as a fraction of half the side"
        )
        grid: int = Field(4, ge=2, le=64, description="side of the coarse grid of displacements")
        drawn: bool = Field(False, description="draw each warp at random within the bounds, and learn none")

    options: Options

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        opt = self.options
        count = 6 + 2 * opt.grid**2
        if opt.drawn:
            self.poses = count
            self.latent_dim = opt.latent + count
            return
        self.read = min(opt.pose, opt.latent)
        first, last = nn.Linear(self.read, 64), nn.Linear(64, count)
        nn.init.orthogonal_(first.weight, 2.0)  # so that the warps differ from the first step on
        nn.init.zeros_(last.bias)
        self.pose = nn.Sequential(first, nn.LeakyReLU(opt.slope), last)

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        opt = self.options
        unwarped = super().forward(latent[:, : opt.latent], condition).float()
        height, width = unwarped.shape[2:]
        with torch.autocast(latent.device.type, enabled=False):  # positions need more digits than bf16 has
            if opt.drawn:
                numbers = torch.erf(latent[:, opt.latent :].float() / 2**0.5)  # uniform in (-1, 1)
            else:
                numbers = self.pose(latent[:, : self.read].float()).tanh()
            identity = torch.eye(2, 3, device=latent.device)
            reach = torch.tensor([opt.affine, opt.affine, opt.shift], device=latent.device)
            where = F.affine_grid(identity + reach * numbers[:, :6].view(-1, 2, 3), list(unwarped.shape), False)
            coarse = opt.elastic * numbers[:, 6:].view(-1, 2, opt.grid, opt.grid)
            bent = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
            images = F.grid_sample(unwarped, where + bent.permute(0, 2, 3, 1), "bilinear", "reflection", False)
        return images.clamp(0, 1)
