"""Operator splitting: exact projections, faithful chains, proofs that hold, and images from where gradients vanish."""

from __future__ import annotations

import importlib
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpkit_constrained.activations import Leaky, MaxPool, onto_class
from interpkit_constrained.certificate import Region, largest_margin
from interpkit_constrained.chain import Affine, Chain, pooling_windows
from interpkit_constrained.inverter import Constrained, margins
from interpkit_constrained.results import ConstrainedInversion
from interpkit_constrained.splitting import Graph, conjugate_gradients
from torch import Tensor, nn

import interpkit
from interpkit import RunError, Target, UsageError
from interpkit.api.invert import prepare

ROOT = Path(__file__).parents[2]
ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def invert(target: Target | Path, **settings: Any) -> ConstrainedInversion:
    options = {f"constrained.{name}": value for name, value in settings.pop("options", {"per_class": 2}).items()}
    inversion = interpkit.invert(target, ["constrained"], options=options, **ON_CPU | settings)
    assert isinstance(inversion, ConstrainedInversion)
    return inversion


def accuracy(inversion: interpkit.Inversion) -> float:
    images, labels = inversion.sample()
    with torch.no_grad(), inversion.target.frozen():
        return (inversion.target(images).argmax(1) == labels).float().mean().item()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Target:
    """Ten classes of 64 numbers; around gray, all units of the first layer are off, so that gradients are zero."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.constrained").dead_network()


@pytest.fixture
def small() -> Target:
    """Three classes of four numbers."""
    return interpkit.wrap(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,))


# ----------------------------------------------------------------------------------------- projections


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.5])
@pytest.mark.parametrize("ratio", [0.4, 1.0, 3.0])
def test_the_projection_onto_a_leaky_relu_is_the_nearest_point_of_its_graph(
    slope: float, ratio: float, rng: torch.Generator
) -> None:
    z, a = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    grid = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    distances = (grid - z[:, None]) ** 2 + (ratio * F.leaky_relu(grid, slope) - a[:, None]) ** 2
    nearest_z, nearest_a = Leaky(slope).project(z, a, ratio)
    assert torch.allclose(nearest_a, ratio * F.leaky_relu(nearest_z, slope))
    found = (nearest_z - z) ** 2 + (nearest_a - a) ** 2
    assert (found <= distances.amin(1) + 1e-12).all() and (found >= distances.amin(1) - 1e-5).all()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_projection_onto_a_max_pooling_is_the_nearest_point_of_its_graph(
    ratio: float, rng: torch.Generator
) -> None:
    z, a = torch.randn(40, 3, generator=rng, dtype=torch.float64), torch.randn(40, 1, generator=rng).double()
    pool = MaxPool(3)
    nearest_z, nearest_a = pool.project(z, a, ratio)
    assert torch.allclose(nearest_a, ratio * pool(nearest_z))
    found = ((nearest_z - z) ** 2).sum(1) + ((nearest_a - a) ** 2).sum(1)
    # With the level t and the place that attains it, the rest is lowered to t where it is above.
    level = torch.linspace(-5, 5, 20_001, dtype=torch.float64)[None, :, None]
    lowered = ((z[:, None] - level).clamp_min(0) ** 2).sum(2, keepdim=True)
    attained = ((z[:, None] - level) ** 2 - (z[:, None] - level).clamp_min(0) ** 2).amin(2, keepdim=True)
    best = (lowered + attained + (ratio * level - a[:, None]) ** 2).amin((1, 2))
    assert torch.allclose(found, best, atol=1e-5)


def test_the_projection_onto_a_class_satisfies_the_conditions_of_the_nearest_point(rng: torch.Generator) -> None:
    z, labels = torch.randn(200, 5, generator=rng, dtype=torch.float64), torch.randint(5, (200,), generator=rng)
    nearest = onto_class(z, labels, 0.7)
    assert (margins(nearest, labels) >= 0.7 - 1e-12).all()
    assert torch.equal(nearest[margins(z, labels) >= 0.7], z[margins(z, labels) >= 0.7])
    # Of a convex set: no point of it lies in front of the tangent plane at the nearest.
    others = onto_class(3 * torch.randn(500, 5, generator=rng).double(), labels[:1].expand(500), 0.7)
    own = labels == labels[0]
    assert (torch.einsum("nk,nmk->nm", (z - nearest)[own], others - nearest[own][:, None]) <= 1e-9).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 4), (4, 7)])
@pytest.mark.parametrize("dense", [True, False])
def test_the_projection_onto_an_affine_map_is_a_least_squares_solution(
    inputs: int, outputs: int, dense: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpkit_constrained.splitting.DENSE", 1000 if dense else 0)
    w, b = torch.randn(outputs, inputs, generator=rng).double(), torch.randn(outputs, generator=rng).double()
    graph = Graph(Affine(lambda a: w @ a + b, inputs, outputs), after=2.0, iterations=20)
    a, z = torch.randn(3, inputs, generator=rng).double(), torch.randn(3, outputs, generator=rng).double()
    nearest_a, nearest_z = graph.project(a, z)
    assert torch.allclose(nearest_z * graph.after, (nearest_a * graph.before) @ w.T + b)
    scaled = w * graph.before / graph.after
    stacked = torch.cat([torch.eye(inputs).double(), scaled])
    wanted = torch.linalg.lstsq(stacked, torch.cat([a, z - b / 2], 1).T).solution.T
    assert torch.allclose(nearest_a, wanted)
    assert torch.linalg.matrix_norm(scaled, 2).item() == pytest.approx(2.0, rel=0.02)


def test_conjugate_gradients_solve_a_system_of_each_row(rng: torch.Generator) -> None:
    root = torch.randn(6, 6, generator=rng).double()
    matrix, right = torch.eye(6).double() + root @ root.T, torch.randn(4, 6, generator=rng).double()
    assert torch.allclose(conjugate_gradients(lambda x: x @ matrix, right, 12), torch.linalg.solve(matrix, right.T).T)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": 2, "padding": (1, 1)},
    ],
)
def test_windows_of_max_pooling_cover_padding_steps_and_gaps(arguments: dict[str, Any], rng: torch.Generator) -> None:
    images = torch.randn(1, 2, 9, 8, generator=rng)
    wanted = F.max_pool2d(images, **arguments)
    given = {"stride": (), "padding": 0, "dilation": 1} | arguments
    names = ("kernel_size", "stride", "padding", "dilation")
    pairs = [value if isinstance(value := given[name], tuple) else (value,) for name in names]
    windows = pooling_windows(images.shape, wanted.shape, *pairs)
    assert torch.equal(images.flatten()[windows].amax(1), wanted.flatten())


# ---------------------------------------------------------------------------------------------- chains


class Clamped(nn.Module):
    """ReLU written as a clamp, and a residual connection within an affine part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.second((x + self.first(x)).clamp(min=0)) / 2


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Conv2d(3, 4, 2),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "log probabilities": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.LogSoftmax(1)),
    "probabilities": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1)),
    "one logit": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)),
    "average pooling": lambda: nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    "clamped": Clamped,
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_returns_the_logits_of_its_target_up_to_a_constant(name: str) -> None:
    net = CHAINS[name]()
    net(torch.randn(20, 1, 4, 4))  # statistics of batch norms other than 0 and 1
    target = interpkit.wrap(net, (1, 4, 4), mean=0.4, std=0.3)
    images = torch.rand(5, 1, 4, 4)
    with target.frozen(), torch.no_grad():
        logits = Chain(target)(images)
        assert torch.allclose(logits.log_softmax(1).float(), target(images).log_softmax(1), atol=1e-4)


