"""`counterfactual`: rows of a table in the user's units, pictures with their difference, and what cannot be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Counterfactuals, counterfactual
from interpkit.cli import app
from interpkit.inversion.nearest import Nearest

NAMES = ("petal length", "petal width")


@pytest.fixture
def flowers() -> interpkit.Target:
    """A classifier that answers virginica where the petal is wider than 1.72 and longer than 4."""
    net = nn.Linear(2, 2)
    net.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [0.0, 10.0]]), "bias": torch.tensor([0.0, -17.2])})
    ranges = [(1.0, 7.0), (0.0, 2.5)]
    return interpkit.wrap(net, input_shape=(2,), input_range=ranges, class_names=["versicolor", "virginica"])


def test_a_picture_of_an_earlier_result_does_not_stay_beside_one_without(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].load_state_dict({"weight": torch.tensor([[0.0] * 4, [1.0] * 4]), "bias": torch.tensor([0.0, -2.0])})
    target = interpkit.wrap(net, input_shape=(1, 2, 2))
    counterfactual(target, torch.full((1, 1, 2, 2), 0.4), out=tmp_path, device="cpu")
    assert (tmp_path / "counterfactual.png").exists()
    with torch.no_grad():
        net[1].bias[1] = -9.0
    counterfactual(target, torch.full((1, 1, 2, 2), 0.4), out=tmp_path, device="cpu")
    assert not (tmp_path / "counterfactual.png").exists() and (tmp_path / "report.html").exists()


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


def test_the_given_rows_stay_as_they_were_when_the_tensor_changes_later(flowers: interpkit.Target) -> None:
    rows = torch.tensor([[0.7, 0.64], [0.8, 0.86]])
    result = counterfactual(flowers, rows, device="cpu")
    were = rows.clone()
    rows.zero_()
    assert torch.equal(result.given, were)


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


def test_with_fixed_columns_there_is_no_result_along_a_generator(
    flowers: interpkit.Target, caplog: pytest.LogCaptureFixture
) -> None:
    inversion = interpkit.invert(flowers, ["vecmat"], steps=2, batch_size=16, device="cpu")
    caplog.clear()
    rows = torch.tensor([[0.5, 0.6]])
    assert counterfactual(inversion, rows, device="cpu").along is not None and not caplog.messages
    result = counterfactual(inversion, rows, fixed=[0], device="cpu")
    assert result.along is None and result.changes(0).keys() == {"1"}
    assert "the samples of a generator do not keep columns" in caplog.text


def test_a_result_keeps_its_own_copy_of_the_inputs(flowers: interpkit.Target) -> None:
    rows = torch.tensor([[0.5, 0.6]])
    result = counterfactual(flowers, rows, device="cpu")
    before = result.changes(0)
    rows.zero_()
    assert result.changes(0) == before and result.given.tolist() == [pytest.approx([0.5, 0.6])]


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


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, list[np.ndarray]], str, str]:
    """Draw two color images: of the first, a free result and one along a generator; of the second, only a free one.

    In the free results the first pixel's red rises as its green falls. Return the pictures by title, the caption and
    the page.
    """
    from interpkit.report import counterfactual as report

    given, titled, captions = torch.full((2, 3, 4, 4), 0.5), {}, []
    changed = given.clone()
    changed[:, 0, 0, 0], changed[:, 1, 0, 0] = 0.75, 0.25
    before, nothing = torch.zeros(2, dtype=torch.long), torch.zeros_like(given)
    free = Nearest(changed, before, before + 1, torch.full((2,), 0.4), changed, nothing, {})
    rest = (torch.tensor([2, 0]), torch.tensor([0.5, torch.inf]), given, nothing, {1: "no sample was found"})
    along = Nearest(torch.cat([torch.ones(1, 3, 4, 4), given[1:]]), before, *rest)
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (3, 4, 4), class_names=["cat", "dog", "owl"])

    def save_panel(rows: list[tuple[str, list[Image.Image]]], caption: str, path: Path) -> None:
        titled.update({title: [np.array(picture) for picture in pictures] for title, pictures in rows})
        captions.append(caption)

    monkeypatch.setattr(report, "save_panel", save_panel)
    rows = Counterfactuals(target, given, free, along, []).rows()
    report.write_counterfactuals(target, given, free, along, rows, tmp_path)
    return titled, captions[0], (tmp_path / report.PAGE).read_text("utf-8")


def test_a_row_of_pictures_names_the_answers_of_both_results(drawn: Any) -> None:
    assert list(drawn[0]) == ["0: cat → dog, owl", "1: cat → dog"]


def test_a_result_that_was_not_found_is_a_white_tile(drawn: Any) -> None:
    first, second = drawn[0].values()
    assert [(picture == 255).all() for picture in second] == [False, False, False, True, True]
    assert (first[3] == 255).all() and not (first[4] == 255).all()  # its result is a white image, found
    assert "(white: none found)" in drawn[1]


def test_the_difference_of_a_color_image_is_that_of_the_channel_that_changes_most(drawn: Any) -> None:
    red, _, blue = drawn[0]["1: cat → dog"][2][0, 0].astype(int)  # red rises by as much as green falls
    assert red > blue + 50 and (drawn[0]["1: cat → dog"][2][1:] == 255).all()
    assert "blue is less, of the channel that changes most" in drawn[1] and "of the channel that changes" in drawn[2]


def test_a_label_that_is_asked_for_of_several_was_absent_before() -> None:
    net = nn.Linear(2, 2)
    net.load_state_dict({"weight": 10 * torch.eye(2), "bias": torch.tensor([-5.0, -5.0])})
    target = interpkit.wrap(net, (2,), output="sigmoid_logits", class_names=["cat", "dog"])
    rows = counterfactual(target, torch.tensor([[0.2, 0.9], [0.9, 0.1]]), "cat", device="cpu").rows()
    assert (rows[0]["before"], rows[0]["after"]) == ("not cat", "cat")
    assert rows[1]["before"] == "" and "already" in rows[1]["reason"]


def test_if_nothing_is_found_the_command_fails_and_says_why(tiny_model: Path, photo: Path) -> None:
    before = json.loads(cli(tiny_model, "--images", photo, "--json", "--device", "cpu").stdout)
    name = before["counterfactuals"][0]["before"]
    result = cli(tiny_model, "--images", photo, "--to", name, "--device", "cpu")
    assert result.exit_code == 2 and "already" in " ".join(result.stderr.split())
    assert cli(tiny_model, "--images", photo, "--to", "no such class").exit_code == 2
