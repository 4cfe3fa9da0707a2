"""State dicts as people save them: wrapped, prefixed, pickled; read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interpkit import ModelError, load_plain

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
)
"""Keys that a state dict is found under, the averaged weights first."""
PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by DataParallel and torch.compile."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a ``.pt``, ``.pth``, ``.th`` or ``.ckpt`` file by `interpkit.load_plain`.

    Returns:
        the state dict, without wrappers and prefixes.

    Raises:
        ModelError: it is torn, holds code or a whole module, or no state dict.
    """
    try:
        content = load_plain(path)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise ModelError(
            f"{path} holds more than weights, and interpkit runs no code from a file. {reason.strip()} Save its "
            f"weights alone: torch.save(model.state_dict(), ...), and name the network by --arch."
        ) from error
    except Exception as error:  # torch.load has many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} is not a whole PyTorch checkpoint: {reason[:200]}") from error
    return unwrap(content, path)


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a checkpoint holds; see `read_checkpoint`."""
    for _ in range(4):
        if isinstance(content, list | tuple) and len(content) == 1:
            content = content[0]
            continue
        if not isinstance(content, Mapping):
            break
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping | list | tuple)), None)
        if key is None:
            break
        content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError(
            f"{path} holds no state dict, but {type(content).__name__}. Save it by torch.save(model.state_dict(), ...)."
        )
    return strip(tensors)


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that stand before every name."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
