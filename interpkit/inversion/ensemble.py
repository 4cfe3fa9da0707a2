"""Several generators trained as one: each makes its share of every batch, and all are told apart by the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interpkit.interfaces.generation import Condition, Generator


class Ensemble(Generator):
    """K generators of one kind, from different initial weights, that share each batch.

    A step costs what it costs with one generator, and the terms that push a batch's images apart push the
    generators apart as well. Source: the paper's Figure 2 shows several generators, a column each.

    Args:
        members: the generators.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[Generator]) -> None:
        super().__init__(members[0].spec, members[0].input_shape, members[0].options)
        self.members = nn.ModuleList(members)
        self.latent_dim = members[0].latent_dim

    @property
    def responsible(self) -> nn.Module:
        """The component that messages name: a fault of the ensemble is its members'."""
        return self.members[0]

    def start_at(self, level: float) -> None:
        """Start every member there; see `Generator.start_at`."""
        for member in self.members:
            assert isinstance(member, Generator)
            member.start_at(level)

    def forward(self, latent: Tensor, condition: Condition, made_by: Tensor | None = None) -> Tensor:
        """Return images; see `Generator.forward`.

        Args:
            latent: (B, latent_dim).
            condition: for the same B images.
            made_by: (B,) int64, the member that makes each image; they take turns if left out.
        """
        if made_by is None:
            made_by = torch.arange(len(latent), device=latent.device) % len(self.members)
        rows = [(made_by == number).nonzero()[:, 0] for number in range(len(self.members))]
        images = [m(latent[r], condition[r]) for m, r in zip(self.members, rows, strict=True) if len(r)]
        return torch.cat(images)[torch.cat(rows).argsort()]
