"""What the target's weights say of its training images: that training on them has come to rest."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError


class Stationarity(InversionLoss):
    r"""Norm of the gradient that training the target on the images would take: 0 where its weights are at rest.

    .. math:: L = \Big\| \frac{1}{B} \sum_b \nabla_\theta \, CE(f_\theta(x_b), y_b) + \lambda \theta \Big\|_2

    f are the logits, :math:`\theta` the weights of the target, all of them as one vector, x the images,
    ``(B, *input_shape)``, y the condition's labels, (B,), and CE the cross-entropy in nats (`Target.cross_entropy`);
    at least 0. Training ends where this gradient is small on the training images. Without weight decay
    (:math:`\lambda = 0`) any image of which the target is certain makes it small; with it the images have to hold the
    weights where they are, which is the stationarity of Haim et al. 2022, "Reconstructing Training Data from Trained
    Neural Networks", as Buzaglo et al. 2023, "Deconstructing Data Reconstruction", have it for weight decay
    and any number of classes.
    After Suhail & Sethi 2024, "Network Inversion for Training-Like Data Reconstruction", who add the gradient of the
    loss with respect to the weights to their objective; how they weight and scale it is our guess.

    Cost: a second forward pass of the target with gradients of its weights, and the derivative of those gradients. All
    images of the batch are in memory at once, whatever the micro-batch. The weights are of the classifier as it is, so
    that batch norms count with their scale and shift.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Stationarity
        >>> linear = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(linear.weight)  # its probabilities are 1/2, so the gradient is (1/2 - y) x^T
        >>> target = wrap(linear, input_shape=(2,))
        >>> testing.evaluate_loss(Stationarity(target), target, torch.ones(1, 2), labels=[0]).item()
        1.0
    """

    name = "stationarity"

    class Options(interpkit.Options):
        """How the target was trained."""

        decay: float = Field(0.0, ge=0, description="weight decay of the target's training; 0 if it is not known")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        with target.frozen():
            place = next((weight.device for weight in target.parameters()), torch.device("cpu"))
            images = torch.full((2, *target.input_shape), 0.5, device=place).requires_grad_()
            reason = "no gradient of its logits reaches any"
            try:
                value = self._norm(target, images, torch.arange(2, device=place))
                if value.requires_grad:
                    value.backward()  # as in training; `autograd.grad` would pass by some operations that cannot
                    reason = "" if images.grad is not None else "those gradients do not depend on the image"
            except RuntimeError as error:  # of autograd: an operation has no derivative, or no second one
                reason = str(error).partition("\n")[0].rstrip(".")
        if reason:
            raise UsageError(
                f"the loss 'stationarity' differentiates gradients of the classifier's weights, which those of "
                f"{target.name} do not allow: {reason}. Leave it out, or set its weight to 0 (--loss stationarity=0)."
            )

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the norm, a scalar."""
        return self._norm(batch.target, batch.images, batch.condition.labels)

    def _norm(self, target: Target, images: Tensor, labels: Tensor) -> Tensor:
        with target.differentiable() as weights, torch.enable_grad():
            loss = target.cross_entropy(target(images), labels).mean()
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True) if weights else ()
        norms = [
            torch.linalg.vector_norm(slope.to(images.dtype) + self.options.decay * weight.detach())
            for slope, weight in zip(slopes, weights, strict=True)
            if slope is not None
        ]
        whole: Tensor = torch.linalg.vector_norm(torch.stack([images.new_zeros(()), *norms]))
        return whole
