"""The page in a headless Chromium with a fake microphone, which plays a file, and with the real models."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nuanced_core.speech.packs import read_pack
from tests.nuanced_core.serving.conftest import fake_studio, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("SCREENSHOTS")  # a folder that gets pictures
MILLISECONDS = 90_000  # that anything is waited for
PHONE = {"width": 390, "height": 844}
RECORDED = 4500  # milliseconds; the page wants 3 s
PLAYED = """sound => new Promise(resolve => {
    sound.muted = true; sound.onended = () => resolve(sound.duration); sound.onerror = () => resolve(-1);
    if (sound.ended) resolve(sound.duration); else sound.play().catch(() => resolve(-2)); })"""


@pytest.fixture
def chromium(clip: Path) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone.append(f"--use-file-for-fake-audio-capture={clip}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *microphone])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Any, url: str) -> tuple[Any, list[str]]:
    """Open the page at an address; return it, and a list that gets what goes wrong in it."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(MILLISECONDS)
    problems: list[str] = []
    own = (url, "data:", "blob:")
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(r.url))
    page.goto(url)
    return page, problems


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"serve_{name}.png"), full_page=True)


def test_a_recording_becomes_a_voice_to_listen_to_and_to_download(
    chromium: Any, real: str, clip: Path, tmp_path: Path
) -> None:
    page, problems = opened(chromium, real)
    shot(page, "empty")
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.wait_for_timeout(RECORDED)
    assert page.locator("#level").evaluate("meter => meter.value") > 0
    shot(page, "recording")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("The voice is ready.").wait_for()
    assert page.locator("#clip-sound").evaluate(PLAYED) > 3

    page.get_by_label("Text", exact=True).fill("Red door.")
    page.get_by_label("of the stock voice").fill("30")
    for name in ("Speak in the voice of the clip", "Speak in the nearest stock voice", "Speak in the blend"):
        button = page.get_by_role("button", name=name)
        button.click()
        audio = button.locator("xpath=following-sibling::audio")
        audio.wait_for()
        assert 0.3 < audio.evaluate(PLAYED) < 4
    shot(page, "desktop")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shot(page, "phone")
    page.emulate_media(color_scheme="dark")
    shot(page, "dark")

    for kind in ("pt", "npz", "bin"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f".{kind}").click()
        download.value.save_as(tmp_path / f"voice.{kind}")
        assert read_pack(tmp_path / f"voice.{kind}").shape == (510, 1, 256)

    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound"})
    page.get_by_text("notes.txt: not a sound that this browser can read").wait_for()
    drop(page, clip)
    page.get_by_text("dropped.wav").wait_for()
    page.get_by_text("The voice is ready.").wait_for()
    assert problems == []


def test_the_page_asks_for_the_token(chromium: Any, fakes: SimpleNamespace) -> None:
    token = "0123456789abcdef"
    with served(fake_studio(fakes), token=token) as url:
        page, _ = opened(chromium, url)
        page.get_by_label("This server needs its token").fill("another token")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("this is not the server's token").wait_for()
        shot(page, "token")
        page.get_by_label("This server needs its token").fill(token)
        with page.expect_response(lambda answer: answer.url.endswith("/v1/models")) as answered:
            page.get_by_role("button", name="Use it").click()
        assert answered.value.status == 200
        page.get_by_label("This server needs its token").wait_for(state="hidden")


def drop(page: Any, file: Path) -> None:
    """Drop a file on the page."""
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.wav", { type: "audio/wav" }));
            return transfer; }""",
        [*file.read_bytes()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
