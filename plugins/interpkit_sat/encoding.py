"""A binarised network as clauses: read its layers, count what the formula takes, and write it, exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit import ModelError, Target, random_generator
from interpkit_sat.networks import Binarize, SignConv, Signs, Threshold, Votes

Clause = tuple[int, ...]

KINDS: dict[str, type[nn.Module]] = {"V": Votes, "S": Signs, "B": Binarize, "T": Threshold}
FOLLOWS = {"": "B", "B": "SV", "S": "T", "T": "SV", "V": ""}
"""Which kinds of layer may follow each; votes, which are signs too, come first in `KINDS`."""
WITHOUT_EFFECT = (nn.Sequential, nn.Flatten, nn.Identity, nn.Dropout)
"""Layers that leave all values as they are, in evaluation."""
REQUIRED = (
    "It requires a binarised network: Binarize, then SignLinear or SignConv layers, a Threshold after each, and Votes "
    "at the end, as the architecture bnn:net builds and examples/train_bnn.py trains"
)
PROBES = 32
BYTES = 300
"""What a clause takes in Python and in the solver, about."""


@dataclass(frozen=True)
class Layer:
    """Hidden units: each is 1 if the sum of its signed inputs reaches its threshold, else 0.

    Attributes:
        signs: the layer of signs, on the CPU.
        thresholds: (units,), whole numbers; a convolution has one per channel.
        shape: of the layer's input, without the batch.
        places: how often each unit stands in the layer: at each place of a convolution, otherwise once.
    """

    signs: Signs
    thresholds: Tensor
    shape: tuple[int, ...]
    places: int

    def units(self) -> Iterator[tuple[list[int], int]]:
        """Yield each unit's inputs, as +n or -n for input n, from 1, and its threshold; in the order of the output."""
        numbers = torch.arange(1, 1 + torch.Size(self.shape).numel()).view(1, *self.shape)
        if isinstance(self.signs, SignConv):
            seen = F.unfold(numbers.double(), self.signs.kernel, stride=self.signs.stride)[0].long().T
        else:
            seen = numbers.view(1, -1)
        rows = zip(self.signs.signs().long(), self.signs.index, self.thresholds.long().tolist(), strict=True)
        for row, columns, threshold in rows:
            for inputs in seen:
                yield (row * inputs[columns]).tolist(), threshold


