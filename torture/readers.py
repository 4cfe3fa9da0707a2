"""All of interpkit's readers of files, each with small valid files, which `torture.fuzz` mutates."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx2torch  # noqa: F401, architecture families and formats import these on demand, whatever the file contains
import onnxruntime  # noqa: F401
import safetensors.torch
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
import transformers  # noqa: F401
from interpkit_targets import examples
from PIL import Image

import interpkit
from interpkit import ModelError, PluginError
from interpkit.api import harden, invert
from interpkit.attribution import export
from interpkit.cli import app, options
from interpkit.interfaces import contracts
from interpkit.io import datasets, predictions, unlabeled
from interpkit.plugins import assembly
from interpkit.plugins.discovery import installed
from interpkit.runs import shards
from interpkit.runs.stored import StoredRun
from interpkit.scaffold import package
from interpkit.scaffold.kinds import Kind
from torture.mutate import Files

SHAPE = examples.SHAPE
OPTIONS = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
SETTINGS = {"steps": 12, "batch_size": 8, "device": "cpu", "precision": "fp32", "options": OPTIONS}
BITS = {"input_shape": [8], "num_classes": 3, "hidden": [6], "fan_in": 4}
NAMED = {"arch": examples.ARCHITECTURE, "arch_args": examples.ARGUMENTS, "input_shape": SHAPE}


@dataclass(frozen=True)
class Reader:
    """A function of interpkit that reads files.

    Attributes:
        name: name of the reader.
        share: its share of all inputs; slow readers get few.
        corpus: makes the valid files; each entry is the content of a folder.
        read: reads such a folder.
    """

    name: str
    share: int
    corpus: Callable[[], list[Files]]
    read: Callable[[Path], Any]


READERS: dict[str, Reader] = {}


def reader(share: int, corpus: Callable[[], list[Files]]) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Add a function to `READERS`."""

    def add(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        name = read.__name__.replace("_", "-")
        READERS[name] = Reader(name, share, corpus, read)
        return read

    return add


def contents(folder: Path) -> Files:
    """Return the files in a folder and its subfolders by their relative names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def command(*words: str | Path) -> None:
    """Run the command line in this process, and let its exceptions through."""
    app(["--debug", *map(str, words)], standalone_mode=False)


def made(make: Callable[[Path], Any]) -> Files:
    """Return the files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return contents(Path(folder))


def only(folder: Path, *endings: str) -> Path:
    """Return the file in a folder with one of these endings; a missing path, if a mutation removed the file."""
    return next((path for path in sorted(folder.iterdir()) if path.suffix in endings), folder / f"gone{endings[0]}")


# ----------------------------------------------------------------------------------------- classifiers


def _target_files() -> list[Files]:
    named = made(examples.safetensors_file)
    facts = {"mean": 0.1, "class_names": ["a", "b", "c"], "layout": "nchw", "output": "logits", "input_range": [0, 255]}
    told = made(
        lambda folder: interpkit.save_target(
            examples.small_net(),
            folder / "net.safetensors",
            architecture=examples.ARCHITECTURE,
            arch_args=examples.ARGUMENTS,
            input_shape=SHAPE,
            **facts,
        )
    )
    return [named, told]


@reader(110, _target_files)
def target_file(folder: Path) -> None:
    """A self-describing classifier."""
    interpkit.load_target(only(folder, ".safetensors"))


@reader(2, _target_files)
def inspected(folder: Path) -> None:
    """What `interpkit inspect` reads of a classifier."""
    command("inspect", only(folder, ".safetensors"))


@reader(66, lambda: [{"net.safetensors": safetensors.torch.save(examples.small_net().state_dict())}])
def weights(folder: Path) -> None:
    """Weights in safetensors, for which the user specifies the rest."""
    interpkit.load_target(only(folder, ".safetensors"), **NAMED)


def _checkpoints() -> list[Files]:
    state = examples.small_net().state_dict()
    corpus = []
    for value in (state, {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "lr": 0.1}):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=new)
            corpus.append({"net.pt": buffer.getvalue()})
    return corpus


@reader(76, _checkpoints)
def checkpoint(folder: Path) -> None:
    """A state dict saved with `torch.save`."""
    interpkit.load_target(only(folder, ".pt"), **NAMED)


@reader(1, lambda: [made(examples.timm_folder)])
def timm_folder(folder: Path) -> None:
    """A folder that timm saved."""
    interpkit.load_target(folder / "timm")


@reader(2, lambda: [made(examples.transformers_folder)])
def transformers_folder(folder: Path) -> None:
    """A folder that transformers saved."""
    interpkit.load_target(folder / "vit")


