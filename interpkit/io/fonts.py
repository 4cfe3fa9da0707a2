"""Fonts for drawing class names of any script."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

SIZE = 14
USUAL = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Comes with matplotlib; has Latin, Greek, Cyrillic, Hebrew, Arabic, Armenian and Georgian characters."""


def legible(name: str, number: int | None = None, limit: int = 18) -> tuple[str, ImageFont.FreeTypeFont]:
    r"""Return a name on one line, of at most ``limit`` characters, and a font that has all of them.

    If no installed font does, the text is the class's number and escaped code points: ``7: \\u732b``.
    """
    text = short(name, limit)
    path = font_for(text)
    if path is None:
        text = short(
            ("" if number is None else f"{number}: ") + name.encode("ascii", "backslashreplace").decode(), limit
        )
    return text, _opened(path or USUAL)


def usual() -> ImageFont.FreeTypeFont:
    """Return the font for captions."""
    return _opened(USUAL)


def short(name: str, limit: int = 18) -> str:
    """Return a name on one line, of printable characters, shortened to ``limit``."""
    name = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "…"


@functools.cache
def font_for(text: str) -> Path | None:
    """Return a font file that has all characters of a text: the usual font, a system font, or None."""
    signs = set(map(ord, text)) - {ord(" ")}
    if signs <= _characters(USUAL):
        return USUAL
    from matplotlib.font_manager import findSystemFonts  # lists all fonts when first imported

    return next((path for path in map(Path, sorted(findSystemFonts())) if signs <= _characters(path)), None)


@functools.cache
def _characters(path: Path) -> frozenset[int]:
    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except Exception as error:  # a bitmap font or a damaged file: FreeType and matplotlib raise several kinds
        logging.getLogger("interpkit").debug("skipping the font %s: %s", path, error)
        return frozenset()


@functools.cache
def _opened(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), SIZE)  # Pillow 10.1 opens no Path