@dataclass(frozen=True)
class Network:
    """A network that can be encoded.

    Attributes:
        shape: of an input.
        layers: the hidden layers.
        votes: (classes, units) of -1 and +1.
        scale: a logit is the sum of a class's votes times this.
    """

    shape: tuple[int, ...]
    layers: list[Layer]
    votes: Tensor
    scale: float

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the logits of bits, (B, *shape), by the layers that were read."""
        for layer in self.layers:
            sums = layer.signs(bits)
            bits = (sums >= layer.thresholds.view(1, -1, *(1,) * (sums.dim() - 2))).to(sums.dtype)
        return self.scale * (bits.flatten(1) @ self.votes.T)

    def size(self, margin: int) -> int:
        """Return how many clauses the formula of a class has at most."""
        total = 0
        for layer in self.layers:
            signs = layer.signs.signs()
            needed = layer.thresholds + (signs < 0).sum(1)
            total += layer.places * int((4 * cells(signs.shape[1], needed) + 1).sum())
        votes = self.votes
        apart = (votes.shape[1] - votes @ votes.T) / 2
        against = (1 - votes) @ (1 + votes).T / 4
        return total + int((2 * cells(apart, against + -(-margin // 2)) + 1).sum(1).max())


def cells(count: Tensor | int, needed: Tensor) -> Tensor:
    """Return how many variables the counter "at least ``needed`` of ``count``" has."""
    return (needed * (count - needed + 1)).double().clamp_min(0)


@torch.no_grad()
def read(target: Target) -> Network:
    """Read a binarised network.

    Raises:
        ModelError: the target is not one; names the layer that the encoding does not know.
    """
    refusal = f"the inverter 'cnf' cannot encode {target.name}"
    layers: list[Layer] = []
    before, shape, inside = "", target.input_shape, tuple[str, ...]()
    signs: Signs | None = None
    for name, module in target.layers().items():
        if name.startswith(inside) or isinstance(module, WITHOUT_EFFECT):
            continue
        kind = next((code for code, cls in KINDS.items() if isinstance(module, cls)), "?")
        if kind not in FOLLOWS[before]:
            wanted = " or ".join(KINDS[code].__name__ for code in FOLLOWS[before]) or "no further layer"
            raise ModelError(
                f"{refusal}: the layer {name!r} is of the type {type(module).__name__}, where {wanted} is expected. "
                f"{REQUIRED}."
            )
        before, inside = kind, (*inside, f"{name}.")
        if isinstance(module, Threshold):
            assert signs is not None
            out = signs(torch.zeros(1, *shape, device=signs.weight.device)).shape[1:]
            layers.append(Layer(copy.deepcopy(signs).cpu(), module.threshold().cpu(), shape, out[1:].numel()))
            shape = tuple(out)
        signs = module if isinstance(module, Signs) else None
    if not isinstance(signs, Votes):
        raise ModelError(f"{refusal}: its last layer is not Votes. {REQUIRED}.")
    network = Network(target.input_shape, layers, signs.matrix().cpu(), signs.scale)
    rng = random_generator(torch.device("cpu"), 0)
    bits = torch.randint(2, (PROBES, *target.input_shape), generator=rng).float()
    if not torch.equal(network(bits), target(bits.to(signs.weight.device)).cpu()):
        raise ModelError(
            f"{refusal}: its logits for images of 0 and 1 are not those of its layers, run one after the other. Do not "
            f"normalize its inputs (mean 0, std 1), and let its forward pass call the layers in their order."
        )
    return network


class Formula:
    """Clauses over numbered variables, of which the first are the inputs of a network.

    A count "at least c of n" is a sequential counter (Sinz, "Towards an Optimal CNF Encoding of Boolean Cardinality
    Constraints", 2005) of c (n - c + 1) variables: s_ij says that at least j of the first i hold, and only those exist
    on which the last depends. python-sat's own counters state a constraint; these can also be equivalent to a literal.

    Attributes:
        clauses: as in DIMACS: +v or -v for variable v, from 1, without the final 0.
        variables: how many there are.
    """

    def __init__(self, variables: int, clauses: Sequence[Clause] = ()) -> None:
        self.variables = variables
        self.clauses = list(clauses)

    def new(self) -> int:
        """Return a new variable."""
        self.variables += 1
        return self.variables

    def require(self, literals: Sequence[int], needed: int) -> None:
        """Require that at least so many of the literals hold."""
        if needed > len(literals):
            self.clauses += [(1,), (-1,)]  # not the empty clause, which some solvers do not accept
        elif needed == 1:
            self.clauses.append(tuple(literals))
        elif needed > 1:
            self.clauses.append((self._counter(literals, needed, self.new(), both=False),))

    def define(self, variable: int, literals: Sequence[int], needed: int) -> None:
        """Make a variable equivalent to: at least so many of the literals hold."""
        if 0 < needed <= len(literals):
            self._counter(literals, needed, variable, both=True)
        else:
            self.clauses.append((variable if needed <= 0 else -variable,))

    def _counter(self, literals: Sequence[int], needed: int, last: int, *, both: bool) -> int:
        add, before = self.clauses.append, dict[int, int]()
        for i, x in enumerate(literals, 1):
            now = {}
            for j in range(max(1, needed - len(literals) + i), min(i, needed) + 1):
                s = now[j] = last if i == len(literals) else self.new()
                # None: j of the first i - 1 is impossible, and 0 of them is certain.
                without, with_x = before.get(j), before.get(j - 1)
                add((-s, x) if without is None else (-s, x, without))
                if with_x is not None:
                    add((-s, with_x))
                if both:
                    add((s, -x) if with_x is None else (s, -x, -with_x))
                    if without is not None:
                        add((s, -without))
            before = now
        return last

    def dimacs(self, inputs: int) -> bytes:
        """Return the formula as a DIMACS file."""
        lines = [f"c variables 1 to {inputs} are the inputs, row by row", f"p cnf {self.variables} {len(self.clauses)}"]
        lines += [" ".join(map(str, (*clause, 0))) for clause in self.clauses]
        return "\n".join([*lines, ""]).encode()


class Encoding:
    """The formula of a network, without a condition on its output; its models are the runs of the network.

    Args:
        network: the network.

    Attributes:
        inputs: how many inputs it has; variables 1 to ``inputs``, row by row.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inputs = torch.Size(network.shape).numel()
        self._formula = Formula(self.inputs)
        units = list(range(1, self.inputs + 1))
        for layer in network.layers:
            before, units = units, []
            for numbers, threshold in layer.units():
                literals = [before[n - 1] if n > 0 else -before[-n - 1] for n in numbers]
                units.append(self._formula.new())
                # -x = (1 - x) - 1: each negative sign becomes a negated literal and raises the threshold by one.
                self._formula.define(units[-1], literals, threshold + sum(n < 0 for n in numbers))
        self._units = units

    def of_class(self, label: int, margin: int) -> Formula:
        """Return the formula of the inputs whose class leads every other by at least ``margin`` votes."""
        formula = Formula(self._formula.variables, self._formula.clauses)
        own = self.network.votes[label].long()
        for other, votes in enumerate(self.network.votes.long()):
            if other != label:
                # Votes that agree cancel out; a unit with others counts twice, for or against.
                lead = zip(self._units, own.tolist(), votes.tolist(), strict=True)
                literals = [unit * sign for unit, sign, theirs in lead if sign != theirs]
                formula.require(literals, -(-margin // 2) + sum(literal < 0 for literal in literals))
        return formula
