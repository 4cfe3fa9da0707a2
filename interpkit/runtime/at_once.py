"""How many images a classifier runs on at once outside the training: for predictions, metrics and evaluators."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interpkit.runtime.devices import device_of, is_out_of_memory
from interpkit.runtime.progress import tell
from interpkit.runtime.random import global_seed

log = logging.getLogger("interpkit")
T = TypeVar("T")

MOST = 256
MOST_BYTES = 1 << 30
"""The bytes of all values that a classifier computes for the images of a batch; without a gradient, most of them are
freed before the next are computed."""

_bytes_of: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def in_batches(
    classifier: nn.Module,
    images: Tensor,
    run: Callable[[slice], T],
    *,
    most: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[T]:
    """Call ``run`` on slices of the images in turn, as many at a time as fit, and return the results.

    A batch has at most `MOST` images, or ``most`` if that is fewer, and as many as keep the values that the classifier
    computes within `MOST_BYTES`. If it is out of memory all the same, half as many are tried.

    Args:
        classifier: runs on the images, is in eval mode and on its device.
        images: (N, *input_shape) on any device, uint8 or as the classifier accepts them.
        run: computes the results of some rows.
        most: the number of images that the user lets into memory at a time.
        on_done: called after each batch with the number of images done.
    """
    size, start, results = how_many(classifier, images, most), 0, []
    while start < len(images):
        try:
            results.append(run(slice(start, start + size)))
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size = -(-min(size, len(images)) // 2)
            log.warning("out of memory: the classifier now runs on %d images at a time", size)
            continue
        start += size
        tell("images classified", min(start, len(images)), len(images))
        if on_done is not None:
            on_done(min(start, len(images)))
    return results


def how_many(classifier: nn.Module, images: Tensor, most: int | None = None) -> int:
    """Return on how many of the images the classifier may run at once; see `in_batches`."""
    limit = min(MOST, most or MOST)
    if len(images) <= 1 or limit == 1:
        return 1
    if classifier not in _bytes_of:
        _bytes_of[classifier] = bytes_per_image(classifier, images[:1])
    return max(1, min(limit, MOST_BYTES // max(1, _bytes_of[classifier])))


@torch.no_grad()
def bytes_per_image(classifier: nn.Module, image: Tensor) -> int:
    """Return the bytes of all values that the classifier computes for an image; 0 if it cannot be observed.

    Args:
        classifier: in eval mode.
        image: (1, *input_shape), uint8 or as the classifier accepts it.
    """
    image = (image / 255 if image.dtype == torch.uint8 else image).to(device := device_of(classifier))
    try:
        with global_seed(0, device), (computed := _Computed()):
            classifier(image)
    except Exception:  # as long as it runs unobserved, `in_batches` needs no more
        log.debug("the memory of one image is not known", exc_info=True)
        return 0
    return computed.bytes


class _Computed(TorchDispatchMode):
    """Counts the bytes of the tensors computed in a block, without views and changes in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        known = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and _storage(tensor) not in known:
                self.bytes += tensor.numel() * tensor.element_size()
        return outputs


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
