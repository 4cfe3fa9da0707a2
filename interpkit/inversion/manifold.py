"""`nearest_along`: the nearest samples of a generator that its target assigns to another class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from interpkit.errors import UsageError
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition
from interpkit.inversion.nearest import Classes, Nearest, among_of, asked_of, check_inputs, logits_of
from interpkit.inversion.results import GeneratorInversion, moved, sampling_mode
from interpkit.runtime import progress
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device, in_float32
from interpkit.runtime.random import derive_seed, random_generator

DRAWN = 256
"""Samples of a class, from whose nearest ones the search starts."""
AT_ONCE = 64
WEIGHT = 10.0
"""Weight of the cross-entropy beside the squared distance."""
RATE = 0.05
SHELL = 1.2
"""Longest latent, as a multiple of the root of its dimension, where standard normal ones lie."""


@with_autograd
@in_float32()
def nearest_along(
    inversion: GeneratorInversion,
    images: Tensor,
    to: Classes | None = None,
    *,
    among: Sequence[int | str] | None = None,
    confidence: float = 0.99,
    starts: int = 4,
    steps: int = 100,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Nearest:
    r"""Return for each input a near sample of a generator that the target assigns to another class.

    .. math:: \min_z \|G(z, c) - x_1\|^2 + w \, [-\log p_k(G(z, c)) + \log p]_+

    by Adam over the latent z, with conditions c of the class k. It starts from the nearest of random samples of the
    class, and returns the nearest image with at least the probability p. All results are samples of the generator, so
    they differ from the given input also where it is not a sample itself.

    Args:
        inversion: the generator; its conditions must include the classes.
        images: (N, *input_shape) in [0, 1].
        to: the class asked for, by number or name, or one for each input; if omitted, the target's strongest answer
            but for the present one.
        among: the classes that may be the other one where ``to`` is omitted; those of the inversion by default.
        confidence: the least probability p that the target assigns to the class.
        starts: number of starting points.
        steps: number of steps from each of them.
        seed: random seed of the starting points.
        device: device to compute on.

    Returns:
        the result, whose ``boundary`` is ``images`` and whose ``normals`` are zero.

    Raises:
        UsageError: the target passes no gradient, or an argument does not fit.

    Example:
        >>> import torch
        >>> from interpkit import invert, nearest_along, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["vecmat"], steps=10, batch_size=16)
        >>> result = nearest_along(inversion, torch.rand(2, 1, 8, 8), to=2, confidence=0.3, steps=5)
        >>> result.images.shape
        torch.Size([2, 1, 8, 8])
    """
    target = inversion.target
    check_inputs(target, images, to)
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is a probability above 0 and below 1, not {confidence:g}.")
    if starts < 1 or steps < 0:
        raise UsageError(f"a search takes at least 1 start and 0 steps, not {starts} and {steps}.")
    on = choose_device(device) if isinstance(device, str) else device
    given = images.detach().float().cpu()
    modes = sampling_mode(inversion.generator, False), sampling_mode(inversion.conditioner, False)
    with moved(inversion, on), target.frozen(on), modes[0], modes[1]:
        logits = logits_of(target, given, on)
        before = logits.argmax(1)
        if to is None:
            others = among_of(target, inversion.classes if among is None else among)
            good = others.expand_as(logits).scatter(1, before[:, None], False)
            asked = torch.where(good.any(1), logits.masked_fill(~good, -torch.inf).argmax(1), before)
        else:
            asked = asked_of(target, to, len(given))
        accepted = target.accepts(logits, asked)
        done = int(accepted.sum())
        points, least = given.clone(), torch.full((len(given),), torch.inf)
        for label in asked.unique().tolist():
            inversion.choose([label])
            walk = _Walk(inversion, label, confidence, random_generator(on, derive_seed(seed, "along", label)))
            for rows in ((asked == label) & ~accepted).nonzero()[:, 0].split(max(1, AT_ONCE // starts)):
                points[rows], least[rows] = walk.nearest(given[rows].to(on), starts, steps)
                done += len(rows)
                progress.tell("inputs searched", done, len(given))
        reasons = {}
        for row in range(len(given)):
            name = target.class_names[int(asked[row])]
            if accepted[row]:
                reasons[row] = f"the target classifies it as {name!r} already"
            elif least[row].isinf():
                reasons[row] = f"no sample has the class {name!r} with a probability of {confidence:g}"
        answers = target.predictions(logits_of(target, points, on), asked)
    return Nearest(points, before, answers, least, points, torch.zeros_like(points), reasons)


class _Walk:
    """Samples of one class, and the way from them to the nearest ones."""

    def __init__(self, inversion: GeneratorInversion, label: int, confidence: float, rng: torch.Generator) -> None:
        self.generator, self.target, self.label = inversion.generator, inversion.target, label
        self.slack = -math.log(confidence)
        labels = torch.full((DRAWN,), label, device=inversion.device)
        self.condition = contracts.condition(inversion.conditioner, DRAWN, labels, rng)
        self.latent = torch.randn(DRAWN, self.generator.latent_dim, device=inversion.device, generator=rng)
        self.member = torch.arange(DRAWN, device=inversion.device) % self.generator.num_members
        with torch.no_grad():
            every = torch.arange(DRAWN, device=inversion.device)
            self.samples = torch.cat([self.images(self.latent[rows], rows) for rows in every.split(AT_ONCE)])

    def images(self, latent: Tensor, rows: Tensor) -> Tensor:
        condition: Condition = self.condition[rows]
        return contracts.images(self.generator, latent, condition, self.member[rows]).float()

    def nearest(self, x: Tensor, starts: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return the nearest samples with the wanted probability and their distances, inf where there are none."""
        away = torch.cdist(x.flatten(1), self.samples.flatten(1))
        rows = away.topk(min(starts, DRAWN), largest=False).indices
        starts = rows.shape[1]
        rows, x = rows.flatten(), x.repeat_interleave(starts, 0)
        labels = torch.full_like(rows, self.label)
        latent = self.latent[rows].requires_grad_()
        longest = SHELL * math.sqrt(max(1, latent.shape[1]))
        optimizer = torch.optim.Adam([latent], lr=RATE)
        best, least = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
        for _ in range(steps):
            images = self.images(latent, rows)
            distances = (images - x).flatten(1).square().sum(1)
            logits = self.target(images)
            lacking = (self.target.cross_entropy(logits, labels) - self.slack).relu()
            with torch.no_grad():
                better = (lacking == 0) & self.target.accepts(logits, labels) & (distances < least)
                best[better], least[better] = images[better], distances[better]
            optimizer.zero_grad()
            (gradient,) = torch.autograd.grad((distances + WEIGHT * lacking).sum(), latent, allow_unused=True)
            if gradient is None:  # a generator without a latent
                break
            latent.grad = gradient
            optimizer.step()
            with torch.no_grad():
                latent.mul_((longest / latent.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1))
        least, chosen = least.sqrt().view(-1, starts).min(1)
        return best.view(-1, starts, *best.shape[1:])[torch.arange(len(chosen)), chosen].cpu(), least.cpu()
