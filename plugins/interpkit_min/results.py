"""The result of the inverter `min`: a generator of images, whose scores the target computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit import (
    Draw,
    Generator,
    GeneratorInversion,
    Inversion,
    Recipe,
    Section,
    StepRecord,
    Target,
    random_generator,
)
from interpkit_min.scores import Score, log_odds

COMPARED = 40
"""The number of requested scores of a class that are compared with those of the images."""
MOST_CLASSES = 20
"""The most classes that the report compares."""
BEYOND = 0.1
"""How far the requested scores of the comparison exceed those of the data, as a share of the range of the data."""
LONGEST = 1.0
"""The longest step of a latent."""


class MinInversion(GeneratorInversion):
    """A generator of images with a given class and score, and a search for latents that reach the score.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the history of the run.
        generator: (latent, class and score) -> images in [0, 1].
        conditioner: contains the scores of the data, and draws the scores to request.
        inference: how latents are inferred: gradient, selection or none.
        tries: latents tried for each image.
        empty: the classes that the target assigned too few pictures to, each with the reason.
    """

    conditioner: Score

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        generator: Generator,
        conditioner: Score,
        *,
        inference: str,
        tries: int,
        empty: Mapping[int, str],
    ) -> None:
        super().__init__(target, recipe, history, generator.eval(), conditioner.eval(), empty=empty)
        self.inference = "selection" if inference == "gradient" and target.no_gradient else inference
        self.tries = 1 if inference == "none" else tries
        self._compared: dict[int, Tensor] = {}

    def fingerprint(self) -> str:
        """Return a sha256 of the weights and of the options of the search."""
        return Inversion.fingerprint(self)

    def reach(self, labels: Tensor, scores: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        r"""Return images (B, *input_shape) whose scores are near the requested ones, and the scores of the images (B,).

        Of ``tries`` latents for each image, the one whose score is nearest is used. By gradient, each is a Newton step
        from the one before, at most 1 long, and is scaled to the length of the first, so that it stays as probable:

        .. math:: z' = z + \frac{y - f(G(z))}{\|g\|^2} g, \qquad g = \nabla_z f(G(z))

        Otherwise, the latents are independent.

        Args:
            labels: (B,) int64, the classes.
            scores: (B,), the requested log-odds.
            seed: random seed of the latents.
        """
        device, by_gradient = self.device, self.inference == "gradient"
        labels, scores, rng = labels.to(device), scores.to(device), random_generator(device, seed)
        with torch.inference_mode(False), self.target.frozen(device):
            condition = self.conditioner.at(labels, scores)
            latent = torch.randn(len(labels), self.generator.latent_dim, device=device, generator=rng)
            length = latent.norm(dim=1, keepdim=True)
            best, reached = torch.empty(0), torch.full_like(scores, torch.inf)
            for left in reversed(range(self.tries)):
                latent.requires_grad_(by_gradient)
                with torch.set_grad_enabled(by_gradient):
                    images = self.generator(latent, condition).float()
                    got = log_odds(self.target, self.target(images), labels)
                    follows = got.requires_grad and left > 0
                    slope = torch.autograd.grad(got.sum(), latent)[0] if follows else None
                images, got, latent = images.detach(), got.detach(), latent.detach()
                nearer = (scores - got).abs() < (scores - reached).abs()
                pixels = nearer.view(-1, *[1] * len(self.target.input_shape))
                best = torch.where(pixels, images, best) if len(best) else images
                reached = torch.where(nearer, got, reached)
                if slope is None:
                    latent = torch.randn(latent.shape, device=device, generator=rng)
                else:
                    size = slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
                    latent = latent + ((scores - got)[:, None] / size).clamp(-LONGEST, LONGEST) * slope / size
                    latent = latent * length / latent.norm(dim=1, keepdim=True)
        return best, reached

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Draw scores to request, and make images with them, without dropout; see `Inversion.chunk`."""
        rng = random_generator(self.device, seed)
        scores = self.conditioner.ask(labels.to(self.device), rng)
        images, _ = self.reach(labels, scores, int(torch.randint(2**62, (), device=self.device, generator=rng)))
        one_hot = F.one_hot(labels, self.target.num_classes).float()
        return Draw(images.cpu(), labels, one_hot, torch.zeros_like(labels))

    def compare(self, label: int) -> Tensor:
        """Return requested scores of a class and the scores of the images made for them, (2, 40), on the CPU.

        The requested scores are evenly spaced from the lowest score of the data to a tenth of their range above the
        highest.
        """
        if label not in self._compared:
            low, high = self.conditioner.edges[label, [0, -1]].tolist()
            asked = torch.linspace(low, high + BEYOND * (high - low), COMPARED)
            _, got = self.reach(torch.full((COMPARED,), label), asked, self.recipe.seed)
            self._compared[label] = torch.stack([asked, got.cpu()])
        return self._compared[label]

    def sections(self) -> list[Section]:
        """Return the comparison of scores for each class, followed by the sections that every generator has."""
        from scipy.stats import rankdata  # which takes a second to import

        rows = []
        for label in self.classes[:MOST_CLASSES]:
            asked, got = self.compare(label)
            ranks = torch.from_numpy(rankdata(torch.stack([asked, got]).numpy(), axis=1))  # ties share their mean rank
            follows = ranks.corrcoef()[0, 1]
            highest, apart = self.conditioner.edges[label, -1].item(), (got - asked).abs().mean().item()
            name = self.target.class_names[label]
            shown = "-" if follows.isnan() else f"{follows:.2f}"  # all of one score
            rows.append((name, shown, f"{apart:.1f}", f"{got.max():.1f}", f"{highest:.1f}"))
        how = {
            "none": "one latent for each image",
            "gradient": f"{self.tries} latents for each image, which follow the classifier's gradient",
            "selection": f"the best of {self.tries} latents for each image, without a gradient",
        }[self.inference]
        text = (
            "The score is the classifier's log-odds of the class. The table compares scores asked for, from the lowest "
            f"of the data to above the highest, with those of the images. Inference: {how}."
        )
        columns = ("class", "rank correlation", "mean distance", "highest score made", "highest of the data")
        return [Section("Scores asked for and made", text, columns, rows), *super().sections()]
