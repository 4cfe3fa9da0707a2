"""What excites the units of a run, among real images: the section of its report."""

from __future__ import annotations

import torch
from torch import Tensor

from interpkit.interfaces.samples import Samples, to_unit
from interpkit.interfaces.sections import Section, Strip
from interpkit.interfaces.targets import Target
from interpkit.runtime.at_once import in_batches

STRONGEST, SHOWN = 100, 8
"""Real images of a unit whose mean is reported, and of these those that are shown."""
MEANING = (
    "How strongly each unit is excited by its samples, and by those {} of {:,} real images that excite it most: means, "
    "in standard deviations above the level that 99 % of noise and drawings stay below. Where the samples are far "
    "above the real images, they show what the unit could respond to, and not what it responds to in real images: look "
    "for what both have in common. Other real images may excite it more."
)


def section(samples: Samples, real: Tensor, target: Target, device: torch.device | str, most: int | None) -> Section:
    """Return the section on units: their samples next to the real images that excite them most.

    Args:
        samples: those of the run.
        real: real images (M, *input_shape) in [0, 1].
        target: a target whose classes are units; see `interpkit.units`.
        device: what it runs on.
        most: the number of images that it runs on at a time; as many as fit into memory if None.
    """

    @torch.no_grad()
    def excited(images: Tensor) -> Tensor:
        with target.frozen(device):
            logits = torch.cat(
                in_batches(target, images, lambda rows: target(images[rows].to(device)).cpu(), most=most)
            )
        return logits if target.multi_label else 2 * logits  # of a single unit, (-z/2, z/2)

    own, among = excited(to_unit(samples.images, target)), excited(real)
    few = min(STRONGEST, len(real))
    rows, strips = [], []
    for label in samples.labels.unique().tolist():
        name, (values, places) = target.class_names[label], among[:, label].topk(few)
        rows.append((name, *(round(z.mean().item(), 2) for z in (own[samples.labels == label, label], values))))
        strips.append(Strip(f"{name}: strongest real images", real[places[:SHOWN]], predictions=False))
    columns = ("unit", "its samples", f"{few} strongest real images")
    return Section("Units among real images", MEANING.format(few, len(real)), columns, rows, strips)
