"""Formulas as MathML, which every current browser draws by itself: no script, no font, no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


def to_mathml(node: nodes.Element, *, as_block: bool = False) -> str:
    r"""Return a formula as MathML, where fences stretch by themselves: ``\big`` and its like are left out."""
    tex = re.sub(r"\\[bB]igg?[lr]?(?![a-z])", "", node.astext())
    try:
        return str(tex2mathml(tex, as_block=as_block))
    except MathError as error:
        log.warning("the formula %r: %s", tex, error, location=node)
        return ""


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula in the text."""
    self.body.append(to_mathml(node))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, which scrolls where the page is narrow."""
    self.body.append(f'<div class="formula">{to_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
