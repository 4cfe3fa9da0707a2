"""report.html in a real browser: the system's Chromium, or that of ``playwright install chromium``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interpkit

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser: make setup")

HOSTILE = ["<b>bold</b>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)> & \"'"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DARK, LIGHT = "rgb(20, 23, 27)", "rgb(251, 250, 248)"

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        found = next((path for name in NAMES if (path := shutil.which(name))), None)
        own = playwright.chromium.executable_path
        if found is None and not Path(own).exists():
            pytest.skip("there is no Chromium: run make browser")
        # Chromium's sandbox does not work for root; the page is our own.
        sandbox = not hasattr(os, "geteuid") or os.geteuid() != 0
        started = playwright.chromium.launch(executable_path=found or own, chromium_sandbox=sandbox)
        yield started
        started.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Open]:
    """Return a function that opens a page, and fail if the page logs, throws, loads a file or opens an alert."""
    contexts, faults = [], []

    def open_page(path: Path, **settings: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        asked = path.absolute().as_uri()
        page.on("request", lambda r: r.url == asked or r.url.startswith("data:") or faults.append(r.url[:200]))
        page.goto(asked)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def report(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report with class names that are HTML, and with reference images."""
    folder = tmp_path_factory.mktemp("reference")
    run = Path(shutil.copytree(hostile_run, folder / "run"))
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (9, 12, 12), dtype=np.uint8)
    np.savez(folder / "real.npz", images=real, labels=np.arange(9) % 3)
    return interpkit.write_report(run, reference=folder / "real.npz")


def confidences(page: Any, group: int = 0) -> list[float]:
    samples = page.locator(".class").nth(group).locator(".sample:not([hidden])")
    return [float(value) for value in samples.evaluate_all("all => all.map(sample => sample.dataset.sure)")]


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_page_opens_and_shows_its_pictures(report: Path, show: Open) -> None:
    page = show(report)
    assert page.locator(".class:visible").count() == 3
    assert page.locator(".sample:visible").count() == 3 * 24  # the rest by "Show all 100"
    page.locator(".more").first.click()
    assert page.locator(".class").first.locator(".sample:visible").count() == 100
    assert page.locator("img:visible").evaluate_all("all => all.every(img => img.complete && img.naturalWidth > 0)")
    assert page.locator("h3:visible").first.text_content().startswith(HOSTILE[0])


def test_the_gallery_filters_by_class_and_by_error(report: Path, show: Open) -> None:
    page = show(report)
    page.select_option("#class", label=HOSTILE[1])
    assert page.locator(".class:visible h3").all_text_contents() == [f"{HOSTILE[1]} 100"]
    assert page.locator(".sample:visible").count() == 100 and page.locator("#count").text_content() == "100 samples"
    page.select_option("#class", "")
    page.get_by_label("only those classified as another class").check()
    wrong = page.locator(".sample.wrong").count()
    assert 0 < wrong < 300  # or it would show nothing
    assert page.locator(".sample:visible").count() == wrong == page.locator(".sample.wrong:visible").count()
    assert page.locator("#count").text_content() == f"{wrong} samples"


def test_the_gallery_sorts_by_confidence(report: Path, show: Open) -> None:
    page = show(report)
    drawn = confidences(page)
    assert drawn != sorted(drawn)
    page.select_option("#order", "down")
    assert confidences(page) == sorted(drawn, reverse=True)
    page.select_option("#order", "up")
    assert confidences(page) == sorted(drawn)
    page.select_option("#order", "drawn")
    assert confidences(page) == drawn


def test_a_sample_opens_enlarged_with_its_details(report: Path, show: Open) -> None:
    page = show(report)
    page.locator(".sample").nth(2).click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").first.text_content() == f"Made for {HOSTILE[0]}"
    assert f"assigns {HOSTILE[0]} a probability of" in dialog.locator("#sample-said").text_content()
    titles = dialog.get_by_role("heading", level=3).all_text_contents()
    assert titles == ["The target's probabilities", "The condition asked for"]
    assert dialog.locator(".shares").first.locator("span").count() == 6  # three names, three numbers
    figures = dialog.locator("figcaption").all_text_contents()
    assert figures[0] == "The sample" and figures[1].startswith("Nearest reference image: of the class")
    assert dialog.locator("img").evaluate_all("all => all.every(img => img.naturalWidth > 0 && img.alt)")
    small, large = (page.locator(selector).first.bounding_box()["width"] for selector in (".grid img", "dialog img"))
    assert large > 3 * small
    page.get_by_label("Close").click()
    assert not dialog.is_visible()