@reader(3, lambda: [made(examples.hub_mixin_folder)])
def hub_mixin_folder(folder: Path) -> None:
    """A folder that PyTorchModelHubMixin saved, with the user's own code, which is not mutated."""
    (folder / "net.py").write_text(examples.CODE, "utf-8")
    interpkit.load_target(folder / "mixin", arch=f"py:{folder}/net.py:Net", input_shape=SHAPE)


def _graphs() -> list[Files]:
    return [made(examples.onnx_file)]


@reader(4, _graphs)
def onnx_graph(folder: Path) -> None:
    """An ONNX graph."""
    interpkit.load_target(only(folder, ".onnx"))


@reader(40, lambda: [{"names.txt": b"cat\ndog\nowl\n"}, {"names.json": b'["cat", "dog", "owl"]'}])
def class_names(folder: Path) -> None:
    """A file for ``--class-names``."""
    interpkit.wrap(_target().module, SHAPE, class_names=options.lines(only(folder, ".txt", ".json")))


# ------------------------------------------------------------------------------------------------ data


@cache
def _target() -> interpkit.Target:
    with torch.random.fork_rng([]):
        return interpkit.wrap(examples.small_net(), SHAPE, class_names=["cat", "dog", "owl"], name="net")


def _arrays() -> list[Files]:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 12, 12), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    corpus = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            {"images": images, "labels": labels},
            {"x_test": images[:, None] / 255, "y_test": labels, "x_train": images[:1], "y_train": labels[:1]},
        ):
            buffer = io.BytesIO()
            save(buffer, **arrays)
            corpus.append({"data.npz": buffer.getvalue()})
    return corpus


@reader(90, _arrays)
def npz(folder: Path) -> None:
    """Reference images in an npz."""
    datasets.load_data(str(only(folder, ".npz")), SHAPE, ["cat", "dog", "owl"])


def _tables() -> list[Files]:
    rows = "".join(f"{label},{number},0.5,-1e3\n" for number, label in enumerate(("cat", "dog", "owl")))
    return [{"data.csv": f"label,a,b,c\n{rows}".encode()}]


@reader(34, _tables)
def table(folder: Path) -> None:
    """Reference vectors in a CSV file."""
    datasets.load_data(str(only(folder, ".csv")), (3,), ["cat", "dog", "owl"])


def _pictures() -> list[Files]:
    rng = np.random.default_rng(0)
    corpus: list[Files] = []
    for ending in (".png", ".jpg", ".bmp", ".webp", ".tif"):
        files = {}
        for name, shape in (("cat/a", (12, 12)), ("1/b", (12, 12, 3)), ("owl/c", (12, 12))):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(buffer, Image.registered_extensions()[ending])
            files[f"{name}{ending}"] = buffer.getvalue()
        corpus.append(files)
    return corpus


@reader(26, _pictures)
def pictures(folder: Path) -> None:
    """One folder of pictures per class."""
    datasets.load_data(str(folder), SHAPE, ["cat", "dog", "owl"])


@reader(20, _pictures)
def picture(folder: Path) -> None:
    """One picture to explain."""
    export.load_images(str(next(path for path in sorted(folder.rglob("*.*")))), _target())


@reader(8, lambda: [*_arrays()[:2], *_tables(), _pictures()[0]])
def without_labels(folder: Path) -> None:
    """Pictures or rows whose labels are not read."""
    path = only(folder, ".npz", ".csv")
    shape = (3,) if path.suffix == ".csv" else SHAPE
    unlabeled.load_unlabeled(str(path if path.is_file() else folder), shape, resize=True)


@reader(2, lambda: [{"samples.safetensors": _run()["samples.safetensors"]}, *_arrays()[:2]])
def classified(folder: Path) -> None:
    """What `interpkit classify` reads."""
    command("classify", model(), "--images", only(folder, ".safetensors", ".npz"))


@reader(4, _tables)
def rows(folder: Path) -> None:
    """The table of `interpkit counterfactual`."""
    interpkit.counterfactual(_classifier_of_rows(), only(folder, ".csv"), count=1, fixed=["b"])


@cache
def _classifier_of_rows() -> interpkit.Target:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return interpkit.wrap(torch.nn.Linear(3, 3), (3,), class_names=["cat", "dog", "owl"], input_range=[-2000, 10])


