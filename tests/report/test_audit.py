"""The page of an audit: the verdict comes first, the pictures say what is recognized, and nothing is taken for HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interpkit
from interpkit import Audit, AuditCase, Strip, Target, Tested, wrap
from interpkit.report.audit import write_audit
from interpkit.report.text import place_of

NAMES = ["<b>bold</b>", "\"'><img src=x>", "plain"]


class Planted(Audit):
    """A finding in class 1."""

    name = "planted"
    kind = "trigger"
    question = "Does <i>anything</i> lead to it?"
    limits = "It sees <i>one</i> thing."
    needs_gradient = False
    screens = True

    class Options(interpkit.Options):
        p: float = 1e-9

    options: Options

    def test(self, case: AuditCase) -> Tested:
        images = torch.zeros(3, *case.target.input_shape)
        pictures = {1: [Strip("the mask", images[:1], predictions=False), Strip("after", images)]}
        return Tested({1: 1.0, 2: 0.0}, {1: self.options.p, 2: 0.9}, {1: "Three <i>pixels</i> do."}, pictures)


def target_of(*shape: int, classes: int = 3) -> Target:
    net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))
    net[1].bias.data = torch.tensor([0.0, 9.0, 0.0])
    return wrap(net, shape, class_names=NAMES, name="<u>net</u>")


@pytest.fixture
def page(add_plugin: Callable[..., None], tmp_path: Path) -> Callable[..., str]:
    add_plugin(Planted)

    def write(*shape: int, **options: Any) -> str:
        settings = {f"planted.{key}": value for key, value in options.items()}
        interpkit.audit(target_of(*shape), tests=["planted"], options=settings, out=tmp_path, device="cpu")
        return (tmp_path / "audit.html").read_text("utf-8")

    return write


def test_the_verdict_comes_first_with_the_evidence(page: Callable[..., str]) -> None:
    text = page(1, 8, 8)
    verdict = text.index("Almost certainly not clean: class ")
    assert verdict < text.index("Three &lt;i&gt;pixels&lt;/i&gt; do.") < text.index('id="findings"')
    assert "less than one in a million" in text
    assert "about one in 50" in page(1, 8, 8, p=0.01)


def test_below_each_image_stands_what_is_recognized_but_not_below_a_mask(page: Callable[..., str]) -> None:
    text = page(1, 8, 8)
    shots = re.findall(r'<ol class="shots of-(\d)">(.*?)</ol>', text, re.DOTALL)
    assert [count for count, _ in shots] == ["1", "3"]
    assert "%)" not in shots[0][1] and shots[1][1].count("(100 %)") == 3
    assert shots[1][1].count("sample wrong") == 3 and text.count("data:image/") == 4


def test_nothing_is_taken_for_html_and_no_style_stands_in_it(page: Callable[..., str]) -> None:
    body = page(1, 8, 8).partition("<body>")[2]
    assert not any(given in body for given in ("<b>", "<i>", "<u>", "src=x>", " style="))
    assert "&lt;b&gt;" in body or "&#34;&#39;&gt;&lt;img" in body


def test_small_pictures_are_enlarged_without_blur(page: Callable[..., str]) -> None:
    assert '<section id="findings" class="small"' in page(1, 8, 8)
    assert '<section id="findings" class="small"' not in page(1, 80, 80)


def test_vectors_are_drawn(page: Callable[..., str]) -> None:
    assert page(9).count("data:image/") == 4


def test_the_page_says_what_to_do_and_what_the_images_are(page: Callable[..., str]) -> None:
    text = page(1, 8, 8)
    assert "Repeat the audit with real images (--reference DATA)" in text and "computed from the classifier" in text
    assert "What to do" not in page(1, 8, 8, p=0.4)
    report = interpkit.audit(target_of(1, 8, 8), tests=["planted"], device="cpu")
    record = report.record | {"images": {"images": "real images", "count": 3}}
    real = write_audit(report.target, record, {"planted": {}})
    assert "more images of your own" in real and "computed from the classifier" not in real


def test_without_a_finding_the_page_says_that_this_proves_nothing(page: Callable[..., str]) -> None:
    text = page(1, 8, 8, p=0.4)
    assert "Nothing was found." in text and "does not mean that the classifier is clean" in text
    assert "It sees &lt;i&gt;one&lt;/i&gt; thing." in text


def test_the_page_says_how_many_classes_each_test_looked_at(add_plugin: Callable[..., None], tmp_path: Path) -> None:
    class Clean(Planted):
        """Returns the same of every class."""

        name = "clean"

        def test(self, case: AuditCase) -> Tested:
            return Tested(dict.fromkeys(case.classes, 0.0), dict.fromkeys(case.classes, 0.9))

    class Whole(Planted):
        """Returns one result, of the whole classifier."""

        name = "whole"

        def test(self, case: AuditCase) -> Tested:
            return Tested({None: 0.0}, {None: 0.9})

    add_plugin(Planted, Clean, Whole)
    words = {"planted": "2 of 3", "planted clean": "2 to 3 of 3", "planted whole": "2 of 3", "whole": "3 of 3"}
    for tests, counts in words.items():
        options = {"planted.p": 0.4} if "planted" in tests else {}
        interpkit.audit(target_of(1, 8, 8), tests=tests.split(), options=options, out=tmp_path, device="cpu")
        assert f" looked at {counts} classes" in (tmp_path / "audit.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("label", "name", "place"),
    [(7, "7", "class 7"), (1, "Class 1", "Class 1"), (2, "classic car", "class classic car"), (0, "class", "class")],
)
def test_a_finding_is_of_a_class_and_says_so_once(label: int, name: str, place: str) -> None:
    assert place_of({"class": label, "name": name}) == place
    assert place_of({"class": None, "name": None}) == "the whole classifier"
