"""Files of predictions: their formats, and rows that are not distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from interpkit.errors import UsageError
from interpkit.io.predictions import load_predictions, log_probabilities

ROWS = np.array([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savez(tmp_path / "b.npz", images=np.zeros(3), probabilities=ROWS)
    safetensors.numpy.save_file({"anything": ROWS}, tmp_path / "c.safetensors")
    np.savetxt(tmp_path / "d.csv", ROWS, delimiter=",", header="cat,dog,fox", comments="")
    np.savetxt(tmp_path / "e.csv", ROWS, delimiter=",")  # no header
    for file in sorted(tmp_path.iterdir()):
        assert load_predictions(file).tolist() == ROWS.tolist(), file


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0,1,2\n0.5,0.25,0.25\n", [[0.5, 0.25, 0.25]]),  # names, as pandas writes them
        ("0,1\n0.5,0.5\n", [[0.5, 0.5]]),
        ("0,1\n1,0\n", [[0, 1], [1, 0]]),  # answers
        ("dog,fox,cat\n0.5,0.3,0.2\n", [[0.2, 0.5, 0.3]]),  # in another order
        ("one,two,three\n0.5,0.3,0.2\n", [[0.5, 0.3, 0.2]]),  # names of others
        ("crane,crane,cat\n0.5,0.3,0.2\n", [[0.5, 0.3, 0.2]]),
    ],
)
def test_the_first_line_of_a_table_may_name_the_classes(text: str, rows: list[list[float]], tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    assert load_predictions(tmp_path / "p.csv", ["cat", "dog", "fox"]).tolist() == rows


def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    with pytest.raises(UsageError, match="has a, b; call the array of predictions 'predictions'"):
        load_predictions(tmp_path / "two.npz")
    with pytest.raises(UsageError, match="there is no file"):
        load_predictions(tmp_path / "none.npy")
    with pytest.raises(UsageError, match=r"not a file of predictions: pass one of \.npy"):
        load_predictions(Path(__file__))
    np.save(tmp_path / "code.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read as predictions"):
        load_predictions(tmp_path / "code.npy")
    (tmp_path / "words.csv").write_text("a,b\none,two\n")
    with pytest.raises(UsageError, match="cannot be read as predictions"):
        load_predictions(tmp_path / "words.csv")


def test_probabilities_and_logits_of_the_same_answer_are_the_same() -> None:
    given = torch.tensor([[0.7, 0.2, 0.1]])
    expected = given.log()
    torch.testing.assert_close(log_probabilities(given, 3, "p"), expected)
    torch.testing.assert_close(log_probabilities(given.log() + 4, 3, "p", logits=True), expected)
    rounded = log_probabilities(torch.tensor([[0.7, 0.2, 0.097]]), 3, "p")
    torch.testing.assert_close(rounded.exp().sum(1), torch.ones(1))


@pytest.mark.parametrize(
    ("rows", "logits", "words"),
    [
        ([[4.0, -1.0, 0.3]], False, r"from -1 to 4, which are not probabilities.*add logits=True"),
        ([[0.5, 0.5, 0.0], [0.2, 0.3, 0.1]], False, r"not a distribution in row 1, whose sum is 0\.6"),
        ([[0.5, 0.5, 0.0]], True, "already holds probabilities: leave logits out"),
        ([[0.5, 0.5]], False, r"shape \(1, 2\); the classifier has 3 classes"),
        ([[0.5, float("nan"), 0.5]], False, "values that are not finite"),
    ],
)
def test_rows_that_are_not_distributions_are_refused(rows: list[list[float]], logits: bool, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        log_probabilities(torch.tensor(rows), 3, "answers.npy", logits=logits)
