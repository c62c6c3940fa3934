"""``nuanced board`` in a headless Chromium, on a sweep of the toy that reports sounds and pictures."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tune import toy
from tests.tune.show.test_board import board, getter, shown, wait_for
from tune.sweep.driver import SweepResult

__all__ = ["shown"]  # the fixture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("SCREENSHOTS")  # a folder that gets a picture of each tab
SECONDS = 60_000  # milliseconds that an element is waited for


class Tabs:
    """The tabs of a TensorBoard in a page, and what went wrong in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self._url = page, url
        self.problems: list[str] = []
        page.set_default_timeout(SECONDS)
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else self.problems.append(r.url))

    def open(self, name: str) -> Any:
        self.page.goto(f"{self._url}#{name}")
        self.page.reload()
        return self.page

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=str(Path(SHOTS) / f"board_{name}.png"))


@pytest.fixture
def tabs(shown: SweepResult) -> Iterator[Tabs]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with board(shown.folder) as (_, url), playwright.sync_playwright() as driver:
        get = getter(url)
        wait_for(lambda: get("plugin/images/tags").get("2") and get("plugin/custom_scalars/layout"))
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield Tabs(browser.new_page(viewport={"width": 1400, "height": 900}), url)
        finally:
            browser.close()


def test_a_browser_shows_trials_columns_charts_and_pictures_and_plays_sounds(tabs: Tabs) -> None:
    page = tabs.open("hparams")
    table = page.locator("tf-hparams-table-view")
    settings = ("State", "encoder.width", "train.learning_rate", "best/val/loss")
    for text in (*settings, "complete", "failed", str(toy.SHOWS), str(toy.TRAINING_ERROR)):
        table.get_by_text(text, exact=True).first.wait_for()
    tabs.shot("hparams")

    page = tabs.open("custom_scalars")
    for title in ("Validation", "Training", "loss, and that of the baselines"):
        page.get_by_text(title, exact=True).first.wait_for()
    page.get_by_text("Matches (9)", exact=True).first.wait_for()  # three rows of three trials
    tabs.shot("custom_scalars")

    page = tabs.open("audio")
    audio = page.locator("audio").first
    audio.wait_for()
    page.get_by_text("listen/af_nova/spoken", exact=True).first.wait_for()
    played = audio.evaluate(
        "sound => new Promise(resolve => { sound.muted = true; sound.onended = () => resolve(sound.currentTime);"
        " sound.onerror = () => resolve(-1); sound.play().catch(() => resolve(-2)); })"
    )
    assert played == pytest.approx(0.1, abs=0.02)
    tabs.shot("audio")

    page = tabs.open("images")
    image = page.locator("tf-image-loader img").first
    image.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [16, 8]
    tabs.shot("images")
    assert tabs.problems == []
