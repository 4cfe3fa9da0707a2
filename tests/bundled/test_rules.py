"""Rules from hyperplanes: exact cases, units, the tree, points, images, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from interpkit_rules import Leaf, Plane, Rules, RulesInversion, Split, trees
from interpkit_rules.rules import Fidelity, classify
from torch import Tensor, nn

import interpkit
from interpkit import RunError, Target, UsageError
from interpkit.api.invert import prepare

ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def linear(weight: list[list[float]], bias: list[float], **facts: Any) -> Target:
    """Return a linear classifier of numbers in their own units."""
    net = nn.Linear(len(weight[0]), len(weight))
    net.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return interpkit.wrap(net, (len(weight[0]),), **facts)


class Corner(nn.Module):
    """Class ``in`` where x0 > 0.5 and x1 > 0.4, else ``out``: two planes, no single one."""

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.minimum(x[:, 0] - 0.5, x[:, 1] - 0.4)
        return torch.stack([-inside, inside], 1)


def invert(target: Target | Path, *, steps: int = 10, out: Path | None = None, **options: Any) -> RulesInversion:
    named = {f"hypinv.{name}": value for name, value in options.items()}
    inversion = interpkit.invert(target, inverter="hypinv", steps=steps, options=named, out=out, **ON_CPU)
    assert isinstance(inversion, RulesInversion)
    return inversion


def direction(plane: Plane) -> Tensor:
    """Return the normal and offset of a plane at length 1."""
    both = torch.tensor([*plane.normal, plane.offset])
    return both / both[:-1].norm()


# ------------------------------------------------------------------------------------------ exact cases


def test_a_linear_classifier_of_two_classes_gives_back_its_own_plane() -> None:
    # 3 x0 - 4 x1 > -1 is class 1; at length 1: 0.6, -0.8, -0.2
    inversion = invert(linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0]))
    (plane,) = inversion.rules.planes
    sign = 1 if plane.classes == (0, 1) else -1
    assert torch.allclose(sign * direction(plane), torch.tensor([0.6, -0.8, -0.2]), atol=1e-6)
    assert inversion.rules.fidelity.held_out == pytest.approx(1.0, abs=2e-3)
    assert inversion.rules.complexity == {"rules": 2, "planes": 1, "conditions": 2}


def test_planes_are_in_the_units_of_the_table() -> None:
    # 2 x0 + x1 / 100 > 15, with x0 from 2 to 10 and x1 from -100 to 900
    target = linear([[0.0, 0.0], [2.0, 0.01]], [15.0, 0.0], input_range=[(2, 10), (-100, 900)])
    inversion = invert(target)
    (plane,) = inversion.rules.planes
    ratio = torch.tensor([*plane.normal, plane.offset]) / plane.normal[0]
    assert torch.allclose(ratio, torch.tensor([1.0, 0.005, 7.5]), rtol=1e-5)
    # with each feature in shares of its range, the normal has length 1
    assert (plane.normal[0] * 8) ** 2 + (plane.normal[1] * 1000) ** 2 == pytest.approx(1.0)
    points = target.to_unit(torch.tensor([[7.0, 0.0], [8.0, 0.0], [7.0, 200.0]]))
    assert inversion.classify(points).tolist() == [0, 1, 1]


def test_a_corner_takes_a_tree_of_two_planes() -> None:
    inversion = invert(interpkit.wrap(Corner(), (2,), class_names=["out", "in"]), steps=6, fidelity=0.999)
    rules = inversion.rules
    planes = sorted(direction(plane).abs().tolist() for plane in rules.planes)
    assert torch.allclose(torch.tensor(planes), torch.tensor([[0.0, 1.0, 0.4], [1.0, 0.0, 0.5]]), atol=1e-5)
    assert rules.complexity == {"rules": 3, "planes": 2, "conditions": 5} and rules.fidelity.learned == 1.0
    (inside,) = [path for path, leaf in rules.paths if leaf.label == 1]
    assert len(inside) == 2
    assert inversion.classify(torch.tensor([[0.6, 0.5], [0.6, 0.3], [0.4, 0.9]])).tolist() == [1, 0, 0]


def test_no_plane_is_added_once_the_rules_are_good_enough() -> None:
    inversion = invert(interpkit.wrap(Corner(), (2,)), steps=6, fidelity=0.6)
    assert len(inversion.rules.planes) == 1 and inversion.steps_done == 6


def test_there_are_no_more_rules_than_asked_for() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 4))
    with torch.no_grad():
        net[0].weight.mul_(6)
    inversion = invert(interpkit.wrap(net, (3,)), rules=3, fidelity=1.0)
    assert inversion.rules.complexity["rules"] <= 3


# -------------------------------------------------------------------------------------- rules and trees


def two_planes() -> Rules:
    """Return rules of three classes: ``a`` below the first plane, then ``b`` below and ``c`` above the second."""
    leaves = [Leaf(label=label, points=10 * (label + 1), agreement=0.9) for label in range(3)]
    return Rules(
        layer=None,
        features=("length", "width"),
        ranges=((0, 10), (0, 1)),
        classes=("a", "b", "c"),
        planes=(
            Plane(normal=(0.1, 0.0), offset=0.3, classes=(0, 1), point=0),
            Plane(normal=(0.06, -0.8), offset=-0.2, classes=(1, 2), point=1),
        ),
        tree=Split(plane=0, below=leaves[0], above=Split(plane=1, below=leaves[1], above=leaves[2])),
        fidelity=Fidelity(learned=0.97, held_out=0.95, near_data=0.9),
        source="by hand",
        points=60,
    )


def test_a_tree_of_two_planes_classifies_as_worked_out_by_hand() -> None:
    # the second plane: 0.06 length - 0.8 width > -0.2
    features = torch.tensor([[2.0, 0.1], [5.0, 0.9], [5.0, 0.5], [10.0, 0.9]])
    assert two_planes().classify(features).tolist() == [0, 1, 2, 2]
    assert two_planes().complexity == {"rules": 3, "planes": 2, "conditions": 5}


def test_rules_read_as_text() -> None:
    rules = two_planes()
    assert rules.text() == (
        "3 rules over 2 hyperplanes, learned from 60 points (by hand). They name the same class as the classifier for "
        "95.0% of held-out points, and for 90.0% of points near them.\n\n"
        "P1: 0.1 length > 0.3   (a | b)\n"
        "P2: - 0.8 width + 0.06 length > -0.2   (b | c)\n\n"
        "IF not P1 THEN a   (10 points, 90.0%)\n"
        "IF P1 and not P2 THEN b   (20 points, 90.0%)\n"
        "IF P1 and P2 THEN c   (30 points, 90.0%)\n"
    )


def test_long_inequalities_name_the_terms_of_most_influence() -> None:
    rules = two_planes().model_copy(
        update={"features": tuple(f"x{i}" for i in range(10)), "ranges": ((0.0, 1.0),) * 9 + ((0.0, 100.0),)}
    )
    plane = Plane(normal=(*(0.1 + i / 100 for i in range(9)), 0.01), offset=1.0, classes=(0, 1), point=0)
    text = rules.inequality(plane)
    assert text.startswith("0.01 x9 + 0.18 x8 + 0.17 x7") and text.endswith("+ 0.12 x2 + 2 smaller terms > 1")


def test_rules_of_features_far_from_zero_have_the_digits_that_they_need() -> None:
    rules = two_planes().model_copy(update={"ranges": ((2010.0, 2020.0), (0.0, 1.0))})
    plane = Plane(normal=(0.1, 0.0), offset=201.46, classes=(0, 1), point=0)
    assert rules.inequality(plane) == "0.1 length > 201.46"


def test_leaves_of_one_class_are_joined() -> None:
    # of three planes only the first matters; the third class's single point is below the least share of a rule
    above = torch.tensor([[i % 2 == 0, i % 3 == 0, i % 5 == 0] for i in range(1000)])
    labels = above[:, 0].long()
    tree = trees.fit(above, labels, most=8)
    assert tree == Split(
        plane=0, below=Leaf(label=0, points=500, agreement=1.0), above=Leaf(label=1, points=500, agreement=1.0)
    )
    assert torch.equal(classify(tree, above), labels)
    assert trees.fit(above[:, :0], torch.tensor([1] * 600 + [0] * 400), most=8) == Leaf(
        label=1, points=1000, agreement=0.6
    )


# ---------------------------------------------------------------------------------------------- points


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a table of 60 rows with named columns, in which ``kind`` is 0 or 1; the class is length > 5."""
    rng = np.random.default_rng(0)
    lines = ["length,kind,label"]
    for number in range(60):
        length = rng.uniform(0, 10)
        lines.append(f"{length:.4f},{number % 2},{int(length > 5)}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


LENGTH = [[0.0, 0.0], [1.0, 0.0]], [5.0, 0.0]


def test_columns_of_a_table_name_the_features_and_categories_are_said(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inversion = invert(linear(*LENGTH, input_range=[(0, 10), (0, 1)], class_names=["short", "long"]), data=str(table))
    assert inversion.rules.features == ("length", "kind") and inversion.rules.categorical == ("kind",)
    assert "few whole numbers, like categories: kind (2 values)" in caplog.text
    assert re.search(r"^P1: -? ?0\.1 length > -?0\.5 ", inversion.rules.text(), re.M)
    assert "though they look like categories: kind." in inversion.rules.text()
    assert inversion.rules.fidelity.near_data == pytest.approx(1, abs=0.01)
    assert inversion.rules.source.startswith("42 rows of table.csv, and copies")


def test_names_of_features_can_be_stated(table: Path) -> None:
    target = linear(*LENGTH, input_range=[(0, 10), (0, 1)])
    assert invert(target, data=str(table), names=("cm", "sort")).rules.features == ("cm", "sort")
    assert invert(target).rules.features == ("x0", "x1")
    with pytest.raises(UsageError, match=r"hypinv.names has 1 names, and there are 2 features"):
        invert(target, names=("cm",))


def test_rows_outside_the_input_range_are_refused(table: Path) -> None:
    with pytest.raises(UsageError, match=r"rows of .*table.csv lie outside the input range of .*: the range of length"):
        invert(linear(*LENGTH, input_range=[(0, 3), (0, 1)]), data=str(table))


def test_rules_are_learned_from_another_runs_samples(tmp_path: Path) -> None:
    target = linear([[0.0, 0.0], [3.0, -4.0], [9.0, 9.0]], [0.0, 1.0, -12.0])
    settings: dict[str, Any] = {"per_class": 12, "losses": {"tv": 0}, **ON_CPU}
    interpkit.invert(target, inverter="pixels", steps=40, out=tmp_path / "first", **settings)
    inversion = invert(target, data=str(tmp_path / "first"), out=tmp_path / "rules")
    assert "25 rows of samples of the run" in inversion.rules.source  # 36, of which 30 % are held out
    assert inversion.rules.fidelity.held_out is not None and inversion.classes == [0, 1, 2]
    manifest = json.loads((tmp_path / "rules" / "manifest.json").read_text())
    assert len(manifest["data"]["inverter.data"]["sha256"]) == 64


def test_without_data_a_class_that_no_point_reaches_is_empty() -> None:
    target = linear([[0.0, 0.0], [3.0, -4.0], [0.0, 0.0]], [0.0, 1.0, -50.0])
    inversion = invert(target)
    assert inversion.empty == {
        2: "the target assigns none of the 2,000 points to it (uniform in the input range, without data)"
    }
    assert inversion.rules.fidelity.near_data is None


# ---------------------------------------------------------------------------------- images and run folders


def test_images_lie_on_the_side_of_their_class_close_to_the_boundary() -> None:
    target = linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0])
    inversion = invert(target)
    assert target.accepts(target(inversion.images), inversion.labels).all()
    distances = (inversion.images @ torch.tensor([0.6, -0.8]) + 0.2).abs()
    assert inversion.classes == [0, 1] and distances.min() > 0 and distances.max() < 0.05


