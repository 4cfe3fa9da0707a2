"""What a run's JSON files hold, as far as interpkit reads them; another program may have written them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from interpkit.errors import DISTRIBUTION

Number = Annotated[float, Field(allow_inf_nan=False)]
Package = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+!-]*$")]
"""A package's name or version: messages tell the user to type it."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FileName = Annotated[str, StringConstraints(pattern=f"^{FILE_NAME.pattern}$")]
"""A file of an inversion's own in a run folder, and in no other folder."""
ClassNumber = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
"""A label as a key of JSON."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Model(_Stored):
    """The classifier in a manifest."""

    name: str | None
    path: str | None
    sha256: str | None


class UsedPlugin(_Stored):
    """A plugin in a manifest, and what the run uses of it: names by kind."""

    package: Package = ""
    version: Package = ""
    used: dict[str, list[str]] = {}

    @property
    def distribution(self) -> str:
        """What pip calls the package; early manifests say interpkit for interpkit's own."""
        return DISTRIBUTION if self.package == "interpkit" else self.package


class UsedData(_Stored):
    """Labeled images that a component of the run reads; see `interpkit.DataOptions`."""

    path: str
    sha256: str


class Manifest(_Stored):
    """manifest.json: what decides a run beside its recipe, how far it is, and what it consists of.

    Another release or a plugin may add keys, which are kept when it is written again.
    """

    version: int = Field(alias="schema")
    created: str = ""
    model: Model
    device: str = ""
    interpkit: Package = ""
    versions: dict[str, str] = {}
    threads: int | None = None
    interop_threads: int | None = None
    processes: int | None = None
    machine: dict[str, str | int | None] = {}
    flags: dict[str, str | bool] = {}
    environment: dict[str, str] | None = None
    plugins: dict[str, UsedPlugin] = {}
    data: dict[str, UsedData] = {}
    precision: str = ""
    presets: list[str] | None = None
    status: str = ""
    resumed_from: int | None = None
    moves: list[dict[str, JsonValue]] = []
    folded: int | None = None
    micro_batch: int | None = None
    fell_back: dict[str, JsonValue] | None = None
    lowered_rate: dict[str, JsonValue] | None = None
    collapsed: list[dict[str, JsonValue]] = []
    steps_done: int = Field(0, ge=0)
    timings: dict[str, Number] = {}
    files: dict[FileName, str] = {}
    empty: dict[ClassNumber, str] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in the file: the keys that are said, and no defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


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
    per_class: dict[ClassNumber, Annotated[list[int], Field(min_length=3, max_length=3)]]
