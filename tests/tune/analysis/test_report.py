"""nuanced report: one HTML file of a sweep in any state, that requests nothing and shows data as text."""

import base64
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from nuanced_core.errors import ConfigError, DiskError
from tests.tune.analysis.made_sweeps import SEARCH, Outcome, made_sweep, write_listening, write_sound
from tune.analysis.listening import read_listening
from tune.analysis.report import write_report
from tune.cli.app import main

LOSSES = [1.0 + 0.1 * (n % 5) for n in range(10)]
FULL: list[Outcome] = [
    *(([2 * loss, loss], "complete") for loss in LOSSES),
    ([2.5], "pruned"),
    ([2.0], "step 17: <b>nan</b> & <script>alert(1)</script>"),
    ([0.5], "running"),
]


class Page(HTMLParser):
    """What a page contains: its elements with their attributes, its headings, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            level, title = self.headings[-1]
            self.headings[-1] = (level, title + data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with every ending, conditional settings, lists, and clips of its two best trials, 0 and 5."""
    folder = made_sweep(tmp_path_factory.mktemp("made") / "toy & <co>", FULL, "interrupted")
    write_listening(folder / "trials" / "0", loss=0.75)
    write_listening(folder / "trials" / "5", names=["af_nova in noise"], loss=0.875)
    return folder


@pytest.fixture(scope="module")
def page(full: Path) -> Page:
    return page_of(full)


