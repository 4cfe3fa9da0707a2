"""`counterfactual`: rows of a table in the user's units, pictures with their difference, and what cannot be changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import counterfactual
from interpkit.cli import app

NAMES = ("petal length", "petal width")


@pytest.fixture
def flowers() -> interpkit.Target:
    """A classifier that answers virginica where the petal is wider than 1.72 and longer than 4."""
    net = nn.Linear(2, 2)
    net.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [0.0, 10.0]]), "bias": torch.tensor([0.0, -17.2])})
    ranges = [(1.0, 7.0), (0.0, 2.5)]
    return interpkit.wrap(net, input_shape=(2,), input_range=ranges, class_names=["versicolor", "virginica"])


def table(folder: Path, *rows: str) -> Path:
    (folder / "rows.csv").write_text("\n".join([f"{','.join(NAMES)},species", *rows, ""]))
    return folder / "rows.csv"


def test_rows_change_in_their_own_units_by_their_last_decimal_place(flowers: interpkit.Target, tmp_path: Path) -> None:
    rows = table(tmp_path, "5.1,1.60,versicolor", "6.0,2.15,virginica")
    result = counterfactual(flowers, rows, device="cpu")
    assert isinstance(result, interpkit.Counterfactuals)
    assert [result.changes(row) for row in (0, 1)] == [{"petal width": (1.6, 1.73)}, {"petal width": (2.15, 1.71)}]
    assert [row["after"] for row in result.rows()] == ["virginica", "versicolor"]


def test_values_keep_all_the_digits_of_their_column(tmp_path: Path) -> None:
    net = nn.Linear(1, 2)
    net.load_state_dict({"weight": torch.tensor([[0.0], [1e-3]]), "bias": torch.tensor([0.0, -1000.2365])})
    target = interpkit.wrap(net, input_shape=(1,), input_range=(1e6, 1e6 + 1000), class_names=["low", "high"])
    (tmp_path / "rows.csv").write_text("meters,class\n1000234,low\n")
    changed = counterfactual(target, tmp_path / "rows.csv", device="cpu")
    assert isinstance(changed, interpkit.Counterfactuals) and changed.changes(0)["meters"][0] == 1000234
    assert changed.changes(0)["meters"][1] % 1 == 0 and changed.changes(0)["meters"][1] > 1000234


def test_images_between_the_levels_of_8_bits_are_rounded_first(tiny_model: Path) -> None:
    target = interpkit.load_target(tiny_model)
    given = torch.rand(2, *target.input_shape)
    result = counterfactual(target, given, device="cpu")
    for images in (result.given, result.free.images):
        assert torch.allclose(images * 255, (images * 255).round(), atol=1e-3)


def test_a_row_outside_the_range_and_one_of_the_class_are_said(flowers: interpkit.Target, tmp_path: Path) -> None:
    rows = table(tmp_path, "9.5,1.6,versicolor", "6.0,2.1,virginica")
    found = counterfactual(flowers, rows, "virginica", device="cpu")
    assert found.free.reasons[0].startswith("petal length is 9.5, outside the input range 1 to 7;")
    assert found.free.reasons[1] == "the target classifies it as 'virginica' already"


def test_whole_numbers_may_be_categories(
    flowers: interpkit.Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counterfactual(flowers, table(tmp_path, "5,1.6,versicolor"), device="cpu")
    assert "the columns petal length hold whole numbers and change by whole steps" in caplog.text


def test_a_fixed_column_keeps_its_value_and_must_exist(flowers: interpkit.Target, tmp_path: Path) -> None:
    rows = table(tmp_path, "5.1,1.6,versicolor")
    result = counterfactual(flowers, rows, fixed=["petal width"], device="cpu")
    assert result.free.reasons == {0: "no input of another class was found within the bounds"}
    with pytest.raises(interpkit.UsageError, match=r"no column 'petal'\. Did you mean 'petal"):
        counterfactual(flowers, rows, fixed=["petal"], device="cpu")


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["counterfactual", *map(str, arguments)])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = (torch.rand(12, 12) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_photo_gets_another_class_and_a_report(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, "--images", photo, "--out", tmp_path / "out", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["counterfactuals"]
    assert row["before"] != row["after"] and row["distance"] > 0
    assert (tmp_path / "out" / "counterfactual.png").stat().st_size > 100
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("data:image") >= 3


def test_a_run_of_a_generator_adds_its_nearest_sample(finished_run: Path, photo: Path) -> None:
    result = cli(finished_run, "--images", photo, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["counterfactuals"]
    assert "after" in row and ("along_after" in row or "along_reason" in row)


def test_if_nothing_is_found_the_command_fails_and_says_why(tiny_model: Path, photo: Path) -> None:
    before = json.loads(cli(tiny_model, "--images", photo, "--json", "--device", "cpu").stdout)
    name = before["counterfactuals"][0]["before"]
    result = cli(tiny_model, "--images", photo, "--to", name, "--device", "cpu")
    assert result.exit_code == 2 and "already" in " ".join(result.stderr.split())
    assert cli(tiny_model, "--images", photo, "--to", "no such class").exit_code == 2
