"""The interfaces that a plugin implements, and what passes between them.

    condition = conditioner.sample(B)
    images    = generator(latent, condition)        # in [0, 1], (B, C, H, W)
    response  = target.respond(images)              # logits, features: {layer: tensor}
    loss      = sum(weight * term(batch))           # batch = condition, images, response, target

Shapes: B images in a batch, n classes, C channels, H x W pixels; a classifier of vectors has D features in
place of C x H x W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pydantic

INTERFACE_VERSION = 1


class Options(pydantic.BaseModel):
    """Base of every component's ``Options``: one declaration gives validation, defaults, help and TOML."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component:
    """What the core builds by name from a recipe: it has a ``name`` and ``Options``."""

    name: ClassVar[str]
    """What the user types; lower case letters, digits, ``-`` and ``_``."""

    Options: ClassVar[type[Options]] = Options

    waivers: ClassVar[Mapping[str, str]] = {}
    """Checks of `interpkit.testing` that it does not keep on purpose, each with the reason."""


def register_owner(cls: type, kind: str, name: str, plugin: str) -> None:
    """Note on a class who registered it and as what, so that messages can name them."""
    cls._interpkit_owner = (kind, name, plugin)  # type: ignore[attr-defined]


def owner_of(cls: type) -> tuple[str, str, str] | None:
    """Return kind, name and plugin of a registered class; None if that very class was not registered."""
    return vars(cls).get("_interpkit_owner")
