"""The rating page in a real browser: raters of known accuracy get the score they should."""

import os
import shutil
import time

import pytest
from rated_dump import Served, make_dump

from ablations.hype.score import hype_scores, read_ratings

pytestmark = pytest.mark.slow
OTHER = {"fake": "real", "real": "fake"}
# The truth as the test knows it: fakes are dark. Null until the image of this number is on show.
LOOK = """
const number = arguments[0], image = document.querySelector("#plate img");
if (!image || image.alt !== `Image ${number} of 100` || busy) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
return data.filter((_, i) => i % 4 < 3).reduce((a, b) => a + b) / data.length * 4 / 3 < 128
  ? "fake" : "real";
"""
# Answers so many images as the page does, without looking.
RATE = """
const [n, done] = arguments;
(async () => {
  for (let i = 0; i < n; i++) {
    const { image } = await (await fetch("/state")).json();
    const body = JSON.stringify({ image, answer: "real" });
    const headers = { "Content-Type": "application/json" };
    await fetch("/answer", { method: "POST", headers, body });
  }
  done();
})();
"""


@pytest.fixture(scope="module")
def new_browser(tmp_path_factory):
    """A function that starts a headless Chromium of its own, with no cookies."""
    missing = [] if (chromium := shutil.which("chromium")) else ["chromium"]
    missing += [] if (driver := shutil.which("chromedriver")) else ["chromedriver"]
    try:
        from selenium import webdriver
    except ImportError:
        missing.append("selenium")
    if missing:
        reason = f"the rating page needs {' and '.join(missing)}"
        if os.environ.get("SCOREKIT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and SCOREKIT_REQUIRE_BROWSER=1 says it must be there")
        pytest.skip(reason)
    started = []

    def start():
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        profile = tmp_path_factory.mktemp("profile")
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", f"--user-data-dir={profile}"),
        ):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=driver)
        started.append(webdriver.Chrome(options=options, service=service))
        return started[-1]

    yield start
    for browser in started:
        browser.quit()


@pytest.fixture(scope="module")
def browser(new_browser):
    return new_browser()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    dumps = [make_dump(folder / f"d{key}", key=key) for key in range(2)]
    running = Served(dumps, folder / "ratings")
    yield running
    running.kill()


@pytest.fixture
def served(browser, server):
    """The server of two dumps, for a rater whom it does not know."""
    browser.get(server.url)
    browser.delete_all_cookies()
    return server


def until(condition, what):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"waited 15 s for {what}")


def find(browser, selector):
    return until(
        lambda: [e for e in browser.find_elements("css selector", selector) if e.is_displayed()],
        selector,
    )[0]


def text(browser):
    return find(browser, "main").text


def look(browser, number):
    return until(lambda: browser.execute_script(LOOK, number), f"image {number}")


def press(browser, key):
    browser.switch_to.active_element.send_keys(key)


class Rater:
    """Rates the open page, wrong where `wrong(number)` says so, and counts what it did."""

    def __init__(self, browser, wrong, choose):
        self.browser, self.wrong, self.choose = browser, wrong, choose
        self.number, self.errors, self.shown = 0, {"fake": 0, "real": 0}, []

    def rate(self, last):
        while self.number < last:
            self.number += 1
            truth = look(self.browser, self.number)
            wrong = self.wrong(self.number, truth)
            self.errors[truth] += wrong
            self.choose(self.browser, OTHER[truth] if wrong else truth)


def by_keys(browser, choice):
    press(browser, {"fake": "f", "real": "R"}[choice])


def by_arrows(browser, choice):
    press(browser, {"fake": "\ue012", "real": "\ue014"}[choice])


def by_mouse(browser, choice):
    browser.find_element("css selector", f"#rating [data-answer={choice}]").click()


