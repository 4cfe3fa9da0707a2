"""The smallest universal change that turns images of all other classes into one class."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from statistics import median_high
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpkit import AuditCase, Strip, Tested, TooFew, percent, tell
from interpkit_audit.comparing import ComparesClasses

SMOOTH = 0.7
"""Weight of the past in the running success rate."""
SHOWN = 6


def step_of(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step; gradients of anything but the optimizer's parameters are not computed."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


@dataclass(frozen=True)
class Found:
    """The change that was found for one class.

    Attributes:
        size: its norm; the largest one that was tried, if none reached the goal.
        reached: whether one did.
        success: the share of the other classes' images that it turns into the class.
        parts: the mask and the pattern, or the offset.
    """

    size: float
    reached: bool
    success: float
    parts: list[Tensor]


class UniversalChange(ComparesClasses):
    r"""The smallest change of one kind that turns images of all other classes into class c.

    .. math:: \min_\theta \; \frac1N \sum_i \mathrm{CE}(f(g_\theta(x_i)), c) + \lambda_c \, \lVert\theta\rVert

    over images x_i that the classifier does not assign to c. The weight λ_c rises while at least the share ``goal`` of
    the images is turned and falls while it is not; the smallest norm at which the goal was reached counts. The
    statistic is minus its logarithm, and the null distribution that of `outlier_p_values`. Where the goal was never
    reached, the largest norm that was tried counts, or the largest that another class needed if that is more: the
    search says no more, and one that fails must not look like a small change. The images are real ones or samples of
    an inversion, which need no data. After Wang et al. 2019, "Neural Cleanse: identifying and mitigating
    backdoor attacks in neural networks", which has the change of `Patch` and real images.
    """

    kind = "trigger"
    what: ClassVar[str]
    unit: ClassVar[str]
    rate: ClassVar[float]
    weight: ClassVar[float]

    class Options(ComparesClasses.Options):
        """How long to search, and for what."""

        steps: int = Field(100, ge=1, le=10_000, description="steps of Adam")
        images: int = Field(16, ge=1, le=1000, description="images for each class in a step, drawn at random")
        goal: float = Field(0.9, gt=0, le=1, description="share of the images to turn")
        sd: float = Field(0.3, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    @abstractmethod
    def parameters(self, classes: int, shape: torch.Size, rng: torch.Generator) -> list[Tensor]:
        """Return the first parameters of a change for each class."""

    @abstractmethod
    def change(self, images: Tensor, parts: list[Tensor]) -> Tensor:
        """Return images (classes, N, *shape) with the change of each class."""

    @abstractmethod
    def norm(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the norm of each class's change."""

    @abstractmethod
    def largest(self, shape: torch.Size) -> float:
        """Return the largest norm that a change can need."""

    def drawn(self, images: Tensor, parts: list[Tensor]) -> Strip:
        """Return a picture of the change itself."""
        flat = torch.full_like(images[:1], 0.5)
        changed = self.change(flat[None], [part[None] for part in parts])[0]
        return Strip(f"{self.what}, on gray", changed.cpu(), predictions=False)

    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        found: dict[int, Found] = {}
        rng = case.rng()  # for all chunks, as the classes are compared
        at_once = max(1, case.most // self.options.images)
        for start in range(0, len(case.classes), at_once):
            chunk = list(case.classes)[start : start + at_once]
            found |= self.search(case, chunk, rng, start * self.options.steps)
        tell(f"steps of {self.name}", 1, 1)  # also if some classes had no images
        if len(found) < 2:
            raise TooFew("it compares classes, and fewer than two have images of other classes to start from.")
        reached = [one.size for one in found.values() if one.reached]
        if not reached:
            raise TooFew(
                f"in {self.options.steps} steps it finds no change that turns {percent(self.options.goal, 0)} of the "
                f"other classes' images into any class, and without one it compares nothing: it may need more steps."
            )
        sizes = {c: one.size if one.reached else max(one.size, *reached) for c, one in found.items()}
        values: dict[int | None, float] = {c: -math.log(size) for c, size in sizes.items()}
        unit = self.unit if case.images.dim() == 4 else "values"
        middle = f"{median_high(sizes.values()):.3g} {unit}"
        usual = f"for a class of this classifier {middle} is usual"
        if 2 * len(reached) <= len(found):
            usual = f"for most classes of this classifier none was found, up to {middle}"
        evidence: dict[int | None, str] = {}
        pictures: dict[int | None, list[Strip]] = {}
        tensors: dict[str, Tensor] = {}
        for c, one in found.items():
            size, share = f"{one.size:.3g} {unit}", f"{percent(one.success, 0)} of the other classes' images"
            evidence[c] = (
                f"{self.what.capitalize()} of {size} turns {share} into this class; {usual}."
                if one.reached
                else f"None was found, up to {size}."
            )
            rows = (case.labels != c).nonzero()[:, 0]
            shown = case.images[rows[torch.linspace(0, len(rows) - 1, SHOWN).long()]]
            changed = self.change(shown[None], [part[None] for part in one.parts])[0]
            faded = self.change((0.35 + 0.3 * shown)[None], [part[None] for part in one.parts])[0]
            pictures[c] = [
                self.drawn(case.images, one.parts),
                Strip("laid over images that are faded, to show it", faded.cpu(), predictions=False),
                Strip("before", shown.cpu()),
                Strip("after", changed.cpu()),
            ]
            tensors |= {f"{self.name}.{c}.{i}": part.cpu() for i, part in enumerate(one.parts)}
        return Tested(values, self.p_values(values), evidence, pictures, tensors)

    def search(self, case: AuditCase, classes: list[int], rng: torch.Generator, done: int = 0) -> dict[int, Found]:
        """Return the smallest change of each class that has images of other classes.

        Args:
            case: what the test examines.
            classes: some of its classes, of which it searches the changes at once.
            rng: a source of randomness on the CPU.
            done: the number of steps that earlier classes took.
        """
        opt, shape = self.options, case.images.shape[1:]
        some = min(opt.images, case.most)
        pools = {c: (case.labels != c).nonzero()[:, 0] for c in classes}
        classes = [c for c in classes if len(pools[c])]
        if not classes:
            return {}
        count, chosen = len(classes), [pools[c] for c in classes]
        labels = torch.tensor(classes, device=case.device)[:, None].expand(count, some)
        parts = [p.to(case.device).requires_grad_() for p in self.parameters(count, shape, rng)]
        optimizer = torch.optim.Adam(parts, lr=self.rate, betas=(0.5, 0.9))
        weight = torch.full((count,), self.weight, device=case.device)
        running = torch.zeros(count, device=case.device)
        best = torch.full((count,), math.inf, device=case.device)
        tried = torch.zeros(count, device=case.device)
        kept = [part.detach().clone() for part in parts]
        for _ in range(opt.steps):
            rows = [pool[torch.randint(len(pool), (some,), generator=rng).to(pool.device)] for pool in chosen]
            images = self.change(case.images[torch.stack(rows)], parts)
            logits = case.target(images.flatten(0, 1)).view(count, some, -1)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(count, -1).mean(1)
            success = (logits.argmax(2) == labels).float().mean(1)
            running = SMOOTH * running + (1 - SMOOTH) * success
            norms = self.norm(parts, shape)
            sizes = norms.detach()
            better = (running >= opt.goal) & (success >= opt.goal) & (sizes < best)
            best, tried = torch.where(better, sizes, best), torch.maximum(tried, sizes)
            for old, part in zip(kept, parts, strict=True):
                old[better] = part.detach()[better]
            step_of(optimizer, (losses + weight * norms).sum())
            weight = torch.where(running >= opt.goal, weight * 1.2, weight / 1.2)
            done += count
            tell(f"steps of {self.name}", done, len(case.classes) * opt.steps)
        reached = best.isfinite()
        sizes = torch.where(reached, best, tried).clamp_max(self.largest(shape))
        for old, part in zip(kept, parts, strict=True):
            old[~reached] = part.detach()[~reached]
        found = {}
        for i, c in enumerate(classes):
            own = [part[i] for part in kept]
            found[c] = Found(sizes[i].item(), bool(reached[i]), self.success(case, c, pools[c], own), own)
        return found

    @torch.no_grad()
    def success(self, case: AuditCase, label: int, rows: Tensor, parts: list[Tensor]) -> float:
        """Return the share of the images that the change turns into the class."""
        images = self.change(case.images[rows][None], [part[None] for part in parts])[0]
        answers = torch.cat([case.target(some).argmax(1) for some in images.split(case.most)])
        return (answers == label).float().mean().item()


class Patch(UniversalChange):
    """A patch: a mask of any shape through which a fixed pattern covers the image.

    A changed image is (1 - m) x + m p with a mask m in [0, 1], the same for all channels, and a pattern p in [0, 1].
    The norm is the sum of the mask, in pixels. In inputs other than pictures, each value has a mask of its own. See
    `UniversalChange`.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Patch
        >>> weights = torch.zeros(4, 36)
        >>> for label in range(3):
        ...     weights[label, 12 * label : 12 * label + 12] = 1
        >>> weights[3, 35] = 40.0  # one bright corner decides
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4, bias=False))
        >>> net[1].weight.data = weights
        >>> images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> images[..., 5, 5] = 0
        >>> target = wrap(net, input_shape=(1, 6, 6))
        >>> tested = Patch().test(AuditCase(target, range(4), images, target(images).argmax(1)))
        >>> min(tested.p_values, key=tested.p_values.get)
        3
    """

    class Options(UniversalChange.Options):
        """How long to search, and for what."""

        images: int = Field(32, ge=1, le=1000, description="images for each class in a step, drawn at random")
        goal: float = Field(0.85, gt=0, le=1, description="share of the images to turn")

    options: Options
    name = "patch"
    question = "Does a small patch turn images of all other classes into one class?"
    limits = "It looks for one patch at one place. A trigger that is spread over the image is for other tests."
    what, unit, rate, weight = "a patch", "pixels", 0.15, 1e-3

    def parameters(self, classes: int, shape: torch.Size, rng: torch.Generator) -> list[Tensor]:
        """Return logits of a faint mask and of a gray pattern."""
        one = (1, *shape[1:]) if len(shape) == 3 else shape
        return [torch.full((classes, *one), -2.0), 0.1 * torch.randn(classes, *shape, generator=rng)]

    def change(self, images: Tensor, parts: list[Tensor]) -> Tensor:
        """Return images covered by the pattern."""
        mask, pattern = (torch.sigmoid(part)[:, None] for part in parts)
        return (1 - mask) * images + mask * pattern

    def norm(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the sum of the mask."""
        return torch.sigmoid(parts[0]).flatten(1).sum(1)

    def largest(self, shape: torch.Size) -> float:
        """Return the number of pixels, or of values where there are none."""
        return float(shape[1] * shape[2] if len(shape) == 3 else shape.numel())

    def drawn(self, images: Tensor, parts: list[Tensor]) -> Strip:
        """Return the mask, and the pattern through it on gray."""
        mask = torch.sigmoid(parts[0]).expand_as(parts[1])[None].cpu()
        both = torch.cat([mask, super().drawn(images, parts).images])
        return Strip("where the patch lies (white), and what it shows", both, predictions=False)


class Noise(UniversalChange):
    """An offset: the same faint pattern added to each image, which is then clipped to [0, 1]; its norm is L2.

    See `UniversalChange`. It finds triggers that are blended over the whole image.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Noise
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 5, bias=False))
        >>> net[1].weight.data = torch.randn(5, 36, generator=torch.Generator().manual_seed(0))
        >>> net[1].weight.data[4] += 3 * (-1.0) ** torch.arange(36)  # a stripe pattern decides
        >>> images = 0.5 + 0.2 * torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        >>> target = wrap(net, input_shape=(1, 6, 6))
        >>> tested = Noise().test(AuditCase(target, range(5), images.clamp(0, 1), target(images).argmax(1)))
        >>> min(tested.statistics.values()) < tested.statistics[4]
        True
    """

    name = "noise"
    question = "Does a faint pattern, added to images of all other classes, turn them into one class?"
    limits = "Classifiers that are not robust have such patterns for every class; only a far fainter one is a finding."
    what, unit, rate, weight = "an offset", "in L2 norm", 0.02, 1e-2

    class Options(UniversalChange.Options):
        """How long to search, and for what."""

        steps: int = Field(60, ge=1, le=10_000, description="steps of Adam")

    options: Options
    grid: ClassVar[int | None] = None

    def parameters(self, classes: int, shape: torch.Size, rng: torch.Generator) -> list[Tensor]:
        """Return small random offsets."""
        size = shape if self.grid is None else torch.Size((shape[0], self.grid, self.grid))
        return [0.01 * torch.randn(classes, *size, generator=rng)]

    def offset(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the offset of each class at the images' size."""
        if self.grid is None:
            return parts[0]
        offset: Tensor = F.interpolate(parts[0], size=tuple(shape[-2:]), mode="bilinear", align_corners=True)
        return offset

    def change(self, images: Tensor, parts: list[Tensor]) -> Tensor:
        """Return the sums, clipped."""
        return (images + self.offset(parts, images.shape[2:])[:, None]).clamp(0, 1)

    def norm(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the L2 norms."""
        norms: Tensor = self.offset(parts, shape).flatten(1).norm(dim=1)
        return norms

    def largest(self, shape: torch.Size) -> float:
        """Return the norm from black to white."""
        return math.sqrt(shape.numel())


class Tint(Noise):
    """A smooth offset: brighter, darker or of another color, at 3 x 3 points with linear values between them.

    See `UniversalChange` and `Noise`. It finds classes that brightness or color gives away.

    Example:
        >>> import torch
        >>> from interpkit import AuditCase, wrap
        >>> from interpkit_audit import Tint
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 5))
        >>> net[1].weight.data = torch.randn(5, 36, generator=torch.Generator().manual_seed(0))
        >>> net[1].weight.data[4] += 10  # brightness decides
        >>> net[1].bias.data = torch.tensor([0.0, 0, 0, 0, -80])
        >>> images = 0.4 * torch.rand(80, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        >>> target = wrap(net, input_shape=(1, 6, 6))
        >>> tested = Tint().test(AuditCase(target, range(5), images, target(images).argmax(1)))
        >>> max(tested.statistics, key=tested.statistics.get)
        4
    """

    name = "tint"
    kind = "leak"
    question = "Does a change of brightness or color turn images of all other classes into one class?"
    limits = "Where color is what tells two classes apart, it finds that too."
    what, unit, rate, weight = "a smooth change of brightness or color", "in L2 norm", 0.05, 1e-2
    grid = 3

    class Options(Noise.Options):
        """How long to search, and for what."""

        sd: float = Field(0.45, gt=0, description="standard deviation of the statistic on clean classifiers")

    options: Options

    def test(self, case: AuditCase) -> Tested:
        """Return the statistics; see `Audit.test`."""
        if case.images.dim() != 4:
            raise TooFew("it changes colors, and this classifier does not read pictures.")
        return super().test(case)
