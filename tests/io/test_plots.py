"""Notebook output of an inversion."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import interpkit
from interpkit.inversion.results import ImageInversion


class _Parts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.images = "", []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("p", "img"), f"<{tag}> came out of a name"
        if tag == "img":
            self.images.append(dict(attrs))


@pytest.fixture
def inversion(finished_run: Path) -> interpkit.Inversion:
    return interpkit.load_inversion(finished_run)


def test_a_notebook_shows_a_description_and_samples(inversion: interpkit.Inversion) -> None:
    parts = _Parts(inversion._repr_html_())
    assert f"{inversion.target.name} by generator, 12 of 12 steps, seed 3" in parts.words
    assert "of 24 samples" in parts.words
    (image,) = parts.images
    assert image["alt"] and image["src"].startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert picture.size[1] == 3 * (48 + 2) + 2


def test_names_are_escaped(inversion: interpkit.Inversion) -> None:
    inversion.target.name = "<script>alert(1)</script>"
    assert "<script>alert(1)</script>" in _Parts(inversion._repr_html_()).words


def test_the_figures_hold_the_samples_and_the_history(inversion: interpkit.Inversion) -> None:
    figure = inversion.figure(per_class=4)
    assert len(figure.axes) == 3 * 4
    images, _ = inversion.sample(4)
    drawn = np.asarray(figure.axes[5].images[0].get_array())
    assert np.array_equal(drawn, (images[5, 0] * 255).round().numpy().astype(np.uint8))
    terms, accuracy = inversion.curves().axes
    lines = {line.get_label(): list(line.get_ydata()) for line in terms.lines}
    assert lines == {name: [record.terms[name] for record in inversion.history] for name in ("ce", "kl", "cosine")}
    assert list(accuracy.lines[0].get_ydata()) == [record.inversion_accuracy for record in inversion.history]


def test_inversions_of_vectors_and_of_few_images_are_shown() -> None:
    torch.manual_seed(0)
    target = interpkit.wrap(nn.Linear(5, 2), (5,))
    job = {"plugins": ["vecmat"], "generator": "dense", "steps": 2, "batch_size": 4}
    vectors = interpkit.invert(target, **job)  # type: ignore[arg-type]
    assert _Parts(vectors._repr_html_()).images == []
    figure = vectors.figure(2)
    assert len(figure.axes[0].patches) == 5
    assert len({place.get_ylim() for place in figure.axes}) == 1
    pictures = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4))
    few = ImageInversion(pictures, vectors.recipe, [], torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))
    assert "of 4 samples" in _Parts(few._repr_html_()).words
    assert len(few.curves().axes) == 2
    with pytest.raises(interpkit.UsageError, match="2"):
        few.figure(3)
