"""The report's page in a real browser: sorting, enlarging, printing, narrow windows, no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_results
import pytest

from ablations.studies.ncsnv2.report import build_report
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.settings_and_times import timing_table

pytestmark = pytest.mark.slow


def _lacking(what: str) -> None:
    if os.environ.get("SCOREKIT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"SCOREKIT_REQUIRE_BROWSER=1, and there is no {what}")
    pytest.skip(f"no {what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven through chromedriver; both as Debian has them."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    lacking = [
        name for name, path in (("chromium", chromium), ("chromedriver", driver)) if not path
    ]
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        lacking.append("selenium")
    if lacking:
        _lacking(f"{', '.join(lacking)} (Debian: chromium, chromium-driver; pip: selenium)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    # A click must not have to wait until the page has scrolled there smoothly.
    options.add_argument("--force-prefers-reduced-motion")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two data sets, one cell failed, a name that would be markup; few samples, to be quick."""
    directory = tmp_path_factory.mktemp("page")
    whole = fake_results.complete(directory, datasets=("digits", "cifar10-jpeg"))
    cells, distances = whole.cells.copy(), whole.distances
    lost = (cells["dataset"] == "digits") & (cells["variant"] == "NCSN_5")
    cells.loc[lost, ["status", "message"]] = ["failed", "<img src=http://x/y onerror=alert(1)>"]
    gone = (distances["dataset"] == "digits") & (distances["variant"] == "NCSN_5")
    samples = [s for s in whole.samples if s.dataset == "digits" and s.variant == "NCSNv2"]
    return replace(whole, cells=cells, distances=distances[~gone], samples=samples)


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    # Alone in a folder: the files beside it are not needed.
    built = build_report(results, tmp_path_factory.mktemp("built"))
    alone = tmp_path_factory.mktemp("alone") / "report.html"
    shutil.move(built, alone)
    return alone.as_uri()