def test_every_control_works_by_keyboard(report: Path, show: Open) -> None:
    page = show(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('sample')"):
            break
    row = "document.activeElement.dataset.row"
    assert page.evaluate(row) == "0"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(row) == "1"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.locator("#sample-said").text_content().startswith("Sample 2.")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert dialog.locator("#sample-said").text_content().startswith("Sample 3.")
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and page.evaluate(row) == "2"  # back where one was


def test_the_next_sample_follows_the_order_and_the_filter(report: Path, show: Open) -> None:
    page = show(report)
    page.select_option("#order", "up")
    page.select_option("#class", "2")
    page.locator(".sample:visible").first.click()
    order = page.locator(".sample:visible").evaluate_all("all => all.map(sample => Number(sample.dataset.row))")
    said = page.locator("#sample-said")
    assert said.text_content().startswith(f"Sample {order[0] + 1}.")
    page.get_by_label("Previous sample").click()  # does nothing
    page.get_by_label("Next sample").click()
    assert said.text_content().startswith(f"Sample {order[1] + 1}.")


def test_the_theme_follows_the_system_until_the_reader_chooses(report: Path, show: Open) -> None:
    light, dark = (show(report, color_scheme=scheme) for scheme in ("light", "dark"))
    assert (background(light), background(dark)) == (LIGHT, DARK)
    for page in (light, dark):
        page.locator("#theme").click()
    assert (background(light), background(dark)) == (DARK, LIGHT)


def test_a_morph_is_chosen_by_its_classes(report: Path, show: Open) -> None:
    page = show(report)
    assert page.locator(".chosen:visible").count() == 1
    page.select_option("select.choose", label=f"{HOSTILE[1]} → {HOSTILE[2]}")
    (alt,) = page.locator(".chosen:visible img").evaluate_all("all => all.map(img => img.alt)")
    assert alt.startswith(f"{HOSTILE[1]} → {HOSTILE[2]}: ")


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_phone_shows_the_page_without_horizontal_scrolling(
    kind: str, report: Path, finished_run: Path, tmp_path: Path, show: Open
) -> None:
    path = report
    if kind == "comparison":
        path = interpkit.write_comparison({"one": report.parent, "two": finished_run}, tmp_path / "page.html")
    page = show(path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if kind == "report":
        page.locator(".sample").first.tap()
        box = page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_thousand_classes_open_filter_and_sort(thousand_classes: Path, show: Open) -> None:
    page = show(thousand_classes / "report.html")
    assert page.locator("#count").text_content() == "10,000 samples"
    assert page.locator(".class img").first.evaluate("img => img.complete && img.naturalWidth > 0")
    page.select_option("#order", "up")
    page.select_option("#class", label="class 777")
    assert page.locator(".class:visible h3").all_text_contents() == ["class 777 10"]
    assert confidences(page, 777) == sorted(confidences(page, 777))
    page.locator(".sample:visible").first.click()
    assert page.get_by_role("dialog").get_by_role("heading").first.text_content() == "Made for class 777"


def names(page: Any) -> list[str]:
    return [text.rsplit(" ", 1)[0] for text in page.locator(".class:visible h3").all_text_contents()]


def test_photographs_are_seen_and_opened(photographs: Path, show: Open) -> None:
    page = show(photographs / "report.html")
    boxes = [page.locator(".class").nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]  # side by side
    assert page.locator(".sample img").first.bounding_box()["width"] > 150
    page.locator(".sample").first.click()
    picture = page.get_by_role("dialog").locator("img")
    assert picture.evaluate("img => img.naturalWidth") == 224 and picture.bounding_box()["width"] > 224


def test_classes_are_searched_by_name_and_number_and_sorted_by_figures(photographs: Path, show: Open) -> None:
    page = show(photographs / "report.html")
    page.get_by_label("Search classes by name or number").fill("SHARK white 5")
    assert names(page) == [f"great white shark {label}" for label in (25, 52, 55, 58)]
    assert page.locator("#count").text_content() == "4 samples"
    page.select_option("#sort", label="highest agrees: judge first")
    assert names(page) == [f"great white shark {label}" for label in (55, 25, 52, 58)]
    page.locator(".sample:visible").first.click()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("dialog").get_by_role("heading").first.text_content() == "Made for great white shark 25"
    page.keyboard.press("Escape")
    page.locator("#search").fill("12")
    assert "tench 12" in names(page)
    page.locator("#search").fill("no such class")
    assert names(page) == [] and page.locator("#count").text_content() == "0 samples"
    page.locator("#search").fill("")
    page.select_option("#sort", "name")
    assert names(page)[0] == "cock 11" and page.locator(".class:visible").count() == 60


def test_without_a_script_the_list_is_there(photographs: Path, show: Open) -> None:
    page = show(photographs / "report.html", java_script_enabled=False)
    assert page.locator(".class:visible").count() == 60 and not page.locator("#tools").is_visible()


def test_the_classes_of_a_comparison_are_searched_and_sorted(
    photographs: Path, thousand_classes: Path, tmp_path: Path, show: Open
) -> None:
    runs = {"one": photographs, "two": thousand_classes}
    page = show(interpkit.write_comparison(runs, tmp_path / "page.html"))
    assert page.locator("#count").text_content() == "1,000 classes"
    page.locator("#search").fill("5")
    page.select_option("#sort", label="lowest agrees: judge of one first")
    values = page.locator(".class:visible").evaluate_all("all => all.map(one => one.dataset.figures)")
    judged = [value.split()[2] for value in values]
    numbers = [float(value) for value in judged if value != "-"]
    assert numbers == sorted(numbers) and 0 < len(numbers) < len(judged) and set(judged[len(numbers) :]) == {"-"}
    assert page.locator("#count").text_content() == f"{len(judged)} classes"
