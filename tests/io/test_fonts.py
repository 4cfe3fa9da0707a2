"""Class names in pictures are legible in any script."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import ImageFont

from interpkit.io import fonts
from interpkit.io.images import grid

NAMES = ["naïve", "näive", "σκύλος", "собака", "кошка", "Łódź"]


def test_names_in_other_alphabets_are_drawn_unchanged() -> None:
    assert [fonts.legible(name, 3)[0] for name in NAMES] == NAMES
    image, label = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])
    drawn = [grid(image, label, [name]).tobytes() for name in NAMES]
    assert all(a != b for a, b in combinations(drawn, 2))


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    fonts.font_for.cache_clear()
    return found


def test_a_name_without_a_font_is_escaped_after_its_number(no_system_fonts: list[str]) -> None:
    assert fonts.legible("猫", 7)[0] == "7: \\u732b"
    assert fonts.legible("猫")[0] == "\\u732b"
    assert len(fonts.legible("猫犬鳥馬" * 9, 7)[0]) == 18
    image, label = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])
    assert grid(image, label, ["猫"]).tobytes() != grid(image, label, ["犬"]).tobytes()


def test_a_system_font_is_used_if_it_has_the_characters(
    no_system_fonts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-torn.ttf").write_bytes(b"torn")
    other = tmp_path / "b.ttf"
    other.write_bytes(fonts.USUAL.read_bytes())
    no_system_fonts += [str(tmp_path / "a-torn.ttf"), str(other)]
    characters = fonts._characters
    monkeypatch.setattr(fonts, "_characters", lambda path: characters(path) | ({ord("猫")} if path == other else set()))
    text, font = fonts.legible("猫", 7)
    assert text == "猫" and isinstance(font, ImageFont.FreeTypeFont) and Path(str(font.path)) == other
    fonts.font_for.cache_clear()
