"""Solvers that find inputs of a formula: Glucose with random phases, and CMSGen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

import interpkit
from interpkit import UsageError, random_generator
from interpkit_sat.encoding import Clause, Formula

CONFLICTS = 2000
"""Conflicts after which a solver asks whether to go on."""


class Stopped(Exception):  # noqa: N818  # not an error
    """The caller asked the solver to stop."""


class Search(Protocol):
    """Finds one input of a formula after the other."""

    def find(self, seed: int, keep_going: Callable[[], bool]) -> list[bool] | None:
        """Return the values of the inputs, or None if no input exists.

        Raises:
            Stopped: ``keep_going`` returned False.
        """

    def add(self, clauses: Sequence[Clause]) -> None:
        """Add clauses."""


class Glucose:
    """Glucose 4, which first tries a random value for each variable: inputs vary, but are not uniform.

    Args:
        formula: what has to hold.
        inputs: the number of inputs.
        proof: keep a proof, to be read after `find` has returned None.
    """

    def __init__(self, formula: Formula, inputs: int, *, proof: bool = False) -> None:
        solvers = need("pysat.solvers", "python-sat", interpkit.install_extra("sat"))
        self._solver = solvers.Glucose4(bootstrap_with=formula.clauses, with_proof=proof)
        self._inputs = inputs

    def find(self, seed: int, keep_going: Callable[[], bool]) -> list[bool] | None:
        """Return the values of the inputs, or None if no input exists; see `Search.find`."""
        rng = random_generator(torch.device("cpu"), seed)
        count = self._solver.nof_vars()  # random inputs alone do not vary: the solver decides on counters first
        signs = torch.randint(2, (count,), generator=rng) * 2 - 1
        self._solver.set_phases((signs * torch.arange(1, count + 1)).tolist())
        while keep_going():
            self._solver.conf_budget(CONFLICTS)
            answer = self._solver.solve_limited()
            if answer is not None:
                return [value > 0 for value in self._solver.get_model()[: self._inputs]] if answer else None
        raise Stopped

    def add(self, clauses: Sequence[Clause]) -> None:
        """Add clauses."""
        for clause in clauses:
            self._solver.add_clause(clause)

    def proof(self) -> bytes:
        """Return the proof that nothing was left, in the DRAT format."""
        return "\n".join([*(self._solver.get_proof() or ["0"]), ""]).encode()


class CMSGen:
    """CMSGen (Golia et al. 2021), whose inputs are close to uniform; it solves the formula again for each.

    Args:
        formula: what has to hold.
        inputs: the number of inputs.
    """

    def __init__(self, formula: Formula, inputs: int) -> None:
        self._sampler = need("pycmsgen", "pycmsgen", "pip install pycmsgen")
        self._clauses = list(formula.clauses)
        self._inputs = inputs

    def find(self, seed: int, keep_going: Callable[[], bool]) -> list[bool] | None:
        """Return the values of the inputs, or None if no input exists; see `Search.find`."""
        conflicts = CONFLICTS
        while keep_going():
            solver = self._sampler.Solver(seed=seed % 2**31, confl_limit=conflicts)
            solver.add_clauses(self._clauses)
            answer, model = solver.solve()
            if answer is not None:
                return list(model[1 : self._inputs + 1]) if answer else None
            conflicts *= 2  # it cannot go on where it was stopped
        raise Stopped

    def add(self, clauses: Sequence[Clause]) -> None:
        """Add clauses."""
        self._clauses += clauses


def need(module: str, package: str, command: str) -> Any:
    """Import an optional module.

    Raises:
        UsageError: its package is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this requires the package {package}: {command}.") from error
