"""What a run's JSON files hold, as far as interpkit reads them; another program may have written them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Number = Annotated[float, Field(allow_inf_nan=False)]
Package = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+!-]*$")]
"""A package's name or version: messages tell the user to type it."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Model(_Stored):
    """The classifier in a manifest."""

    name: str | None
    path: str | None
    sha256: str | None


class UsedPlugin(_Stored):
    """A plugin in a manifest, and what the run takes of it, by kind."""

    package: Package = ""
    version: Package = ""
    used: dict[str, list[str]] = {}


class Manifest(_Stored):
    """manifest.json."""

    model: Model
    plugins: dict[str, UsedPlugin] = {}
    presets: list[Any] | None = None
    status: str = ""
    steps_done: int = Field(0, ge=0)
    interpkit: Package = ""


class _Figures(_Stored):
    count: int | None = None
    inversion_accuracy: Number | None = None
    confidence: Number | None = None


class ClassRow(_Figures):
    """The figures of a class."""

    label: int
    name: str


class Metrics(_Figures):
    """metrics.json."""

    per_class: list[ClassRow] = []
    left_out: dict[str, str] = {}


class ShardIndex(_Stored):
    """index.json of a folder of shards, before and after all of them are made."""

    count: int = Field(ge=1)


class ShardFacts(_Stored):
    """What is known of one shard: of each class its images, tries, and accepted tries."""

    file: str
    count: int = Field(ge=1)
    bytes: int = Field(ge=0)
    per_class: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[list[int], Field(
        min_length=3, max_length=3)]]  # fmt: skip
