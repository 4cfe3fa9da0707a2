"""`nearest`: the nearest inputs that a target assigns to another class, by linearized projections onto its boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpkit.errors import UsageError, setting
from interpkit.interfaces.targets import Target
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device, in_float32
from interpkit.runtime.random import derive_seed, random_generator

PROJECTIONS = 15
"""Projections that lead from a starting point to the boundary."""
TRIES = 32
"""Random starting points for an input from which the search does not reach the boundary."""
SPREAD = 8
"""The first of these points that may be anywhere; those before are nearer to the input."""
HALVINGS = 12
"""In a bisection; the last one takes twice as many."""
GREEDY = 100
"""Maximum number of single steps on a grid, which are tried where it makes the change larger by the factor FAR."""
FAR = 1.05
BEYOND = tuple(1 + share for share in (0.0, *(2.0**k / 10_000 for k in range(14))))
"""Factors by which a change is enlarged until the input lies clearly beyond the boundary."""
STRETCHES = (1.0, 1.01, 1.1, 1.5, 3.0)
"""Factors of the last change, because iterations may approach the boundary from the near side."""

Classes = int | str | Sequence[int | str] | Tensor


@dataclass(frozen=True)
class Nearest:
    """For each input the nearest one of another class, on the CPU; `nearest` returns it.

    Attributes:
        images: (N, *input_shape) in [0, 1], just beyond the boundary; the given inputs where none was found.
        before: (N,) int64, the target's most probable classes of the given inputs.
        answers: (N,) int64, the classes of ``images``, as verified by the target.
        distances: (N,) Euclidean distances from the given inputs to ``images``, in units of [0, 1]; inf if not found.
        boundary: (N, *input_shape), the points where the margin between the classes is zero.
        normals: (N, *input_shape), unit vectors normal to the boundary there, which point to the new class.
        reasons: why no input was found, a phrase, by row.
    """

    images: Tensor
    before: Tensor
    answers: Tensor
    distances: Tensor
    boundary: Tensor
    normals: Tensor
    reasons: Mapping[int, str]

    @property
    def found(self) -> Tensor:
        """(N,) bool: for which of the inputs another was found."""
        return self.distances.isfinite()


@with_autograd
@in_float32()
def nearest(
    target: Target,
    images: Tensor,
    to: Classes | None = None,
    *,
    among: Sequence[int | str] | None = None,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    steps: float | Tensor = 0.0,
    fixed: Tensor | None = None,
    smooth: float = 0.0,
    starts: int = 0,
    iterations: int = 40,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Nearest:
    r"""Return for each input the nearest one that the target assigns to another class.

    .. math:: \min_x \|x - x_1\|_2 \quad \text{subject to} \quad z_k(x) \geq z_j(x), \; l \leq x \leq h

    with the class k asked for, or any other than the present one, against every other class j. Projections of the given
    input :math:`x_1` onto the boundary linearized at the present point, exact within the bounds, lead to a first point
    beyond the boundary. From there the search slides along the boundary as long as the distance decreases: halfway to
    the projection of :math:`x_1` onto the tangent plane, and back by a step toward :math:`x_1` that the target
    confirms. The problem is not convex; the result is the best local minimum from several starting points: the given
    input, the nearest of the other given inputs that is of the class, and random ones. The random ones are also used
    where nothing else reaches the boundary, for example because no ReLU is active and the gradient is zero.

    Sources: the boundary points of Saad & Wunsch, "Neural network explanation using inversion" (2007); for repeated
    projections, Moosavi-Dezfooli et al., "DeepFool" (2016) and Croce & Hein, "Minimally distorted adversarial
    examples with a fast adaptive boundary attack" (2020).

    Args:
        target: the classifier.
        images: (N, *input_shape) in [0, 1].
        to: the class asked for, by number or name, or one for each input; any other class if omitted. A `multi_label`
            target requires it: the label that the target is to accept.
        among: the classes that may be the other one where ``to`` is omitted; all by default.
        low: lower bounds of the inputs, broadcast to ``images``.
        high: upper bounds.
        steps: inputs change by multiples of this, such as 1 / 255 for 8-bit images; broadcast to ``images``, 0 for any
            change.
        fixed: bool, broadcast to ``images``: the inputs that keep their values.
        smooth: standard deviation of a Gaussian, in pixels, that blurs the change of an image.
        starts: number of random starting points for every input.
        iterations: number of steps along the boundary from each starting point.
        seed: random seed of the starting points.
        device: device to compute on.

    Raises:
        UsageError: the target passes no gradient, ``to`` is missing, or an argument does not fit.

    Example:
        >>> import torch
        >>> from interpkit import nearest, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> result = nearest(target, torch.tensor([[0.8, 0.2]]))
        >>> result.boundary, result.normals, result.answers
        (tensor([[0.5000, 0.5000]]), tensor([[-0.7071,  0.7071]]), tensor([1]))
    """
    check_inputs(target, images, to)
    if smooth and len(target.input_shape) != 3:
        raise UsageError(f"only a change of images can be smooth; {target.name} classifies vectors. Leave smooth out.")
    on = choose_device(device) if isinstance(device, str) else device
    given = images.detach().float().cpu()
    asked = None if to is None else asked_of(target, to, len(given))
    others = among_of(target, range(target.num_classes) if among is None else among)
    least, most, step = (torch.as_tensor(each).float().cpu().expand_as(given) for each in (low, high, steps))
    free = torch.ones_like(given) if fixed is None else 1 - fixed.cpu().float().expand_as(given)
    if (least > most).any():
        raise UsageError("a lower bound is above the upper bound of the same input. Exchange them.")
    with target.frozen(on):
        logits = logits_of(target, given, on)
        before = logits.argmax(1)
        arrived = _arrived(given, before, asked, others)
        reasons = _impossible(target, given, logits, asked, others, least, most)
        possible = torch.tensor([row for row in range(len(given)) if row not in reasons], dtype=torch.long)

        def solve(part: slice) -> tuple[Tensor, ...]:
            rows = possible[part]
            box = _Box(smooth, *(each[rows].to(on) for each in (given, least, most, step, free)))
            margin = _Margin(target, before[rows].to(on), None if asked is None else asked[rows].to(on), others.to(on))
            own = derive_seed(seed, "nearest", part.start)
            found = _Search(box, margin).solve(arrived[rows].to(on), starts, iterations, own)
            return tuple(each.cpu() for each in found)

        points, boundary, normals = given.clone(), given.clone(), torch.zeros_like(given)
        distances = torch.full((len(given),), torch.inf)
        parts = in_batches(target, given[possible], solve)
        for whole, column in zip((points, boundary, normals, distances), zip(*parts, strict=True), strict=bool(parts)):
            whole[possible] = torch.cat(column)
        found = logits_of(target, points, on)
        # Where all logits are equal, a point counts as clearly beyond the boundary that is not.
        another = (found.argmax(1) != before) | target.multi_label
        distances[~(another if asked is None else target.accepts(found, asked))] = torch.inf
        missed = distances.isinf()
        points[missed], boundary[missed], normals[missed] = given[missed], given[missed], 0.0
        found[missed] = logits[missed]
        answers = target.predictions(found, logits.argmax(1) if asked is None else asked)
    for row in missed.nonzero()[:, 0].tolist():
        sought = "another class" if asked is None else f"the class {target.class_names[int(asked[row])]!r}"
        reasons.setdefault(row, f"no input of {sought} was found within the bounds")
    return Nearest(points, before, answers, distances, boundary, normals, dict(sorted(reasons.items())))


@dataclass(frozen=True)
class _Margin:
    """By how much the answer is the wanted one, (B,): positive beyond the boundary.

    It is the difference of the logits of the wanted class and of the strongest other one. Without a wanted class, the
    strongest class that may be the other one is wanted. A label of a multi-label target has its own logit as margin.
    """

    target: Target
    present: Tensor
    wanted: Tensor | None
    others: Tensor

    def __getitem__(self, rows: Tensor) -> _Margin:
        wanted = None if self.wanted is None else self.wanted[rows]
        return _Margin(self.target, self.present[rows], wanted, self.others)

    def of(self, logits: Tensor) -> Tensor:
        if self.target.multi_label and self.wanted is not None:
            return logits.gather(1, self.wanted[:, None])[:, 0]
        if self.wanted is None:
            good = self.others.expand_as(logits).scatter(1, self.present[:, None], False)
        else:
            good = torch.zeros_like(logits, dtype=torch.bool).scatter(1, self.wanted[:, None], True)
        return logits.masked_fill(~good, -torch.inf).amax(1) - logits.masked_fill(good, -torch.inf).amax(1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.of(self.target(x))

    def slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margin, (B,), and its gradient, (B, *input_shape)."""
        x = x.detach().requires_grad_()
        margin = self.of(self.target(x))
        (gradient,) = torch.autograd.grad(margin.sum(), x)
        return margin.detach(), gradient