def _answers() -> list[Files]:
    values = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    one, several = io.BytesIO(), io.BytesIO()
    np.save(one, values)
    np.savez_compressed(several, predictions=values, other=values)
    table = "a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in values)
    tensors = safetensors.torch.save({"logits": torch.from_numpy(values).log().clamp_min(-50)})
    return [
        {"answers.npy": one.getvalue()},
        {"answers.npz": several.getvalue()},
        {"answers.csv": table.encode()},
        {"answers.safetensors": tensors},
    ]


@reader(30, _answers)
def answers(folder: Path) -> None:
    """The predictions of `interpkit reconstruct`."""
    path = only(folder, ".npy", ".npz", ".csv", ".safetensors")
    values = predictions.load_predictions(path)
    predictions.log_probabilities(values, 3, str(path), logits=path.suffix == ".safetensors")


# ---------------------------------------------------------------------------------------- runs, recipes


@cache
def model() -> Path:
    """Return the file of the classifier that the runs invert; its folder disappears with the process."""
    folder = Path(tempfile.mkdtemp(prefix="interpkit-torture-"))
    return examples.safetensors_file(folder)


@cache
def _run() -> Files:
    def make(folder: Path) -> None:
        inversion = interpkit.invert(model(), ["vecmat"], out=folder, **SETTINGS)
        images, labels = inversion.sample(per_class=2)
        export.explain(inversion.target, folder / "attributions", images=(images, labels), checks=False)
        for name in ("samples.png", "report.html", "attributions/summary.json"):
            (folder / name).unlink()
        for picture in (folder / "attributions").glob("*.png"):
            picture.unlink()

    return made(make)


def _of_run(*names: str) -> Callable[[], list[Files]]:
    """Return a corpus of only these files of a run; the others are not mutated."""
    return lambda: [{name: _run()[name] for name in names}]


def _whole(folder: Path) -> Path:
    """Complete the mutated files in ``folder`` with valid ones to a run folder."""
    mutated = set(contents(folder))
    for name, content in _run().items():
        if name not in mutated:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


@cache
def _other_run() -> Path:
    folder = model().parent / "other"
    folder.mkdir()
    return _whole(folder)


@reader(16, lambda: [{"recipe.toml": _run()["recipe.toml"]}])
def recipe(folder: Path) -> None:
    """A stranger's recipe, as ``--config``."""
    job = invert.prepare(_target(), config=only(folder, ".toml"))
    job.recipe.to_toml()


@reader(2, _of_run("manifest.json", "recipe.toml", "history.jsonl", "generator.safetensors"))
def run_sample(folder: Path) -> None:
    """What `interpkit sample` reads."""
    command("sample", _whole(folder), "--per-class", "1", "--out", folder / "drawn.safetensors")


@reader(2, _of_run("manifest.json", "metrics.json", "samples.safetensors"))
def run_compare(folder: Path) -> None:
    """What `interpkit compare` reads."""
    command("compare", _whole(folder), _other_run(), "--html", folder / "compared.html")


@reader(1, _of_run("metrics.json", "samples.safetensors", "history.jsonl", "manifest.json"))
def run_evaluate(folder: Path) -> None:
    """What `interpkit evaluate` reads."""
    command("evaluate", _whole(folder), "--metric", "diversity")


@reader(1, _of_run("metrics.json", "samples.safetensors", "history.jsonl", "manifest.json"))
def run_report(folder: Path) -> None:
    """What `interpkit report` reads."""
    command("report", _whole(folder))


@reader(1, _of_run("attributions/integrated-gradients.safetensors"))
def run_maps(folder: Path) -> None:
    """What `interpkit report` reads of the attribution maps in a run."""
    command("report", _whole(folder))


@reader(2, _of_run("manifest.json", "recipe.toml", "metrics.json"))
def run_finished(folder: Path) -> None:
    """What `interpkit invert --resume` reads of a finished run."""
    command("invert", model(), "--out", _whole(folder), "--resume")


@reader(1, _of_run("checkpoint", "history.jsonl"))
def run_resumed(folder: Path) -> None:
    """What `interpkit invert --resume` reads of an interrupted run."""
    command("invert", model(), "--out", _whole(folder), "--resume", "--steps", "13")


@cache
def _concepts() -> Files:
    images = torch.rand((40, *SHAPE), generator=torch.Generator().manual_seed(0))
    return made(lambda folder: interpkit.concepts(_target(), images, latents=6, active=2, steps=5, out=folder))


@reader(3, lambda: [{name: content for name, content in _concepts().items() if not name.endswith(".html")}])
def concepts_folder(folder: Path) -> None:
    """The concepts of a classifier, loaded, used, and written again."""
    found = interpkit.load_concepts(folder, target=_target())
    found.where(torch.zeros(1, *SHAPE), 0)
    found.save(folder)


