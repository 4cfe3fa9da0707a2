"""Log inversions to TensorBoard; a small plugin that uses only the lifecycle hooks, and a good one to learn them from.

    pip install 'network-inversion[tensorboard]'
    INTERPKIT_TENSORBOARD=runs/tensorboard interpkit invert model.safetensors --preset vecmat
    tensorboard --logdir runs/tensorboard

Every inversion writes to its own folder: each term, the loss and the inversion accuracy as scalars, the recipe as
text, and at the end a grid of samples with one row per class. Without the environment variable the plugin does nothing.
"""

from __future__ import annotations

import logging
import os
from datetime import datetime
from typing import Any

import torch

from interpkit import Inversion, Recipe, StepRecord, Target, hookimpl, install_extra

INTERPKIT_INTERFACE = 1

PLACE = "INTERPKIT_TENSORBOARD"
COLUMNS, ROWS = 8, 20
log = logging.getLogger("interpkit")
writers: list[Any] = []
"""The writer of the running inversion, if there is one."""


@hookimpl
def inversion_started(target: Target, recipe: Recipe) -> None:
    """Open the folder that the events are written to."""
    while writers:  # left over from an inversion that failed
        writers.pop().close()
    if not os.environ.get(PLACE):
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("%s is set, but TensorBoard is not installed: %s", PLACE, install_extra("tensorboard"))
        return
    name = f"{target.name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    writers.append(SummaryWriter(os.path.join(os.environ[PLACE], name)))
    writers[-1].add_text("recipe", "\n".join(f"    {line}" for line in recipe.to_toml().splitlines()))


@hookimpl
def inversion_step(record: StepRecord) -> None:
    """Write one line of the history."""
    values = {"loss": record.loss, "inversion_accuracy": record.inversion_accuracy}
    for name, value in (values | {f"terms/{name}": value for name, value in record.terms.items()}).items():
        for writer in writers:
            writer.add_scalar(name, value, record.step)


@hookimpl
def inversion_finished(inversion: Inversion) -> None:
    """Write a grid of samples, and close the writer."""
    while writers:
        writer = writers.pop()
        if len(inversion.target.input_shape) == 3:
            images, labels = inversion.sample(COLUMNS, labels=inversion.classes[:ROWS])
            rows = [torch.cat(list(images[labels == label]), 2) for label in inversion.classes[:ROWS]]
            grid = torch.cat(rows, 1)[:3]
            writer.add_image("samples", grid if len(grid) == 3 else grid[:1], inversion.steps_done)
        writer.close()
