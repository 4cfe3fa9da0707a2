"""report.html and the comparison, read with an HTML parser."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Condition, ConditionSpec, ImageInversion, PluginError, Recipe, Section, Strip
from interpkit.cli import app
from interpkit.evaluation.flatten import flattened
from interpkit.evaluation.scoring import draw_samples
from interpkit.report import curves, encode, render_report
from interpkit.report import text as words
from interpkit.report.classes import CHARACTERS
from interpkit.runs.folder import Run

HOSTILE = ["<b>bold</b>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)> & \"'"]


class Page(HTMLParser):
    """The elements of a page in order, each with its attributes and the text inside it."""

    VOID = ("meta", "link", "img", "input", "wbr", "rect", "path", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {[tag for tag, *_ in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag: str, class_: str = "") -> list[tuple[dict[str, str], str]]:
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (not class_ or class_ in attributes.get("class", "").split())
        ]

    def by_id(self, id_: str) -> str:
        (found,) = ["".join(text) for _, attributes, text in self.elements if attributes.get("id") == id_]
        return found

    def samples(self) -> list[dict[str, str]]:
        return [attributes for attributes, _ in self.all("button", "sample")]

    def pictures(self) -> list[dict[str, str]]:
        return [attributes for attributes, _ in self.all("img") if "strip" not in attributes.get("class", "")]

    @property
    def data(self) -> Any:
        return json.loads(self.by_id("data"))


def read(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def decode(uri: str) -> torch.Tensor:
    """Decode a data URI to a picture, (H, W) or (H, W, 3)."""
    head, _, content = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(content)))))


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(code: int, words_: str, *arguments: str | Path) -> None:
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, result.output
    assert words_ in message and "fault of interpkit" not in message and result.stdout == ""


@pytest.fixture(scope="session")
def page(hostile_run: Path) -> Page:
    return read(hostile_run / "report.html")


# -------------------------------------------------------------------------------------- one safe file


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_page_loads_nothing_and_allows_only_its_own_script(
    kind: str, hostile_run: Path, finished_run: Path, tmp_path: Path
) -> None:
    path = hostile_run / "report.html"
    if kind == "comparison":
        path = interpkit.write_comparison({"one": hostile_run, "two": finished_run}, tmp_path / "page.html")
    page = read(path)
    for tag, attributes, _ in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, value[:80])
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    scripts = [text for attributes, text in page.all("script") if "type" not in attributes]
    for rule, own in (("script-src", scripts), ("style-src", [text for _, text in page.all("style")])):
        (text,) = own
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    html = path.read_text("utf-8")
    assert "http://" not in html and "https://" not in html


def test_class_names_that_are_html_are_escaped(page: Page) -> None:
    groups = [
        (attributes, text) for attributes, text in page.all("h3") if attributes.get("id", "").startswith("class-")
    ]
    assert [text.rsplit(" ", 1)[0] for _, text in groups] == HOSTILE
    assert json.loads(page.by_id("names")) == HOSTILE
    assert not page.all("b") and not page.all("i")
    assert len(page.all("script")) == 3  # the names, the data and the page's own
    assert [text for _, text in page.all("option")][1:4] == HOSTILE
    assert page.all("h1")[0][1].startswith("<i>model")


def test_each_sample_is_an_image_with_alternative_text(page: Page, hostile_run: Path) -> None:
    stored = safetensors.torch.load_file(hostile_run / "samples.safetensors")
    images = page.pictures()
    assert len(images) == len(page.samples()) == 300
    predicted = stored["probabilities"].argmax(1).tolist()
    for row, (image, sample) in enumerate(zip(images, page.samples(), strict=True)):
        assert image["alt"] == f"Sample {row + 1} for {HOSTILE[row // 100]}, classified as {HOSTILE[predicted[row]]}"
        assert int(sample["data-row"]) == row and int(sample["data-got"]) == predicted[row]
        assert float(sample["data-sure"]) == pytest.approx(stored["confidence"][row].item(), abs=1e-4)
        assert ("wrong" in sample["class"].split()) == (predicted[row] != row // 100)
    for row in (0, 123, 299):
        assert torch.equal(decode(images[row]["src"]), stored["images"][row, 0])


def test_every_control_has_a_name_and_every_heading_its_level(page: Page) -> None:
    for attributes, text in page.all("button"):
        assert text.strip() or attributes.get("aria-label")
    labels = "".join(text for _, text in page.all("label"))
    assert all(word in labels for word in ("Class", "Order", "Show", "only those"))
    assert page.all("html")[0][0]["lang"] == "en"
    assert [a["content"] for a, _ in page.all("meta") if a.get("name") == "viewport"]
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes, _ in page.all("a"):
        assert attributes["href"][1:] in ids
    levels = [int(tag[1]) for tag, _, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


# -------------------------------------------------------------------------------------------- content


def test_figures_are_shown_with_intervals_and_meanings(page: Page, hostile_run: Path) -> None:
    metrics = Run.open(hostile_run).metrics()
    rows = [text for _, text in page.all("tr")]
    for name, figure in flattened(metrics).items():
        (row,) = [
            text
            for text in rows
            if text.strip().startswith(name) and words.meaning(name) in text and str(figure) in text
        ]
        if figure.interval:
            assert "{:.3f} to {:.3f}".format(*figure.interval) in row
    assert {"inversion_accuracy", "diversity.vendi_pooled"} <= flattened(metrics).keys()


def test_the_verdict_says_what_was_measured_and_what_was_not(finished_run: Path) -> None:
    metrics = Run.open(finished_run).metrics()
    said = words.verdict(metrics, "tiny", 3)
    assert (
        f"tiny itself classifies {metrics['inversion_accuracy']:.1%} of them" in said and "produced 300 samples" in said
    )
    assert "No independent classifier" in said
    metrics["evaluators"] = [{"name": "a", "agreement": 0.251}, {"name": "b", "agreement": 0.5}]
    metrics["reference"] = {"excess_vendi": 0.4, "features": {"a": {"coverage": 0.07}}}
    said = words.verdict(metrics, "tiny", 3)
    assert "Independent classifiers agree on 25% to 50%." in said
    assert words.verdict({}, "tiny", 1).startswith("The inversion produced samples of one class. No independent")
    assert "40% as varied as real images" in said and "A sample lies near 7% of the real images." in said


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0.0%"),
        (0.0004, "<0.1%"),
        (0.0006, "0.1%"),
        (0.5, "50.0%"),
        (0.9994, "99.9%"),
        (0.9996, ">99.9%"),
        (1.0, "100.0%"),
        (1, "100.0%"),
    ],
)
def test_only_all_is_a_hundred_percent_and_only_none_is_zero(share: float, shown: str) -> None:
    assert interpkit.percent(share) == shown


def test_the_meaning_of_an_unknown_figure_comes_from_its_metrics_docstring(
    add_plugin: Callable[..., None],
) -> None:
    class Gloss(interpkit.Metric):
        """How much the samples shine.

        More of it.
        """

        name = "gloss"

        def measure(self, study: interpkit.Study) -> dict[str, Any]:
            return {"gloss": 1.0}

    add_plugin(Gloss)
    assert words.meaning("gloss") == "How much the samples shine."
    assert words.meaning("nothing.of.the.kind") == ""
    assert words.meaning("evaluators.other.agreement").startswith("Share of samples that this independent")


def test_a_class_that_is_worse_than_others_is_named_above_the_samples(run_copy: Path) -> None:
    metrics = json.loads((run_copy / "metrics.json").read_text())
    for row in metrics["per_class"]:
        row |= {"inversion_accuracy": 1.0, "diversity": None, "evaluators": [{"name": "a", "agreement": 1.0}]}
    metrics["per_class"][2]["evaluators"] = [{"name": "a", "agreement": 0.25}]
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    page = read(interpkit.write_report(run_copy))
    ((_, said),) = page.all("p", "worst")
    name = metrics["per_class"][2]["name"]
    assert said == f"Look first at class {name} (75% not what evaluators see in them)."
    (link,) = [attributes for attributes, _ in page.all("a") if attributes["href"] == "#class-2"]
    assert link


def test_warnings_are_above_the_samples(run_copy: Path) -> None:
    metrics = json.loads((run_copy / "metrics.json").read_text())
    metrics |= {"inversion_accuracy": 0.99, "evaluators": [{"name": "<u>judge</u>", "agreement": 0.2}]}
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    page = read(interpkit.write_report(run_copy))
    ((_, told),) = page.all("ul", "warnings")
    assert "The evaluator <u>judge</u> agrees on only 20% of the samples" in told and not page.all("u")


def test_what_was_done_for_an_evaluator_is_among_the_facts(run_copy: Path) -> None:
    metrics = json.loads((run_copy / "metrics.json").read_text())
    metrics["measured_on"] = {"resized_for": {"a": "from 2 x 2 to 4 x 4"}, "classes_matched_for": {"b": "2 of 3"}}
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    told = " ".join(interpkit.write_report(run_copy).read_text().split())
    assert "a receives images resized from 2 x 2 to 4 x 4; b is matched in 2 of 3" in told


def test_the_command_repeats_the_run(page: Page, hostile_run: Path, tmp_path: Path) -> None:
    command = shlex.split(page.all("pre")[0][1])
    assert command[:2] == ["interpkit", "invert"]
    recipe = tmp_path / "recipe.toml"  # as the run has it, shorter
    recipe.write_text(Path(command[command.index("--config") + 1]).read_text().replace("steps = 30", "steps = 1"))
    command[command.index("--config") + 1] = str(recipe)
    result = cli(*command[1:], "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert (hostile_run / "recipe.toml").read_text() in [text for _, text in page.all("pre")]


def test_the_confusion_table_counts_the_samples(page: Page, hostile_run: Path) -> None:
    stored = safetensors.torch.load_file(hostile_run / "samples.safetensors")
    predicted = stored["probabilities"].argmax(1).view(3, 100)
    cells = [text for attributes, text in page.all("td") if attributes.get("class", "").startswith("heat-")]
    counts = [(row == label).sum().item() for row in predicted for label in range(3)]
    assert cells == [str(count) if count else "" for count in counts]


def test_above_thirty_classes_only_the_most_frequent_confusions_are_listed(thousand_classes: Path) -> None:
    page = read(thousand_classes / "report.html")
    told = page.all("table")[1][1]
    assert "10 of 10" in told and "Classified as" in told
    assert len(page.all("table")[1][1].split(" of ")) - 1 == 20


def test_ten_samples_of_a_thousand_classes_fit_in_20_mb(thousand_classes: Path) -> None:
    path = thousand_classes / "report.html"
    assert path.stat().st_size < 20_000_000
    images = read(path).pictures()
    assert len(images) == 10_000 and len({image["src"] for image in images}) == 10_000


def test_photographs_keep_all_of_their_pixels(photographs: Path) -> None:
    page = read(photographs / "report.html")
    images = page.pictures()
    assert len(images) == 60
    assert {decode(image["src"]).shape for image in images} == {(224, 224, 3)}
    assert page.all("div", "large") and page.all("div", "few-1")


def test_a_class_stands_with_its_figures(photographs: Path) -> None:
    page = read(photographs / "report.html")
    rows = Run.open(photographs).metrics()["per_class"]
    sections, said = (page.all("section", "class"), page.all("p", "said"))
    for label in (8, 9):
        figures = [rows[label]["inversion_accuracy"], rows[label]["confidence"]]
        figures += [label % 7 / 7] if label % 2 else []
        found = [float(value) for value in sections[label][0]["data-figures"].split() if value != "-"]
        assert found == pytest.approx(figures, rel=1e-3)
        assert ("agrees: judge 0.29" in said[label][1]) is (label == 9)
    options = [text for _, text in page.all("option")]
    assert "lowest accuracy first" in options and "highest agrees: judge first" in options


def test_the_training_curves_come_from_the_history(page: Page, hostile_run: Path) -> None:
    history = [json.loads(line) for line in (hostile_run / "history.jsonl").read_text().splitlines()]
    names = [text for _, text in page.all("figcaption")]
    assert [name.rsplit(maxsplit=3)[0] for name in names] == ["inversion accuracy", "loss", "kl", "ce", "cosine"]
    lines = [attributes["points"].split() for attributes, _ in page.all("polyline")]
    assert all(len(line) in (len(history), len(history) + 1) for line in lines)


def test_a_curve_fills_its_box() -> None:
    records = [interpkit.StepRecord(step, 9, 0.0, loss, {}, 0.25) for step, loss in ((1, 8.0), (5, 2.0), (9, 4.0))]
    accuracy, loss = curves.curves(records)
    assert (
        loss.points
        == f"0.0,0.0 150.0,{curves.HEIGHT}.0 300.0,{curves.HEIGHT * 2 / 3:.1f} 300.0,{curves.HEIGHT * 2 / 3:.1f}"
    )
    assert (loss.low, loss.high, loss.first, loss.last) == (2.0, 8.0, 8.0, 4.0)
    assert (accuracy.low, accuracy.high) == (0.0, 1.0)
    assert curves.curves([]) == []


def test_a_sample_shows_the_targets_and_the_conditions_probabilities(page: Page, hostile_run: Path) -> None:
    stored = safetensors.torch.load_file(hostile_run / "samples.safetensors")
    drawn = interpkit.load_inversion(hostile_run).draw(100)
    for name, shares in (("shares", stored["probabilities"]), ("asked", drawn.distribution)):
        assert torch.allclose(shares.sum(1), torch.ones(300), atol=1e-5)
        for row in (0, 150, 299):
            shown = page.data[name][row]
            assert [share for _, share in shown] == sorted((share for _, share in shown), reverse=True)
            assert all(share == pytest.approx(shares[row, label].item(), abs=1e-4) for label, share in shown)
    assert torch.equal(drawn.labels, stored["labels"])


def test_a_report_written_later_shows_the_same_conditions(page: Page, hostile_run: Path, tmp_path: Path) -> None:
    shutil.copytree(hostile_run, tmp_path / "run")
    assert read(interpkit.write_report(tmp_path / "run")).data["asked"] == page.data["asked"]


def test_conditions_of_other_samples_are_not_shown(run_copy: Path) -> None:
    path = run_copy / "samples.safetensors"
    stored = safetensors.torch.load(path.read_bytes())
    turned = stored["images"].flip(3).contiguous()  # as on another device, the same seed draws others
    safetensors.torch.save_file({**stored, "images": turned}, path)
    assert read(interpkit.write_report(run_copy)).data["asked"] == []


# ------------------------------------------------------------------------------- beside the samples


def test_the_nearest_reference_image_is_found(run_copy: Path, tmp_path: Path) -> None:
    stored = safetensors.torch.load_file(run_copy / "samples.safetensors")["images"]
    some = stored[[250, 7, 130]]
    np.savez(tmp_path / "real.npz", images=some[:, 0].numpy(), labels=np.array([2, 1, 0]))
    result = cli("report", run_copy, "--reference", tmp_path / "real.npz")
    assert result.exit_code == 0 and result.stdout.splitlines() == [str(run_copy / "report.html")], result.output
    page = read(run_copy / "report.html")
    (nearest,) = page.data["beside"]
    assert nearest["title"] == "Nearest reference image"
    for row, place in ((250, 0), (7, 1), (130, 2)):
        assert torch.equal(decode(nearest["uris"][nearest["places"][row]]), some[place, 0])
        assert nearest["notes"][row] == f"of the class class {[2, 1, 0][place]}"
    distances = torch.cdist(stored.flatten(1).float(), some.flatten(1).float())
    shown = torch.stack([decode(nearest["uris"][place]) for place in nearest["places"]])
    assert torch.equal(shown, some[distances.argmin(1), 0])


def test_the_nearest_is_sought_among_all_reference_images(run_copy: Path, tmp_path: Path) -> None:
    stored = safetensors.torch.load_file(run_copy / "samples.safetensors")["images"]
    many = torch.full((20_001, 12, 12), 255, dtype=torch.uint8)
    many[-1] = stored[250, 0]
    np.savez(tmp_path / "real.npz", images=many.numpy(), labels=np.arange(20_001) % 3)
    (nearest,) = read(interpkit.write_report(run_copy, reference=f"{tmp_path / 'real.npz'}")).data["beside"]
    assert torch.equal(decode(nearest["uris"][nearest["places"][250]]), stored[250, 0])
    assert nearest["notes"][250] == f"of the class class {20_000 % 3}"


def test_attributions_are_shown_beside_their_samples(run_copy: Path) -> None:
    stored = safetensors.torch.load_file(run_copy / "samples.safetensors")["images"]
    (run_copy / "attributions").mkdir()
    maps = torch.zeros(3, 1, 12, 12)
    maps[0, 0, 0, 0], maps[1, 0, 0, 0] = 2.0, -1.0
    tensors = {"maps": maps, "images": stored[[40, 3, 200]] / 255, "classes": torch.tensor([0, 0, 2])}
    safetensors.torch.save_file(tensors, run_copy / "attributions" / "<em>.safetensors")
    page = read(interpkit.write_report(run_copy))
    shown, over = page.data["beside"]
    assert shown["title"] == "<em>" and not page.all("em")
    assert over["title"] == "<em> over the image" and over["places"] == shown["places"]
    gray = decode(over["uris"][2])  # where nothing speaks, the image itself, lightened
    pale = (stored[200, 0] + 0.4 * (255 - stored[200, 0].double())).round().to(torch.uint8)
    assert torch.equal(gray[..., 0] if gray.dim() == 3 else gray, pale)
    assert {row: place for row, place in enumerate(shown["places"]) if place >= 0} == {40: 0, 3: 1, 200: 2}
    positive, negative, nothing = (decode(uri)[0, 0].tolist() for uri in shown["uris"])
    assert positive[0] > positive[2] and negative[2] > negative[0] and nothing == [255, 255, 255]
    assert sum(negative) > sum(positive)  # on a common scale the weaker map is paler


@pytest.mark.parametrize(
    ("stated", "least", "words"),
    [
        ({"classes": [2]}, -1.0, "red speaks for class 2, blue against"),
        ({"classes": [2]}, 0.0, "the redder, the more it counts for class 2"),
        ({"classes": [2], "against": 1}, -1.0, "red speaks for class 2 over class 1, blue against"),
        ({}, -1.0, "red speaks for the class, blue against"),
    ],
    ids=["signed", "unsigned", "difference", "unknown"],
)
def test_a_map_names_the_class_that_it_explains_which_may_not_be_the_samples(
    run_copy: Path, stated: dict[str, Any], least: float, words: str
) -> None:
    stored = safetensors.torch.load_file(run_copy / "samples.safetensors")
    assert stored["labels"][40] == 0
    maps = torch.linspace(least, 1, 144).view(1, 1, 12, 12)
    (run_copy / "attributions").mkdir()
    tensors = {"maps": maps, "images": stored["images"][[40]]}
    tensors |= {name: torch.tensor(numbers) for name, numbers in stated.items()}
    safetensors.torch.save_file(tensors, run_copy / "attributions" / "made.safetensors")
    for shown in read(interpkit.write_report(run_copy)).data["beside"]:
        assert shown["notes"][40] == words and set(shown["notes"]) == {"", words}


@pytest.mark.parametrize("classes", [[0], [0, 3], [0, -1], [0.0, 1.0], 0, [[0], [1]]], ids=str)
def test_what_maps_explain_is_not_guessed_from_other_numbers(run_copy: Path, classes: Any) -> None:
    images = safetensors.torch.load_file(run_copy / "samples.safetensors")["images"][[40, 3]]
    tensors = {"maps": torch.rand(2, 1, 12, 12), "images": images, "classes": torch.tensor(classes)}
    (run_copy / "attributions").mkdir()
    safetensors.torch.save_file(tensors, run_copy / "attributions" / "made.safetensors")
    for shown in read(interpkit.write_report(run_copy)).data["beside"]:
        assert set(shown["notes"]) == {"", "the redder, the more it counts for the class"}


def test_damaged_attributions_are_named(run_copy: Path) -> None:
    (run_copy / "attributions").mkdir()
    (run_copy / "attributions" / "saliency.safetensors").write_bytes(b"torn")
    fails(1, "saliency.safetensors is not a complete safetensors file", "report", run_copy)


# ------------------------------------------------------------------------------------------ pictures


def test_pictures_have_the_best_quality_that_fits() -> None:
    images = torch.randint(0, 256, (30, 3, 40, 50), dtype=torch.uint8)
    whole = encode.encode(images, 1e9)
    assert torch.equal(decode(whole[4]), images[4].permute(1, 2, 0))
    sizes = [sum(map(len, encode.encode(images, budget))) for budget in (200_000, 60_000, 20_000)]
    assert all(size <= 1.1 * budget for size, budget in zip(sizes, (200_000, 60_000, 20_000), strict=True)), sizes
    assert sizes[0] > sizes[1] > sizes[2]


def test_small_images_are_exact_and_photographs_keep_their_pixels() -> None:
    small = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    room = CHARACTERS / 1000
    assert all(uri.startswith("data:image/png") for uri in encode.encode(small, 20 * room))
    smooth = nn.functional.interpolate(torch.rand(5, 3, 40, 40), scale_factor=5.6, mode="bilinear")
    large = (smooth * 255).to(torch.uint8)
    for uri, image in zip(encode.encode(large, 5 * room), large, strict=True):
        assert len(uri) < 1.1 * room and decode(uri).shape == (224, 224, 3)
        assert (decode(uri).float() - image.permute(1, 2, 0)).square().mean().sqrt() < 25


def test_a_vector_is_drawn_as_bars_between_the_extremes_of_its_features() -> None:
    vectors = torch.tensor([[0.0, -4.0], [10.0, 4.0], [5.0, 0.0]])
    drawn = encode.drawable(vectors)
    assert drawn.shape == (3, 1, encode.BAR_HEIGHT, 2 * encode.BAR_WIDTH) and drawn.dtype == torch.uint8
    heights = (drawn[:, 0, :, 0] == 255).sum(1).tolist()
    assert heights == [1, encode.BAR_HEIGHT, encode.BAR_HEIGHT // 2]
    assert drawn[1, 0, -1, 0] == 255 and drawn[0, 0, 0, 0] == 0  # they stand on the ground
    beyond = encode.drawable(torch.tensor([[20.0, -9.0]]), among=vectors)[0, 0]
    assert ((beyond == 255).sum(0)[[0, encode.BAR_WIDTH]]).tolist() == [encode.BAR_HEIGHT, 1]


def test_a_run_of_one_class_or_of_another_release_has_a_report(
    tmp_path: Path, tiny_model: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **quick(steps=1, labels=[2]))
    page = read(tmp_path / "run" / "report.html")
    assert len(page.samples()) == 100 and [a["data-class"] for a, _ in page.all("section", "class")] == ["2"]
    assert len(page.all("img", "strip")) == 1 and "samples of one class" in page.all("p", "verdict")[0][1]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    for name in ("versions", "timings", "files", "presets"):
        del manifest[name]
    other = {"device": "<s>", "precision": "fp4", "novelty": [{"of": "another release"}]}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | other))
    page = read(interpkit.write_report(tmp_path / "run"))
    assert "<s>, fp4" in [text for _, text in page.all("dd")] and not page.all("s")


class Vectors(interpkit.Generator):
    """One layer, for vectors."""

    name = "some-vectors"

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        self.latent_dim = 4
        self.net = torch.nn.Linear(4 + spec.vector_dim, input_shape[0])

    def forward(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.net(torch.cat([latent, condition.vector], 1)).sigmoid()


def test_vectors_are_shown_as_bars_beside_their_nearest(add_plugin: Callable[..., None], tmp_path: Path) -> None:
    add_plugin(Vectors)
    target = interpkit.wrap(torch.nn.Linear(5, 3), input_shape=(5,), input_range=(-2.0, 2.0))
    inversion = interpkit.invert(
        target, ["vecmat"], generator="some-vectors", conditioner="label", steps=2, batch_size=4, device="cpu"
    )
    run = inversion.save(tmp_path / "run")
    stored = safetensors.torch.load_file(run / "samples.safetensors")["inputs"]
    np.savez(tmp_path / "real.npz", images=stored[[5, 250]].numpy(), labels=np.array([0, 1]))
    page = read(interpkit.write_report(run, reference=tmp_path / "real.npz", target=target))
    images, (nearest,) = page.pictures(), page.data["beside"]
    assert (images[0]["width"], images[0]["height"]) == ("20", "32")
    for row, place in ((5, 0), (250, 1)):
        assert nearest["places"][row] == place
        assert torch.equal(decode(nearest["uris"][place]), decode(images[row]["src"]))
    assert len(page.all("img", "strip")) == 6
    assert page.all("pre")[0][1].startswith("interpkit.invert(target, config=")
    assert any("Each bar is a feature." in text for _, text in page.all("p", "note"))


@pytest.mark.parametrize(
    ("images", "shape", "words"),
    [
        (torch.zeros(1, 1, 2, 2), (1, 2, 2), ""),
        (torch.zeros(1, 4), (4,), "that feature in all samples"),
        (torch.zeros(1, 4), (2, 2), "that channel in all samples"),
        (torch.zeros(1, 4), (1, 1, 2, 2), "middle slice"),
        (torch.zeros(1, 2000), (2000,), "Of 2,000 neighbors, 512 means are drawn. Each bar is a feature."),
        (torch.zeros(1, 1200), (2, 600), "Of 600 neighbors, 512 means are drawn. Each row of bars is a channel."),
    ],
)
def test_a_legend_says_how_vectors_are_scaled(images: torch.Tensor, shape: tuple[int, ...], words: str) -> None:
    said = encode.legend(images, shape)
    assert words in said and bool(said) == bool(words)


# ------------------------------------------------------------------------------------------ sections


def test_only_generators_have_walks_and_morphs_in_the_report(
    page: Page, tmp_path: Path, tiny_model: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    alts = [attributes["alt"] for attributes, _ in page.all("img", "strip")]
    assert [" → " in alt for alt in alts] == [True] * 3 + [False] * 3
    assert f"{HOSTILE[0]} → {HOSTILE[1]}: the target predicts" in alts[0]
    interpkit.invert(
        tiny_model, inverter="pixels", steps=2, out=tmp_path / "run", device="cpu", options={"pixels.per_class": 2}
    )
    other = read(tmp_path / "run" / "report.html")
    assert len(other.samples()) == 6 and not other.all("img", "strip")


def test_only_the_training_of_a_generator_is_counted_in_images(
    page: Page, tmp_path: Path, tiny_target: interpkit.Target
) -> None:
    assert "30 of 30 steps of 8 images" in [text for _, text in page.all("dd")]
    folder = interpkit.invert(tiny_target, ["pixels"], steps=2, device="cpu").save(tmp_path / "run")
    assert "2 of 2 steps" in [text for _, text in read(folder / "report.html").all("dd")]


class Explained(ImageInversion):
    """Images with one empty class, and sections for the report."""

    shown: list[Section]

    def sections(self) -> list[Section]:
        return self.shown


def explained(target: interpkit.Target, *shown: Section) -> Explained:
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([0, 2, 0, 2])
    inversion = Explained(target, Recipe(device="cpu"), [], images, labels, empty={1: "no <input> reaches it"})
    inversion.shown = list(shown)
    return inversion


def test_the_report_shows_an_inversions_own_sections(tmp_path: Path, tiny_target: interpkit.Target) -> None:
    strips = [Strip("A <b> → C", torch.rand(3, 1, 12, 12)), Strip("second", torch.rand(12, 1, 12, 12))]
    rules = Section("Rules", "Why & how.", columns=("rule", "share"), rows=[("x < <i>3</i>", 0.25)])
    run = explained(tiny_target, rules, Section("Paths", strips=strips)).save(tmp_path / "run")
    page = read(run / "report.html")
    assert [text for _, text in page.all("h2")][-4:-1] == ["Rules", "Paths", "How it was made"]
    assert any("x < <i>3</i>" in text for _, text in page.all("td"))
    first, second = (attributes for attributes, _ in page.all("img", "strip"))
    assert first["alt"].startswith("A <b> → C: the target predicts class")
    assert decode(first["src"]).shape[-1] == 3 * 12 and decode(second["src"]).shape[-1] == 12 * 12
    (frames, *_) = page.all("ol", "of-3")
    with tiny_target.frozen(), torch.no_grad():
        sure = tiny_target(strips[0].images).softmax(1).amax(1).tolist()
    assert frames[1].split()[:3] == [f"{share:.2f}" for share in sure]


def test_the_report_says_why_a_class_is_empty(tmp_path: Path, tiny_target: interpkit.Target) -> None:
    page = read(explained(tiny_target).save(tmp_path / "run") / "report.html")
    assert "class 1: no <input> reaches it" in [text for _, text in page.all("li")]
    assert len(page.samples()) == 4


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("Rules", "sections\\(\\) returns Sections, not str"),
        (Section("Rules", columns=("a", "b"), rows=[("one",)]), "a row of 'Rules' has 2 cells, not 1"),
        (Section("Paths", strips=[Strip("p", torch.rand(13, 1, 12, 12))]), "shape \\(12, 1, 12, 12\\), not \\(13"),
        (Section("Paths", strips=[Strip("p", torch.rand(0, 1, 12, 12))]), "shape \\(1, 1, 12, 12\\), not \\(0"),
        (Section("Paths", strips=[Strip("p", torch.rand(1, 3, 12, 12))]), "the strip 'p' has the shape"),
    ],
    ids=["a text", "a short row", "too many images", "no image", "other images"],
)
def test_an_invalid_section_is_named(tiny_target: interpkit.Target, tmp_path: Path, section: Any, fault: str) -> None:
    run = explained(tiny_target).save(tmp_path / "run")
    inversion = explained(tiny_target, section)
    with pytest.raises(PluginError, match=fault):
        render_report(Run.open(run), inversion, draw_samples(inversion), {})


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (Section("Rows", "Why.", columns=("a",), rows=[(0.5,)]), ""),
        (Section("Rows", columns=("a", "b"), rows=[("one",)]), "a row of 'Rows' has 2 cells, not 1"),
        (Section("Rows", strips=[Strip("p", torch.rand(1, 1, 12, 12))]), "sections() has no pictures"),
        (None, "sections() returns Sections"),
    ],
    ids=["a table", "a short row", "a picture", "nothing"],
)
def test_a_metric_adds_sections_of_tables(
    section: Any, fault: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metric = interpkit.evaluation.warnings.metric_classes()[0]
    monkeypatch.setattr(metric, "sections", lambda metrics: [section])
    page = read(interpkit.write_report(run_copy))
    assert ("Rows" in [text for _, text in page.all("h2")]) == (not fault)
    assert fault in caplog.text


# ------------------------------------------------------------------------------ commands and faults


def test_a_report_that_fails_does_not_lose_the_run(
    tmp_path: Path,
    tiny_model: Path,
    quick_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("interpkit.report.run.render_report", fail)
    result = cli("invert", tiny_model, *quick_flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "no ink" in caplog.text and "interpkit report" in caplog.text
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
    assert not (tmp_path / "run" / "report.html").exists()
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run" / "samples.png")


def test_runs_that_cannot_be_shown_say_why(run_copy: Path, finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (run_copy / "samples.safetensors").unlink()
    fails(1, "the run was not finished. Resume it: interpkit invert MODEL", "report", run_copy)
    fails(
        1,
        "the run was not finished. Resume it: interpkit invert MODEL",
        "compare",
        finished_run,
        run_copy,
        "--html",
        page,
    )
    manifest = json.loads((run_copy / "manifest.json").read_text())
    (run_copy / "manifest.json").write_text(json.dumps(manifest | {"schema": 0}))
    fails(1, "has schema 0; this interpkit reads 1", "report", run_copy)
    fails(1, "has schema 0; this interpkit reads 1", "compare", finished_run, run_copy, "--html", page)
    fails(1, "is not a run folder", "report", tmp_path)
    fails(2, "is not reference data", "report", finished_run, "--reference", "nothing")
    fails(2, "is named twice", "compare", finished_run, finished_run, "--html", page)
    other = shutil.copytree(finished_run, tmp_path / "other")
    nowhere = tmp_path / "a" / "b"
    fails(2, "name a file in a folder that exists", "compare", finished_run, other, "--html", nowhere)
    assert not page.exists()


def test_the_open_option_starts_the_browser(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("typer.launch", lambda url: opened.append(url) or 0)
    assert cli("report", run_copy).exit_code == 0 and opened == []
    assert cli("report", run_copy, "--open").exit_code == 0
    assert opened == [(run_copy / "report.html").absolute().as_uri()]
    monkeypatch.setattr("typer.launch", lambda url: 1)
    assert "no browser could be started" in cli("report", run_copy, "--open").stderr


# ---------------------------------------------------------------------------------------- comparison


def test_a_comparison_shows_runs_side_by_side(hostile_run: Path, finished_run: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(finished_run, tmp_path / "<u>odd"))
    out = tmp_path / "page.html"
    result = cli("compare", hostile_run, odd, "--html", out)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == str(out), result.output
    page = read(out)
    assert [text for _, text in page.all("h4")] == [
        f"{run}: {name}"
        for pair in zip(Run.open(hostile_run).load().target.class_names, ["class 0", "class 1", "class 2"], strict=True)
        for run, name in zip(("run", "<u>odd"), pair, strict=True)
    ] and not page.all("u")
    images = page.pictures()
    assert len(images) == 60
    stored = [safetensors.torch.load_file(run / "samples.safetensors")["images"] for run in (hostile_run, odd)]
    assert torch.equal(decode(images[3]["src"]), stored[0][3, 0])
    assert torch.equal(decode(images[30]["src"]), stored[1][100, 0])
    names = [text for _, text in page.all("th")]
    figures = [flattened(Run.open(run).metrics()) for run in (hostile_run, odd)]
    for name in figures[0]:
        assert name in names
    (row,) = [text for _, text in page.all("tr") if text.strip().startswith("inversion_accuracy")]
    assert all(str(column["inversion_accuracy"]) in row for column in figures)


def test_a_comparison_names_a_class_as_each_run_does(run_copy: Path, finished_run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run_copy / "metrics.json").read_text())
    metrics["per_class"][0]["name"] = "dog"
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    page = read(interpkit.write_comparison({"a": finished_run, "b": run_copy}, tmp_path / "page.html"))
    assert [text for _, text in page.all("h3")][-3:] == ["class 0 / dog", "class 1", "class 2"]
    assert [text for _, text in page.all("h4")][:4] == ["a: class 0", "b: dog", "a", "b"]
    assert next(image["alt"] for image in page.pictures() if "for dog" in image["alt"]).startswith("Sample 1 of b")


def test_a_comparison_shows_a_thousand_classes_and_sorts_them_by_the_figures_of_each_run(
    photographs: Path, thousand_classes: Path, tmp_path: Path
) -> None:
    path = interpkit.write_comparison({"one": photographs, "two": thousand_classes}, tmp_path / "page.html")
    assert path.stat().st_size < 20_000_000
    page = read(path)
    assert len(page.all("section", "class")) == 1000 and len(page.pictures()) == 1060
    options = [text for _, text in page.all("option")]
    for title in ("accuracy of one", "agrees: judge of one", "accuracy of two"):
        assert {f"lowest {title} first", f"highest {title} first"} <= set(options)
    assert {len(a["data-figures"].split()) for a, _ in page.all("section", "class")} == {(len(options) - 2) // 2}


def test_a_comparison_needs_no_classifier_and_takes_vectors(tmp_path: Path, run_copy: Path) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["model"]["path"] = "/gone"
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    vectors = Path(shutil.copytree(run_copy, tmp_path / "vectors"))
    stored = safetensors.torch.load((vectors / "samples.safetensors").read_bytes())
    del stored["images"]
    safetensors.torch.save_file(stored | {"inputs": torch.randn(300, 5)}, vectors / "samples.safetensors")
    page = read(interpkit.write_comparison({"images": run_copy, "vectors": vectors}, tmp_path / "page.html"))
    assert {(image["width"], image["height"]) for image in page.pictures()} == {("12", "12"), ("20", "32")}
    safetensors.torch.save_file(stored, vectors / "samples.safetensors")
    with pytest.raises(interpkit.RunError, match="samples need images"):
        interpkit.write_comparison({"images": run_copy, "vectors": vectors}, tmp_path / "page.html")
    with pytest.raises(interpkit.UsageError, match="at least two runs"):
        interpkit.write_comparison({"images": run_copy}, tmp_path / "page.html")


def test_signals_are_compared_as_rows_of_bars_on_one_scale(tmp_path: Path) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 4))
    signals = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    labels, runs = torch.tensor([0, 0, 1, 1]), {}
    recipe = Recipe(device="cpu", precision="fp32", target=target.description)
    for name, images in (("all", signals), ("half", signals / 2)):
        runs[name] = ImageInversion(target, recipe, [], images, labels).save(tmp_path / name)
    page = read(interpkit.write_comparison(runs, tmp_path / "page.html"))
    assert len([text for _, text in page.all("p", "note") if "Each row of bars is a channel." in text]) == 1
    expected = encode.drawable(torch.cat([signals, signals / 2]), shape=(3, 4))
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # class by class, the runs side by side
    for picture, wanted in zip(page.pictures(), expected[order], strict=True):
        assert torch.equal(decode(picture["src"]), wanted[0])


def test_a_comparison_of_many_classes_says_how_many_of_all_runs_it_leaves_out(
    tmp_path: Path, tiny_target: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpkit.report.compare.MOST_CLASSES", 1)
    runs = {}
    for name, classes in (("a", [0, 1]), ("b", [0, 2]), ("c", [1, 2])):  # of the last, no class is shown
        recipe, images = Recipe(device="cpu", labels=classes), torch.rand(2, 1, 12, 12)
        runs[name] = ImageInversion(tiny_target, recipe, [], images, torch.tensor(classes)).save(tmp_path / name)
    page = read(interpkit.write_comparison(runs, tmp_path / "page.html"))
    assert len(page.all("section", "class")) == 1 and len(page.pictures()) == 2
    assert "2 more classes are not shown." in [text for _, text in page.all("p", "note")]


def test_concepts_and_units_are_shown_with_what_their_figures_mean(tmp_path: Path, tiny_model: Path) -> None:
    target = interpkit.units(interpkit.load_target(tiny_model), ["0:1", "0:2"])
    inversion = interpkit.invert(target, ["pixels"], steps=2, device="cpu")
    folder = inversion.save(tmp_path / "run")
    before = read(folder / "report.html")
    assert "not that real images excite it as much" in (folder / "report.html").read_text("utf-8")
    assert not [link for link, _ in before.all("a") if link["href"] == "concepts/report.html"]
    interpkit.concepts(inversion, count=40, latents=8, steps=20, out=folder / "concepts", device="cpu")
    text = interpkit.write_report(folder).read_text("utf-8")
    assert 'href="concepts/report.html"' in text and "Another seed finds other concepts" in text
    interpkit.invert(target, ["pixels"], steps=3, device="cpu").save(folder, force=True)
    text = (folder / "report.html").read_text("utf-8")
    assert 'href="concepts/report.html"' in text and "samples that this run has since replaced" in text
    assert "Another seed finds other concepts" not in text
    interpkit.concepts(target, torch.rand(40, 1, 12, 12), latents=8, steps=20, out=folder / "concepts", device="cpu")
    text = interpkit.write_report(folder).read_text("utf-8")
    assert "images in memory: variance explained" in text
    with torch.no_grad():
        next(target.parameters()).add_(0.1)
    interpkit.concepts(target, torch.rand(40, 1, 12, 12), latents=8, steps=20, out=folder / "concepts", device="cpu")
    text = interpkit.write_report(folder).read_text("utf-8")
    assert "They are those of another classifier" in text and "variance explained" not in text
    (folder / "concepts" / "concepts.json").write_text("{}")
    fails(1, "Remove it, or find the concepts again", "report", folder)


def test_only_a_run_of_units_says_that_its_classes_are_units(tmp_path: Path, tiny_model: Path) -> None:
    folder = interpkit.invert(tiny_model, ["pixels"], steps=2, device="cpu").save(tmp_path / "run")
    assert "are units of the classifier" not in (folder / "report.html").read_text("utf-8")
