"""Binarised networks and the inverter ``cnf``: against brute force over all inputs, and against a checker of proofs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpkit_sat import BinaryNet, Cnf, CnfInversion
from interpkit_sat.encoding import Encoding, Formula, read
from interpkit_sat.inverter import Hunt
from interpkit_sat.networks import SignConv, Threshold, step
from interpkit_sat.solving import CMSGen, Glucose, Stopped, need
from torch import Tensor, nn

import interpkit
from interpkit import (
    ModelError,
    Parts,
    PluginError,
    Recipe,
    Recorder,
    RunError,
    Target,
    UsageError,
    build_architecture,
    invert,
    load_target,
    wrap,
)

ALL = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)))
"""All inputs of ten bits."""


def random_net(seed: int, **arguments: Any) -> BinaryNet:
    """Return a network of random signs and thresholds, of ten inputs unless stated otherwise."""
    torch.manual_seed(seed)
    net = BinaryNet(**{"input_shape": (10,), "num_classes": 3, "fan_in": 4, **arguments}).eval()
    for layer in net:
        if isinstance(layer, Threshold):
            layer.norm.running_mean = torch.randn(len(layer.bias))
            layer.norm.running_var = torch.full_like(layer.bias, 4.0)
            layer.bias.data.normal_()
    return net


def target_of(seed: int = 0, **arguments: Any) -> Target:
    """Return such a network as a target."""
    net = random_net(seed, **arguments)
    return wrap(net, net.Options(**{"input_shape": (10,), **arguments}).input_shape, output="logits")


def without_class_1() -> Target:
    """Return a network of three classes, of which class 1 has the votes of class 0, so that it never leads."""
    net = random_net(0, hidden=[6])
    net[-1].weight.data[1] = net[-1].weight.data[0]
    return wrap(net, (10,), output="logits")


def leads(target: Target, label: int) -> Tensor:
    """Return by how many votes a class leads the others, for each of the inputs."""
    votes = target(ALL) / read(target).scale
    others = votes.clone()
    others[:, label] = -torch.inf
    return votes[:, label] - others.max(1).values


def models(formula: Formula) -> set[tuple[bool, ...]]:
    """Return all inputs of a formula."""
    solver, found = Glucose(formula, 10), set[tuple[bool, ...]]()
    while (values := solver.find(len(found), lambda: True)) is not None:
        assert tuple(values) not in found
        found.add(tuple(values))
        solver.add([tuple(-place if value else place for place, value in enumerate(values, 1))])
    return found


NETS: list[dict[str, Any]] = [
    {"hidden": [12]},
    {"hidden": [8], "num_classes": 5},
    {"hidden": [6], "fan_in": 0},
    {"hidden": [8, 6]},
    {"hidden": [8, 6, 5], "num_classes": 2, "fan_in": 3},
    {"hidden": []},
    {"input_shape": (1, 2, 5), "channels": [3], "kernel": 2, "stride": 1, "hidden": [6]},
    {"input_shape": (2, 1, 5), "channels": [2, 3], "kernel": 1, "stride": 2, "hidden": []},
]


# ------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("arguments", NETS, ids=str)
def test_the_formula_of_a_class_has_exactly_the_inputs_that_the_network_assigns_to_it(
    arguments: dict[str, Any],
) -> None:
    target = target_of(len(str(arguments)), **arguments)
    inputs = ALL.view(-1, *target.input_shape)
    network = read(target)
    encoding = Encoding(network)
    votes = target(inputs) / network.scale
    for label, margin in itertools.product(range(target.num_classes), (1, 3)):
        others = votes.clone()
        others[:, label] = -torch.inf
        wanted = ALL[votes[:, label] - others.max(1).values >= margin]
        formula = encoding.of_class(label, margin)
        assert models(formula) == {tuple(row) for row in wanted.bool().tolist()}
        assert len(formula.clauses) <= network.size(margin)


@pytest.mark.parametrize(("count", "needed"), [(count, needed) for count in range(1, 6) for needed in range(-1, 8)])
def test_counters_are_equivalent_to_the_count(count: int, needed: int) -> None:
    literals = [place if place % 2 else -place for place in range(1, count + 1)]
    required, defined = Formula(10), Formula(10)
    required.require(literals, needed)
    defined.define(10, literals, needed)
    for row in itertools.product([False, True], repeat=count):
        given = [(place if value else -place,) for place, value in enumerate(row, 1)]
        holds = sum(row[abs(x) - 1] == (x > 0) for x in literals) >= needed
        for formula, sign in ((required, 0), (defined, 10), (defined, -10)):
            more = [*given, *([(sign,)] if sign else [])]
            found = models(Formula(formula.variables, [*formula.clauses, *more, *((p,) for p in range(count + 1, 10))]))
            assert bool(found) == (holds if sign >= 0 else not holds)


def test_a_threshold_is_the_batch_norm_and_the_step_that_it_replaces() -> None:
    torch.manual_seed(0)
    layer = Threshold(7)
    layer.norm.running_mean, layer.norm.running_var = torch.randn(7), torch.rand(7) + 0.5
    layer.bias.data.normal_()
    sums = torch.arange(-8.0, 9)[:, None].expand(-1, 7)
    z = (sums - layer.norm.running_mean) / (layer.norm.running_var + layer.norm.eps).sqrt() + layer.bias
    assert torch.equal(layer.eval()(sums), (z >= 0).float())
    assert layer(sums[:, :, None, None]).shape == (17, 7, 1, 1)


def test_gradients_pass_straight_through_steps_of_at_most_one() -> None:
    x = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], requires_grad=True)
    stepped = step(x)
    stepped.sum().backward()
    assert stepped.tolist() == [0, 0, 1, 1, 1]
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("arguments", NETS, ids=str)
def test_networks_learn_and_keep_their_accuracy_in_evaluation(arguments: dict[str, Any]) -> None:
    net = random_net(0, **{**arguments, "num_classes": 2}).train()
    x = ALL.view(-1, *net.Options(**{"input_shape": (10,), **arguments}).input_shape)
    y = (ALL[:, :5].sum(1) > ALL[:, 5:].sum(1)).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net.eval()(x).argmax(1) == y).float().mean() > 0.6


def test_a_convolution_sees_what_torch_unfolds() -> None:
    net = random_net(3, input_shape=(2, 5, 4), channels=[3], kernel=2, stride=2, fan_in=5, hidden=[])
    (layer,) = read(wrap(net, (2, 5, 4), output="logits")).layers
    assert isinstance(layer.signs, SignConv) and layer.places == 4
    bits = torch.randint(2, (20, 2, 5, 4)).float()
    for unit, (numbers, threshold) in enumerate(layer.units()):
        sums = sum(bits.flatten(1)[:, abs(n) - 1] * (1 if n > 0 else -1) for n in numbers)
        assert torch.equal((sums >= threshold).float(), net[2](net[1](bits)).flatten(1)[:, unit])


def test_a_file_holds_the_network_and_the_family_builds_it_again(tmp_path: Path) -> None:
    arguments = {"input_shape": [1, 4, 4], "num_classes": 3, "channels": [2], "kernel": 2, "hidden": [5], "fan_in": 3}
    net = random_net(0, **arguments)
    path = interpkit.save_target(
        net, tmp_path / "bnn.safetensors", architecture="bnn:net", arch_args=arguments, input_shape=(1, 4, 4)
    )
    images = torch.rand(8, 1, 4, 4)
    assert torch.equal(load_target(path)(images), net(images))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_shape": [4, 4]}, "vectors"),
        ({"input_shape": [16], "channels": [2]}, "vectors"),
        ({"input_shape": [1, 4, 4], "channels": [2, 2]}, "no place left"),
        ({"units": [4]}, "units"),
    ],
)
def test_arguments_that_build_no_network_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_architecture("bnn:net", arguments)


# ------------------------------------------------------------------------------------------ the inverter


def cnf(target: Target | str, out: Path | None = None, *, resume: bool = False, **options: Any) -> CnfInversion:
    """Run the inverter on the CPU."""
    steps = options.pop("steps", 4)
    settings = {f"cnf.{name}": value for name, value in options.items()}
    run = invert(target, inverter="cnf", out=out, resume=resume, steps=steps, device="cpu", options=settings)
    assert isinstance(run, CnfInversion)
    return run


def distances(images: Tensor) -> Tensor:
    """Return in how many places each two of the images differ."""
    flat = images.flatten(1)
    return torch.cdist(flat, flat, p=1)[tuple(torch.triu_indices(len(flat), len(flat), 1))]


def test_every_image_is_of_its_class_and_no_two_are_alike() -> None:
    target = target_of(1, input_shape=(1, 6, 6), hidden=[20], num_classes=4, fan_in=8)
    inversion = cnf(target, per_class=6)
    assert inversion.labels.tolist() == sorted([*range(4)] * 6)
    assert set(inversion.images.unique().tolist()) == {0, 1}
    assert torch.equal(target(inversion.images).argmax(1), inversion.labels)
    assert len(inversion.images.flatten(1).unique(dim=0)) == 24
    assert distances(inversion.images).mean() > 0.3 * 36
    assert inversion.history[-1].terms == {"missing": 0}


def test_fixed_pixels_margins_and_distances_hold() -> None:
    target = target_of(1, hidden=[12])
    inversion = cnf(target, per_class=5, on=[0, 3], off=[7], margin=3, distance=2)
    assert all(inversion.available(label) for label in inversion.classes)
    assert inversion.images[:, [0, 3, 7]].unique(dim=0).tolist() == [[1, 1, 0]]
    for label in inversion.classes:
        own = inversion.images[inversion.labels == label]
        assert len(own) < 2 or distances(own).min() >= 2
        rows = (own @ (2.0 ** torch.arange(9, -1, -1))).long()
        assert leads(target, label)[rows].min() >= 3


def test_a_class_has_all_of_its_inputs_if_more_are_asked_for_than_exist() -> None:
    target = target_of(1, hidden=[12])
    inversion = cnf(target, per_class=40, on=[0, 1, 2, 3, 4], count=100)
    for label in inversion.classes:
        wanted = int(((leads(target, label) >= 1) & ALL[:, :5].bool().all(1)).sum())
        finding = inversion.findings[label]
        assert finding["images"] == wanted == finding["count"] and finding["exact"]
        assert finding["outcome"] == "exhausted"


def test_a_class_without_further_inputs_in_a_distance_may_have_others() -> None:
    inversion = cnf(target_of(1, hidden=[12]), per_class=40, distance=8, count=1024)
    assert any(
        finding["outcome"] == "exhausted" and finding["count"] > finding["images"]
        for finding in inversion.findings.values()
    )
    assert "no more that differ from each of these in at least 8 places. empty" in inversion.sections()[0].text
    assert "no more. empty" in cnf(target_of(1, hidden=[12]), per_class=1).sections()[0].text


def test_inputs_are_counted_up_to_a_limit() -> None:
    target = target_of(1, hidden=[12])
    wanted = [int((leads(target, label) >= 1).sum()) for label in range(3)]
    counted = cnf(target, per_class=1, count=1024).findings
    assert [counted[label]["count"] for label in range(3)] == wanted
    assert all(counted[label]["exact"] for label in range(3))
    some = cnf(target, per_class=1, count=5).findings
    assert max(wanted) > 5
    assert [some[label]["count"] for label in range(3)] == [min(count, 5) for count in wanted]
    assert [some[label]["exact"] for label in range(3)] == [count <= 5 for count in wanted]


def follows(formula: list[set[int]], proof: list[str]) -> bool:
    """Check a proof: each of its clauses follows by unit propagation from those before it, and the last is empty."""
    clause = {0}
    for line in proof:
        words = line.split()
        clause = {int(word) for word in words if word not in ("d", "0")}
        if words[0] == "d":
            formula.remove(clause)
            continue
        holds = {-literal for literal in clause}
        while True:
            open_ = [{x for x in c if -x not in holds} for c in formula if not c & holds]
            if not all(open_):
                break
            unit = next((rest for rest in open_ if len(rest) == 1), None)
            if unit is None:
                return False
            holds |= unit
        formula.append(clause)
    return not clause


@pytest.mark.parametrize("on", [[], [0, 2]])
def test_a_class_without_an_input_is_empty_and_its_proof_can_be_checked(tmp_path: Path, on: list[int]) -> None:
    target = without_class_1()
    assert (leads(target, 1) < 1).all()
    inversion = cnf(target, tmp_path, per_class=2, on=on, count=10)
    assert inversion.classes == [2]
    assert inversion.empty[1].startswith("proved that no input has at least 1 more votes for it than for any other")
    assert inversion.findings[1]["outcome"] == "empty" and inversion.findings[1]["count"] == 0
    lines = (tmp_path / "class-1.cnf").read_text().splitlines()
    assert lines[1] == f"p cnf {inversion.findings[1]['variables']} {inversion.findings[1]['clauses']}"
    formula = [{int(word) for word in line.split()[:-1]} for line in lines[2:]]
    assert follows(formula, (tmp_path / "class-1.drat").read_text().splitlines())


class Interrupted(Exception):
    """Stands for a machine that goes down."""


def test_a_run_that_is_cut_off_is_resumed_as_if_it_had_not_been(tmp_path: Path) -> None:
    target = target_of(1, input_shape=(1, 6, 6), hidden=[20], num_classes=4, fan_in=8)
    settings = {"cnf.per_class": 5, "cnf.distance": 3}
    common: dict[str, Any] = {"inverter": "cnf", "steps": 10, "device": "cpu", "options": settings}
    whole = invert(target, **common)
    assert isinstance(whole, CnfInversion)

    def cut_off(step: int) -> None:
        if step == 6:
            raise Interrupted

    with pytest.raises(PluginError, match="Interrupted"):
        invert(target, **common, checkpoint_every=2, out=tmp_path, on_step=cut_off)
    again = invert(target, **common, checkpoint_every=2, out=tmp_path, resume=True)
    assert isinstance(again, CnfInversion)
    assert torch.equal(again.images, whole.images) and again.findings == whole.findings
    assert [record.to_row() | {"seconds": 0} for record in again.history] == [
        record.to_row() | {"seconds": 0} for record in whole.history
    ]


def test_a_class_out_of_time_keeps_what_was_found_and_resuming_searches_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = target_of(1, input_shape=(1, 6, 6), hidden=[20], num_classes=4, fan_in=8)
    whole = cnf(target, per_class=3)
    finds: list[int] = []
    plain = Glucose.find

    def slow(self: Glucose, seed: int, keep_going: Callable[[], bool]) -> list[bool] | None:
        finds.append(seed)
        if 2 < len(finds) < 6:  # the third find of the first class, and the first of the next two
            raise Stopped
        return plain(self, seed, keep_going)

    monkeypatch.setattr(Glucose, "find", slow)
    cut = cnf(target, tmp_path, per_class=3)
    assert [cut.findings[label]["images"] for label in range(4)] == [2, 0, 0, 3]
    assert cut.steps_done < 4 and cut.classes == [0, 3]
    assert "class 0 (0): 2 of 3 inputs were found within cnf.time_limit = 60 s; --resume searches on" in caplog.text
    assert "no input was found within cnf.time_limit = 60 s" in cut.empty[1]
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "interrupted"
    rest = cnf(target, tmp_path, per_class=3, resume=True)
    assert torch.equal(rest.images, whole.images) and not rest.empty
    assert {finding["outcome"] for finding in rest.findings.values()} == {"complete"}


def test_a_time_limit_that_allows_nothing_is_an_empty_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found no image of any class"):
        cnf(target_of(1, hidden=[12]), tmp_path, time_limit=1e-9)
    assert "no input was found within" in json.loads((tmp_path / "manifest.json").read_text())["empty"]["0"]


def test_a_stop_during_a_class_keeps_what_was_found() -> None:
    target = target_of(1, input_shape=(1, 6, 6), hidden=[20], num_classes=4, fan_in=8)
    recorder = Recorder(1)
    inverter = Cnf(Cnf.Options(per_class=2))
    recorder.part = lambda *_: setattr(recorder, "stop_requested", recorder.images_so_far is None)  # type: ignore
    with target.frozen():
        inversion = inverter.invert(target, Recipe(inverter={"name": "cnf"}, steps=1, device="cpu"), Parts(), recorder)
    assert inversion.labels.tolist() == [0]
    assert inversion.empty == dict.fromkeys([1, 2, 3], "the run was stopped before its inputs were sought")


def test_a_run_folder_restores_the_findings_and_the_report_has_a_table(tmp_path: Path) -> None:
    inversion = cnf(without_class_1(), tmp_path, per_class=2, dimacs=True, count=3)
    loaded = interpkit.load_inversion(tmp_path, target=inversion.target)
    assert isinstance(loaded, CnfInversion)
    assert loaded.findings == inversion.findings and loaded.files() == inversion.files()
    assert set(loaded.files()) == {"cnf.json", *(f"class-{k}.cnf" for k in range(3)), "class-0.drat", "class-1.drat"}
    (section,) = loaded.sections()
    assert [row[:4] for row in section.rows] == [
        ("0", "empty", 0, "0"),
        ("1", "empty", 0, "0"),
        ("2", "complete", 2, "3 or more"),
    ]
    report = (tmp_path / "report.html").read_text()
    assert "What the solver found" in report and "3 or more" in report


def test_a_checkpoint_of_another_run_is_refused() -> None:
    hunt = Hunt(target_of(1, hidden=[12]), Recipe(steps=1, device="cpu"), Cnf.Options(), Recorder(1))
    for state in ({"step": 0}, {**hunt.state_dict(), "found": dict.fromkeys(range(3), torch.zeros(1, 4))}):
        with pytest.raises(RunError, match="the checkpoint does not fit its recipe"):
            hunt.load_state_dict(state)


def test_gradient_methods_invert_such_networks_too() -> None:
    target = target_of(1, input_shape=(1, 6, 6), hidden=[20], fan_in=8)
    assert not target.no_gradient
    inversion = invert(target, inverter="pixels", steps=40, device="cpu", options={"pixels.per_class": 2})
    assert (target(inversion.sample(2)[0]).argmax(1) == inversion.sample(2)[1]).float().mean() > 0.5


# ------------------------------------------------------------------------------------------ what is refused


class Backwards(nn.Module):
    """A network whose layers run in another order than they are defined in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = random_net(0, hidden=[10], fan_in=0)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.net(x.flip(1))
        return logits


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(10, 3)), "the layer '0' is of the type Linear, where Binarize is expected"),
        (nn.Linear(10, 3), "its last layer is not Votes"),
        (
            nn.Sequential(*list(random_net(0, hidden=[6]))[:2], nn.ReLU(), nn.Linear(6, 3)),
            "'2' is of the type ReLU, where Th",
        ),
        (
            nn.Sequential(*list(random_net(0, hidden=[6]))[:3], nn.Linear(6, 3)),
            "Linear, where Signs or Votes is expected",
        ),
        (nn.Sequential(random_net(0, hidden=[6]), nn.Softmax(1)), "Softmax, where no further layer is expected"),
        (Backwards(), "are not those of its layers, run one after the other"),
    ],
)
def test_other_networks_are_refused_by_the_layer_that_is_not_known(net: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match="cannot encode") as refusal:
        cnf(wrap(net, (10,), name="net"))
    assert words in str(refusal.value)


