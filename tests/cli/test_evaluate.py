"""``interpkit evaluate`` and ``interpkit compare``: tables on stdout, notes on stderr, exit codes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app, console
from interpkit.cli.figures import class_titles, table_of_classes
from interpkit.evaluation.flatten import flattened
from interpkit.io.datasets import load_data

MakeModel = Callable[..., Path]


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(code: int, words: str, *arguments: str | Path) -> None:
    """Run the command line; it must end with the code and one readable message that has the words."""
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, f"{result.exit_code}: {result.output}"
    assert result.stdout == ""
    assert re.search(words, message), message
    assert message.count("error:") == 1 and "Traceback" not in message and "fault of interpkit" not in message


def write_data(path: Path, count: int = 60, side: int = 12, classes: int = 3, seed: int = 0) -> Path:
    """Write random gray images as test and training split."""
    rng = np.random.default_rng(seed)
    splits = {
        f"{letter}_{split}": array
        for split in ("test", "train")
        for letter, array in (
            ("x", rng.integers(0, 256, (count, side, side), dtype=np.uint8)),
            ("y", np.arange(count) % classes),
        )
    }
    np.savez(path, **splits)
    return path


@pytest.fixture
def judge(tmp_path: Path, make_model: MakeModel) -> Path:
    return make_model(tmp_path / "judge.safetensors", seed=9)


# -------------------------------------------------------------------------------------------- evaluate


def test_everything_is_measured_shown_and_written(run_copy: Path, tmp_path: Path, judge: Path) -> None:
    data = write_data(tmp_path / "data.npz")
    flags = ["--evaluator", judge, "--reference", data, "--training", f"{data}:train"]
    result = cli("evaluate", run_copy, *flags, "--set", "robustness.samples=9", "--set", "robustness.radius=0.5,1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(run_copy / "metrics.json")
    metrics = json.loads((run_copy / "metrics.json").read_text())
    assert {"schema", "kl", "diversity", "evaluators", "reference", "memorisation", "robustness"} <= set(metrics)
    assert list(metrics["robustness"]["pgd"]) == ["0.5", "1"] and metrics["robustness"]["count"] == 9
    plain = result.stdout.replace("\n", "")
    for words in ("evaluators.judge.agreement", "diversity.vendi_pooled", "class 2", "reference.excess_vendi"):
        assert words in plain
    shown = flattened(metrics)["evaluators.judge.agreement"]
    assert f"{shown.value:.4g}" in plain and "{:.3f} to {:.3f}".format(*shown.interval or (0, 0)) in plain
    assert "warning: Low variety" in result.stderr  # after 12 steps it is
    assert "Low variety" not in result.stdout


def test_canaries_are_ranked_among_the_reference(run_copy: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz")
    few = write_data(tmp_path / "few.npz", count=3, seed=1)
    flags = ["--reference", data, "--metric", "canaries"]
    result = cli("evaluate", run_copy, "--canaries", few, *flags, "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["canaries"]["count"] == 3 and metrics["canaries"]["decoys"] == 20
    assert metrics["measured_on"]["canaries"] == str(few)
    absent = cli("evaluate", run_copy, "--canaries", few, *flags, "--training", f"{data}:train", "--json")
    assert "canaries is left out: 3 of 3 canaries are not among the training images" in absent.stderr.replace("\n", " ")
    fails(2, "the metric 'canaries' needs canaries: add --canaries DATA", "evaluate", run_copy, *flags)
    fails(2, "canaries are compared with held-out ones: add --reference", "evaluate", run_copy, "--canaries", few)
    other = write_data(tmp_path / "other.npz", side=9)
    fails(2, "9 x 9|9, 9", "evaluate", run_copy, "--canaries", other, *flags)


def test_json_alone_goes_to_stdout(run_copy: Path) -> None:
    result = cli("evaluate", run_copy, "--metric", "diversity", "--json")
    assert json.loads(result.stdout) == json.loads((run_copy / "metrics.json").read_text())
    assert "robustness" not in json.loads(result.stdout)


def test_what_is_left_out_is_reported(run_copy: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", count=20, classes=2)
    result = cli("evaluate", run_copy, "--reference", data, "--metric", "reference")
    assert result.exit_code == 0
    told = " ".join(result.stderr.split())
    assert "reference.per_class is left out: it takes 10 images of a class" in told
    assert "2 (class 2: 100 samples, 0 reference)" in told
    assert "reference.kid is left out: it takes 50" in told
    few = write_data(tmp_path / "few.npz", count=9)
    result = cli("evaluate", run_copy, "--reference", few, "--metric", "reference")
    assert result.exit_code == 0
    assert "reference is left out: it takes 10" in " ".join(result.stderr.split())
    assert "reference" not in json.loads((run_copy / "metrics.json").read_text())  # nor the older figures


def test_an_evaluator_that_disagrees_gives_a_warning(run_copy: Path, judge: Path) -> None:
    result = cli("evaluate", run_copy, "--evaluator", judge, "--metric", "agreement", "--json")
    agreement = json.loads(result.stdout)["evaluators"][0]["agreement"]
    assert ("The evaluator judge agrees on" in result.stderr) == (agreement < 0.5)


def test_evaluators_that_cannot_judge_are_refused(run_copy: Path, tmp_path: Path, make_model: MakeModel) -> None:
    four = make_model(tmp_path / "four.safetensors", num_classes=4)
    renamed = interpkit.load_target(four, class_names=list("abcd"))
    with pytest.raises(interpkit.UsageError, match=r"four has 4 classes, a, b, c, d; tiny has 3, .*names in common"):
        interpkit.evaluate(run_copy, evaluators=[renamed])
    fails(3, "there is no file", "evaluate", run_copy, "--evaluator", tmp_path / "none.safetensors")
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(b"not a classifier")
    fails(3, "bare", "evaluate", run_copy, "--evaluator", bare)


@pytest.mark.parametrize(
    ("data", "words"),
    [({"side": 8}, r"shape \(1, 8, 8\).*takes \(1, 12, 12\)"), ({"classes": 4}, "the label 3;.*0 to 2")],
)
def test_reference_data_that_does_not_fit_is_refused(
    run_copy: Path, tmp_path: Path, data: dict[str, Any], words: str
) -> None:
    before = (run_copy / "metrics.json").read_bytes()
    fails(2, words, "evaluate", run_copy, "--reference", write_data(tmp_path / "data.npz", **data))
    assert (run_copy / "metrics.json").read_bytes() == before


def test_wrong_options_of_evaluate_are_refused(run_copy: Path, tmp_path: Path) -> None:
    fails(2, "no metric 'diversty'.*Did you mean 'diversity'", "evaluate", run_copy, "--metric", "diversty")
    fails(2, "'reference' needs reference: add --reference DATA", "evaluate", run_copy, "--metric", "reference")
    fails(2, "has no option 'pol'.*Did you mean 'pool'", "evaluate", run_copy, "--set", "diversity.pol=2")
    fails(2, "pool = 0 is not valid", "evaluate", run_copy, "--set", "diversity.pool=0")
    fails(2, "held-out ones: add --reference", "evaluate", run_copy, "--training", write_data(tmp_path / "d.npz"))
    fails(1, "is not a run folder", "evaluate", tmp_path)
    fails(2, "'reference' is not measured here: add --reference DATA", "evaluate", run_copy, "--set", "reference.k=2")
    diversity = ["evaluate", run_copy, "--metric", "diversity"]
    fails(2, "'robustness' is not measured here: add --metric", *diversity, "--set", "robustness.steps=2")
    data = write_data(tmp_path / "d.npz")
    fails(2, "k = 9 of 4 images", "evaluate", run_copy, "--reference", data, *set_("k=9", "samples=4"))
    fails(2, "k = 5 of 3 images", "evaluate", run_copy, "--reference", data, *set_("references=3"))


def set_(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", f"reference.{value}")]


@pytest.mark.parametrize("dtype", ["u1", ">f4", "<f2", "f8", "g", "?"])
def test_images_of_any_numbers_are_read(tmp_path: Path, dtype: str) -> None:
    bright = np.ones((4, 12, 12)) * (255 if dtype == "u1" else 1)
    np.savez(tmp_path / "DATA.NPZ.npz", images=bright.astype(dtype), labels=np.array([0, 1, 2, 0], ">i2"))
    data = load_data(str((tmp_path / "DATA.NPZ.npz").rename(tmp_path / "DATA.NPZ")), (1, 12, 12))
    assert data.images.shape == (4, 1, 12, 12) and (data.images == 1).all() and data.labels.tolist() == [0, 1, 2, 0]


def test_vectors_of_8_bits_are_as_they_stand_in_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.array([[0, 3], [255, 4]], np.uint8), labels=np.array([0, 1]))
    assert load_data(str(tmp_path / "data.npz"), (2,)).images.tolist() == [[0, 3], [255, 4]]


def test_a_file_that_is_not_reference_data_is_refused(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str, spec: str | Path) -> None:
        fails(2, words, "evaluate", run_copy, "--reference", spec)

    whole = write_data(tmp_path / "whole.npz")
    (tmp_path / "torn.npz").write_bytes(whole.read_bytes()[:5000])
    refused("torn.npz is not a complete .npz", tmp_path / "torn.npz")
    np.save(tmp_path / "one.npy", np.zeros((4, 12, 12)))
    refused("one.npz is not a complete .npz", (tmp_path / "one.npy").rename(tmp_path / "one.npz"))
    np.savez(tmp_path / "huge.npz", images=np.full((3, 12, 12), 1e300), labels=np.arange(3))
    refused("from inf to inf", tmp_path / "huge.npz")
    refused(r"error: \S*whole.npz has x_test, .*; it needs x_valid and y_valid", f"{whole}:valid")
    refused("'' is not reference data", "")
    digits = tmp_path / "folder" / "²"
    digits.mkdir(parents=True)
    refused("no class is named", digits.parent)
    monkeypatch.setattr("interpkit.io.datasets.MAX_BYTES", 60 * 144)
    refused("whole.npz has more images than interpkit reads into memory", whole)
    monkeypatch.undo()
    monkeypatch.setattr("interpkit.io.datasets.MAX_NUMBERS", 60 * 144 - 1)
    refused("whole.npz has more images than interpkit reads into memory", whole)
    for number in range(2):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        Image.new("L", (12, 12)).save(tmp_path / "many" / str(number) / "0.png")
    monkeypatch.setattr("interpkit.io.datasets.MAX_NUMBERS", 2 * 144 - 1)
    refused("many has more images than interpkit reads into memory", tmp_path / "many")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 1, "per_class": 5}', "is not in interpkit's format"),
        ('{"schema": 1, "per_class": [1]}', "is not in interpkit's format"),
        ('{"schema": 1, "per_class": [{}]}', "is not in interpkit's format"),
        ('{"schema": 1, "evaluators": ["a"]}', "is not in interpkit's format"),
        ('{"schema": 1, "left_out": "a"}', "is not in interpkit's format"),
        ('{"schema": 1, "count": NaN}', "NaN is not JSON"),
        ('{"schema": 2}', "schema 2; this interpkit reads 1"),
        ('{"schema": 1, "cou', "cannot be read"),
    ],
)
def test_an_invalid_metrics_file_is_refused_with_a_remedy_that_works(run_copy: Path, content: str, words: str) -> None:
    (run_copy / "metrics.json").write_text(content)
    fails(1, words, "evaluate", run_copy, "--metric", "diversity")
    fails(1, words, "compare", run_copy, run_copy)
    (run_copy / "metrics.json").write_text('{"schema": 1}')
    assert cli("evaluate", run_copy, "--metric", "diversity").exit_code == 0
    assert cli("compare", run_copy, run_copy).exit_code == 0


def test_a_method_that_does_not_fit_is_reported(tiny_model: Path, tmp_path: Path) -> None:
    dry = ["invert", tiny_model, "--dry-run", "--inverter"]
    result = cli(*dry, "pixel")
    assert result.exit_code == 2 and "no inverter 'pixel'. Did you mean 'pixels'?" in result.stderr
    result = cli(*dry, "pixels", "--generators", "2")
    assert result.exit_code == 2 and "'pixels' trains no generator: leave --generators out" in result.stderr


def test_an_unfinished_run_is_reported(run_copy: Path, tmp_path: Path) -> None:
    samples = run_copy / "samples.safetensors"
    samples.write_bytes(samples.read_bytes()[:-100])
    fails(1, "not a complete safetensors file", "evaluate", run_copy)
    samples.unlink()
    fails(1, "samples.safetensors: the run was not finished", "evaluate", run_copy)
    (run_copy / "metrics.json").unlink()
    fails(1, "has no metrics.json", "evaluate", run_copy)


def test_a_moved_classifier_is_named_by_model(run_copy: Path, tmp_path: Path, tiny_model: Path) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["model"]["path"] = str(tmp_path / "gone.safetensors")
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    fails(3, "gone.safetensors", "evaluate", run_copy, "--metric", "diversity")
    assert cli("evaluate", run_copy, "--metric", "diversity", "--model", tiny_model).exit_code == 0


def test_metrics_are_known_to_the_plugins_commands() -> None:
    listed = json.loads(cli("plugins", "list", "--json").stdout)
    provides = {plugin["name"]: plugin["provides"] for plugin in listed}
    assert set(provides["metrics"]["metric"]) == {
        "diversity",
        "agreement",
        "reference",
        "memorisation",
        "canaries",
        "student",
        "calibration",
        "ood",
    }
    assert provides["robust"]["metric"] == ["robustness"]
    shown = " ".join(cli("plugins", "show", "memorisation").stdout.split())
    assert "from the plugin metrics" in shown and "memorisation.images" in shown


# --------------------------------------------------------------------------------------------- compare


def test_runs_are_laid_side_by_side(run_copy: Path, finished_run: Path) -> None:
    assert cli("evaluate", run_copy, "--metric", "robustness", "--set", "robustness.samples=6").exit_code == 0
    result = cli("compare", finished_run, run_copy)
    assert result.exit_code == 0 and result.stderr == ""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    table = {cells[0]: cells[1:] for cells in lines}
    metrics = json.loads((run_copy / "metrics.json").read_text())
    assert table["inversion_accuracy"] == [f"{metrics['inversion_accuracy']:.4g}"] * 2
    assert table["robustness.count"] == ["-", "6"]
    assert not any("per_class" in name or "left_out" in name or "interval" in name for name in table)
    assert "finished" in result.stdout and "run-copy" in result.stdout


def test_a_run_of_an_earlier_version_lacks_digests_which_makes_no_difference(
    tmp_path: Path, tiny_target: interpkit.Target, quick: Callable[..., dict[str, Any]]
) -> None:
    runs = []
    for name in ("now", "then"):
        run = interpkit.invert(tiny_target, out=tmp_path / name, **quick(steps=2)) and tmp_path / name
        for file, place, digest in (
            ("metrics.json", "measured_on", "reference.sha256"),
            ("manifest.json", "model", "sha256"),
        ):
            content = json.loads((run / file).read_text())
            content[place] = {**content.get(place, {}), "name": "m", digest: "ab" if name == "now" else None}
            if name == "then" and file == "metrics.json":
                del content[place][digest]
            (run / file).write_text(json.dumps(content))
        runs.append(run)
    assert cli("compare", *runs).stderr == ""


def test_runs_of_different_classifiers_give_a_note(
    run_copy: Path, tmp_path: Path, make_model: MakeModel, quick: Callable[..., dict[str, Any]]
) -> None:
    interpkit.invert(make_model(tmp_path / "other.safetensors", seed=4), out=tmp_path / "b", **quick(steps=2))
    result = cli("compare", run_copy, tmp_path / "b", "--json")
    rows = json.loads(result.stdout)
    assert [row["model"] for row in rows] == ["tiny", "other"]
    assert [row["run"] for row in rows] == [str(run_copy), str(tmp_path / "b")]
    assert rows[0]["metrics"]["count"] == 300
    assert "different classifiers" in result.stderr and "tiny" in result.stderr and "other" in result.stderr


def test_runs_with_the_same_name_are_told_apart_by_their_paths(finished_run: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(finished_run, tmp_path / place / "r")
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a/r"), str(tmp_path / "b/r")], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    assert "a/r" in result.stdout.replace("\n", "") and "b/r" in result.stdout.replace("\n", "")


def test_compare_takes_two_runs(run_copy: Path, tmp_path: Path) -> None:
    fails(2, "at least two runs", "compare", run_copy)
    fails(1, "is not a run folder", "compare", run_copy, tmp_path)


# ----------------------------------------------------------------------------------------------- tables


def test_figures_are_named_by_their_place() -> None:
    figures = flattened(
        {
            "schema": 1,
            "count": 7,
            "a": {"share": 0.5, "share_interval": [0.25, 0.75], "b": {"x": 1.5}},
            "evaluators": [{"name": "j", "agreement": 0.25}],
            "per_class": [{"count": 3}],
            "left_out": {"a.c": "why"},
        }
    )
    assert {name: figure.value for name, figure in figures.items()} == {
        "count": 7,
        "a.share": 0.5,
        "a.b.x": 1.5,
        "evaluators.j.agreement": 0.25,
    }
    assert figures["a.share"].interval == (0.25, 0.75) and figures["count"].interval is None
    assert [str(figures[name]) for name in ("count", "a.b.x")] == ["7", "1.5"]


def test_the_command_that_rewrites_the_report_can_be_pasted(run_copy: Path, tmp_path: Path, tiny_model: Path) -> None:
    run, plug = tmp_path / "my runs [x]", tmp_path / "own plug.py"
    run_copy.rename(run)
    plug.write_text("INTERPKIT_INTERFACE = 1\n")
    result = cli("evaluate", run, "--metric", "diversity", "--model", tiny_model, "--plugin", plug, "--trust")
    line = next(line for line in result.stderr.splitlines() if "report.html is older" in line)
    again = shlex.split(line.partition("rewrite it: ")[2])
    assert again[1:] == ["report", str(run), "--model", str(tiny_model), "--trust", "--plugin", str(plug)]
    assert cli(*again[1:]).exit_code == 0


def test_classes_of_the_same_name_are_told_apart_by_their_number() -> None:
    rows = [{"label": 3, "name": "crane"}, {"label": 5, "name": "cat"}, {"label": 7, "name": "crane"}]
    assert class_titles(rows) == ["crane (3)", "cat", "crane (7)"]


def test_classes_that_are_worse_than_others_are_named_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"label": label, "name": "crane", "inversion_accuracy": 1.0 - 0.5 * (label == 1)} for label in range(3)]
    console.print_worst({"per_class": rows})
    assert capsys.readouterr().out == "Look first at class crane (1): 50% not classified as it.\n"


def test_a_table_of_classes_has_what_any_class_has() -> None:
    rows = [
        {"name": "a", "count": 1000, "inversion_accuracy": 0.5},
        {"name": "b", "count": 2, "inversion_accuracy": 1.0, "diversity": {"duplicates": 0.125}},
    ]
    table = table_of_classes({"per_class": rows})
    assert table is not None
    assert [column.header for column in table.columns] == ["class", "n", "acc.", "dupl."]
    assert [list(column.cells) for column in table.columns] == [
        ["a", "b"],
        ["1,000", "2"],
        ["0.50", "1.00"],
        ["-", "0.12"],
    ]
    assert table_of_classes({"per_class": rows * 11}) is None


def test_invert_tells_of_low_variety_on_stderr(tiny_model: Path, tmp_path: Path, quick_flags: list[str]) -> None:
    result = cli("invert", tiny_model, *quick_flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "warning: Low variety: the samples of" in result.stderr
    assert "the target's own opinion" in result.stdout and "Low variety" not in result.stdout


def test_runs_measured_on_different_data_give_a_note(run_copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_copy, other)
    for folder, on in ((run_copy, "a.npz"), (other, "b.npz")):
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"measured_on": {"reference": on}}))
    result = cli("compare", run_copy, other)
    assert result.exit_code == 0
    assert "different data" in result.stderr and "a.npz" in result.stderr and "b.npz" in result.stderr
    assert "measured_on" not in result.stdout
