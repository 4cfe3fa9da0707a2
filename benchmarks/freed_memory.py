"""Page faults and system time where freed memory stays with the process: ``python -m benchmarks.freed_memory``.

A forward and backward pass of a classifier with random weights on large images, each time in its own process: under
glibc's highest threshold for blocks that it maps one by one, and as `keep_freed_memory` leaves it.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import subprocess
import sys

import torch
import torchvision

from benchmarks.measuring import peak_memory, system_share
from interpkit.runtime.devices import M_TRIM_THRESHOLD, keep_freed_memory

M_MMAP_THRESHOLD = -3
HEAD = "| network | memory | page faults of a pass | system time, share | peak memory, MB |\n|---|---|---|---|---|"


def alone(name: str, kept: bool, batch: int, passes: int = 3) -> str:
    """Measure in this process; return a row of a Markdown table."""
    if kept:
        assert keep_freed_memory(torch.device("cpu"))
    else:
        mallopt = ctypes.CDLL(None).mallopt
        assert mallopt(M_MMAP_THRESHOLD, 32 << 20) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    network = getattr(torchvision.models, name)(weights=None).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, 224, 224).to(memory_format=torch.channels_last).requires_grad_()
    used = []
    for _ in range(passes):
        torch.autograd.grad(network(images).logsumexp(1).sum(), images)
        used.append(resource.getrusage(resource.RUSAGE_SELF))
    first, last = used[0], used[-1]  # the first pass fills the memory
    faults = (last.ru_minflt - first.ru_minflt) // (passes - 1)
    how = "no block mapped alone" if kept else "threshold of 32 MiB"
    return f"| {name} | {how} | {faults:,} | {system_share(first, last):.1%} | {peak_memory():,.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="resnet18,resnet50", help="Of torchvision, separated by commas.")
    parser.add_argument("--batch", type=int, default=16, help="Images per pass (default: 16).")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(alone(arguments.alone[0], arguments.alone[1] == "kept", arguments.batch))
        return
    print(HEAD, flush=True)
    for name in arguments.networks.split(","):
        for how in ("threshold", "kept"):
            again = ["--batch", str(arguments.batch), "--alone", name, how]
            subprocess.run([sys.executable, "-m", "benchmarks.freed_memory", *again], check=True)


if __name__ == "__main__":
    main()
