"""`Component`, the base of everything that a recipe names, and its validated `Options`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import pydantic

INTERFACE_VERSION = 1
O = TypeVar("O", bound="Options")


class Options(pydantic.BaseModel):
    """Base class of every component's ``Options``: one declaration provides validation, defaults, help and TOML.

    Example:
        >>> import interpkit
        >>> from pydantic import Field
        >>> class Options(interpkit.Options):
        ...     sigma: float = Field(0.1, gt=0, description="standard deviation of the noise")
        >>> Options(sigma=0.5)
        Options(sigma=0.5)
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    _component: str = "COMPONENT"


def options_of(component: str, options: O) -> O:
    """Return a component's options after noting its name in them, which messages about them need."""
    options._component = component
    return options


class Component:
    """Base class of everything that the core builds by name from a recipe: it has a ``name`` and ``Options``."""

    name: ClassVar[str]
    """The name that the user types: lower case letters, digits, ``-`` and ``_``."""

    Options: ClassVar[type[Options]] = Options

    waivers: ClassVar[Mapping[str, str]] = {}
    """Checks of `interpkit.testing` that the component fails on purpose, each with the reason."""


def register_owner(cls: type, kind: str, name: str, plugin: str) -> None:
    """Record on a class which plugin registered it, and as what, so that messages can name both."""
    cls._interpkit_owner = (kind, name, plugin)  # type: ignore[attr-defined]


def owner_of(cls: type) -> tuple[str, str, str] | None:
    """Return the kind, name and plugin of a registered class; None if that exact class was not registered."""
    return vars(cls).get("_interpkit_owner")
