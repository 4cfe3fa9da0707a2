"""The inverter: images by operator splitting, and a linear program for each in its region."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpkit import (
    DataOptions,
    Inverter,
    Parts,
    Recipe,
    Recorder,
    RunError,
    StoredInversion,
    Target,
    UsageError,
    derive_seed,
    random_generator,
)
from interpkit_constrained.certificate import Certificate, Region, coefficients, largest_margin
from interpkit_constrained.chain import Chain
from interpkit_constrained.results import IMAGES, PROOFS, ConstrainedInversion, Proof, read_proofs
from interpkit_constrained.splitting import Splitting

log = logging.getLogger("interpkit")

LARGEST = 30_000_000
"""The most coefficients of a linear program; a larger one is not set up."""


class Constrained(Inverter):
    r"""Inversion by operator splitting, and a linear program that proves how far it can go.

    .. math:: \min_x \tfrac{\mu}{2} \lVert x - x_0 \rVert^2 \quad \text{s.t.} \quad x \in [0, 1]^D, \quad
              f_y(x) \ge f_j(x) + m \text{ for all } j \ne y

    The layers' equations are constraints of their own, each satisfied by an exact projection (`Splitting`), so a unit
    that is off at x_0, with a gradient of zero, does not stop it. A step of the run is one sweep over the layers. Of
    each image's sweeps, the one with the largest margin counts, as the target computes it. After the last sweep, a
    linear program finds the largest margin within the image's region of linearity; its dual proves that no input of
    the region has a larger one.

    The target must be a chain of layers that are affine or linear in pieces, with any preprocessing; see `Chain`. It is
    inverted in float64 on the CPU, without the recipe's losses.

    After Wong & Kolter, "Neural network inversion beyond gradient descent" (2017), whose text could not be obtained:
    this is not a reproduction.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = wrap(net, input_shape=(6,))
        >>> inversion = invert(target, inverter="constrained", options={"constrained.per_class": 2})
        >>> inversion.images.shape, {proof.status for proof in inversion.proofs}
        (torch.Size([6, 6]), {'optimal'})
    """

    name = "constrained"
    needs_gradient = False
    ignores = ("optimizer", "micro_batch", "classes_per_batch", "compile")

    class Options(DataOptions):
        """How many images, where they start, and what is asked of them."""

        per_class: int = Field(10, ge=1, description="images of each class")
        start: Literal["gray", "noise", "data"] | None = Field(
            None, description="gray: the first image of a class, the others with noise on it; noise; or data, if given"
        )
        spread: float = Field(0.2, ge=0, le=10, description="standard deviation of the noise on gray")
        margin: float = Field(10.0, gt=0, le=1e6, description="logits that the class is to lead by, in reach or not")
        closeness: float = Field(0.01, ge=0, le=1e6, description="weight of the distance from the start")
        iterations: int = Field(10, ge=1, le=1000, description="of conjugate gradients, for layers too large to factor")
        seconds: float = Field(60.0, ge=0, le=1e6, description="for the linear program of an image; 0: none")

    options: Options

    @torch.no_grad()
    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> ConstrainedInversion:
        """Sweep to the recipe's last step, then solve the linear programs; see `Inverter.invert`."""
        search = Search(target, recipe, self.options)
        recorder.resume(search)
        count = len(search.labels)
        for step in recorder.training_steps(search):
            if search.sweeps < step:
                search.sweep()
            while step == recipe.steps and len(search.solved) < count:
                search.solve()
                recorder.part(len(search.solved), count, "linear programs", count)
                if recorder.pause(search):
                    return search.result(recorder)
            shortfall = (self.options.margin - search.margins).clamp_min(0).mean()
            terms = {"shortfall": shortfall, "split": search.split.mean()}
            recorder.step(step, shortfall, terms, search.inputs(), search.logits, search.labels)
        return search.result(recorder)

    def load(self, stored: StoredInversion) -> ConstrainedInversion:
        """Return the images as they were, not rounded, and their certificates; see `Inverter.load`."""
        tensors = stored.tensors(IMAGES)
        if tensors.keys() != {"images", "labels"}:
            raise RunError(f"{IMAGES} contains {sorted(tensors)} instead of images and labels. Run again with --force.")
        target, images, labels = stored.target, tensors["images"], tensors["labels"]
        fits = images.shape == (labels.numel(), *target.input_shape) and images.dtype == torch.float32
        if not fits or labels.dtype != torch.int64 or not torch.isin(labels, torch.arange(target.num_classes)).all():
            raise RunError(f"{IMAGES} does not hold images of {target.name} with their labels. Run again with --force.")
        proofs = read_proofs(stored.read(PROOFS), labels)
        return ConstrainedInversion(target, stored.recipe, stored.history, images, labels, proofs)


