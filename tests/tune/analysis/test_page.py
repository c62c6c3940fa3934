"""The report in a real browser: no request and no error, sorting, sound, keyboard, phone and dark mode."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tune.analysis.made_sweeps import SEARCH, Outcome, made_sweep, write_listening
from tune.analysis.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

LOSSES = [1.0 + 0.1 * (n % 5) for n in range(10)]
OUTCOMES: list[Outcome] = [
    *(([2 * loss, loss], "complete") for loss in LOSSES),
    ([2.5], "pruned"),
    ([2.0], "<img src=x onerror=alert(1)>"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_sweep(tmp_path_factory.mktemp("made") / "toy", OUTCOMES)
    write_listening(folder / "trials" / "0")
    write_listening(folder / "trials" / "5")
    return write_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    """Open a report, wait until all figures are drawn; at the end nothing was complained about or requested."""
    problems: list[str] = []
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: problems.append(request.url) if not is_own(request.url, file) else None)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert problems == []


def is_own(url: str, file: Path) -> bool:
    return url.split("#")[0] == file.as_uri() or url.startswith(("data:", "blob:"))


def column(page: Any, index: int) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "#trials-table tbody tr", f"rows => rows.map(row => row.cells[{index}].dataset.value)"
    )
    return found


def test_all_figures_are_drawn(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        count = page.locator("[data-figure]").count()
        assert count == 10
        assert page.locator("[data-figure][data-drawn] .main-svg").count() >= count


def test_a_click_sorts_the_table_and_another_reverses_it(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        head = page.locator("#trials-table th", has=page.get_by_role("button", name="val/loss"))
        head.get_by_role("button").click()
        losses = column(page, 2)
        assert losses[-1] == ""  # the failed trial has no value, and stays last
        assert losses[:-1] == sorted(losses[:-1], key=float)
        assert head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").click()
        losses = column(page, 2)
        assert losses[-1] == "" and losses[:-1] == sorted(losses[:-1], key=float, reverse=True)
        assert page.locator("#trials-table [aria-sort=descending]").count() == 1
        assert page.locator("#sorted").text_content() == "sorted by val/loss, descending"


def test_a_sound_plays_and_another_one_stops_it(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.evaluate("document.querySelectorAll('audio')[0].play()")
        page.wait_for_function("() => document.querySelectorAll('audio')[0].currentTime > 0.2")
        page.evaluate("document.querySelectorAll('audio')[1].play()")
        page.wait_for_function("() => document.querySelectorAll('audio')[0].paused")
        pictures = page.eval_on_selector_all(".sound img", "all => all.map(image => { image.loading = 'eager'; })")
        assert len(pictures) == 11
        page.wait_for_function(
            "() => [...document.querySelectorAll('.sound img')].every(image => image.naturalWidth === 64)"
        )


def test_it_is_operable_by_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        button = page.locator("#trials-table").get_by_role("button", name="epochs")
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator("#trials-table [aria-sort=ascending]").inner_text().startswith("epochs")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.locator("audio").first.focus()
        page.keyboard.press("Space")
        page.wait_for_function("() => document.querySelector('audio').currentTime > 0.1")


def test_the_blind_comparison_hides_then_reveals_and_counts(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.get_by_role("button", name="Compare blind").click()
        panel = page.locator("#blind-panel")
        choices = panel.get_by_role("button", name="Choose")
        assert choices.all_inner_texts() == ["Choose A", "Choose B", "Choose C", "Choose D"]
        assert "trial" not in panel.inner_text() and "ean voice" not in panel.inner_text()
        offered = panel.locator("#blind-choices audio").evaluate_all("all => all.map(audio => audio.src)")
        assert len(offered) == 4
        choices.nth(1).click()
        assert panel.locator("#blind-result").inner_text().startswith("You chose B, which is: ")
        chosen = panel.locator("#blind-result").inner_text().partition("is: ")[2].rstrip(".")
        rows = panel.locator("#blind-tally tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        counts = {name: (chosen_times, offered_times) for name, chosen_times, offered_times in rows}
        assert len(counts) == 4 and counts.pop(chosen) == ("1", "1") and set(counts.values()) == {("0", "1")}
        panel.get_by_role("button", name="Next clip").click()
        assert choices.count() == 4


def test_the_settings_are_copied(browser: Any, report: Path) -> None:
    with opened(browser, report, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="Copy the searched settings").click()
        page.get_by_text("Copied").first.wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator("#yaml-searched").text_content() != ""


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_never_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    with opened(browser, report, viewport={"width": width, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollWidth") <= width


def test_dark_mode_changes_the_page_and_its_figures(browser: Any, report: Path) -> None:
    def colors(page: Any) -> list[str]:
        found: list[str] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, document.querySelector('#plot-history .bg').style.fill, "
            "document.querySelector('#plot-history .xtick text').style.fill]"
        )
        return found

    with opened(browser, report, color_scheme="light") as page:
        light = colors(page)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(
            "before => document.querySelector('#plot-history .xtick text').style.fill !== before", arg=light[2]
        )
        changed = colors(page)
    with opened(browser, report, color_scheme="dark") as page:
        dark = colors(page)
    assert dark == changed
    assert all(a != b for a, b in zip(light, dark, strict=True))


@pytest.mark.parametrize("kind", ["empty", "two", "three"])
def test_other_sweeps_open_without_an_error(browser: Any, tmp_path: Path, kind: str) -> None:
    objectives = {"two": "[val/stft, val/style]", "three": "[val/loss, val/stft, val/style]"}
    text = f"{SEARCH}sweep: {{objectives: {objectives[kind]}}}\n" if kind in objectives else SEARCH
    outcomes = [] if kind == "empty" else OUTCOMES[:6]
    file = write_report(made_sweep(tmp_path / "toy", outcomes, "running", text=text))
    with opened(browser, file, viewport={"width": 360, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("[data-figure]").count() == (0 if kind == "empty" else 11)
