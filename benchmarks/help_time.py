"""Time of ``interpkit --help`` over that of ``python -c "import torch"``; goal: at most 0.4."""

import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Run a command; return its wall time."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(rounds: int = 7) -> None:
    """Alternate the two and compare the medians."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(seconds([sys.executable, "-c", "import torch"]))
        ours.append(seconds([sys.executable, "-m", "interpkit", "--help"]))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"--help {a:.3f} s, import torch {b:.3f} s: ratio {a / b:.2f} (goal <= 0.4)")


if __name__ == "__main__":
    main()