@reader(1, lambda: [{"concepts/concepts.json": _concepts()["concepts.json"]}])
def run_concepts(folder: Path) -> None:
    """What `interpkit report` reads of the concepts in a run."""
    command("report", _whole(folder))


def _hardened(folder: Path, **settings: Any) -> interpkit.Hardened:
    images, labels = torch.linspace(0, 1, 6).repeat_interleave(144).view(6, *SHAPE), torch.arange(6) % 3
    settings = {"samples": 12, "steps": 1, "seed": 1, "device": "cpu", "presets": ["vecmat"], "rounds": 0} | settings
    return interpkit.harden(model(), (images, labels), out=folder / "hard.safetensors", **settings)


def _rounds() -> list[Files]:
    def make(folder: Path) -> None:
        with patch.object(harden, "_verdict", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
            _hardened(folder)
        (folder / "hard.safetensors").unlink()

    return [made(make)]


@reader(2, _rounds)
def rounds(folder: Path) -> None:
    """What `interpkit harden --resume` reads."""
    _hardened(folder, resume=True)


@cache
def _inversions() -> dict[str, tuple[interpkit.Inversion, Files]]:
    """Return inversions that store files of their own, by the name of the inverter, and these files."""
    torch.manual_seed(0)
    rng, few = np.random.default_rng(0), {"steps": 4, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    data = model().parent / "data.npz"
    np.savez(data, images=rng.integers(0, 256, (6, 12, 12), np.uint8), labels=np.zeros(6, np.int64))
    bits = interpkit.wrap(interpkit.build_architecture("bnn:net", BITS), (8,))
    chosen: dict[str, tuple[interpkit.Target, dict[str, Any]]] = {
        "cnf": (bits, {"cnf.per_class": 2, "cnf.dimacs": True}),
        "hypinv": (_classifier_of_rows(), {}),
        "constrained": (_classifier_of_rows(), {"constrained.per_class": 1}),
        "boundary": (_target(), {"boundary.data": str(data)}),
        "landscape": (_target(), {}),
    }
    found = {}
    for name, (target, settings) in chosen.items():
        with tempfile.TemporaryDirectory() as place:
            inversion = interpkit.invert(target, inverter=name, options=settings, out=Path(place, "run"), **few)
            own = ["samples.safetensors", *inversion.files()]
            found[name] = inversion, {f"{name}/{file}": Path(place, "run", file).read_bytes() for file in own}
    return found


@reader(4, lambda: [content for _, content in _inversions().values()])
def own_files(folder: Path) -> None:
    """What inverters read of a run whose manifest fits: rules, formulas, certificates, images, weights."""
    place = next((place for place in folder.iterdir() if place.is_dir()), None)
    if place is None:
        return
    known, _ = _inversions()[place.name]
    stored = StoredRun(place, known.target, known.recipe, known.history, {}, known.empty)
    try:
        found = contracts.loaded_inversion(assembly.inverter(known.recipe, installed()), stored)
        found.sample(count=2)
        contracts.sections(found)
    except PluginError as error:  # which blames the inverter for the file
        raise AssertionError(str(error)) from error


@cache
def _inversion() -> interpkit.Inversion:
    return interpkit.invert(model(), ["vecmat"], **SETTINGS)


def _shards() -> list[Files]:
    return [made(lambda folder: shards.write_shards(_inversion(), folder / "out", count=5, shard_size=3))]


@reader(2, _shards)
def shard_folder(folder: Path) -> None:
    """Shards that are resumed."""
    shards.write_shards(_inversion(), folder / "out", count=5, shard_size=3)


def _names() -> list[Files]:
    return [{"name.txt": name.encode()} for name in ("my-loss", "loss2", "a-b-c")]


@reader(2, _names)
def plugin_name(folder: Path) -> None:
    """The name of a package for `interpkit plugins new`."""
    name = only(folder, ".txt").read_text("utf-8", "surrogateescape")
    package.write(name, Kind.LOSS, folder / "written")
    shutil.rmtree(folder / "written")


# Must stay the last one: after torch.export has been used, no fork of this process can compute a gradient.


def _programs() -> list[Files]:
    return [made(examples.torchscript_file), made(examples.exported_program)]


@reader(30, _programs)
def program(folder: Path) -> None:
    """TorchScript and exported programs without ``--trust``: refused, whatever they contain."""
    try:
        interpkit.load_target(only(folder, ".pt", ".pt2"), input_shape=SHAPE)
    except ModelError:
        return
    raise AssertionError("it was loaded without --trust")
