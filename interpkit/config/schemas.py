"""Schemas that validate a run's JSON files when they are read, since another program may have written them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter, ValidationError

from interpkit.errors import DISTRIBUTION

Number = Annotated[float, Field(allow_inf_nan=False)]
Package = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+!-]*$")]
"""Name or version of a package; restricted, because messages tell users to type it into a shell."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FileName = Annotated[str, StringConstraints(pattern=f"^{FILE_NAME.pattern}$")]
"""Name of an inversion's own file; it cannot point outside the run folder."""
ClassNumber = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
"""A label as a JSON key."""


def first_fault(error: ValidationError) -> str:
    """Return the first validation error, with the key where it occurred."""
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])):.100}: {fault['msg'][:1].lower()}{fault['msg'][1:]:.100}"


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Model(_Stored):
    """The classifier, as recorded in a manifest."""

    name: str | None
    path: str | None
    sha256: str | None


class UsedPlugin(_Stored):
    """An installed plugin, as recorded in a manifest; ``used`` lists the components that the run uses by kind."""

    package: Package = ""
    version: Package = ""
    used: dict[str, list[str]] = {}

    @property
    def distribution(self) -> str:
        """The distribution's name for pip; early manifests name interpkit's own "interpkit"."""
        return DISTRIBUTION if self.package == "interpkit" else self.package


class UsedData(_Stored):
    """Labeled images that a component of the run reads; see `interpkit.DataOptions`."""

    path: str
    sha256: str


class Manifest(_Stored):
    """manifest.json: what determines a run besides its recipe, its progress, and its files.

    Keys added by another release or by a plugin are preserved when the manifest is rewritten.
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
        """Return the manifest with only the keys that are set, as stored in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class _Figures(_Stored):
    count: int | None = None
    inversion_accuracy: Number | None = None
    confidence: Number | None = None


class ClassRow(_Figures):
    """The figures of one class."""

    label: int
    name: str


class Metrics(_Figures):
    """metrics.json."""

    per_class: list[ClassRow] = []
    left_out: dict[str, str] = {}


class ShardIndex(_Stored):
    """index.json of a folder of shards, complete or not."""

    count: int = Field(ge=1)


class ShardFacts(_Stored):
    """Record of one shard; ``per_class`` has the images, tries and accepted tries of each class."""

    file: str
    count: int = Field(ge=1)
    bytes: int = Field(ge=0)
    per_class: dict[ClassNumber, Annotated[list[int], Field(min_length=3, max_length=3)]]


class _Named(_Stored):
    label: int
    name: str


class _Effect(_Named):
    logit: Number


class ConceptRow(_Stored):
    """One concept; ``samples`` are the places of its strongest ones."""

    concept: int
    name: str
    fires: Number
    fires_on_reference: Number = 0.0
    strongest_in: _Named = Field(alias="class")
    selectivity: Number
    effect: _Effect
    samples: list[int] = Field(min_length=1)


class ConceptFigures(_Stored):
    """How well the concepts describe images of one kind."""

    images: int
    variance_explained: Number
    label_kept: Number
    active: Number


class Concepts(_Stored):
    """concepts.json.

    ``classifier`` and ``weights`` are digests of the classifier and the dictionary. The images are the samples of
    ``inversion``, or those of the user in ``source``. Older files have none of these, or only ``inversion``.
    """

    version: Literal[1] = Field(alias="schema")
    layer: str
    dictionary: str
    latents: int = Field(ge=1, le=10_000_000)
    active: int = Field(ge=1)
    learn_from: Literal["samples", "reference", "both"]
    settings: dict[str, JsonValue]
    classifier: str | None = None
    weights: str | None = None
    inversion: str | None = None
    source: str | None = None
    samples: ConceptFigures
    reference: ConceptFigures | None = None
    only_samples: list[int] = []
    only_reference: list[int] = []
    names: dict[ClassNumber, str]
    concepts: list[ConceptRow]


class HardeningRound(_Stored):
    """The figures of one round of hardening; see `interpkit.Hardened`."""

    found: Number
    accepted: Number
    refused: Number


HardeningRounds = TypeAdapter(list[HardeningRound])
"""The rounds so far, in the metadata of the file from which a hardening is resumed."""
