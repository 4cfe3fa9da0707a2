"""Inverts classifiers that others trained, each with a single command, and prints a table of the results.

    python -m benchmarks.foreign_classifiers --models DIR [--data DIR]

DIR holds svhn_cnn.pth, cifar10_lenet.pt, mnist_mlp_256x2.onnx and mnist_mlp_raw255.safetensors; --data holds mnist.npz,
cifar10.npz and svhn.npz, on which their accuracy is measured. The goal is that the trained ones reach 95 % inversion
accuracy with default settings. The others have random weights and take only a few steps, to show that they run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
import torchvision

NETS = "py:" + str(Path(__file__).with_name("foreign_nets.py"))
TRAINED = {
    "svhn_cnn.pth": (
        f"--arch {NETS}:svhn_cnn --input-shape 3,32,32 --mean .4377,.4438,.4728 --std .198,.201,.197",
        "svhn.npz",
    ),
    "cifar10_lenet.pt": (f"--arch {NETS}:LeNet --input-shape 3,32,32 --mean 0.5 --std 0.5", "cifar10.npz"),
    "mnist_mlp_raw255.safetensors": (f"--arch {NETS}:FlatMLP --input-shape 1,28,28 --input-range 0,255", "mnist.npz"),
    "mnist_mlp_256x2.onnx": ("--input-shape 1,28,28", "mnist.npz"),
}
QUICK = "--steps 3 --batch-size 4 --set upconv.width=16 --set upconv.min_width=8"


def interpkit(*words: object) -> dict:
    """Run a command with --json and return its output."""
    command = [sys.executable, "-m", "interpkit", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def row(name: str, kind: str, model: Path, flags: list[str], quick: list[str], data: Path | None) -> None:
    """Invert one classifier and print its row of the table."""
    accuracy = "-"
    if data is not None and data.exists():
        accuracy = f"{interpkit('inspect', model, *flags, '--reference', data)['accuracy']:.1%}"
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        metrics = interpkit("invert", model, *flags, "--plugin", "vecmat", *quick, "--out", f"{out}/run")["metrics"]
        seconds = time.perf_counter() - start
    figure = f"{metrics['inversion_accuracy']:.1%}" if not quick else "(mechanics)"
    print(f"| {name} | {kind} | {accuracy} | {figure} | {seconds:.0f} |", flush=True)


def random_classifiers(folder: Path) -> list[tuple[str, str, Path, list[str]]]:
    """Write classifiers with random weights; return the name, format, path and flags of each."""
    torch.manual_seed(0)
    classifiers = []
    for name in ("resnet18", "mobilenet_v3_small"):
        path = folder / f"{name}.pth"
        torch.save({"state_dict": torchvision.models.get_model(name).state_dict()}, path)
        flags = ["--arch", f"torchvision:{name}", "--input-shape", "3,224,224"]
        classifiers.append((f"torchvision {name}, 224 px", "state dict", path, flags))
    for name in ("vit_tiny_patch16_224", "convnext_atto"):
        path = folder / name
        timm.models.save_for_hf(timm.create_model(name), path, safe_serialization=True)
        classifiers.append((f"timm {name}, 224 px", "timm folder", path, ["--input-shape", "3,224,224"]))
    return classifiers


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="Folder of the trained classifiers.")
    parser.add_argument("--data", type=Path, help="Folder of the .npz files; without it accuracy is not measured.")
    parser.add_argument("--only", help="Run only the classifiers whose name contains this.")
    args = parser.parse_args()
    print("| classifier | format | accuracy | inversion accuracy | seconds |\n|---|---|---|---|---|")
    for name, (flags, data) in TRAINED.items():
        if not args.only or args.only in name:
            reference = args.data / data if args.data else None
            row(name, Path(name).suffix, args.models / name, flags.split(), [], reference)
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, path, words in random_classifiers(Path(folder)):
            if not args.only or args.only in name:
                row(name, kind, path, words, QUICK.split(), None)


if __name__ == "__main__":
    main()