def check_page(page: Page) -> None:
    """Requests nothing, and is a page that a screen reader can follow."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value[:80]}>"
        assert not any(name.startswith("on") for name in attributes), tag
    assert "default-src 'none'" in page.of("meta")[1]["content"]
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert all(link["href"][1:] in ids for link in page.of("a"))
    assert len(page.of("caption")) == len(page.of("table"))
    assert all("scope" in head for head in page.of("th"))
    assert all(image.get("alt") for image in page.of("img"))
    assert all(div.get("aria-label") for div in page.of("div") if "data-figure" in div)


def test_the_report_of_a_full_sweep(full: Path, page: Page) -> None:
    check_page(page)
    file = full / "report.html"
    assert file.stat().st_size < 6e6
    assert not list(full.glob(".report*"))  # nothing half-written is left
    style = re.search(r"<style>(.*?)</style>", file.read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None and "@import" not in style[1] and "url(" not in style[1]
    assert page.headings[0] == (1, "Sweep toy & <co>")
    assert "Best is trial 0 with val/loss 1.0000" in page.text
    assert "mean voice 2.000, nearest voice 1.500, ridge regression 1.250, oracle 0.125" in page.text
    assert "10 complete, 1 pruned, 1 failed, 1 interrupted" in page.text
    assert "With so few trials this is unsure" in page.text
    assert "git checkout 0123456789abcdef" in page.text
    assert "nuanced sweep --resume" in page.text


def test_data_is_shown_as_text(page: Page) -> None:
    assert "step 17: <b>nan</b> & <script>alert(1)</script>" in page.text
    assert "voice <b>" in page.text  # the name of a model file
    assert "b" not in {tag for tag, _ in page.elements}


def test_figures_are_json_of_what_the_sweep_allows(full: Path, page: Page) -> None:
    scripts = re.findall(
        r'<script type="application/json" id="figure-([^"]+)">(.*?)</script>',
        (full / "report.html").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    figures = {name: json.loads(text) for name, text in scripts}
    slices = [f"slice-{n}" for n in range(1, 6)]
    assert set(figures) == {"history", "curves", "importance", "contour", "parallel", *slices}
    assert all(figure["data"] and "template" not in figure["layout"] for figure in figures.values())


def test_choices_with_markup_stay_text_in_figures(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("<i>a.txt", "b.txt")]
    for file in files:
        file.write_text("A sentence.\nAnother one.\n")
    text = f"{SEARCH}  data.sentences: {json.dumps([str(file) for file in files])}\n"
    folder = made_sweep(tmp_path / "toy", FULL[:6], text=text)
    shown = write_report(folder).read_text(encoding="utf-8")
    figures = "".join(re.findall(r'<script type="application/json".*?</script>', shown, re.DOTALL))
    assert "\\u0026lt;i\\u003ea.txt" in figures.replace("\\u0026gt;", "\\u003e")
    assert "\\u003ci\\u003ea.txt" not in figures


def test_the_table_of_trials_can_be_sorted(page: Page) -> None:
    heads = [attributes for attributes in page.of("th") if "aria-sort" in attributes]
    assert [head["aria-sort"] for head in heads] == ["ascending", *["none"] * (len(heads) - 1)]
    assert len(heads) == 3 + 4 + 2 + 5  # trial, state, loss; metrics; epochs, minutes; settings
    assert {attributes.get("class") for attributes in page.of("span")} >= {"state complete", "state failed"}


def test_the_best_settings_can_be_pasted(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    blocks = dict(re.findall(r'<pre id="(yaml-\w+)" tabindex="0">(.*?)</pre>', text, re.DOTALL))
    searched, everything = yaml.safe_load(blocks["yaml-searched"]), yaml.safe_load(blocks["yaml-all"])
    assert set(searched) == {"train", "encoder", "features"}
    assert everything["encoder"]["width"] == searched["encoder"]["width"]
    assert {"data", "loss", "objective"} <= set(everything)


def test_listening_has_each_clip_with_both_trials(full: Path, page: Page) -> None:
    clips = [attributes["data-clip"] for attributes in page.of("article")]
    assert clips == ["af_nova in noise", "a person"]
    keys = [attributes["data-key"] for attributes in page.of("figure") if "data-key" in attributes]
    assert keys == ["heard", "reference", "mean", "nearest", "best", "second", "heard", "mean", "nearest", "best"]
    sounds = page.of("audio")
    assert [sound["aria-label"] for sound in sounds[4:6]] == [
        "Best trial (0) of af_nova in noise",
        "Second best trial (5) of af_nova in noise",
    ]
    spoken = (full / "trials" / "0" / "listening" / "0_spoken.mp3").read_bytes()
    assert sounds[4]["src"] == f"data:audio/mpeg;base64,{base64.b64encode(spoken).decode()}"
    assert len(page.of("img")) == len(sounds) == 10
    assert "loss 0.750" in page.text and "loss 0.875" in page.text and "af_heart" in page.text
    assert "Is <this> the sentence?" in page.text


def test_listening_skips_what_is_missing_damaged_or_elsewhere(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        write_listening(tmp_path / name)
    (tmp_path / "0" / "listening" / "listening.json").write_text("{not json")
    file = tmp_path / "1" / "listening" / "listening.json"
    written: dict[str, Any] = json.loads(file.read_text())
    write_sound(tmp_path / "outside.mp3", 440)
    written["clips"][0]["files"] |= {"heard": "../../outside.mp3", "mean": "missing.mp3", "nearest": "listening.json"}
    del written["clips"][0]["files"]["reference"], written["clips"][0]["spectrograms"]["spoken"]
    file.write_text(json.dumps(written))
    found = read_listening([(n, tmp_path / str(n)) for n in range(3)], 10**6)
    assert found.trials == {"best": "Second best trial (1)", "second": "Trial 2, rank 3"}
    assert [(source.key, source.image is None) for source in found.clips[0].sources] == [
        ("best", True),
        ("second", False),
    ]


def test_listening_keeps_to_its_size(tmp_path: Path) -> None:
    write_listening(tmp_path / "0")
    everything = read_listening([(0, tmp_path / "0")], 10**6)
    sounds = sum(len(source.audio) for clip in everything.clips for source in clip.sources)
    assert everything.left_out == 0
    found = read_listening([(0, tmp_path / "0")], most_bytes=sounds)
    assert [len(clip.sources) for clip in found.clips] == [5, 4]
    pictures = [source.image for clip in found.clips for source in clip.sources]
    assert pictures.count(None) == found.left_out > 0
    assert len(read_listening([(0, tmp_path / "0")], most_bytes=sounds // 2).clips) < 3


@pytest.mark.slow
def test_the_report_of_many_trials_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_sweep(tmp_path / "toy", [([1.0 + n / 200], "complete") for n in range(200)], is_light=True)
    write_listening(folder / "trials" / "0")
    assert write_report(folder).stat().st_size < 6e6
    assert len(page_of(folder).of("audio")) == 9
    monkeypatch.setattr("tune.analysis.report.MOST_BYTES", 4_800_000)
    page = page_of(folder)
    assert not page.of("audio")
    assert "The listening clips were left out to keep the report small" in page.text


@pytest.mark.parametrize("state", ["running", "finished", "interrupted"])
def test_the_report_of_a_sweep_without_trials(tmp_path: Path, state: str) -> None:
    page = page_of(made_sweep(tmp_path / "toy", [], state))
    check_page(page)
    assert "No trial has begun yet" in page.text
    assert "The sweep has no listening clips" in page.text
    assert not [div for div in page.of("div") if "data-figure" in div]


def test_the_report_of_a_running_sweep_and_of_a_single_trial(tmp_path: Path) -> None:
    page = page_of(made_sweep(tmp_path / "toy", [([1.5, 1.25], "running")], "running"))
    check_page(page)
    assert "The sweep is running; write the report again to see more" in page.text
    assert "best trial so far (0)" in page.text
    assert "No trial is complete yet" in page.text


@pytest.mark.parametrize("objectives", ["[val/stft, val/style]", "[val/loss, val/stft, val/style]"])
def test_the_report_of_several_objectives(tmp_path: Path, objectives: str) -> None:
    text = f"{SEARCH}sweep: {{objectives: {objectives}}}\n"
    page = page_of(made_sweep(tmp_path / "toy", FULL[:7], text=text))
    check_page(page)
    assert (2, "Pareto front") in page.headings
    assert "are on the Pareto front" in page.text


def test_the_command_says_where_the_report_is(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.html"
    assert main(["report", str(full), "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1e6:.1f} MB; open it in a browser\n"
    assert main(["report", str(tmp_path)]) == ConfigError.exit_code
    assert "not the folder of a sweep" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(full: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder; name the HTML file"):
        write_report(full, tmp_path)
    with pytest.raises(DiskError, match=r"no/report\.html: cannot be written"):
        write_report(full, tmp_path / "no" / "report.html")
