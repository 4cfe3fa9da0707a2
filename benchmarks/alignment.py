"""Measures the inverter `alignment`: how close an outsider comes to an image from the answer to it.

    python -m benchmarks.alignment --data DIR [--work runs/alignment]

The target is the shipped ``mnist_bn``, trained on the first 6,000 digits; the outsider has the other 6,000, of which
he sees the m largest probabilities of each answer, or the first 6,000 clothes of FashionMNIST. In the last row the
target is trained on the digits 0 to 4, and the outsider has the digits 5 to 9. A row has the mean squared error over
the test images of the target's classes; that of the mean of the public pictures with the same predicted class, and of
the mean of the target's training images of that class, which an outsider does not have; the share of reconstructions
to which the target gives the class of the original; and the queries. Finished runs in the work folder are reused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import interpkit

ROOT = Path(__file__).parent.parent
FIRST = 6000
SHIPPED = ROOT / "examples" / "models" / "mnist_bn.safetensors"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of mnist.npz and fashion_mnist.npz.")
    parser.add_argument("--work", type=Path, default=Path("runs/alignment"), help="Folder for data and runs.")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    with np.load(args.data / "mnist.npz") as arrays:
        x, y, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    with np.load(args.data / "fashion_mnist.npz") as arrays:
        clothes = arrays["x_train"][:FIRST]
    own, low = slice(FIRST), y < 5
    mine = (x[own], y[own])
    print("| public pictures | m | MSE | class mean | private class mean | label kept | queries |")
    print("|---" * 7 + "|")
    for name, public, m in (
        ("digits", x[FIRST:], 10),
        ("digits", x[FIRST:], 3),
        ("digits", x[FIRST:], 1),
        ("clothes", clothes, 10),
    ):
        print(_row(name, SHIPPED, public, x_test, mine, m, args.work), flush=True)
    private, test = (x[own][low[own]], y[own][low[own]]), (x_test[y_test < 5], y_test[y_test < 5])
    half = _five(args.work, *private, *test)
    print(_row("digits 5 to 9", half, x[FIRST:][~low[FIRST:]], test[0], private, 5, args.work), flush=True)


def _five(work: Path, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Path:
    """Return the target of the digits 0 to 4, trained unless it is there."""
    data, model = work / "digits_0_to_4.npz", work / "digits_0_to_4.safetensors"
    np.savez(data, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    if not model.exists():
        script = str(ROOT / "examples" / "train_classifier.py")
        subprocess.run([sys.executable, script, str(data), "--batch-norm", "--out", str(model)], check=True)
    return model


def _row(
    name: str,
    model: Path,
    public: np.ndarray,
    test: np.ndarray,
    private: tuple[np.ndarray, np.ndarray],
    m: int,
    work: Path,
) -> str:
    file = work / f"{name.replace(' ', '_')}.npz"
    np.savez(file, images=public)
    out = work / f"{model.stem}-{name.replace(' ', '_')}-{m}"
    options = {"predictions.truncation": m}
    run = interpkit.invert(model, inverter="alignment", data=file, options=options, out=out, resume=True, device="cpu")
    originals = _unit(test)
    found = interpkit.reconstruct(run, originals, device="cpu")
    assert found.errors is not None
    predicted = found.predictions.argmax(1)
    with torch.no_grad(), run.target.frozen():
        given = torch.cat([run.target(part) for part in _unit(public).split(500)]).argmax(1)
    means = [
        (_means(*pair, run.target.num_classes)[predicted] - originals).square().mean().item()
        for pair in ((_unit(public), given), (_unit(private[0]), torch.from_numpy(private[1]).long()))
    ]
    queries = json.loads((out / "manifest.json").read_text())["queries"]
    figures = [found.errors.mean().item(), *means, found.kept.double().mean().item()]
    cells = [name, str(m), *(f"{value:.4f}" for value in figures[:3]), f"{figures[3]:.3f}", f"{queries:,}"]
    return f"| {' | '.join(cells)} |"


def _unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 255


def _means(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the mean image of each class; gray where there is none."""
    there = [images[labels == label] for label in range(count)]
    return torch.stack([each.mean(0) if len(each) else torch.full_like(images[0], 0.5) for each in there])


if __name__ == "__main__":
    main()