def test_labels_that_do_not_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="explains classes that exclude each other"):
        cnf(wrap(random_net(0, hidden=[6]), (10,), output="sigmoid_logits"))


def test_normalized_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match="Do not normalize its inputs"):
        cnf(wrap(random_net(0, hidden=[6]), (10,), mean=3.0, output="logits"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on": [10]}, "has no input 10: cnf.on and cnf.off number them from 0 to 9"),
        ({"on": [1, 2], "off": [2]}, "the inputs [2] are both on and off"),
        ({"memory": 1e-6}, "would not fit the memory: up to"),
        ({"distance": 5, "per_class": 10_000, "memory": 0.1}, "Set cnf.memory=1 "),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpkit_sat.inverter.Encoding", None)  # so that nothing is built
    with pytest.raises(UsageError) as refusal:
        cnf(target_of(0, hidden=[6]), **options)
    assert words in str(refusal.value)


def test_a_missing_solver_is_refused_with_what_to_type() -> None:
    with pytest.raises(UsageError, match="this requires the package nothing: pip install nothing"):
        need("no_such_module", "nothing", "pip install nothing")


def test_cmsgen_samples_where_it_is_installed() -> None:
    pytest.importorskip("pycmsgen")
    target = target_of(1, hidden=[12])
    inversion = cnf(target, per_class=4, sampler="cmsgen")
    assert torch.equal(target(inversion.images).argmax(1), inversion.labels)
    assert len(inversion.images[inversion.labels == inversion.classes[0]].unique(dim=0)) == 4
    formula = Encoding(read(target)).of_class(inversion.classes[0], 1)
    with pytest.raises(Stopped):
        CMSGen(formula, 10).find(0, lambda: False)


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ('"outcome":', '"result":', r"cnf\.json does not hold what was found"),
        ('"class-0.cnf"', "7", r"cnf\.json does not hold what was found"),
        ('"class-0.cnf"', '"../secret"', r"cannot have a file '\.\./secret'"),
        ('"2": {', '"9": {', r"cnf\.json has classes that BinaryNet lacks"),
    ],
)
def test_changed_findings_are_refused(before: str, after: str, match: str, tmp_path: Path) -> None:
    inversion = cnf(without_class_1(), tmp_path / "run", per_class=2, dimacs=True)
    (tmp_path / "secret").write_text("not a file of the run")
    manifest, path = tmp_path / "run" / "manifest.json", tmp_path / "run" / "cnf.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))  # as if somebody had written both
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(RunError, match=match):
        interpkit.load_inversion(tmp_path / "run", target=inversion.target)
