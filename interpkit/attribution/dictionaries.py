"""Dictionaries: features as sums of a few concepts. A sparse auto-encoder and a non-negative factorization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.errors import UsageError, did_you_mean, listed
from interpkit.runtime import progress
from interpkit.runtime.random import random_generator

BATCH, RATE, REVIVAL, ASLEEP, LOGITS = 256, 2e-3, 1 / 32, 200, 0.5
SMALL = 0.05
SWEEPS = 5
UPDATES = 50
CPU = torch.device("cpu")


class Dictionary(nn.Module, ABC):
    """Writes features (N, D) as sums of concepts: codes (N, n), none negative and most of them zero.

    A third party's dictionary is a subclass: `interpkit.concepts` accepts a function that learns one from features.
    Whatever it needs stands in its ``state_dict``, which a run folder stores.

    Example:
        >>> import torch
        >>> from interpkit import Dictionary, concepts, wrap
        >>> class Axes(Dictionary):
        ...     def evidence(self, features):
        ...         return torch.cat([features, -features], 1)
        ...     def decode(self, codes):
        ...         return codes[:, : codes.shape[1] // 2] - codes[:, codes.shape[1] // 2 :]
        >>> axes = Axes()
        >>> features = torch.tensor([[2.0, -1.0]])
        >>> axes.encode(features)
        tensor([[2., 0., 0., 1.]])
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 3))
        >>> found = concepts(wrap(net, input_shape=(4,)), torch.rand(50, 4), layer="0", dictionary=lambda rows: axes)
        >>> round(found.record["samples"]["variance_explained"], 3)
        1.0
    """

    @abstractmethod
    def evidence(self, features: Tensor) -> Tensor:
        """Return how strongly each concept is present, (N, n), before any is left out; differentiable."""

    def encode(self, features: Tensor) -> Tensor:
        """Return the codes of features, (N, n), none negative."""
        return F.relu(self.evidence(features))

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the features (N, D) that codes stand for."""