@pytest.fixture
def opened(browser: Any, page: str) -> Iterator[Any]:
    """The page, just opened; in the end the console must have stayed empty, and the network."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("performance")
    browser.get(page)
    yield browser
    assert browser.get_log("browser") == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page in urls
    assert {url for url in urls if not url.startswith("data:")} == {page}


def _column(browser: Any, column: int) -> list[list[str]]:
    """The texts of a column of the ablation table, data set by data set."""
    return browser.execute_script(
        """const column = arguments[0];
           return [...document.querySelectorAll("#table-ablation tbody")].map((body) =>
             [...body.rows].map((row) => (row.cells[column] ?? row.cells[0]).textContent));""",
        column,
    )


def _heading(browser: Any, text: str) -> tuple[int, Any]:
    from selenium.webdriver.common.by import By

    headings = browser.find_elements(By.CSS_SELECTOR, "#table-ablation thead th")
    index = next(i for i, heading in enumerate(headings) if heading.text.startswith(text))
    return index, headings[index]


def test_a_heading_sorts_within_each_data_set_and_gives_the_order_back(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    column, heading = _heading(opened, "Distance")
    before = _column(opened, column)
    assert [group[0] for group in before] == ["digits", "cifar10-jpeg"]
    button = heading.find_element(By.TAG_NAME, "button")

    assert heading.get_attribute("aria-sort") == "none"
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    digits, cifar = _column(opened, column)
    # As texts, 412.5 would come before 88.25; what was not measured stands last.
    numbers = [17.0, 23.25, 24.0, 30.25, 41.0, 47.25]
    assert [_value(text) for text in digits[1:-2]] == [2.12, *numbers, 88.25, 412.5]
    assert digits[-2:] == ["failed", "failed"]
    assert [_value(text) for text in cifar[1:4]] == [2.12, 17.0, 23.25]
    assert (digits[0], cifar[0]) == ("digits", "cifar10-jpeg")

    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    digits, _ = _column(opened, column)
    assert [_value(text) for text in digits[1:3]] == [412.5, 88.25]
    assert digits[-2:] == ["failed", "failed"]

    button.click()
    assert heading.get_attribute("aria-sort") == "none"
    assert _column(opened, column) == before


def _value(text: str) -> float:
    return float(text.split("] ")[1])


def test_headings_sort_from_the_keyboard_one_at_a_time(opened: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _, distance = _heading(opened, "Distance")
    column, variant = _heading(opened, "Variant")
    distance.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert distance.get_attribute("aria-sort") == "ascending"
    variant.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert distance.get_attribute("aria-sort") == "none"
    assert variant.get_attribute("aria-sort") == "ascending"
    digits, _ = _column(opened, column)
    assert digits[1:5] == ["Gaussian fitted to the pixels", "held-out real images", "NCSN", "NCSN"]


def test_a_picture_enlarges_and_closes(opened: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    dialog = opened.find_element(By.TAG_NAME, "dialog")
    large = dialog.find_element(By.TAG_NAME, "img")
    buttons = opened.find_elements(By.CSS_SELECTOR, "#samples ~ figure .enlarge")
    small = [button.find_element(By.TAG_NAME, "img") for button in buttons]
    width = small[0].size["width"]
    assert not dialog.is_displayed()

    buttons[0].send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    assert large.get_attribute("src") == small[0].get_attribute("src")
    assert large.get_attribute("alt") == small[0].get_attribute("alt") != ""
    assert dialog.accessible_name == "Samples, with the denoising step"
    assert large.size["width"] > width
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert large.get_attribute("src") == small[1].get_attribute("src")
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    # Focus is back where it was.
    assert opened.switch_to.active_element == buttons[0]

    buttons[1].click()
    assert dialog.is_displayed() and large.get_attribute("src") == small[1].get_attribute("src")
    dialog.find_element(By.CSS_SELECTOR, "[aria-label=Close]").click()
    assert not dialog.is_displayed()
    buttons[1].click()
    large.click()
    assert not dialog.is_displayed()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_window_is_too_narrow_and_scripts_move_nothing(
    opened: Any, page: str, width: int
) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    sizes = []
    for disabled in (True, False):
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": disabled})
        opened.get(page)
        sizes.append(opened.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"])
    assert sizes[0] == sizes[1]
    assert sizes[0]["width"] <= width


def test_pictures_have_their_place_before_they_are_decoded(opened: Any) -> None:
    ratios = opened.execute_async_script(
        """const done = arguments[0];
           const images = [...document.querySelectorAll("figure img")];
           Promise.all(images.map((image) => image.decode())).then(() => done(images.map((image) =>
             [image.getAttribute("width") / image.getAttribute("height"),
              image.naturalWidth / image.naturalHeight])));"""
    )
    assert len(ratios) == 10
    for reserved, own in ratios:
        assert reserved == pytest.approx(own, rel=0.005)


def test_dark_mode_follows_the_system(opened: Any) -> None:
    papers = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        papers[scheme] = opened.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert papers == {"light": "rgb(253, 252, 250)", "dark": "rgb(22, 24, 28)"}


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_paper_has_every_row_and_what_was_closed(
    opened: Any, page: str, results: Results, tmp_path: Path, scripts: bool
) -> None:
    pdftotext = shutil.which("pdftotext")
    if pdftotext is None:
        _lacking("pdftotext (Debian: poppler-utils)")
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    opened.get(page)
    path = tmp_path / "page.pdf"
    path.write_bytes(base64.b64decode(opened.print_page()))
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    done = subprocess.run([pdftotext, "-layout", path, "-"], capture_output=True, check=True)
    text = done.stdout.decode()
    columns = ("Distance ↓", "Training", "Peak memory, training")
    tables = (ablation_table(results), timing_table(results))
    cells = Counter(
        _squeezed(cell)
        for table in tables
        for name in columns
        for cell in table.display.get(name, ())
    )
    # A row below the paper's edge, or a cell beyond it, would not be there.
    for cell, count in cells.items():
        assert _squeezed(text).count(cell) >= count, cell
    assert "digits: NCSNv2, with the denoising step" in text
    assert "alert(1)" in text


def _squeezed(text: str) -> str:
    return "".join(text.split())
