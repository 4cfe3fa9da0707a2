"""What determines a run's numbers besides recipe and classifier: versions, threads, hardware, flags, environment."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from interpkit._version import __version__
from interpkit.runtime.distributed import World

COMPUTE = ("torch", "torchvision", "numpy", "scipy", "cma")
"""The packages whose arithmetic a run uses."""
OTHERS = ("safetensors", "pluggy", "pydantic", "captum", "torchmetrics")
LIBRARIES = ("mkl", "onednn", "cuda", "cudnn")
ENVIRONMENT = (
    *("OMP_NUM_THREADS", "MKL_", "ONEDNN_", "DNNL_", "OPENBLAS_", "ATEN_CPU_CAPABILITY"),
    *("CUBLAS", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32"),
)
"""Prefixes of the environment variables that determine which kernels run, and in how many threads."""


def facts(device: torch.device) -> dict[str, Any]:
    """Return what determines the numbers on this machine, for a manifest."""
    on_cuda = device.type == "cuda"
    return {
        "interpkit": __version__,
        "versions": _versions(on_cuda),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "processes": World.current().size,
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "cpu": _cpu(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name(device) if on_cuda else None,
            "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(device)) if on_cuda else None,
        },
        "flags": _flags(on_cuda),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT)},
    }


def changed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return by name what determines the numbers and differs, before and now; facts missing in a manifest are omitted.

    Both are manifests; the recorded one may be of an older version or another machine.
    """
    old, new = _deciding(recorded), _deciding(now)
    complete = "environment" in recorded  # a variable that is missing there was not set
    names = [name for name in {**old, **new} if (name in old and name in new) or (complete and name.startswith("$"))]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return by name the facts of a manifest that determine the numbers."""
    numbers = {name: manifest[name] for name in ("interpkit", "device", "threads", "processes") if name in manifest}
    tables = ("versions", "machine", "flags", "plugins", "environment")
    versions, machine, flags, plugins, environment = (manifest.get(name) or {} for name in tables)
    numbers |= {name: versions[name] for name in (*COMPUTE, *LIBRARIES) if name in versions}
    numbers |= {name: machine[name] for name in ("processor", "cpu", "vectors", "gpu") if name in machine}
    numbers |= flags
    numbers |= {f"plugin {name}": plugin.get("version") for name, plugin in plugins.items() if plugin.get("used")}
    names = [name for name in environment if name.isidentifier() and not name.endswith("_NUM_THREADS")]
    return numbers | {f"${name}": environment[name] for name in names}


def _versions(on_cuda: bool) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*COMPUTE, *OTHERS):
        with suppress(PackageNotFoundError):  # an extra
            found[name] = version(name)
    built = torch.__config__.show()
    for name, pattern in (("mkl", r"Math Kernel Library Version ([\d.]+)"), ("onednn", r"MKL-DNN v([\d.]+)")):
        match = re.search(pattern, built)
        found |= {name: match[1]} if match else {}
    if on_cuda:
        found |= {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _cpu() -> str:
    """Return the processor's name, which torch reports only on some systems and only in recent versions."""
    try:
        match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def _flags(on_cuda: bool) -> dict[str, Any]:
    backends: Any = torch.backends
    flags = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": _fp32_precision(backends.cuda if on_cuda else backends.mkldnn, "matmul")
        or torch.get_float32_matmul_precision(),
    }
    if on_cuda:
        flags |= {
            "cudnn_deterministic": backends.cudnn.deterministic,
            "cudnn_benchmark": backends.cudnn.benchmark,
            "cudnn_precision": _fp32_precision(backends.cudnn, "conv")
            or ("tf32" if backends.cudnn.allow_tf32 else "ieee"),
        }
    return flags


def _fp32_precision(backend: Any, operation: str) -> str | None:
    """Return how a backend multiplies float32, by torch's API since 2.9, which cannot be mixed with the old."""
    precision: str | None = getattr(getattr(backend, operation, None), "fp32_precision", None)
    return precision