class Search:
    """The images of a run; a state to resume from, as `Recorder.resume` expects.

    Attributes:
        step: the last completed step of the run.
        sweeps: the sweeps so far; one more than the completed steps while the linear programs run.
        labels: (N,), the requested classes.
        images: (N, D) in [0, 1], the best so far.
        logits: (N, n), the target's logits for them.
        split: (N,), how far apart the two sides of the splitting are.
        solved: the certificates so far, in the order of the images.
    """

    def __init__(self, target: Target, recipe: Recipe, options: Constrained.Options) -> None:
        self.target, self.recipe, self.options = target, recipe, options
        self.chain = Chain(target)
        classes = range(target.num_classes) if recipe.labels is None else recipe.labels
        self.labels = torch.tensor(classes).repeat(options.per_class)
        start = self._start()
        self.splitting = Splitting(
            self.chain, start, self.labels, options.margin, options.closeness, options.iterations
        )
        self.step = self.sweeps = 0
        self.images, self.logits = start, self._logits(start)
        self.split = torch.zeros(len(start), dtype=torch.float64)
        self.solved: list[Certificate] = []
        self._skips = self._too_large()

    def _start(self) -> Tensor:
        """Return the images that the search starts from, (N, D) float64."""
        options, shape = self.options, self.target.input_shape
        if options.data is not None and options.start not in (None, "data"):
            raise UsageError(f"the start {options.start!r} does not use the option 'data': leave one of them out.")
        rng = random_generator(torch.device("cpu"), derive_seed(self.recipe.seed, Constrained.name))
        count = len(self.labels)
        if options.start == "data" or options.data is not None:
            known = options.load(self.target).images.flatten(1).double()
            return known[torch.randint(len(known), (count,), generator=rng)]
        if options.start == "noise":
            return torch.rand(count, torch.Size(shape).numel(), generator=rng, dtype=torch.float64)
        noise = torch.randn(count, torch.Size(shape).numel(), generator=rng, dtype=torch.float64)
        noise[: count // options.per_class] = 0  # the first image of each class
        return (0.5 + options.spread * noise).clamp(0, 1)

    def _too_large(self) -> bool:
        """Return whether the linear programs are skipped for their size, and say so."""
        size = coefficients(self.chain)
        if self.options.seconds and size > LARGEST:
            log.warning(
                "the linear programs of %s would have %s coefficients, more than %s, so no margin is certified",
                self.target.name,
                f"{size:,}",
                f"{LARGEST:,}",
            )
        return size > LARGEST

    @property
    def margins(self) -> Tensor:
        """By how many logits each image's class leads, (N,)."""
        return margins(self.logits, self.labels)

    def inputs(self) -> Tensor:
        """Return the images in the target's shape, (N, *input_shape) float32."""
        return self._shaped(self.images)

    def _shaped(self, images: Tensor) -> Tensor:
        return images.float().view(-1, *self.target.input_shape)

    def _logits(self, images: Tensor) -> Tensor:
        parts = self._shaped(images).split(self.recipe.batch_size)
        return torch.cat([self.target(part.to(self.recipe.device)).float().cpu() for part in parts])

    def sweep(self) -> None:
        """Take one sweep, and keep each image whose margin has grown."""
        images, self.split = self.splitting.sweep()
        self._keep(images, slice(None))
        self.sweeps += 1

    def _keep(self, images: Tensor, rows: slice) -> None:
        logits = self._logits(images)
        better = margins(logits, self.labels[rows]) > self.margins[rows]
        self.images, self.logits = self.images.clone(), self.logits.clone()
        self.images[rows] = torch.where(better[:, None], images, self.images[rows])
        self.logits[rows] = torch.where(better[:, None], logits, self.logits[rows])

    def solve(self) -> None:
        """Solve the linear program of the next image."""
        row, seconds = len(self.solved), self.options.seconds
        if self._skips or not seconds:
            self.solved.append(Certificate("skipped"))
            return
        found = largest_margin(Region.around(self.chain, self.images[row]), int(self.labels[row]), seconds)
        if found.image is not None:
            self._keep(found.image[None], slice(row, row + 1))
        self.solved.append(found)

    def result(self, recorder: Recorder) -> ConstrainedInversion:
        """Return the images so far with their certificates, by class."""
        images = self.inputs()
        exact = margins(torch.cat([self.chain(part) for part in images.split(self.recipe.batch_size)]), self.labels)
        missing = [Certificate("skipped")] * (len(images) - len(self.solved))
        rows = zip(self.labels.tolist(), exact.tolist(), [*self.solved, *missing], strict=True)
        proofs = [Proof(label, margin, found.bound, found.status) for label, margin, found in rows]
        order = self.labels.argsort(stable=True)
        outside = int((~self.target.accepts(self.logits, self.labels)).sum())
        if outside and recorder.next_step > self.recipe.steps:
            log.warning(
                "%d of %d images are not in their class: try more --steps, another constrained.margin (the logits of "
                "%s differ by about %.3g), or constrained.start=noise",
                outside,
                len(images),
                self.target.name,
                self.logits.std(1).mean().item(),
            )
        return ConstrainedInversion(
            self.target,
            self.recipe,
            recorder.history,
            images[order],
            self.labels[order],
            [proofs[row] for row in order.tolist()],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {
            "step": self.step,
            "steps": self.recipe.steps,
            "sweeps": self.sweeps,
            "state": self.splitting.state,
            "images": self.images,
            "split": self.split,
            "solved": [(found.status, found.bound) for found in self.solved],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore such a state; the linear programs of a run that is now longer are solved again.

        Raises:
            RunError: it is of another run.
        """
        own = {"state": self.splitting.state, "images": self.images, "split": self.split}
        for name, tensor in own.items():
            saved = state_dict.get(name)
            if not isinstance(saved, Tensor) or saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise RunError("the checkpoint does not fit its recipe: it has other images.")
        self.splitting.state, self.images, self.split = (state_dict[name] for name in own)
        self.step, self.sweeps = int(state_dict["step"]), int(state_dict["sweeps"])
        self.logits = self._logits(self.images)
        if state_dict["steps"] == self.recipe.steps:
            self.solved = [Certificate(status, bound) for status, bound in state_dict["solved"]]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much each image's class leads the next, (N,)."""
    own = labels[:, None]
    lead: Tensor = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
    return lead