def test_two_raters_through_reloads_and_a_killed_server(browser, new_browser, tmp_path):
    dump, folder = make_dump(tmp_path / "dump"), tmp_path / "ratings"
    served = Served([dump], folder)
    second = new_browser()
    second.set_window_size(500, 900)
    one = Rater(browser, lambda number, truth: number % 5 == 0, by_keys)
    two = Rater(second, lambda number, truth: truth == "fake", by_mouse)
    browser.delete_all_cookies()
    for rater in (one, two):
        rater.browser.get(served.url)
        find(rater.browser, "#welcome [data-start]").click()
    one.rate(20)
    assert look(second, 1)  # twenty answers of one have not moved the other
    two.rate(30)
    browser.refresh()
    one.choose = by_arrows
    one.rate(50)
    look(browser, 51)
    served.kill()
    one.rate(51)  # pressed while there is no server
    until(lambda: "cannot be reached" in text(browser), "a word that nothing is saved")
    served = Served([dump], folder, served.port)
    one.rate(100)
    second.get("about:blank")  # the tab is closed, and opened again
    second.get(served.url)
    look(second, 31)
    second.execute_async_script(RATE, 60)
    two.number = 90
    second.refresh()
    two.rate(100)
    for rater in (one, two):
        until(lambda rater=rater: "Thank you" in text(rater.browser), "thanks")
        assert "%" not in text(rater.browser) and "right" not in text(rater.browser)
        rater.browser.refresh()
        until(lambda rater=rater: "nothing more for you" in text(rater.browser), "thanks again")
    browser.get("about:blank")
    served.kill()
    assert sum(one.errors.values()) == 20
    row = hype_scores(read_ratings([folder])).iloc[0]
    assert row["fakes_error"] == pytest.approx((one.errors["fake"] / 50 + 1) / 2 * 100)
    assert row["reals_error"] == pytest.approx((one.errors["real"] / 50 + 0) / 2 * 100)
    assert row["hype"] == pytest.approx((20 + 50) / 2)
    assert (row["n_raters"], row["n_answers"], row["n_incomplete"]) == (2, 200, 0)


def test_the_next_round_is_of_the_other_dump_and_the_next_rater_is_another(browser, served):
    browser.get(served.url)
    find(browser, "#welcome [data-start]").click()
    look(browser, 1)
    browser.execute_async_script(RATE, 99)
    browser.refresh()
    look(browser, 100)
    press(browser, "r")
    find(browser, "#between [data-start]").click()
    assert look(browser, 1)
    press(browser, "f")
    look(browser, 2)
    find(browser, "#rating [data-leave]").click()
    browser.switch_to.alert.dismiss()
    assert look(browser, 2)
    find(browser, "#rating [data-leave]").click()
    browser.switch_to.alert.accept()
    find(browser, "#welcome [data-start]").click()
    assert look(browser, 1)
    assert "NCSN" not in browser.page_source and "digits" not in browser.page_source


def test_the_keyboard_is_enough_and_a_held_key_answers_once(browser, served):
    browser.get(served.url)
    find(browser, "#welcome [data-start]")
    press(browser, "\ue004")  # tab
    press(browser, "\ue007")  # enter
    look(browser, 1)
    focused = "return document.activeElement.textContent"
    assert browser.execute_script(focused) == "Is this image real or fake?"
    for repeat in (False, True, True):
        event = {"type": "rawKeyDown", "key": "f", "autoRepeat": repeat}
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)
        look(browser, 2)
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", "key": "f"})
    press(browser, "\ue004")
    assert browser.execute_script("return document.activeElement.dataset.answer") == "fake"
    press(browser, "\ue007")
    look(browser, 3)
    press(browser, "x")
    browser.execute_cdp_cmd(
        "Input.dispatchKeyEvent", {"type": "keyDown", "key": "r", "modifiers": 2}
    )
    assert look(browser, 3)
    bar = find(browser, "[role=progressbar]")
    assert (bar.accessible_name, bar.get_attribute("aria-valuenow")) == ("Images answered", "2")
    assert browser.find_element("id", "spoken").get_attribute("textContent") == "Image 3 of 100"
    for choice in ("Fake", "Real"):
        button = find(browser, f"[data-answer={choice.lower()}]")
        assert (button.accessible_name, button.aria_role) == (choice, "button")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800), (320, 480)])
def test_it_fits_every_screen_and_pixels_are_squares(browser, served, width, height, scheme):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        browser.get(served.url)
        start = find(browser, "#welcome [data-start]")
        browser.get_log("browser")  # of the tests before
        start.click()
        for number in (1, 2):
            look(browser, number)
            shown = browser.execute_script("""
                const image = document.querySelector("#plate img");
                const { width, height } = image.getBoundingClientRect();
                const page = document.documentElement;
                return { width, height, rendering: getComputedStyle(image).imageRendering,
                  overflow: page.scrollWidth - page.clientWidth,
                  motion: getComputedStyle(document.querySelector(".bar i")).transitionDuration,
                  paper: getComputedStyle(document.body).backgroundColor,
                  below: document.querySelector("[data-answer]").getBoundingClientRect().bottom };
            """)
            assert shown["width"] == shown["height"] > 0.4 * min(width, height)
            assert shown["width"] % 8 == 0 and shown["rendering"] == "pixelated"
            assert shown["overflow"] == 0 and shown["below"] <= height
            assert shown["motion"] == "0s"
            dark = int(shown["paper"].removeprefix("rgb(").split(",")[0]) < 128
            assert dark == (scheme == "dark")
            press(browser, "f")
        look(browser, 3)
        problems = [e for e in browser.get_log("browser") if served.url in e["message"]]
        assert problems == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
