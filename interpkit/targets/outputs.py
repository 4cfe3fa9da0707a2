"""The logits among what a classifier returns: named tensors, and the choice of one by evidence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpkit.errors import ModelError, listed, setting

DEPTH = 4
"""How deeply containers may be nested in an output."""
SCORES = ("logits", "probs", "probabilities", "prob", "scores", "prediction", "predictions", "preds")
"""What the names of the output that is wanted end in."""
FEATURES = re.compile(
    r"feat|embed|hidden|latent|repr|proj|pool|token|state|vector|attention|mask|^[zh]$", re.IGNORECASE
)
"""Parts of the names of outputs that are not scores of classes."""

Named = Mapping[str, Tensor]
"""The tensors of an output by name, in their order."""


class FinalError(ModelError):
    """A refusal that images in another layout, or one at a time, would not change."""


def named_tensors(output: Any) -> dict[str, Tensor]:
    """Return the tensors in an output by name, in order.

    The name of a tensor is its key, field or position, with dots between those of nested containers: ``logits``,
    ``1``, ``heads.age``. That of a bare tensor is empty. Whatever is neither a tensor nor a container is left out.
    """
    return dict(_walk(output, (), DEPTH))


def _walk(value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield ".".join(path), value
        return
    inside: Any = ()
    if depth and isinstance(value, Mapping):
        inside = value.items()
    elif depth and isinstance(value, tuple) and hasattr(value, "_fields"):
        inside = zip(value._fields, value, strict=True)
    elif depth and isinstance(value, tuple | list):
        inside = enumerate(value)
    elif depth and dataclasses.is_dataclass(value):
        inside = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module):
        inside = vars(value).items()
    for key, item in inside:
        yield from _walk(item, (*path, str(key)), depth - 1)


def rows(tensor: Tensor, count: int) -> Tensor | None:
    """Return an output as one row per image, (B, n), or None if it does not have that form.

    A binary classifier's (B,) becomes (B, 1), as does the (n,) of a graph that accepts one image (1, n). Sides of
    length 1 are dropped: (B, n, 1, 1), and (1, B, n). Whole numbers and truth values are decisions, not scores.
    """
    if not tensor.is_floating_point():
        return None
    if tensor.dim() == 1:
        tensor = tensor[None] if count == 1 and len(tensor) != 1 else tensor.reshape(-1, 1)  # in a graph, () as well
    elif tensor.dim() > 2 and tensor.shape[:2] == (1, count):
        tensor = tensor[0]
    if tensor.dim() > 2 and sum(size != 1 for size in tensor.shape[1:]) <= 1:
        tensor = tensor.flatten(1)
    return tensor if tensor.dim() == 2 and len(tensor) == count and tensor.shape[1] else None


def select(output: Any, name: str, count: int) -> Tensor:
    """Return the output of a name as one row per image, (B, n); a number () of one image becomes (1, 1).

    Raises:
        ModelError: it is missing or does not have that form.
    """
    tensor = output if isinstance(output, Tensor) else named_tensors(output).get(name)
    if tensor is None:
        raise ModelError(f"it returns no tensor {name!r} this time, but {_shapes(named_tensors(output))}.")
    if count == 1 and tensor.dim() == 0:
        tensor = tensor[None]  # ``squeeze()`` also drops the axis of the images
    found = rows(tensor, count)
    if found is None:
        raise ModelError(_no_logits({name: tensor}, count))
    return found


def choose(
    output: Any, count: int, heads: Sequence[Tensor], width: int | None, name: str | None, index: int | None
) -> tuple[str, str]:
    """Find the logits among several outputs.

    In this order: what the user chose; the only one that has a row per image; the one named ``logits``; the only one of
    the stated width; the only one that no other output is computed from, so that features give way to what is computed
    from them, but logits do not give way to their own softmax; the only one with a name such as ``cls_logits`` beside
    names of features. A name such as ``domain_logits`` beside another head's decides nothing.

    Args:
        output: what the module returned for ``count`` images, with a graph of gradients if there is one.
        count: B.
        heads: the outputs of the linear layers and convolutions that ran and can be watched, in order.
        width: the number of classes, if the user or the file states it.
        name: what the user chose by name.
        index: what the user chose by position.

    Returns:
        the name, and how it was found (empty if there is no other output).

    Raises:
        ModelError: there is none, or several that might be; the message lists them with their shapes.
    """
    tensors = named_tensors(output)
    if name is not None or index is not None:
        return _chosen(tensors, name, index), "given"
    found = {key: row for key, tensor in tensors.items() if (row := rows(tensor, count)) is not None}
    if not found:
        raise ModelError(_no_logits(tensors, count) if tensors else _no_tensors(output))
    others = f", out of {_shapes(tensors)}" if len(tensors) > 1 else ""
    if len(found) == 1:
        (only,) = found
        if any(each.dtype == torch.int64 and each.shape == tensors[only].shape for each in tensors.values()):
            raise FinalError(
                f"it returns {_shapes(tensors)}: beside each number of {only!r} is a whole number, as beside the "
                f"largest scores of `topk` and `max`. Wrap the model in a module that returns the scores of all "
                f"classes; if {only!r} is those, use {setting('output_name', only)}."
            )
        return only, f"found: no other has a row per image{others}" if others else ""
    main = {key: row for key, row in found.items() if not key.rpartition(".")[2].lower().startswith("aux")}
    found = main or found
    sure = [key for key in found if [part for part in key.split(".") if not part.isdecimal()] == ["logits"]]
    if len(sure) == 1:
        return sure[0], f"found: by its name{others}"
    fitting = [key for key, row in found.items() if width is not None and row.shape[1] == width]
    if len(fitting) == 1:
        return fitting[0], f"found: the only one with {width} columns{others}"
    ends = {key: found[key] for key in fitting or found}
    ends = {key: tensors[key] for key in _not_read_by_others({key: tensors[key] for key in ends}, heads)}
    if len(ends) == 1:
        return next(iter(ends)), f"found: no other output is computed from it{others}"
    likely = [key for key in ends if key.lower().endswith(SCORES)]
    if len(likely) == 1 and all(FEATURES.search(key.rpartition(".")[2]) for key in ends if key != likely[0]):
        return likely[0], f"found: by its name{others}"
    each = all(tensor[0].numel() == 1 for tensor in ends.values())
    raise FinalError(
        f"it returns {_shapes(tensors)}, and any of {listed(map(repr, ends))} might be the logits. Choose one by "
        f"{setting('output_name', None)} or {setting('output_index', None)} (positions count from 0)."
        + (
            " If each is the score of one class, wrap it in a module that returns torch.cat of all, dim=1."
            if each
            else ""
        )
    )


def _chosen(tensors: Named, name: str | None, index: int | None) -> str:
    if name is not None and name in tensors:
        if index is not None and list(tensors).index(name) != index:
            raise ModelError(
                f"{setting('output_name', name)} and {setting('output_index', index)} name different outputs of "
                f"{_shapes(tensors)}. State one of them; a name in a recipe or file counts, too."
            )
        return name
    if name is None and index is not None and index < len(tensors):
        return list(tensors)[index]
    asked = setting("output_name", name) if name is not None else setting("output_index", index)
    raise ModelError(f"it does not return what {asked} asks for, but {_shapes(tensors)}.")


def _not_read_by_others(tensors: Named, heads: Sequence[Tensor]) -> list[str]:
    """Return the names of the outputs from which no other is computed.

    Where one is computed from the output of the last layer and has its shape and its largest entries (its softmax),
    that output stays instead. Without gradients, the output of the last layer stays if it alone is that of a layer.
    """

    def is_output(tensor: Tensor, of: Sequence[Tensor]) -> bool:
        return tensor.untyped_storage().data_ptr() in {head.untyped_storage().data_ptr() for head in of}

    if not all(tensor.requires_grad for tensor in tensors.values()):
        direct = [name for name, tensor in tensors.items() if is_output(tensor, heads)]
        sure = len(direct) == 1 and is_output(tensors[direct[0]], heads[-1:])
        if sure and not any(_is_softmax_of_others(tensor, tensors[direct[0]]) for tensor in tensors.values()):
            return direct
        return list(tensors)
    dropped = set()
    for name, tensor in tensors.items():
        for other, later in tensors.items():
            if other == name or not _is_computed_from(later, tensor):
                continue
            if later[0].numel() == 1 < tensor[0].numel() and is_output(tensor, heads[-1:]):
                continue  # its confidence or entropy, or else one logit computed from features
            same = tensor.shape == later.shape and bool((tensor.argmax(-1) == later.argmax(-1)).all())
            dropped.add(other if same and is_output(tensor, heads[-1:]) else name)
    return [name for name in tensors if name not in dropped]


def _is_softmax_of_others(tensor: Tensor, logits: Tensor) -> bool:
    values = tensor.detach().cpu().double().flatten(1)  # some devices have no float64
    if values.shape[1] == 1 or bool((values < 0).any()) or float((values.sum(1) - 1).abs().max()) > 1e-2:
        return False
    return tensor.shape != logits.shape or bool((tensor.argmax(-1) != logits.argmax(-1)).any())


def _is_computed_from(later: Tensor, earlier: Tensor) -> bool:
    if later is earlier:
        return False
    (gradient,) = torch.autograd.grad(later.sum(), earlier, retain_graph=True, allow_unused=True)
    return gradient is not None


def _shapes(tensors: Named) -> str:
    if list(tensors) == [""]:
        return str(tuple(tensors[""].shape))
    return listed([f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()], 12)


def _no_tensors(output: Any) -> str:
    return (
        f"it returns {type(output).__name__}, which does not contain a tensor of logits. Wrap it in a module whose "
        f"forward returns them."
    )


def _no_logits(tensors: Named, count: int) -> str:
    """Explain that no output has a row per image, and what would."""
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    words = f"it returns {_shapes(tensors)} for {count} images; logits have the shape ({count}, n)."
    wrapper = " Wrap the model in a module whose forward returns {}."
    if tensors and not any(tensor.is_floating_point() for tensor in tensors.values()):
        kinds = listed(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
        return f"{words} These are {kinds}: decisions, not scores." + wrapper.format("the scores that it decides by")
    if any(len(shape) == 3 and shape[1] == count != shape[0] for shape in shapes):
        return f"{words} The first axis seems to be time." + wrapper.format("model(x).mean(0), or its last step")
    if any(len(shape) == 3 and shape[0] == count for shape in shapes):
        return f"{words} It seems to predict several things per image." + wrapper.format(
            "one of them, model(x)[:, 0], the mean of an ensemble's members, model(x).mean(1), or the lengths of "
            "capsules, model(x).norm(dim=2)"
        )
    if any(len(shape) == 4 and shape[0] == count for shape in shapes):
        return f"{words} It seems to predict each pixel." + wrapper.format("one row per image, model(x).mean((2, 3))")
    return words + wrapper.format("one row of scores per image")
