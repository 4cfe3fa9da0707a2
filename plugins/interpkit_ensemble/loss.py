"""Uncertainty of an ensemble of other classifiers, as a term of the inversion loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from interpkit import DataOptions, InversionBatch, InversionLoss, Target, UsageError
from interpkit_ensemble.members import answers, device_of, load_members, train_members

USUAL = 4
"""The number of members that are trained if the user names only the data."""


class Disagreement(InversionLoss):
    r"""Uncertainty of an ensemble about an image: its members' disagreement, and the entropy of their mean answer.

    .. math:: L = \frac{1}{B} \sum_b \Big[ \underbrace{H(\bar q_b) - \tfrac{1}{K} \sum_k H(q_{kb})}_{I_b}
              + \beta \, H(\bar q_b) - \gamma \log \bar q_b(y_b) \Big],
              \qquad \bar q_b = \tfrac{1}{K} \sum_k q_{kb}

    q are the class probabilities of K members, and H is Shannon's entropy in nats. The mutual information I is the part
    of the uncertainty that more data would remove (epistemic). It is between 0 and log min(K, n), and H between 0 and
    log n. The last term keeps the class: without it, the members may all be sure of a class that the target is not sure
    of. For a multi-label target, H sums over the labels.

    Members come from files (``members``), or are small networks that are trained on labeled images (``data``) when the
    term is built, each from its own random weights and on its own sample of the images, drawn with replacement. Their
    training depends on the data and the options alone, so a run that is resumed or loaded has the same members.

    Sources: BALD (Houlsby et al. 2011) for the mutual information, deep ensembles (Lakshminarayanan et al. 2017).
    After Autoinverse (Ansari et al. 2022), which weighs an ensemble's epistemic and aleatoric variance against the
    error of its mean, in regression. Its text was not available to us, so this is not a reproduction.

    Example:
        >>> import numpy, torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_ensemble import Disagreement
        >>> target = wrap(torch.nn.Linear(2, 2), input_shape=(2,))
        >>> numpy.savez("known.npz", images=numpy.eye(2, dtype="float32").repeat(50, 0), labels=[0] * 50 + [1] * 50)
        >>> term = Disagreement(target, Disagreement.Options(data="known.npz", train_members=2))
        >>> sure, unsure = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> bool(term.figures(target, sure)["entropy"] < term.figures(target, unsure)["entropy"])
        True
    """

    name = "disagreement"
    describe = {
        "mutual_information": "How much the members of the ensemble disagree on a sample, in nats; 0 if they agree.",
        "entropy": "Entropy of the members' mean answer, in nats; 0 if all are sure of the same class.",
    }

    class Options(DataOptions):
        """The members, and the weights of the parts."""

        members: list[str] = Field([], description="files of other classifiers with the same inputs and classes")
        train_members: int | None = Field(
            None, ge=1, le=1000, description=f"small members to train on the data; by default {USUAL} if there are data"
        )
        steps: int = Field(500, ge=1, le=1_000_000, description="batches of 64 images that each member is trained on")
        answers: bool = Field(False, description="teach them the target's answers to the images instead of the labels")
        entropy: float = Field(1.0, ge=0, description="weight of the entropy of the mean")
        label: float = Field(1.0, ge=0, description="weight of the cross-entropy between the class and the mean")

        @field_validator("members", mode="before")
        @classmethod
        def _files(cls, members: Any) -> Any:
            """Split a text at commas, and record absolute paths, so that the run can be repeated from any folder."""
            members = members.split(",") if isinstance(members, str) else members
            if not isinstance(members, list | tuple):
                return members  # to be refused
            return [str(Path(str(member)).absolute()) for member in members]

        @property
        def source(self) -> str:
            """The data and the files of members."""
            return ", ".join(filter(None, [self.data, *self.members]))

        def record(self, target: Target) -> dict[str, str]:
            """Return the manifest's entry: what is read, and the ``sha256`` of the data and the members' weights."""
            digest = hashlib.sha256(super().record(target)["sha256"].encode() if self.data else b"")
            for member in load_members(self.members, target):
                for name, weights in member.state_dict().items():
                    digest.update(name.encode() + weights.cpu().contiguous().numpy().tobytes())
            return {"path": self.source, "sha256": digest.hexdigest()}

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        opt = self.options
        count = (USUAL if opt.data else 0) if opt.train_members is None else opt.train_members
        if (total := len(opt.members) + count) < 2:
            raise UsageError(
                f"the loss 'disagreement' has {'1 member' if total else 'no members'}, and an ensemble has at least "
                f"two. Name labeled images by its option 'data', on which {USUAL} are trained, or files of two "
                "classifiers by its option 'members'."
            )
        # Not a submodule: what is not trained needs no place in a checkpoint, and an exported program has no modes.
        self.loaded = load_members(opt.members, target)
        self.trained = nn.ModuleList()
        if count:
            self.trained = train_members(target, opt.load(target), count, opt.steps, taught=opt.answers)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean over the images, a scalar."""
        opt = self.options
        information, entropy, logs = self._uncertainty(batch.target, batch.images)
        surprise = -logs.gather(1, batch.condition.labels[:, None])[:, 0]
        return (information + opt.entropy * entropy + opt.label * surprise).mean()

    def figures(self, target: Target, images: Tensor) -> Mapping[str, Tensor]:
        """Return the members' mutual information about each image, and the entropy of their mean."""
        information, entropy, _ = self._uncertainty(target, images)
        return {"mutual_information": information, "entropy": entropy}

    def _uncertainty(self, target: Target, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mutual information (B,), the entropy of the mean (B,), and the logarithm of the mean."""
        for member in self.loaded:
            if device_of(member) != images.device:
                member.to(images.device)
        members = (*self.trained, *self.loaded)
        logs = torch.stack([_logs(answers(member, images, target), target) for member in members])
        mean = logs.logsumexp(0) - math.log(len(logs))
        entropy, each = (-(log.exp() * log).sum(-1) for log in (mean, logs))
        return (entropy - each.mean(0)).clamp(min=0), entropy, mean


def _logs(logits: Tensor, target: Target) -> Tensor:
    """Return log q, (B, n); for labels that do not exclude each other, log q and log (1 - q), (B, 2n)."""
    if target.multi_label:
        return F.logsigmoid(torch.cat([logits, -logits], 1))
    return logits.log_softmax(1)
