"""Where a run computes and in what precision, decided by hardware features and never by timing."""

from __future__ import annotations

from typing import Literal

import torch

from interpkit.errors import UsageError

Precision = Literal["fp32", "bf16"]


def choose_device(name: str) -> torch.device:
    """Return the device; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: the name is no device's, or this machine has none such.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # torch raises many kinds here
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {reason} Use auto or cpu.") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of the networks' arithmetic; ``auto`` takes bf16 where the hardware multiplies it.

    That is CUDA from compute capability 8.0, and CPUs with AVX512-BF16 or AMX. Losses are always computed in fp32.
    """
    if name == "fp32" or (name == "auto" and not _multiplies_bf16(device)):
        return "fp32"
    return "bf16"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False
