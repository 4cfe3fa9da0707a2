"""The sizes of a run on large images, where neither the user nor a preset states them.

Runs on small images, such as those of MNIST and CIFAR-10, keep the defaults of the `Recipe`.
"""

from __future__ import annotations

import math
from typing import Any

from interpkit.config.recipe import Recipe, Sampling

LARGE = 3 * 64 * 64
"""The values in an image from which it counts as large."""
LEAST = 16
"""The least images of a batch, and of those drawn at once: batch norms and terms for variety compare that many."""
CLASSES = 10
"""The classes that the default number of steps is made for."""
MOST_TIMES = 10
"""How many times that number a run of many classes has at most."""


def is_large(input_shape: tuple[int, ...]) -> bool:
    """Return whether images of a shape are so large that time and memory decide the sizes of a run.

    Example:
        >>> from interpkit.config.sizes import is_large
        >>> is_large((3, 32, 32)), is_large((3, 224, 224))
        (False, True)
    """
    return math.prod(input_shape) >= LARGE


def for_large(
    recipe: Recipe,
    input_shape: tuple[int, ...],
    num_classes: int,
    device: str,
    *,
    trains_generator: bool = True,
    processes: int = 1,
) -> dict[str, Any]:
    """Return the fields of the recipe that large images change, as far as it leaves them open.

    A CPU (or MPS) trains a generator on batches that shrink with the area of the images: 128 of 64 x 64 pixels, 16 of
    224 x 224. CUDA keeps the batch, and takes more steps if there are more classes, as their square root: 300 for 10
    classes, 3,000 for 1,000; on a CPU that would take days. Fewer samples are drawn at once on both. An inverter
    without a generator keeps its steps and batch.

    Args:
        recipe: as composed, with the fields that somebody has stated.
        input_shape: of one image.
        num_classes: of the classifier.
        device: the type of the device, such as ``cuda``.
        trains_generator: whether the inverter trains one.
        processes: the number that share a batch; several keep its size.
    """
    if not is_large(input_shape):
        return {}
    fitting = LARGE / math.prod(input_shape)
    chosen: dict[str, Any] = {}

    def smaller(default: int) -> int:
        return min(default, max(LEAST, 1 << int(default * fitting).bit_length() >> 1))

    if "chunk" not in recipe.sampling.model_fields_set:
        chunk = smaller(Sampling.model_fields["chunk"].default)
        chosen["sampling"] = recipe.sampling.model_copy(update={"chunk": chunk})
    if not trains_generator:
        return chosen
    default = recipe.batch_size
    if "batch_size" not in recipe.model_fields_set and device != "cuda" and processes == 1:
        chosen["batch_size"] = max(smaller(default), min(default, LEAST * recipe.generators))
    if "steps" not in recipe.model_fields_set and device == "cuda":
        classes = num_classes if recipe.labels is None else len(recipe.labels)
        times = min(MOST_TIMES, max(1.0, math.sqrt(classes / CLASSES)))
        chosen["steps"] = round(recipe.steps * times)
    return chosen


def as_begun(recipe: Recipe, begun: Recipe) -> dict[str, Any]:
    """Return the length and the sizes of a run that is resumed by a recipe, as far as that leaves them open.

    Args:
        recipe: as composed, with the fields that somebody has stated.
        begun: the run's own.
    """
    names = ("steps", "batch_size", "micro_batch", "checkpoint_every")
    update: dict[str, Any] = {name: getattr(begun, name) for name in names if name not in recipe.model_fields_set}
    if "chunk" not in recipe.sampling.model_fields_set:
        update["sampling"] = recipe.sampling.model_copy(update={"chunk": begun.sampling.chunk})
    return update
