"""From a module's raw output to the logits of a target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Output = Literal["logits", "log_probs", "probs"]

TINY = 1e-12


def in_single(tensor: Tensor) -> Tensor:
    """Return floating-point numbers of any precision as float32, and others unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor


def as_logits(values: Tensor, output: Output) -> Tensor:
    """Return a module's output, (B, n) or (B, 1), as logits of at least two classes, (B, n) float32."""
    values = in_single(values)
    if output == "probs":
        if values.shape[1] == 1:
            values = torch.cat([1 - values, values], 1)
        return (values + TINY).log()
    if values.shape[1] == 1:
        no = torch.zeros_like(values) if output == "logits" else (1 - values.exp() + TINY).log()
        values = torch.cat([no, values], 1)
    return values


def find_output(raw: Tensor, output: Output | None) -> tuple[Output, str]:
    """Detect the kind of output: probabilities sum to 1, log-probabilities do so after exp, all else is logits.

    Returns:
        the kind, and what it was decided by.
    """
    if output is not None:
        return output, "given"
    values = raw[raw.isfinite().all(1)].double()
    if raw.shape[1] == 1:
        if ((values >= 0) & (values <= 1)).all():
            return "probs", "found: a single output between 0 and 1"
    elif (values >= 0).all() and (values.sum(1) - 1).abs().max() < 1e-2:
        return "probs", "found: it sums to 1"
    elif values.logsumexp(1).abs().max() < 1e-2:
        return "log_probs", "found: its exponentials sum to 1"
    return "logits", "found: it is neither probabilities nor their logarithms"
