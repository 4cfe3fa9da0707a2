"""How the documentation is built: ``make docs``, into build/docs.

The pages are Markdown (MyST). What the code can say itself, the code says: docstrings by autodoc, and by
``_extensions/generated.py`` the hooks, the commands, the components and the recipe. Nothing is fetched: formulas become
MathML, and the theme has no fonts or scripts of others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import interpkit

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "interpkit"
author = "the interpkit authors"
project_copyright = f"{author}; Apache-2.0"
version = release = interpkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated", "mathml"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["_extensions"]

html_theme = "furo"
html_title = "interpkit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
# A name in backticks in a docstring is code; it is a link where it names something on these pages.
default_role = "py:obj"

# Types of others. The site is built without a network, so their own documentation is not linked.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|nn|pydantic|pathlib|collections|typing|types|numpy|np|matplotlib|importlib|logging|abc|pluggy|pytest)\..*",
    ),
    (r"py:.*", r"(Tensor|Path|Any|Callable|Iterator|Mapping|Sequence|Figure)"),
    (r"py:.*", r"(Run|Data|Waivers)"),  # names for types that signatures use: a run folder, ways to name data, reasons
]


def link(app: Sphinx, env: BuildEnvironment, node: Element, contents: Element) -> Element | None:
    """Resolve a name that the reference documents under its public name, ``interpkit.NAME``.

    Signatures name a class by the module it is defined in; docstrings, by what they are about. A name in backticks that
    is documented nowhere is plain code.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    target: str = node["reftarget"]
    parts = [part for part in target.split(".") if part != "interpkit"]
    for start in range(len(parts)):
        public = "interpkit." + ".".join(parts[start:])
        if public in domain.data["objects"]:
            found: Element | None = domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", public, pending_xref(), contents
            )
            return found
    return contents if node.get("reftype") == "obj" or target.startswith("interpkit") else None


def setup(app: Sphinx) -> None:
    """Add the resolver of public names."""
    app.connect("missing-reference", link)
