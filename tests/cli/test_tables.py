"""Tables of any names and widths: a figure is whole, and nothing is left out."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from interpkit.cli import console, tables
from interpkit.cli.figures import table_of_classes

SHARK = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"
SPANIEL = "English springer, English springer spaniel"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(monkeypatch)


class Shown:
    """Prints a table at a width; returns its lines, as lists of cells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, table: Table, width: int, *, terminal: bool = False) -> list[list[str]]:
        stream = io.StringIO()
        self.monkeypatch.setattr(console.out, "_file", stream)
        self.monkeypatch.setattr(console.out, "_width", width)
        self.monkeypatch.setattr(console.out, "_force_terminal", terminal)
        tables.show(table)
        self.widest = max(map(len, stream.getvalue().splitlines()))
        lines = [line for line in stream.getvalue().splitlines() if line[:1] in "┃│"]
        return [[cell.strip() for cell in line.replace("┃", "│")[1:-1].split("│")] for line in lines]


@pytest.mark.parametrize(
    "names",
    [(SHARK, "tench"), (SPANIEL, SPANIEL), ("Fi" * 100, "界" * 60)],
    ids=["sharks", "spaniels", "no spaces"],
)
def test_long_names_fold_and_figures_do_not(shown: Shown, names: tuple[str, str]) -> None:
    rows = [
        {"label": label, "name": name, "count": 100, "inversion_accuracy": 0.5, "confidence": 0.25}
        for label, name in enumerate(names)
    ]
    table = table_of_classes({"per_class": rows})
    assert table is not None
    for width in (80, 48):
        lines = shown(table, width)
        assert shown.widest <= width
        assert lines[0] == ["class", "n", "acc.", "conf."]
        assert [line[1:] for line in lines[1:] if line[1]] == [["100", "0.50", "0.25"]] * 2
        assert "".join(line[0] for line in lines[1:]).replace(" ", "").startswith(names[0].replace(" ", ""))


def many(columns: int) -> Table:
    table = Table("", *tables.figures(*(f"mnist_bn-vecmat-robust-{number}" for number in range(columns))))
    table.add_row("diversity.vendi_features", *(f"{number}.12345" for number in range(columns)))
    return table


def test_columns_that_do_not_fit_follow_in_a_terminal_and_make_longer_lines_elsewhere(shown: Shown) -> None:
    lines = shown(many(8), 80, terminal=True)
    assert shown.widest <= 80
    assert [cell for line in lines for cell in line if "." in cell[:2]] == [f"{number}.12345" for number in range(8)]
    assert len([line for line in lines if "diversity" in line[0]]) > 1
    lines = shown(many(8), 80)
    assert shown.widest > 80
    assert [line[1:] for line in lines if "diversity" in line[0]] == [[f"{number}.12345" for number in range(8)]]


def test_a_table_that_fits_is_as_wide_as_its_cells(shown: Shown) -> None:
    assert len(shown(many(1), 80)) == len(shown(many(1), 80, terminal=True)) == 2
    assert shown.widest == 24 + 24 + 7
    assert shown(Table("concept", "strongest in"), 80) == [["concept", "strongest in"]]
