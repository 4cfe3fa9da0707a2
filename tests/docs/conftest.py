"""What the pages tell the reader to have: a page names it in ``<!-- needs: ... -->``, and here it is made, tiny.

The classifier is a small CNN of 28 x 28 gray images and ten classes, trained on made-up data: a bright square for each
class, in a place of its own.
"""

from __future__ import annotations

import runpy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import interpkit
from interpkit.evaluation.scoring import draw_samples
from interpkit.runs.folder import write_samples

ROOT = Path(__file__).parent.parent.parent
SHAPE = (1, 28, 28)
ARCH_ARGS = {"input_shape": list(SHAPE), "num_classes": 10, "widths": [4, 4], "hidden": 8, "batch_norm": True}
FACTS = {"input_shape": SHAPE, "mean": [0.13], "std": [0.31]}

Maker = Callable[[Path, Callable[[str], Path]], None]
"""Makes a file; it is given the place, and a function that returns another file that is made if need be."""


def squares(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8, (N, 28, 28), and labels: class k has a bright square at the k-th place."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(10), per_class)
    images = rng.integers(0, 60, (len(labels), 28, 28))
    for image, label in zip(images, labels, strict=True):
        top, left = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
        image[top : top + 9, left : left + 6] += rng.integers(120, 190)
    return images.astype(np.uint8), labels


def classifier(seed: int) -> nn.Module:
    """Return a trained classifier of the squares."""
    x, y = squares(40, seed)
    images: Tensor = (torch.from_numpy(x)[:, None].float() / 255 - 0.13) / 0.31
    labels = torch.from_numpy(y)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = interpkit.build_architecture("interpkit:cnn", ARCH_ARGS)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            optimizer.step()
    return module.eval()


def make_model(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a classifier; each name gets weights of its own."""
    seed = sum(map(ord, place.stem))
    interpkit.save_target(classifier(seed), place, architecture="interpkit:cnn", arch_args=ARCH_ARGS, **FACTS)


def make_bnn(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a small binarised network."""
    arguments = {"input_shape": list(SHAPE), "num_classes": 10, "hidden": [64], "fan_in": 12}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = interpkit.build_architecture("bnn:net", arguments)
    interpkit.save_target(
        net.eval(), place, architecture="bnn:net", arch_args=arguments, input_shape=SHAPE, output="logits"
    )


def make_data(place: Path, needs: Callable[[str], Path]) -> None:
    """Write labeled images, in two splits."""
    (x_train, y_train), (x_test, y_test) = squares(20, 1), squares(20, 2)
    np.savez(place, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def make_folders(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a folder of images with one folder per class."""
    for number, (image, label) in enumerate(zip(*squares(12, 3), strict=True)):
        folder = place / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")


def make_other_pictures(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a folder of pictures of stripes, which no class has."""
    rng = np.random.default_rng(5)
    place.mkdir(parents=True, exist_ok=True)
    for number in range(24):
        stripes = np.tile(rng.integers(0, 255, (32, 1, 3)), (1, 40, 1))
        Image.fromarray(stripes.astype(np.uint8)).save(place / f"{number}.png")


def make_picture(place: Path, needs: Callable[[str], Path]) -> None:
    """Write one picture."""
    Image.fromarray(squares(1, 4)[0][3]).save(place)


def make_run(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a finished run of model.safetensors that has found every class; each name gets a seed of its own."""
    options = {f"upconv.{size}": 8 for size in ("width", "min_width", "latent", "hidden")}
    options |= {"upconv.dropout": 0.05, "optimizer.lr": 0.01}
    recipe = {"steps": 150, "batch_size": 16, "seed": sum(map(ord, place.name)), "losses": {"kl": 0, "cosine": 0}}
    inversion = interpkit.invert(
        needs("model.safetensors"), ["vecmat"], out=place, device="cpu", precision="fp32", options=options, **recipe
    )
    write_samples(draw_samples(inversion, per_class=12), place / "samples.safetensors")  # few, for speed


def make_examples(place: Path, needs: Callable[[str], Path]) -> None:
    """Copy the examples, with no more of the shipped classifiers than the pages use."""
    ignored = shutil.ignore_patterns("fashion*", "__pycache__", "interpkit-*")
    shutil.copytree(ROOT / "examples", place, ignore=ignored)


NETS = """
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Conv2d(3, width, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(49 * width, 4))


class TwoHeads(Net):
    def forward(self, x):
        features = self[2](self[1](self[0](x)))
        return {"kind": self[3](features), "age": self[3](features.flip(1))}


class Silent(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Vectors(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Wave(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv1d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(240, 3))


class HubNet(nn.Module, PyTorchModelHubMixin):
    def __init__(self, classes=10):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

    def forward(self, x):
        return self.layers(x)
"""


def make_nets(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a module of networks."""
    place.write_text(NETS)


def nets(needs: Callable[[str], Path]) -> dict[str, Any]:
    """Return the networks of nets.py."""
    return runpy.run_path(str(needs("nets.py")))


def make_state(build: Callable[[dict[str, Any]], nn.Module]) -> Maker:
    """Return a maker of the state dict of a network with fresh weights, of nets.py or of a library."""

    def make(place: Path, needs: Callable[[str], Path]) -> None:
        torch.save(build(nets(needs)).state_dict(), place)

    return make


def make_timm_folder(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a folder as timm does."""
    module = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(module, str(place), safe_serialization=True)


def make_vit_folder(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a folder as transformers does."""
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4)
    transformers.ViTForImageClassification(config).save_pretrained(place)


def make_hub_folder(place: Path, needs: Callable[[str], Path]) -> None:
    """Write a folder as huggingface_hub does."""
    nets(needs)["HubNet"](classes=10).save_pretrained(place)


def make_onnx(*shape: int) -> Maker:
    """Return a maker of an ONNX graph that takes inputs of a shape."""

    def make(place: Path, needs: Callable[[str], Path]) -> None:
        width = torch.Size(shape).numel()
        module = nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 10)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            names = {"input_names": ["images"], "dynamic_axes": {"images": {0: "batch"}}}
            torch.onnx.export(module, (torch.rand(2, *shape),), place, dynamo=False, opset_version=13, **names)

    return make


def make_graph(
    *added: tuple[str, str], shape: tuple[int | str, ...] = ("batch", 3, 8, 8), apart: bool = False
) -> Maker:
    """Return a maker of an ONNX graph: a constant is added to the image, then pooling, a product and what is added.

    Args:
        added: operators, each with the name of its output; the last one is the graph's.
        shape: of the input; text stands for a side that is left open.
        apart: the weights are in a file of their own, which the page does not get.
    """

    def make(place: Path, needs: Callable[[str], Path]) -> None:
        steps = [("GlobalAveragePool", "pooled"), ("Flatten", "flat"), ("MatMul", "scores"), *added]
        names = ["sum", *(name for _, name in steps)]
        second = {"MatMul": ["weight"]}
        nodes = [onnx.helper.make_node("Add", ["image", "constant"], ["sum"])] + [
            onnx.helper.make_node(operator, [before, *second.get(operator, [])], [name])
            for before, (operator, name) in zip(names, steps, strict=False)
        ]
        label = names[-1] == "label"
        kind = onnx.TensorProto.INT64 if label else onnx.TensorProto.FLOAT
        random = np.random.default_rng(0)
        batch, *sides = (side if isinstance(side, int) else 1 for side in shape)
        constants = {"constant": random.random((batch, *sides)), "weight": random.random((3, 4))}
        graph = onnx.helper.make_graph(
            nodes,
            "graph",
            [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
            [onnx.helper.make_tensor_value_info(names[-1], kind, [None, 1 if label else 4])],
            [onnx.numpy_helper.from_array(value.astype("f"), name) for name, value in constants.items()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, place, save_as_external_data=apart, size_threshold=0, location=f"{place.name}.data")

    return make


def make_exported(place: Path, needs: Callable[[str], Path]) -> None:
    """Write an exported program."""
    batch = {"input": {0: torch.export.Dim("batch")}}
    torch.export.save(
        torch.export.export(nets(needs)["Net"]().eval(), (torch.rand(2, 3, 32, 32),), dynamic_shapes=batch), place
    )


MAKERS: dict[str, Maker] = {
    "model.safetensors": make_model,
    "other.safetensors": make_model,
    "bnn.safetensors": make_bnn,
    "mnist.npz": make_data,
    "test.npz": make_data,
    "train-images": make_folders,
    "other-pictures": make_other_pictures,
    "digit.png": make_picture,
    "examples": make_examples,
    "nets.py": make_nets,
    "net.pth": make_state(lambda nets: nets["Net"]()),
    "iris.pth": make_state(lambda nets: nets["Vectors"]()),
    "wave.pth": make_state(lambda nets: nets["Wave"]()),
    "resnet18.pth": make_state(lambda nets: torchvision.models.resnet18(weights=None)),
    "vit_tiny.pth": make_state(lambda nets: timm.create_model("vit_tiny_patch16_224")),
    "timm-folder": make_timm_folder,
    "vit-folder": make_vit_folder,
    "hub-folder": make_hub_folder,
    "model.onnx": make_onnx(1, 8, 8),
    "flat.onnx": make_onnx(784),
    "free.onnx": make_graph(shape=("batch", 3, "height", "width")),
    "moved.onnx": make_graph(apart=True),
    "label.onnx": make_graph(("ArgMax", "label")),
    "rare.onnx": make_graph(("Hardmax", "chosen")),
    "fixed.onnx": make_graph(shape=(2, 3, 8, 8)),
    "model.pt2": make_exported,
}


@pytest.fixture(scope="session")
def provide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Return a function that puts what a page needs into the page's folder: ``provide("runs/mnist", folder)``."""
    store = tmp_path_factory.mktemp("needed")

    def needed(name: str) -> Path:
        place = store / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            maker = make_run if name.startswith("runs/") else MAKERS[name]
            maker(place, needed)
        return place

    def put(name: str, folder: Path) -> None:
        source, place = needed(name), folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            shutil.copy(source, place)

    return put
