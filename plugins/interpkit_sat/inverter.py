"""Inputs of a binarised network by a SAT solver: right by construction, or proved not to exist."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import (
    ImageInversion,
    Inverter,
    Parts,
    Recipe,
    Recorder,
    RunError,
    Section,
    StoredInversion,
    Target,
    UsageError,
    derive_seed,
    wrap,
)
from interpkit_sat.encoding import BYTES, Clause, Encoding, Formula, cells, read
from interpkit_sat.networks import BinaryNet
from interpkit_sat.solving import CMSGen, Glucose, Search, Stopped

log = logging.getLogger("interpkit")

FINDINGS = "cnf.json"
BEFORE = "the run was stopped before its inputs were sought"


class Finding(pydantic.BaseModel):
    """What was found for a class; see `CnfInversion`."""

    outcome: Literal["complete", "exhausted", "empty", "unfinished"]
    images: int
    variables: int | None = None
    clauses: int | None = None
    count: int | None = None
    exact: bool | None = None


class Findings(pydantic.BaseModel):
    """cnf.json: the other files of the run, and what was found for each class."""

    model_config = pydantic.ConfigDict(strict=True)

    files: list[str]
    classes: dict[int, Finding]


class CnfInversion(ImageInversion):
    """The inputs that were found, and what was proved about each class.

    Attributes:
        findings: per class: ``images``, how many were found; ``outcome``, one of ``complete``, ``exhausted`` (proved
            that there are no more in the ``distance`` from each of them), ``empty`` (proved that there are none) and
            ``unfinished``; ``variables`` and ``clauses`` of its formula; and where inputs were counted ``count``, and
            whether it is ``exact``.
    """

    def __init__(self, *arguments: Any, files: Mapping[str, bytes], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._files = dict(files)
        self.findings: dict[int, dict[str, Any]] = {
            int(label): finding for label, finding in json.loads(files[FINDINGS])["classes"].items()
        }

    def files(self) -> dict[str, bytes]:
        """Return cnf.json, and per class, where there are some, the formula (DIMACS) and the proof (DRAT)."""
        return dict(self._files)

    def sections(self) -> list[Section]:
        """Return a table of the classes."""
        rows = []
        for label, finding in sorted(self.findings.items()):
            count = str(finding.get("count", "")) + ("" if finding.get("exact", True) else " or more")
            sizes = (finding.get("variables", ""), finding.get("clauses", ""))
            rows.append((self.target.class_names[label], finding["outcome"], finding["images"], count, *sizes))
        distance = self.recipe.inverter.options.get("distance", 1)
        apart = f" that differ from each of these in at least {distance} places" * (distance > 1)
        text = (
            f"Every image satisfies the formula of its class, so it is right by construction. exhausted: the solver "
            f"proved that there are no more{apart}. empty: it proved that there is none; the proof can be checked by "
            f"drat-trim."
        )
        columns = ("class", "outcome", "images", "inputs counted", "variables", "clauses")
        return [Section("What the solver found", text, columns, rows)]


class Cnf(Inverter):
    r"""Inputs of a binarised network by a SAT solver, each right by construction, or a proof that none exists.

    .. math:: \text{find } x \in \{0, 1\}^D: \quad z_y(x) - z_j(x) \ge m \quad \text{for all } j \ne y

    with the votes z and the ``margin`` m. The network becomes clauses exactly: each unit is equivalent to a count "at
    least c of its signed inputs", and the class leads every other. Glucose 4 then solves the formula again and again;
    it first tries a random value for each variable, and each input that it finds is excluded, with all inputs that
    differ from it in fewer than ``distance`` places. Such inputs vary, but their distribution is not uniform; CMSGen's
    is close to it, and takes long on large networks. The target classifies every input that is found.

    A class that has no input is in `Inversion.empty`, and the run has the formula and the proof. Pixels may be fixed,
    and the inputs of small networks counted. The recipe's losses are not used; one step of a run finds an equal share
    of the images. When a class exceeds its ``time_limit``, the run continues with the next and ends as interrupted;
    resuming it gives each unfinished class another ``time_limit``.

    After Suhail, Chakraborty & Sethi, "Network Inversion of Binarised Neural Nets" (2024), of which the abstract was
    read; the encoding is our own. Requires the extra ``sat``.

    Example:
        >>> import torch
        >>> from interpkit import build_architecture, invert, wrap
        >>> _ = torch.manual_seed(0)
        >>> net = build_architecture("bnn:net", {"input_shape": [12], "num_classes": 3, "hidden": [9], "fan_in": 4})
        >>> inversion = invert(wrap(net, input_shape=(12,)), inverter="cnf", options={"cnf.per_class": 2})
        >>> len(inversion.images) == sum(finding["images"] for finding in inversion.findings.values())
        True
    """

    name = "cnf"
    needs_gradient = False
    ignores = ("optimizer", "micro_batch", "classes_per_batch", "compile")

    class Options(interpkit.Options):
        """How many inputs, what else must hold for them, and what the search may take."""

        per_class: int = Field(10, ge=1, description="inputs of each class")
        sampler: Literal["glucose", "cmsgen"] = Field(
            "glucose", description="glucose with random phases: fast; cmsgen (the package pycmsgen): close to uniform"
        )
        margin: int = Field(1, ge=1, description="by how many votes the class leads every other")
        distance: int = Field(1, ge=1, description="in how many places two inputs of a class differ at least")
        on: list[int] = Field([], description="inputs that are 1, numbered from 0, row by row")
        off: list[int] = Field([], description="inputs that are 0")
        count: int = Field(0, ge=0, description="count the inputs of each class, up to this many; 0 = do not")
        time_limit: float = Field(60.0, gt=0, description="seconds of search for each class")
        memory: float = Field(4.0, gt=0, description="GB that a formula may take; larger ones are refused")
        dimacs: bool = Field(False, description="store the formula of every class, not only of those that are empty")

        @pydantic.model_validator(mode="after")
        def _consistent(self) -> Cnf.Options:
            if both := set(self.on) & set(self.off):
                raise ValueError(f"the inputs {sorted(both)} are both on and off")
            return self

    options: Options

    @staticmethod
    def example(input_shape: tuple[int, ...], num_classes: int) -> Target:
        """Return a small binarised network of random weights; see `Inverter.example`."""
        net = BinaryNet(input_shape=tuple(input_shape), num_classes=num_classes, hidden=[24], fan_in=6)
        return wrap(net.eval(), input_shape, output="logits")

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> CnfInversion:
        """Find all inputs; see `Inverter.invert`."""
        if target.multi_label:
            raise UsageError(
                f"the inverter 'cnf' explains classes that exclude each other; those of {target.name} do not. Use "
                f"another inverter."
            )
        hunt = Hunt(target, recipe, self.options, recorder)
        recorder.resume(hunt)
        for step in recorder.training_steps(hunt):
            goal = math.ceil(step * hunt.total / recipe.steps)
            start = hunt.settled
            while hunt.settled < goal:
                hunt.advance()
                if hunt.settled < goal:
                    recorder.part(hunt.settled - start, goal - start, str(hunt), hunt.images)
                    if recorder.pause(hunt) or recorder.stop_requested:
                        return hunt.result()
            hunt.record(step)
        return hunt.result()

    def load(self, stored: StoredInversion) -> CnfInversion:
        """Return the inversion of a run folder; see `Inverter.load`."""
        plain = stored.default()
        assert isinstance(plain, ImageInversion)
        try:
            known = Findings.model_validate_json(stored.read(FINDINGS))
        except ValueError as error:
            raise RunError(f"{FINDINGS} does not hold what was found for each class: {error}.") from error
        if not all(0 <= label < stored.target.num_classes for label in known.classes):
            raise RunError(f"{FINDINGS} has classes that {stored.target.name} lacks. Run again with --force.")
        return CnfInversion(
            stored.target,
            stored.recipe,
            stored.history,
            plain.images,
            plain.labels,
            empty=stored.empty,
            files={name: stored.read(name) for name in (FINDINGS, *known.files)},
        )


class Hunt:
    """The search of a run: what was found so far, and the solver of the present class.

    It is a state to resume from, as `Recorder.resume` expects. A solver's state is not stored: the finds of the present
    class are repeated, so that the rest is the same as without the interruption.

    Attributes:
        found: the inputs of each class, (k, D) uint8.
        outcomes: of each class that is done.
        step: the last completed step of the run.
    """

    def __init__(self, target: Target, recipe: Recipe, options: Cnf.Options, recorder: Recorder) -> None:
        self.target, self.recipe, self.options, self.recorder = target, recipe, options, recorder
        self.device = torch.device(recipe.device)
        self.labels = list(range(target.num_classes)) if recipe.labels is None else list(recipe.labels)
        network = read(target)
        self.inputs = torch.Size(target.input_shape).numel()
        self._check(network.size(options.margin))
        self.encoding = Encoding(network)
        self.found = {label: torch.zeros(0, self.inputs, dtype=torch.uint8) for label in self.labels}
        self.outcomes: dict[int, str] = {}
        self.counts: dict[int, tuple[int, bool]] = {}
        self.proofs: dict[int, bytes] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.step = 0
        self._late: set[int] = set()
        self._label = -1

    def _check(self, clauses: int) -> None:
        """Refuse inputs that do not exist, and a formula that would take too much memory, before it is built."""
        opt = self.options
        unknown = [place for place in (*opt.on, *opt.off) if not 0 <= place < self.inputs]
        if unknown:
            raise UsageError(
                f"{self.target.name} has no input {unknown[0]}: cnf.on and cnf.off number them from 0 to "
                f"{self.inputs - 1}, row by row."
            )
        if opt.distance > 1:
            clauses += opt.per_class * int(2 * cells(self.inputs, torch.tensor(opt.distance)))
        size = clauses * BYTES / 1e9
        if size > opt.memory:
            raise UsageError(
                f"the formula of a class of {self.target.name} would not fit the memory: up to {clauses:,} clauses, "
                f"about {size:.1f} GB, and cnf.memory allows {opt.memory:g}. Set cnf.memory={math.ceil(size)} if there "
                f"is as much, or train a network with a smaller fan-in."
            )

    @property
    def total(self) -> int:
        """How many inputs are asked for."""
        return self.options.per_class * len(self.labels)

    @property
    def settled(self) -> int:
        """How many of them were found, or were proved not to exist."""
        return sum(self.options.per_class if k in self.outcomes else len(self.found[k]) for k in self.labels)

    @property
    def images(self) -> int:
        """How many were found."""
        return sum(map(len, self.found.values()))

    def __str__(self) -> str:
        label = max(self._label, 0)
        return f"class {label} ({self.target.class_names[label]}), {self.images:,} of {self.total:,} inputs found"

    def advance(self) -> None:
        """Find one input of the present class, or prove that there is none, or leave the class when its time is up."""
        opt, recorder = self.options, self.recorder
        open_ = [label for label in self.labels if label not in self.outcomes and label not in self._late]
        if not open_:
            recorder.stop_requested = True  # the other classes have had their time, and resuming gives them more
            return
        label = open_[0]
        try:
            if label != self._label:
                self._begin(label)
            found = self.found[label]
            bits = self._find(label, len(found), self._in_time) if len(found) < opt.per_class else None
            if bits is not None:
                self._verify(bits, label)
                self._exclude(bits)
                found = self.found[label] = torch.cat([found, bits[None]])
            if bits is None or len(found) == opt.per_class:
                self._close(label)
        except Stopped:
            if not recorder.stop_requested:
                self._late.add(label)
                name, got = self.target.class_names[label], len(self.found[label])
                log.warning(
                    "class %d (%s): %d of %d inputs were found within cnf.time_limit = %g s; --resume searches on",
                    *(label, name, got, opt.per_class, opt.time_limit),
                )

    def _formula(self, label: int) -> Formula:
        formula = self.encoding.of_class(label, self.options.margin)
        formula.clauses += [(place + 1,) for place in self.options.on] + [(-place - 1,) for place in self.options.off]
        return formula

    def _begin(self, label: int) -> None:
        """Start the solver of a class, and repeat what it found before the run was interrupted."""
        formula = self._formula(label)
        self.sizes[label] = formula.variables, len(formula.clauses)
        self._variables = formula.variables
        self._search: Search = (Glucose if self.options.sampler == "glucose" else CMSGen)(formula, self.inputs)
        for number, bits in enumerate(self.found[label]):
            self._find(label, number, self._going)
            self._exclude(bits)
        self._label, self._deadline = label, time.monotonic() + self.options.time_limit

    def _going(self) -> bool:
        return not self.recorder.stop_requested

    def _in_time(self) -> bool:
        return self._going() and time.monotonic() < self._deadline

    def _find(self, label: int, number: int, keep_going: Callable[[], bool]) -> Tensor | None:
        seed = derive_seed(self.recipe.seed, Cnf.name, label, number)
        values = self._search.find(seed, keep_going)
        return None if values is None else torch.tensor(values, dtype=torch.uint8)

    def _exclude(self, bits: Tensor) -> None:
        """Exclude the inputs that differ from this one in too few places."""
        apart = Formula(self._variables)
        apart.require(opposite(bits), self.options.distance)
        self._variables = apart.variables
        self._search.add(apart.clauses)

    @torch.no_grad()
    def _verify(self, bits: Tensor, label: int) -> None:
        labels = torch.tensor([label], device=self.device)
        if not self.target.accepts(self.target(self._images(bits[None])), labels):
            raise RunError(
                f"{self.target.name} does not classify an input of class {label} as its formula says: it computes "
                f"otherwise than in the check at the start. Run it on the CPU (--device cpu)."
            )

    def _images(self, bits: Tensor) -> Tensor:
        return bits.float().view(-1, *self.target.input_shape).to(self.device)

    def _close(self, label: int) -> None:
        """Note how the search of a class ended; prove that it is empty if it is, and count its inputs if asked to."""
        opt, found = self.options, self.found[label]
        if not len(found):
            solver = Glucose(self._formula(label), self.inputs, proof=True)
            solver.find(derive_seed(self.recipe.seed, Cnf.name, label), self._going)
            self.proofs[label] = solver.proof()
        if opt.count:
            whole = opt.distance == 1 and len(found) < opt.per_class
            self.counts[label] = (len(found), True) if whole else self._count(label)
        self.outcomes[label] = "complete" if len(found) == opt.per_class else "exhausted" if len(found) else "empty"

    def _count(self, label: int) -> tuple[int, bool]:
        """Return how many inputs a class has, up to the limit, and whether that is all of them."""
        solver = Glucose(self._formula(label), self.inputs)
        for count in range(self.options.count + 1):
            try:
                values = solver.find(count, self._in_time)
            except Stopped:
                if self._going():
                    return count, False
                raise
            if values is None:
                return count, True
            solver.add([tuple(opposite(torch.tensor(values)))])
        return self.options.count, False

    @torch.no_grad()
    def record(self, step: int) -> None:
        """Report a step: the share of the inputs that are still missing, and the latest of those that were found."""
        rows = [(label, bits) for label in self.labels for bits in self.found[label]][-self.recipe.batch_size :]
        labels = torch.tensor([label for label, _ in rows] or self.labels[:1], device=self.device)
        images = self._images(torch.stack([bits for _, bits in rows] or [torch.zeros(self.inputs)]))
        missing = torch.tensor(1 - self.settled / self.total, device=self.device)
        self.recorder.step(step, missing, {"missing": missing}, images, self.target(images), labels)

    def result(self) -> CnfInversion:
        """Return what was found so far."""
        images = torch.cat([self.found[label] for label in self.labels])
        labels = torch.tensor([label for label in self.labels for _ in self.found[label]], dtype=torch.int64)
        files, findings = dict[str, bytes](), dict[int, dict[str, Any]]()
        empty = {}
        fixed = " and the fixed pixels" * bool(self.options.on or self.options.off)
        for label in self.labels:
            outcome = self.outcomes.get(label, "unfinished")
            findings[label] = {"outcome": outcome, "images": len(self.found[label])}
            if label in self.sizes:
                findings[label] |= zip(("variables", "clauses"), self.sizes[label], strict=True)
            if label in self.counts:
                findings[label] |= zip(("count", "exact"), self.counts[label], strict=True)
            if outcome == "empty" or self.options.dimacs:
                files[f"class-{label}.cnf"] = self._formula(label).dimacs(self.inputs)
            if label in self.proofs:
                files[f"class-{label}.drat"] = self.proofs[label]
                empty[label] = (
                    f"proved that no input has at least {self.options.margin} more votes for it than for any other "
                    f"class{fixed}; class-{label}.drat is the proof"
                )
            elif not len(self.found[label]):
                late = f"no input was found within cnf.time_limit = {self.options.time_limit:g} s; --resume searches on"
                empty[label] = late if label in self._late else BEFORE
        files[FINDINGS] = json.dumps({"files": list(files), "classes": findings}, indent=1).encode()
        images = images.view(-1, *self.target.input_shape)
        history = self.recorder.history
        return CnfInversion(self.target, self.recipe, history, images, labels, empty=empty, files=files)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        proofs = {label: torch.frombuffer(bytearray(proof), dtype=torch.uint8) for label, proof in self.proofs.items()}
        kept = {name: dict(getattr(self, name)) for name in ("found", "outcomes", "counts", "sizes")}
        return {"step": self.step, **kept, "proofs": proofs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore such a state.

        Raises:
            RunError: it is of another run.
        """
        try:
            self.found = {label: state_dict["found"][label] for label in self.labels}
            self.outcomes, self.counts, self.sizes = (dict(state_dict[k]) for k in ("outcomes", "counts", "sizes"))
            self.proofs = {label: bytes(proof.tolist()) for label, proof in state_dict["proofs"].items()}
            self.step = int(state_dict["step"])
            fits = all(bits.shape[1:] == (self.inputs,) for bits in self.found.values())
        except (KeyError, TypeError, AttributeError, ValueError):
            fits = False
        if not fits:
            raise RunError("the checkpoint does not fit its recipe.")


def opposite(bits: Tensor) -> Clause:
    """Return the literals of which one holds where an input differs from this one."""
    return tuple(-place if bit else place for place, bit in enumerate(bits.tolist(), 1))