def test_an_onnx_file_is_inverted_from_gray(dead: Target, tmp_path: Path) -> None:
    path = tmp_path / "dead.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(dead.module, (torch.rand(2, 64),), path, dynamo=False, opset_version=13)
    inversion = invert(path, options={"per_class": 1}, labels=[2, 7])
    assert accuracy(inversion) == 1.0 and all(proof.tight for proof in inversion.proofs)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)).relu()
        return self.head(x + self.branch(x).relu())


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * x.flatten(1)[:, 3:6]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 3)),
            r"the operation 'gelu' of the layer '2' \(GELU\) is not among the layers that it reads\. It reads linear",
        ),
        (Residual(), r"the operation 'add' also reads what an earlier layer returns, as a residual"),
        (Squared(), "the operation 'mul' is not among"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid()), "its classes do not exclude each other"),
    ],
)
def test_other_layers_are_refused_by_name_before_the_run(net: nn.Module, message: str) -> None:
    output = "sigmoid" if "exclude" in message else "logits"
    target = interpkit.wrap(net, (1, 4, 4), output=output)
    with pytest.raises(UsageError, match=f"the inverter 'constrained' cannot read .*{message}"):
        invert(target)


class Truncates(nn.Module):
    """Takes 0 to 255 and drops what follows the decimal point."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(torch.uint8).float() / 255)


def test_a_classifier_that_truncates_its_input_is_refused() -> None:
    with pytest.raises(UsageError, match="the operation '_to_copy'"):
        invert(interpkit.wrap(Truncates(), (1, 4, 4), input_range=(0, 255)))


def test_the_users_classifier_is_not_changed_by_reading_it(small: Target) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    invert(small, steps=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert all(parameter.requires_grad for parameter in small.parameters())


# ---------------------------------------------------------------------------------------- certificates


def largest_at_a_vertex(region: Region, label: int) -> float:
    """Return the largest margin over all vertices of the polygon of a two-class region in the plane."""
    sides = np.concatenate([region.sides.toarray(), np.eye(2), -np.eye(2)])
    limits = np.concatenate([region.limits, [1, 1, 0, 0]])
    found = []
    for pair in itertools.combinations(range(len(limits)), 2):
        rows = list(pair)
        if abs(np.linalg.det(sides[rows])) > 1e-9:
            vertex = np.linalg.solve(sides[rows], limits[rows])
            if (sides @ vertex <= limits + 1e-9).all():
                logits = region.logits @ vertex + region.offset
                found.append(logits[label] - logits[1 - label])
    return max(found)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_certificates_equal_the_enumeration_of_all_vertices(slope: float) -> None:
    for seed in range(15):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(slope) if slope else nn.ReLU(), nn.Linear(4, 2))
        target = interpkit.wrap(net, (2,))
        with target.frozen(), torch.no_grad():
            chain, image = Chain(target), torch.rand(2, dtype=torch.float64)
            region = Region.around(chain, image)
            assert np.allclose(region.logits @ image.numpy() + region.offset, chain(image[None])[0])
            assert (region.sides @ image.numpy() <= region.limits + 1e-12).all()
            for label in (0, 1):
                found = largest_margin(region, label, 10.0)
                wanted = largest_at_a_vertex(region, label)
                assert found.status == "optimal" and found.image is not None
                assert found.bound == pytest.approx(wanted, abs=1e-7)
                assert margins(chain(found.image[None]), torch.tensor([label])).item() == pytest.approx(
                    wanted, abs=1e-6
                )


def test_a_region_of_max_pooling_is_affine_within_its_sides(rng: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 3))
    target = interpkit.wrap(net, (1, 4, 4))
    with target.frozen(), torch.no_grad():
        chain, image = Chain(target), torch.rand(16, generator=rng).double()
        region = Region.around(chain, image)
        near = (image + 0.05 * torch.randn(400, 16, generator=rng).double()).clamp(0, 1)
        inside = (region.sides @ near.T.numpy() <= region.limits[:, None]).all(0)
        exact = chain(near).numpy()
        affine = near.numpy() @ region.logits.T + region.offset
    assert 20 < inside.sum() < 400
    assert np.allclose(exact[inside], affine[inside]) and not np.allclose(exact[~inside], affine[~inside])


def test_a_bound_holds_although_the_solver_had_no_time(dead: Target) -> None:
    inversion = invert(dead, options={"per_class": 1, "seconds": 1e-9}, steps=5)
    assert {proof.status for proof in inversion.proofs} <= {"time", "optimal"}
    assert all(proof.bound is None or proof.bound >= proof.margin - 1e-4 for proof in inversion.proofs)


# ------------------------------------------------------------------------------------------------- runs


def test_dead_units_that_stop_gradients_do_not_stop_it(dead: Target) -> None:
    inversion = invert(dead, options={"per_class": 2})
    assert accuracy(inversion) == 1.0
    assert all(proof.status == "optimal" and proof.tight for proof in inversion.proofs)
    gray = {"pixels.per_class": 1, "pixels.spread": 0.0, "pixels.jitter": 0.0}
    rival = interpkit.invert(dead, ["pixels"], steps=300, options=gray, losses={"tv": 0.0}, **ON_CPU)
    assert accuracy(rival) <= 0.2


def test_the_first_image_of_a_class_starts_at_gray_and_the_others_near_it(small: Target) -> None:
    options = {"per_class": 3, "margin": 1e-6, "seconds": 0.0, "closeness": 1e6}
    images = invert(small, options=options, steps=1).images.view(3, 3, 4)
    assert torch.allclose(images[:, 0], torch.tensor(0.5), atol=1e-3)
    assert (images[:, 1:] - 0.5).abs().amax((1, 2)).min() > 0.05


def test_images_start_from_data(small: Target, tmp_path: Path) -> None:
    known = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    np.savez(tmp_path / "known.npz", images=known, labels=[0, 1, 2, 0, 1])
    options = {"start": "data", "data": str(tmp_path / "known.npz"), "closeness": 1e6, "seconds": 0.0}
    images = invert(small, options=options, steps=1, out=tmp_path / "run").images
    assert torch.cdist(images, torch.from_numpy(known)).amin(1).max() < 1e-3
    assert "sha256" in (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(UsageError, match="option 'data' is not set"):
        invert(small, options={"start": "data"}, steps=1)


def test_data_alone_are_where_the_search_starts_and_another_start_beside_them_is_refused(
    small: Target, tmp_path: Path
) -> None:
    known = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    np.savez(tmp_path / "known.npz", images=known, labels=[0, 1, 2, 0, 1])
    options = {"data": str(tmp_path / "known.npz"), "closeness": 1e6, "seconds": 0.0}
    alone, named = (invert(small, options=options | more, steps=1).images for more in ({}, {"start": "data"}))
    assert torch.cdist(alone, torch.from_numpy(known)).amin(1).max() < 1e-3
    assert torch.equal(alone, named)
    for start in ("gray", "noise"):
        with pytest.raises(UsageError, match=f"the start '{start}' does not use the option 'data'"):
            invert(small, options=options | {"start": start}, steps=1)


def test_a_loaded_run_has_the_same_images_and_certificates(small: Target, tmp_path: Path) -> None:
    inversion = invert(small, out=tmp_path, steps=10)
    again = interpkit.load_inversion(tmp_path, target=small)
    assert isinstance(again, ConstrainedInversion) and again.proofs == inversion.proofs
    assert torch.equal(again.images, inversion.images)
    rows = json.loads((tmp_path / "certificates.json").read_text())["certificates"]
    assert [row["image"] for row in rows] == list(range(6)) and rows[0].keys() >= {"margin", "bound", "status"}
    assert "Certificates" in (tmp_path / "report.html").read_text()


def test_certificates_of_other_images_are_refused(small: Target) -> None:
    inversion = invert(small, steps=2)

    class Stored(interpkit.StoredInversion):
        def __init__(self, proofs: bytes, **changed: Tensor) -> None:
            super().__init__(small, inversion.recipe, [])
            self.proofs, self.changed = proofs, changed

        def read(self, name: str) -> bytes:
            return self.proofs

        def tensors(self, name: str) -> dict[str, Tensor]:
            return {"images": inversion.images, "labels": inversion.labels, **self.changed}

        samples = generator = losses = default = None  # type: ignore[assignment]

    whole = inversion.files()["certificates.json"]
    assert Constrained().load(Stored(whole)).proofs == inversion.proofs
    other = whole.replace(b'"label": 0', b'"label": 1'), whole.replace(b'"margin": ', b'"m": ')
    huge = whole.replace(b'"margin": ', b'"margin": 9' + b"0" * 400 + b', "m": ')
    for broken in (b"", b"[]", b"[" * 100_000, huge, *other):
        with pytest.raises(RunError, match=r"certificates\.json does not hold one certificate for each image"):
            Constrained().load(Stored(broken))
    images, labels = inversion.images, inversion.labels
    for changed in (
        {"images": images[:, :3]},
        {"images": images.half()},
        {"labels": labels + 3},
        {"labels": labels / 1},
    ):
        with pytest.raises(RunError, match=r"does not hold images of Sequential with their labels"):
            Constrained().load(Stored(whole, **changed))


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"options": {"constrained.per_class": 2}, "steps": 12, **ON_CPU}
    straight = interpkit.invert(tiny_model, ["constrained"], **settings)
    job = prepare(tiny_model, ["constrained"], **settings)
    stopped = job.run(out=tmp_path, on_step=lambda step: job.request_stop() if step == 7 else None)
    assert isinstance(stopped, ConstrainedInversion) and stopped.steps_done == 7
    assert {proof.status for proof in stopped.proofs} == {"skipped"}
    resumed = interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert isinstance(resumed, ConstrainedInversion) and isinstance(straight, ConstrainedInversion)
    assert torch.equal(resumed.images, straight.images) and resumed.proofs == straight.proofs
    assert interpkit.invert(tiny_model, out=tmp_path, resume=True, steps=14).steps_done == 14


def test_a_run_stopped_between_linear_programs_solves_only_the_rest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"options": {"constrained.per_class": 2}, "steps": 4, **ON_CPU}
    straight = interpkit.invert(tiny_model, ["constrained"], **settings)
    job = prepare(tiny_model, ["constrained"], **settings)
    solved: list[int] = []

    def counted(region: Region, label: int, seconds: float) -> Any:
        solved.append(label)
        if len(solved) == 2:
            job.request_stop()
        return largest_margin(region, label, seconds)

    monkeypatch.setattr("interpkit_constrained.inverter.largest_margin", counted)
    stopped = job.run(out=tmp_path)
    assert isinstance(stopped, ConstrainedInversion)
    assert sorted(proof.status for proof in stopped.proofs) == ["optimal"] * 2 + ["skipped"] * 4
    resumed = interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert isinstance(resumed, ConstrainedInversion) and isinstance(straight, ConstrainedInversion)
    assert len(solved) == 6
    assert torch.equal(resumed.images, straight.images) and resumed.proofs == straight.proofs


def test_a_checkpoint_of_another_run_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for folder, per_class in (("one", 1), ("two", 2)):
        options = {"constrained.per_class": per_class, "constrained.seconds": 0.0}
        interpkit.invert(tiny_model, ["constrained"], options=options, steps=2, out=tmp_path / folder, **ON_CPU)
    (tmp_path / "one" / "checkpoint").write_bytes((tmp_path / "two" / "checkpoint").read_bytes())
    with pytest.raises(RunError, match=r"checkpoint does not fit its recipe.*force"):
        interpkit.invert(tiny_model, out=tmp_path / "one", resume=True, steps=3)


def test_programs_that_are_too_large_are_skipped_and_it_says_so(
    small: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("interpkit_constrained.inverter.LARGEST", 10)
    inversion = invert(small, steps=2)
    assert {proof.status for proof in inversion.proofs} == {"skipped"}
    assert "the linear programs of Sequential would have 36 coefficients, more than 10" in caplog.text


def test_a_class_that_cannot_be_reached_is_proved_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Linear(2, 3)
    net.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.tensor([1.0, 0.0, 0.0])})
    net.weight.data[0, 0] = 0.5
    inversion = invert(interpkit.wrap(net, (2,)), steps=3, labels=[0, 1], options={"per_class": 1})
    inside, outside = inversion.proofs
    assert inside.bound == pytest.approx(1.5) and inside.tight
    assert outside.bound == pytest.approx(-1.0) and outside.margin == pytest.approx(-1.0)
    assert "1 of 2 images are not in their class" in caplog.text
