"""Several generators trained as one: each generates its rows of every batch, and the losses see all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interpkit.interfaces.generation import Condition, Generator
from interpkit.runtime.distributed import World


class Ensemble(Generator):
    """K generators of one kind, with different initial weights, that share each batch.

    A step costs as much as with one generator, and the terms that push a batch's images apart also push the
    generators apart. Source: the paper's Figure 2 shows several generators, one column each.

    Args:
        members: the generators.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[Generator]) -> None:
        super().__init__(members[0].spec, members[0].input_shape, members[0].options)
        self.members = nn.ModuleList(members)
        self.num_members = len(members)
        self.latent_dim = members[0].latent_dim
        self.modes, self.poses = members[0].modes, members[0].poses

    @property
    def responsible(self) -> nn.Module:
        """The component that error messages name, because an ensemble only fails if a member does."""
        return self.members[0]

    def start_at(self, level: float) -> None:
        """Start every member at this brightness; see `Generator.start_at`."""
        for member in self.members:
            assert isinstance(member, Generator)
            member.start_at(level)

    def forward(self, latent: Tensor, condition: Condition, member: Tensor | None = None) -> Tensor:
        """Return images; see `Generator.forward`.

        Args:
            latent: (B, latent_dim).
            condition: the condition of the same B images.
            member: (B,) int64, the member that generates each image; they take turns if omitted.
        """
        if member is None:
            member = torch.arange(len(latent), device=latent.device) % self.num_members
        rows = [(member == number).nonzero()[:, 0] for number in range(self.num_members)]
        images = [m(latent[r], condition[r]) for m, r in zip(self.members, rows, strict=True) if len(r)]
        return torch.cat(images)[torch.cat(rows).argsort()]


def sync_buffers(generator: Generator, world: World) -> None:
    """Send every process the buffers of the members that other processes run; the weights are already equal."""
    if generator.num_members > 1:
        for number, member in enumerate(generator.get_submodule("members").children()):
            for buffer in member.buffers():
                world.broadcast_tensor(buffer, number % world.size)
