"""State dicts as people save them: wrapped, prefixed, pickled with other things; read without running code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interpkit import ModelError, load_plain, setting

PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by DataParallel and torch.compile."""
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""The beginning of files of before torch 1.6."""
DEPTH = 8
"""Of mappings within mappings that are searched."""
LONGEST_KEY = 500


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a file of `torch.save` by `interpkit.load_plain`.

    Returns:
        all tensors in it, by the keys that lead to them, joined with dots; of a whole module, its parameters and
        buffers. Other objects are passed over.

    Raises:
        ModelError: it is torn, holds something that would act, or no tensor under a name.
    """
    try:
        content = load_plain(path, skip_objects=True)
    except (pickle.UnpicklingError, TypeError, AttributeError) as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        reason = f" (it refers to {name[1]})" if name else ""
        line = in_python(path, "torch.load({}, weights_only=False, map_location='cpu')")
        raise ModelError(
            f"{path} holds more than weights{reason}, and interpkit runs no code from a file. If you trust "
            f"it, save its weights alone: {line} and name the network by {setting('arch', None)}."
        ) from error
    except Exception as error:  # torch.load has many kinds
        if is_other_pickle(path):
            line = in_python(path, "pickle.load(open({}, 'rb'))")
            raise ModelError(
                f"{path} is not a whole PyTorch checkpoint, but a pickle of another kind, and interpkit runs no code "
                f"from a file. If you trust it, save it as one: {line} and name the network by "
                f"{setting('arch', None)}."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} is not a whole PyTorch checkpoint: {reason[:200]}") from error
    tensors = dict(named_tensors(content))
    if not tensors:
        keys = f" with the keys {list(content)[:8]!s:.200}" if isinstance(content, Mapping) and content else ""
        raise ModelError(
            f"{path} holds no state dict, but {type(content).__name__}{keys}. Save it by "
            f"torch.save(model.state_dict(), ...)."
        )
    return tensors


def is_other_pickle(path: Path) -> bool:
    """Say whether a file is a pickle that torch.save did not write: it does not begin with torch's magic number."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    return head[:1] == MAGIC[:1] and head != MAGIC


def in_python(path: Path, load: str) -> str:
    """Return the line of Python that turns a file, which only its owner can trust, into one of plain tensors."""
    new = str(path.with_name(f"{path.stem}-weights.pth"))
    return (
        f"`import pickle, torch; c = {load.format(repr(str(path)))}; "
        f"torch.save(c.state_dict() if hasattr(c, 'state_dict') else c, {new!r})` "
        f"(c['state_dict'], say, if other things stand beside the weights),"
    )


def named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings and lists, each container once, under their keys joined with dots.

    A list of one element counts as that element.
    """
    todo: list[tuple[str, Any, int]] = [("", content, 0)]
    visited = set()
    while todo:
        prefix, value, depth = todo.pop()
        if id(value) in visited or depth > DEPTH or len(prefix) > LONGEST_KEY:
            continue
        visited.add(id(value))
        items: list[tuple[Any, Any]] = []
        if isinstance(value, list | tuple):
            if len(value) == 1:
                todo.append((prefix, value[0], depth + 1))
            else:
                items = [(key, item) for key, item in enumerate(value) if isinstance(item, Mapping | list | tuple)]
        elif isinstance(value, dict):
            items = list(dict.items(value))  # an attribute of what stands for an object may hide the method
            inside = getattr(value, "__dict__", {})
            if isinstance(inside.get("_modules"), Mapping):  # a whole module; see `load_plain`
                parts = [inside.get(key) for key in ("_parameters", "_buffers", "_modules")]
                items = [item for part in parts if isinstance(part, dict) for item in dict.items(part)]
                depth -= 1  # networks are deeper than files
        further = []
        for key, item in items:
            item = getattr(item, "tensor", item)  # of an array
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 10**9):
                continue
            if isinstance(item, Tensor):
                yield f"{prefix}{key}", item
            elif isinstance(item, Mapping | list | tuple):
                further.append((f"{prefix}{key}.", item, depth + 1))
        todo += reversed(further)


def chosen(tensors: Mapping[str, Tensor], key: str | None, path: Path) -> Mapping[str, Tensor]:
    """Return the tensors under the key that the user chose, or all.

    Raises:
        ModelError: there are none; names the keys that there are.
    """
    if key is None:
        return tensors
    inside = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
    if not inside:
        keys = [name.split(".")[:-1] for name in tensors]
        found = dict.fromkeys(".".join(parts[:length]) for length in (1, 2) for parts in keys if len(parts) >= length)
        raise ModelError(f"{path} has no weights under {key!r}. It has: {', '.join(list(found)[:12])}.")
    return inside


def refuse_adapter(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse the weights of an adapter, which are useless without the model that they adapt.

    Raises:
        ModelError: they are such; says how to merge them.
    """
    if any(".lora_A." in name or ".lora_B." in name for name in tensors):
        raise ModelError(adapter_words(path))


def adapter_words(path: Path) -> str:
    """Return the refusal of an adapter."""
    folder = path if path.is_dir() else path.parent
    return (
        f"{path} is a PEFT adapter: only the difference to a model that is not in it. Merge the two, and load the "
        f"result: `from transformers import AutoModelForImageClassification as M; from peft import PeftModel; "
        f"PeftModel.from_pretrained(M.from_pretrained(BASE, num_labels=N), {str(folder)!r}).merge_and_unload()"
        f".save_pretrained({str(folder.with_name(folder.name + '-merged'))!r})`"
    )


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that stand before every name."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
