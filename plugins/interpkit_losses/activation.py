"""A term that excites: the logits asked for, or units of a layer, without the bound that a probability has."""

from __future__ import annotations

import logging

from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target

log = logging.getLogger("interpkit")

PROBABILITIES = ("probs", "log_probs", "neg_log_probs", "sigmoid")


class Activation(InversionLoss):
    r"""Minus the activation of what each image is asked for, on a logarithmic scale.

    .. math:: L = -\frac{1}{B} \sum_b \frac{1}{|K_b|} \sum_{k \in K_b} \operatorname{asinh}(z_{bk})

    z are the target's logits and K_b the label of image b; with `interpkit.units`, that is a unit. If units are named
    by the option, K_b are these, the same for all images, and z are their logits as `interpkit.units` defines them:
    so a class can be inverted with them excited. asinh(z) is z for small z and log(2 z) for large ones, so that no
    image dominates. Unbounded below: combine it with terms such as ``tv`` that keep the images smooth. The classes of a
    target that outputs probabilities p are an exception: z is log p (for independent labels, log p - log(1 - p)), which
    is bounded, and L a variant of the cross-entropy; a warning says so. Source: activation maximization (Erhan et al.
    2009), here for batches of several units.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Activation
        >>> target = wrap(torch.nn.Identity(), input_shape=(3,))  # its logits are its inputs
        >>> testing.evaluate_loss(Activation(target), target, torch.tensor([[0.0, 0.0, 1.0]]), labels=[2])
        tensor(-0.8814)
    """

    name = "activation"

    class Options(interpkit.Options):
        """What is excited."""

        units: list[str] = Field(
            [], description="units of the target, LAYER:CHANNEL; if empty, the classes (or units) asked for"
        )

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        self.units = interpkit.Units(target, self.options.units) if self.options.units else None
        # Units have logits of their own, whatever the classifier outputs.
        if self.units is None and getattr(target, "output", None) in PROBABILITIES:
            log.warning(
                "the loss 'activation' excites logits, and %s returns probabilities, whose logarithms replace them: "
                "it asks for no more than the loss 'ce' does. Wrap the model without its last softmax or sigmoid to "
                "excite the logits.",
                target.name,
            )

    def layers(self, target: Target) -> list[str]:
        """Return the layers of the units."""
        return self.units.layers if self.units else []

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean, a scalar."""
        logits, labels = batch.response.logits, batch.condition.labels
        asked = self.units(batch.response) if self.units else logits.gather(1, labels[:, None])
        return -asked.asinh().mean()