def test_rules_of_pictures_separate_the_features_of_a_layer(tiny_target: Target, tmp_path: Path) -> None:
    interpkit.invert(tiny_target, inverter="pixels", steps=30, out=tmp_path / "first", **ON_CPU)
    inversion = invert(tiny_target, data=str(tmp_path / "first"), points=300, out=tmp_path / "rules")
    layer = tiny_target.feature_layer
    width = tiny_target.respond(torch.zeros(1, *tiny_target.input_shape)).penultimate.shape[1]
    assert inversion.rules.layer == layer and len(inversion.rules.planes[0].normal) == width
    assert inversion.rules.fidelity.learned > 0.9
    pictures = inversion.images
    assert torch.equal((pictures * 255).round() / 255, pictures)
    with tiny_target.frozen(), torch.no_grad():
        assert tiny_target.accepts(tiny_target(pictures), inversion.labels).all()
    strips = inversion.sections()[1].strips
    assert [len(strip.images) for strip in strips] == [2] * len(inversion.rules.planes)
    report = (tmp_path / "rules" / "report.html").read_text()
    assert "Hyperplanes" in report and inversion.rules.condition(inversion.rules.paths[0][0]) in report


def test_a_loaded_run_has_the_same_rules_and_images(tmp_path: Path) -> None:
    target = linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0], input_range=[(0, 1), (-5, 5)])
    inversion = invert(target, out=tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run", target=target)
    assert isinstance(again, RulesInversion) and again.rules == inversion.rules
    assert torch.equal(again.images, inversion.images) and torch.equal(again.labels, inversion.labels)
    points = torch.rand(50, 2)
    assert torch.equal(again.classify(points), inversion.classify(points))
    assert (tmp_path / "run" / "rules.txt").read_text() == inversion.rules.text()
    stored = json.loads((tmp_path / "run" / "rules.json").read_text())
    assert {"planes", "fidelity", "tree"} <= stored.keys()
    assert {"normal", "offset"} <= stored["planes"][0].keys() and {"held_out", "near_data"} <= stored["fidelity"].keys()


def test_a_stopped_run_resumes_to_the_same_rules(tmp_path: Path) -> None:
    target = interpkit.wrap(Corner(), (2,))
    settings: dict[str, Any] = {"options": {"hypinv.fidelity": 1.0}, "inverter": "hypinv", "steps": 4, **ON_CPU}
    whole = interpkit.invert(target, **settings)
    job = prepare(target, **settings)
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == 1 else None)
    assert len(json.loads((tmp_path / "run" / "rules.json").read_text())["planes"]) == 1
    resumed = interpkit.invert(target, out=tmp_path / "run", resume=True, **settings)
    assert isinstance(resumed, RulesInversion) and isinstance(whole, RulesInversion)
    assert resumed.rules == whole.rules and torch.equal(resumed.images, whole.images)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run whose own files may be changed, as if somebody had changed its manifest too."""
    invert(linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0]), out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["files"] = {}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"label":', '"lbl":'),
        ('"plane": 0', '"plane": 7'),
        ('"offset":', '"offset": 1, "normal": [],  "x":'),
    ],
)
def test_a_changed_rules_file_is_refused(before: str, after: str, run: Path) -> None:
    path = run / "rules.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(RunError, match="rules"):
        interpkit.load_inversion(run, target=linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0]))


def test_numbers_and_points_out_of_range_are_refused(run: Path) -> None:
    target, rules = linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0]), json.loads((run / "rules.json").read_text())
    tensors = safetensors.torch.load((run / "boundary.safetensors").read_bytes())
    safetensors.torch.save_file({**tensors, "points": tensors["points"] - 2}, run / "boundary.safetensors")
    with pytest.raises(RunError, match=r"not from -.* files may be damaged: run again with force=True"):
        interpkit.load_inversion(run, target=target)
    rules["ranges"] = [[-1e308, 1e308]] * 2
    rules["planes"][0]["normal"] = [9.0, 9.0]
    (run / "rules.json").write_text(json.dumps(rules))
    with pytest.raises(RunError, match="the numbers of a hyperplane are too large"):
        interpkit.load_inversion(run, target=target)


def test_captum_explains_the_boundary_points() -> None:
    target = linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0])
    inversion = invert(target)
    images, labels = inversion.sample(labels=[1])
    maps = interpkit.attribute(target, images, labels, method="saliency", device="cpu")
    assert torch.allclose(maps.abs(), torch.tensor([3.0, 4.0]))


# ---------------------------------------------------------------------------------------------- refusals


def test_a_missing_scikit_learn_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"requires the package scikit-learn: pip install .*\[rules\]"):
        invert(linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0]))


def test_a_target_without_a_boundary_is_refused() -> None:
    with pytest.raises(RunError, match=r"no boundary was found from 50 points .* to the class yes\. Name data"):
        invert(linear([[0.0, 0.0], [1.0, 0.0]], [50.0, 0.0], class_names=["yes", "no"]), points=50)


def test_a_classifier_that_returns_nan_within_its_range_is_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(x[:, 0] - 0.2).sqrt(), x[:, 1]], 1)  # NaN below 0.2

    target = interpkit.wrap(Corner(), (2,), name="root")
    target.module = Root()
    with pytest.raises(UsageError, match=r"returns NaN for \d+ of \d+ points.*input range right"):
        invert(target, points=200)


def test_labels_that_do_not_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="explains classes that exclude each other"):
        invert(linear([[0.0, 0.0], [3.0, -4.0]], [0.0, 1.0], output="sigmoid_logits"))


def test_a_layer_that_the_gradient_does_not_pass_is_refused(tiny_target: Target) -> None:
    with pytest.raises(UsageError, match=r"no gradient with respect to the output of the layer .*NAME:in"):
        invert(tiny_target, layer=next(name for name in reversed(tiny_target.layers()) if name), points=50)


def test_another_precision_is_refused_with_what_to_wrap() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).double()
    with pytest.raises(UsageError, match=r"the classifier has torch.float64: wrap model.float\(\)"):
        invert(interpkit.wrap(net, (1, 8, 8)), points=200)
