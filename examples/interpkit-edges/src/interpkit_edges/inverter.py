"""An inverter that reads labeled images and whose result is neither a generator nor a set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpkit import (
    DataOptions,
    Draw,
    Inversion,
    Inverter,
    LabelledImages,
    Parts,
    Recipe,
    Recorder,
    RunError,
    Section,
    StepRecord,
    StoredInversion,
    Strip,
    Target,
    derive_seed,
    random_generator,
)

FILE = "edges.safetensors"
FRAMES = 7


def between(starts: Tensor, ends: Tensor, share: Tensor) -> Tensor:
    """Interpolate from starts to ends, (N, *input_shape) each, by a share (N,) of the way."""
    return torch.lerp(starts, ends, share.view(-1, *[1] * (starts.dim() - 1)))


class EdgeInversion(Inversion):
    r"""Pairs of images with the edge of a class between them.

    A draw takes a pair of its class and a random point on the class's side of the edge:
    :math:`x = (1 - t) a + t b` with t uniform in [edge, 1].

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the run's history.
        pairs: ``starts`` and ``ends``, (N, *input_shape) in [0, 1]; ``labels`` (N,) int64, the class of the end;
            ``edges`` (N,) in [0, 1], the position on the line at which the class begins.
        empty: the classes without a pair, each with the reason.
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        pairs: Mapping[str, Tensor],
        *,
        empty: Mapping[int, str],
    ) -> None:
        super().__init__(target, recipe, history, empty=empty)
        self.pairs = {name: tensor.cpu().contiguous() for name, tensor in pairs.items()}
        self._rows = {label: (self.pairs["labels"] == label).nonzero()[:, 0] for label in self.classes}

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Return points on the class's side of the edges; see `Inversion.chunk`."""
        own = [self._rows[label] for label in labels.tolist()]
        rows = torch.stack([rows[turn % len(rows)] for rows, turn in zip(own, turns.tolist(), strict=True)])
        edges = self.pairs["edges"][rows]
        share = edges + (1 - edges) * torch.rand(len(rows), generator=random_generator(torch.device("cpu"), seed))
        images = between(self.pairs["starts"][rows], self.pairs["ends"][rows], share)
        return Draw(images, labels, F.one_hot(labels, self.target.num_classes).float(), torch.zeros_like(labels))

    def files(self) -> dict[str, bytes]:
        """Return the pairs, and a readable table of their edges."""
        rows = zip(self.pairs["labels"].tolist(), self.pairs["edges"].tolist(), self.distances.tolist(), strict=True)
        table = "".join(f"{label},{edge:.6f},{distance:.6f}\n" for label, edge, distance in rows)
        return {FILE: safetensors.torch.save(self.pairs), "edges.csv": f"label,edge,distance\n{table}".encode()}

    @property
    def distances(self) -> Tensor:
        """The Euclidean distance from each edge to the end of its pair, (N,)."""
        lengths = (self.pairs["ends"] - self.pairs["starts"]).flatten(1).norm(dim=1)
        return (1 - self.pairs["edges"]) * lengths

    def sections(self) -> list[Section]:
        """Return the first pair of each class as a row of images, and how far the edges are from the images."""
        strips, rows = [], []
        for label in self.classes:
            first, name = self._rows[label][0], self.target.class_names[label]
            ends = (self.pairs[end][first].expand(FRAMES, *self.target.input_shape) for end in ("starts", "ends"))
            strips.append(Strip(name, between(*ends, torch.linspace(0, 1, FRAMES))))
            rows.append((name, len(self._rows[label]), round(self.distances[self._rows[label]].mean().item(), 3)))
        text = (
            "From an image of another class to one of this class, in equal steps; the edge is where the class changes."
        )
        return [Section("Across the edge", text, ("class", "pairs", "mean distance to the edge"), rows, strips)]


class Edges(Inverter):
    r"""Finds the edge of each class between labeled images, by bisection.

    .. math:: x(t) = (1 - t) a + t b, \qquad \arg\max f(x(low)) \ne y = \arg\max f(x(high)), \qquad
              high - low = 2^{-\mathrm{steps}}

    a and b are images of the data; the target f classifies b as y and a as another class. A class without such a pair
    is empty.
    """

    name = "edges"

    class Options(DataOptions):
        """Which images to use, and how many pairs of them."""

        pairs: int = Field(8, ge=1, le=10_000, description="pairs of images per class")

    options: Options

    @torch.no_grad()
    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> EdgeInversion:
        """Halve every bracket once per step; see `Inverter.invert`."""
        device = torch.device(recipe.device)
        pairs, empty = self._pairs(target, recipe, self.options.load(target))
        starts, ends, labels = (pairs[name].to(device) for name in ("starts", "ends", "labels"))
        low, high = torch.zeros(len(labels), device=device), torch.ones(len(labels), device=device)
        done, checkpoint = 0, recorder.start()
        if checkpoint is not None:
            done, low, high = checkpoint["step"], checkpoint["low"].to(device), checkpoint["high"].to(device)
            if low.shape != labels.shape or high.shape != labels.shape:
                raise RunError(
                    "the checkpoint does not match its recipe: it has other pairs. Start again with --force."
                )
        for step in range(done + 1, recipe.steps + 1) if len(labels) else ():
            middle = (low + high) / 2
            inside = target.accepts(self._logits(target, recipe, between(starts, ends, middle)), labels)
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
            images, width = between(starts, ends, high), (high - low).mean()
            recorder.step(step, width, {"width": width}, images, self._logits(target, recipe, images), labels)
            if recorder.due(step):
                recorder.save(step, {"step": step, "low": low, "high": high})
            if recorder.stop_requested:
                break
        recorder.flush()
        return EdgeInversion(target, recipe, recorder.history, pairs | {"edges": high}, empty=empty)

    def load(self, stored: StoredInversion) -> EdgeInversion:
        """Return the inversion with the pairs stored in the run; see `Inverter.load`."""
        pairs = stored.tensors(FILE)
        if pairs.keys() != {"starts", "ends", "labels", "edges"}:
            raise RunError(f"{FILE} contains {sorted(pairs)} instead of the pairs of images that this inverter writes.")
        return EdgeInversion(stored.target, stored.recipe, stored.history, pairs, empty=stored.empty)

    def _pairs(self, target: Target, recipe: Recipe, known: LabelledImages) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return random pairs for each class, and the classes without pairs, each with the reason."""
        rng = random_generator(torch.device("cpu"), derive_seed(recipe.seed, self.name))
        logits = self._logits(target, recipe, known.images.to(recipe.device)).cpu()
        starts, ends, labels, empty = [], [], [], {}
        for label in range(target.num_classes) if recipe.labels is None else recipe.labels:
            accepted = target.accepts(logits, torch.full((len(logits),), label))
            inside, outside = accepted.nonzero()[:, 0], (~accepted).nonzero()[:, 0]
            if not len(inside) or not len(outside):
                count = "none" if not len(inside) else "all"
                empty[label] = f"the target puts {count} of the {len(logits)} images of the data in it"
                continue
            for rows, chosen in ((outside, starts), (inside, ends)):
                chosen.append(rows[torch.randint(len(rows), (self.options.pairs,), generator=rng)])
            labels += [label] * self.options.pairs
        images = [known.images[torch.cat(rows)] if rows else known.images[:0] for rows in (starts, ends)]
        return {"starts": images[0], "ends": images[1], "labels": torch.tensor(labels, dtype=torch.int64)}, empty

    @staticmethod
    def _logits(target: Target, recipe: Recipe, images: Tensor) -> Tensor:
        return torch.cat([target(batch) for batch in images.split(recipe.batch_size)])