class TopK(Dictionary):
    r"""A sparse auto-encoder: of :math:`\mathrm{ReLU}(E (z - b) + e)`, the k largest are kept, and decoded linearly.

    Once it is trained, the k concepts of a feature are found by orthogonal matching pursuit instead, with no negative
    code: an encoder that learned from samples errs on real images more than its concepts do.

    Here z are features, centered and scaled by the statistics of those that it learns from. Concepts that have long
    been silent learn what the others leave unexplained, so that few stay unused. Source: Gao et al. 2024, "Scaling and
    evaluating sparse autoencoders"; the loss is the squared error as a share of the variance; when learned by
    `interpkit.concepts`, plus half the squared error of the class logits, and 1/32 of the silent concepts' error.
    """

    def __init__(self, width: int, latents: int, active: int) -> None:
        super().__init__()
        self.active = min(active, latents)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.atoms = nn.Parameter(torch.zeros(latents, width))
        self.encoder = nn.Parameter(torch.zeros(latents, width))
        self.offset = nn.Parameter(torch.zeros(latents))
        self.center = nn.Parameter(torch.zeros(width))

    mean: Tensor
    scale: Tensor

    def evidence(self, features: Tensor) -> Tensor:
        """Return E (z - b) + e; see `Dictionary.evidence`."""
        return self._evidence((features - self.mean) / self.scale)

    def _evidence(self, z: Tensor) -> Tensor:
        return (z - self.center) @ self.encoder.T + self.offset

    def encode(self, features: Tensor) -> Tensor:
        """Return codes of at most k concepts, found by pursuit; see `Dictionary.encode`."""
        near = ((features - self.mean) / self.scale - self.center) @ self.atoms.T
        among, codes = self.atoms @ self.atoms.T, torch.zeros_like(near)
        places = torch.zeros(len(near), 0, dtype=torch.long, device=near.device)
        values = near[:, :0]
        for _ in range(self.active):
            best = (near - codes @ among).scatter(1, places, -torch.inf).argmax(1, keepdim=True)
            places = torch.cat([places, best], 1)
            values, wanted = torch.cat([values, torch.zeros_like(near[:, :1])], 1), near.gather(1, places)
            both = among[places[:, :, None], places[:, None]]
            for _ in range(SWEEPS):  # least squares over those found so far, none negative
                for k in range(places.shape[1]):
                    values[:, k] = F.relu(values[:, k] + wanted[:, k] - (both[:, k] * values).sum(1))
            codes = torch.zeros_like(near).scatter(1, places, values)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Return the sum of the concepts in the features' units; see `Dictionary.decode`."""
        return (codes @ self.atoms + self.center) * self.scale + self.mean

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, latents: int, active: int, *, steps: int, seed: int) -> Self:
        """Learn a dictionary from features (N, D) and the logits of their images (N, n).

        Besides the features, the logits are to be explained, as far as they are linear in the features.
        """
        self, rng = cls(features.shape[1], latents, active), random_generator(CPU, seed)
        self.mean, self.scale = features.mean(0), features.std(0, correction=0).square().mean().sqrt()
        z = (features - self.mean) / self.scale
        weights = torch.linalg.lstsq(z, logits - logits.mean(0), driver="gelsd").solution
        weights = weights / (z @ weights).square().mean().sqrt().clamp_min(1e-12)
        with torch.no_grad():
            self.atoms.copy_(F.normalize(torch.randn(self.atoms.shape, generator=rng), dim=1))
            self.encoder.copy_(self.atoms)
        optimizer = torch.optim.Adam(self.parameters(), RATE)
        silent = torch.zeros(latents)
        for step in _steps(steps, "steps of the dictionary"):
            for group in optimizer.param_groups:  # a short start, and a slow end
                group["lr"] = RATE * min(1, (step + 1) / 100, (steps - step) / (0.3 * steps))
            batch = z[torch.randint(len(z), (BATCH,), generator=rng)]
            evidence = self._evidence(batch)
            codes = _largest(F.relu(evidence), self.active)
            rest = codes @ self.atoms + self.center - batch
            loss = rest.square().mean() / batch.square().mean() + LOGITS * (rest @ weights).square().mean()
            silent = torch.where((codes > 0).any(0), 0, silent + 1)
            if (asleep := silent > ASLEEP).any():
                woken = _largest(F.relu(evidence.masked_fill(~asleep, -1)), features.shape[1] // 2)
                missing = -rest.detach()
                loss = loss + REVIVAL * (woken @ self.atoms - missing).square().mean() / missing.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                self.atoms.copy_(F.normalize(self.atoms, dim=1))
        return self.requires_grad_(False).eval()


class Factors(Dictionary):
    """Non-negative matrix factorization: features are sums of non-negative parts; negative features count as zero.

    Codes are found by multiplicative updates (Lee & Seung 2001); those below 5 % of a row's largest become zero.
    """

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.register_buffer("atoms", torch.ones(latents, width))

    atoms: Tensor

    def evidence(self, features: Tensor) -> Tensor:
        """Return the factors; see `Dictionary.evidence`."""
        features = F.relu(features)
        codes = features @ self.atoms.T
        for _ in range(UPDATES):
            codes = codes * (features @ self.atoms.T) / (codes @ (self.atoms @ self.atoms.T) + 1e-9)
        return codes

    def encode(self, features: Tensor) -> Tensor:
        """Return the factors that are not small; see `Dictionary.encode`."""
        codes = self.evidence(features)
        return codes * (codes > SMALL * codes.amax(1, keepdim=True))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the sum of the parts; see `Dictionary.decode`."""
        return codes @ self.atoms

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, latents: int, active: int, *, steps: int, seed: int) -> Self:
        """Learn a dictionary from features (N, D); it sets the number of active concepts by itself."""
        self, features = cls(features.shape[1], latents), F.relu(features)
        rng = random_generator(CPU, seed)
        codes, atoms = (torch.rand(shape, generator=rng) for shape in ((len(features), latents), self.atoms.shape))
        for _ in _steps(steps, "updates of the dictionary"):
            codes *= features @ atoms.T / (codes @ (atoms @ atoms.T) + 1e-9)
            atoms *= codes.T @ features / (codes.T @ codes @ atoms + 1e-9)
        self.atoms = F.normalize(atoms, dim=1)
        return self.eval()


Learn = Callable[[Tensor], Dictionary]
DICTIONARIES: dict[str, type[TopK] | type[Factors]] = {"topk": TopK, "nmf": Factors}
STEPS = {"topk": 2000, "nmf": 200}
LATENTS = {"topk": 256, "nmf": 32}
"""Steps of the training, and number of concepts, unless the user says so."""


def known(name: str) -> str:
    """Return the name of a bundled dictionary; raise a `UsageError` if there is none."""
    if name not in DICTIONARIES:
        raise UsageError(
            f"there is no dictionary {name!r}.{did_you_mean(name, DICTIONARIES)} Dictionaries: {listed(DICTIONARIES)}. "
            f"From Python, interpkit.concepts accepts one of any other library as a function of the features."
        )
    return name


def _largest(activations: Tensor, count: int) -> Tensor:
    values, places = activations.topk(min(max(1, count), activations.shape[1]), dim=1)
    return torch.zeros_like(activations).scatter(1, places, values)


def _steps(steps: int, what: str) -> Iterator[int]:
    for step in range(steps):
        yield step
        progress.tell(what, step + 1, steps)