@dataclass(frozen=True)
class _Box:
    """The given inputs, and the changes that are allowed; all tensors are (B, *input_shape)."""

    smooth: float
    x: Tensor
    low: Tensor
    high: Tensor
    grid: Tensor
    free: Tensor

    def __getitem__(self, rows: Tensor) -> _Box:
        tensors = (self.x, self.low, self.high, self.grid, self.free)
        return _Box(self.smooth, *(tensor[rows] for tensor in tensors))

    def clip(self, points: Tensor) -> Tensor:
        return torch.where(self.free > 0, points.clamp(self.low, self.high), self.x)

    def random(self, radius: float, rng: torch.Generator) -> Tensor:
        """Return random points, at a share of the way from the inputs to uniform ones."""
        noise = torch.rand(self.x.shape, generator=rng, device=self.x.device)
        return self.clip(self.x + radius * (self.low + (self.high - self.low) * noise - self.x))

    def on_grid(self, points: Tensor, down: bool = False) -> Tensor:
        """Round each change to a multiple of its step; ``down``, or where it would leave the bounds, toward zero."""
        count = (points - self.x) / self.grid
        rounded = self.x + count.round() * self.grid
        inside = (rounded > self.low - 1e-6) & (rounded < self.high + 1e-6) & (not down)
        rounded = torch.where(inside, rounded, self.x + (count * (1 + 1e-6)).trunc() * self.grid)
        return self.clip(torch.where(self.grid > 0, rounded, points))

    def one_step(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Move one input of each row by one step: the one where the margin gains most for the distance it costs."""
        move = self.grid * gradient.sign()
        inside = (points + move > self.low - 1e-6) & (points + move < self.high + 1e-6)
        cost = 2 * (points - self.x) * move + move.square()  # below 0 toward the given input, which is free
        gain = torch.where(
            inside & (move != 0) & (self.free > 0), gradient.abs() * self.grid / cost.clamp_min(1e-9), 0.0
        )
        chosen = gain.flatten(1).argmax(1, keepdim=True)
        single = torch.zeros_like(gain.flatten(1)).scatter(1, chosen, 1.0).view_as(points)
        return self.clip(points + move * single * (gain > 0))

    def project(self, gradient: Tensor, needed: Tensor) -> Tensor:
        r"""Return the nearest points at which a linear function has grown by ``needed``, (B,).

        They are :math:`\mathrm{clip}(x + \lambda d)` with the direction d of the gradient (blurred, if the change is to
        be smooth). The function is piecewise linear in :math:`\lambda`, and bends where an input reaches its bound, so
        sorting these places yields :math:`\lambda`; where the bounds do not allow so much, every input is at its bound.
        """
        direction = gradient * self.free
        if self.smooth:
            from torchvision.transforms.functional import gaussian_blur  # slow to import

            radius = min(round(3 * self.smooth), *(side - 1 for side in direction.shape[-2:]))  # it pads by reflection
            direction = gaussian_blur(direction, 2 * radius + 1, self.smooth) * self.free
        rates = (gradient * direction).flatten(1)
        direction = direction * _wide(needed.sign(), direction)
        room = torch.where(direction > 0, self.high - self.x, self.low - self.x)
        ends, order = torch.where(direction != 0, room / direction, 0.0).flatten(1).sort(1)
        rates = rates.gather(1, order)
        stopped = (rates * ends).cumsum(1)
        moving = rates.sum(1, keepdim=True) - rates.cumsum(1)
        reached = stopped + ends * moving >= needed.abs()[:, None]
        first = reached.int().argmax(1, keepdim=True)
        before, still = stopped - rates * ends, moving + rates
        factor = (needed.abs()[:, None] - before.gather(1, first)) / still.gather(1, first)
        factor = torch.where(reached.any(1, keepdim=True), factor, ends[:, -1:])
        return self.clip(self.x + _wide(factor[:, 0], direction) * direction)


@dataclass(frozen=True)
class _Search:
    """The search for the nearest points beyond the boundary of a margin, within a box."""

    box: _Box
    margin: _Margin

    def __getitem__(self, rows: Tensor) -> _Search:
        return _Search(self.box[rows], self.margin[rows])

    def solve(self, arrived: Tensor, starts: int, iterations: int, seed: int) -> tuple[Tensor, ...]:
        """Return points beyond the boundary, points on it, unit normals there, and distances: inf where not found.

        Args:
            arrived: (B, *input_shape), inputs of the class where there are any, else the given ones.
            starts: number of random starting points.
            iterations: number of steps along the boundary.
            seed: of the random points, of which a row has the same whatever the others need.
        """
        x = self.box.x
        boundary, least = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
        other = (arrived != x).flatten(1).any(1)
        for attempt in range(2 + starts + TRIES):
            sought = other if attempt == 1 else least.isinf() | (attempt < 2 + starts)
            rows = sought.nonzero()[:, 0]
            if not len(rows):
                continue
            own, start = self[rows], (x, self.box.clip(arrived))[attempt][rows] if attempt < 2 else None
            if start is None:
                rng = random_generator(x.device, derive_seed(seed, attempt))
                start = self.box.random(min(1.0, (attempt - 1) / SPREAD), rng)[rows]
            points, distances = own.slide(*own.approach(start), iterations)
            better = distances < least[rows]
            boundary[rows[better]], least[rows[better]] = points[better], distances[better]
        _, normals = self.margin.slope(boundary)
        normals = normals / _wide(normals.flatten(1).norm(dim=1).clamp_min(1e-30), x)
        points, distances = self.beyond(boundary)
        return points, boundary, normals, torch.where(least.isfinite(), distances, torch.inf)

    def approach(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return points beyond the boundary and their distances, inf where none was reached."""
        x, now = self.box.x, start
        kept = now, torch.full((len(x),), torch.inf, device=x.device)
        for _ in range(PROJECTIONS):
            margin, gradient = self.margin.slope(now)
            kept = self._nearer(kept, now, margin >= 0)
            if not gradient.any():
                break
            now = (now + self._projected(now, margin, gradient)) / 2
        for factor in STRETCHES:
            points = self.box.clip(x + factor * (now - x))
            kept = self._nearer(kept, points, self.margin(points) >= 0)
        return kept

    def _nearer(self, kept: tuple[Tensor, Tensor], points: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
        """Return, of points and their distances that were kept and of those points that are beyond, the nearer ones."""
        best, least = kept
        distances = torch.where(beyond, _distance(points, self.box.x), torch.inf)
        return torch.where(_wide(distances < least, points), points, best), least.minimum(distances)

    def slide(self, points: Tensor, distances: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """Move points along the boundary while they come nearer; return them and their distances."""
        x, found = self.box.x, distances.isfinite()
        points = self._bisect(points)
        rate = torch.full_like(distances, 0.5)
        for step in range(1, iterations + 1):
            margin, gradient = self.margin.slope(points)
            moved = points + _wide(rate, x) * (self._projected(points, margin, gradient) - points)
            nearer = (1 - rate / 50) * _distance(points, x) / _distance(moved, x).clamp_min(1e-12)
            moved = self.box.clip(x + _wide(nearer, x) * (moved - x))
            held = self.margin(moved) >= 0
            points = torch.where(_wide(held, x), moved, points)
            rate = torch.where(held, 1.5 * rate, rate / 2).clamp(1e-3, 1)
            if step % 10 == 0:
                points = self._bisect(points)
        points = self._bisect(points, 2 * HALVINGS)
        return points, torch.where(found, _distance(points, x), torch.inf)

    def _projected(self, points: Tensor, margin: Tensor, gradient: Tensor) -> Tensor:
        """Return the nearest points of the boundary linearized at ``points``."""
        return self.box.project(gradient, (gradient * (points - self.box.x)).flatten(1).sum(1) - margin)

    def _bisect(self, points: Tensor, halvings: int = HALVINGS) -> Tensor:
        """Return where the boundary is on the way to points beyond it; the result is still beyond it."""
        x, inner, outer = self.box.x, points.new_zeros(len(points)), points.new_ones(len(points))
        for _ in range(halvings):
            middle = (inner + outer) / 2
            crossed = self.margin(x + _wide(middle, x) * (points - x)) >= 0
            inner, outer = torch.where(crossed, inner, middle), torch.where(crossed, middle, outer)
        return x + _wide(outer, x) * (points - x)

    def beyond(self, boundary: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest points clearly beyond the boundary whose changes are on the grid, and their distances."""
        x = self.box.x
        with torch.no_grad():
            logits = self.margin.target(x)
        clear = 1e-4 * self.margin.of(logits).abs() + 1e-5 * logits.abs().amax(1)
        kept = boundary, torch.full((len(x),), torch.inf, device=x.device)
        for factor in BEYOND:
            points = self.box.on_grid(x + factor * (boundary - x))
            kept = self._nearer(kept, points, self.margin(points) >= clear)
            if kept[1].isfinite().all():
                break
        far = bool((kept[1] > FAR * _distance(boundary, x)).any())  # the ray may miss what single steps reach
        points = self.box.on_grid(boundary, down=True)
        for _ in range(GREEDY if far else 0):
            margin, gradient = self.margin.slope(points)
            kept = self._nearer(kept, points, margin >= clear)
            if ((margin >= clear) | (_distance(points, x) >= kept[1])).all():
                break
            points = self.box.one_step(points, gradient)
        return kept


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, ...), to combine with inputs."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _distance(points: Tensor, x: Tensor) -> Tensor:
    return (points - x).flatten(1).square().sum(1).sqrt()


@torch.no_grad()
def logits_of(target: Target, images: Tensor, device: torch.device) -> Tensor:
    """Return the target's logits, on the CPU."""
    logits: Tensor = torch.cat(in_batches(target, images, lambda rows: target(images[rows].to(device)).cpu()))
    return logits


def _arrived(given: Tensor, before: Tensor, asked: Tensor | None, others: Tensor) -> Tensor:
    """Return for each input the nearest one of the class among all of them; itself where there is none."""
    away = torch.cdist(given.flatten(1), given.flatten(1))
    suits = (before[:, None] != before) & others[before] if asked is None else asked[:, None] == before
    away, nearest_ = away.masked_fill(~suits, torch.inf).min(1)
    return torch.where(_wide(away.isfinite(), given), given[nearest_], given)


def check_inputs(target: Target, images: Tensor, to: Classes | None) -> None:
    """Check that a target and inputs allow such a search.

    Raises:
        UsageError: they do not.
    """
    if target.no_gradient:
        raise UsageError(
            f"no gradient passes from the logits of {target.name} to its images: {target.no_gradient}. The nearest "
            f"input of another class is searched by gradients, so use a classifier that passes them."
        )
    if target.multi_label and to is None:
        raise UsageError(
            f"the labels of {target.name} do not exclude each other, so none is the answer that would change. Name the "
            f"label that it is to accept: {setting('to', 'LABEL')}."
        )
    if not len(images) or tuple(images.shape[1:]) != target.input_shape:
        raise UsageError(
            f"expected inputs of shape (N, {', '.join(map(str, target.input_shape))}), not {tuple(images.shape)}."
        )


def asked_of(target: Target, to: Classes, count: int) -> Tensor:
    """Return the class asked for by each row, (N,) int64."""
    several = to.tolist() if isinstance(to, Tensor) else [to] if isinstance(to, int | str) else list(to)
    several = several if isinstance(several, list) else [several]
    if len(several) not in (1, count):
        raise UsageError(f"{len(several)} classes were asked for, but there are {count} inputs. Name one, or one each.")
    return torch.tensor([target.class_number(each) for each in several]).expand(count)


def among_of(target: Target, among: Sequence[int | str]) -> Tensor:
    """Return which classes were named, (C,) bool."""
    named = torch.zeros(target.num_classes, dtype=torch.bool)
    named[[target.class_number(each) for each in among]] = True
    return named


def _impossible(
    target: Target, x: Tensor, logits: Tensor, asked: Tensor | None, others: Tensor, low: Tensor, high: Tensor
) -> dict[int, str]:
    """Return why no search can succeed, by row."""
    reasons = {}
    outside = ((x < low - 1e-6) | (x > high + 1e-6)).flatten(1)
    accepted = torch.zeros(len(x), dtype=torch.bool) if asked is None else target.accepts(logits, asked)
    for row in range(len(x)):
        if not logits[row].isfinite().all():
            reasons[row] = "the target's logits for it are not finite"
        elif outside[row].any():
            place = int(outside[row].int().argmax())
            value, lower, upper = (float(each[row].flatten()[place]) for each in (x, low, high))
            reasons[row] = f"its value {place} is {value:g}, outside the bounds {lower:g} to {upper:g}"
        elif asked is not None and accepted[row]:
            reasons[row] = f"the target classifies it as {target.class_names[int(asked[row])]!r} already"
        elif asked is None and others.nonzero()[:, 0].tolist() in ([], [int(logits[row].argmax())]):
            reasons[row] = "no other class was named"
    return reasons
