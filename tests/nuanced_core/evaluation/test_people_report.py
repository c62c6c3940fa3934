"""nuanced_core.evaluation.people_report on embeddings whose cosines are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.encoder.style_encoder import StyleEncoderConfig
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.people_report import PersonResult, judge_marks, people_report
from nuanced_core.judges.panel import Sound

PEOPLE, SIZE = 6, 16


@pytest.fixture
def voices() -> Tensor:
    """Embeddings (PEOPLE, SIZE) of norm 1 that have something in common, as those of people have."""
    return F.normalize(torch.randn(PEOPLE, SIZE, generator=torch.Generator().manual_seed(3)) + 0.5, dim=1)


def _sound(embedding: Tensor, **measures: float) -> Sound:
    return Sound({"a": embedding}, **measures)


def _results(voices: Tensor, rows: dict[str, Tensor], **fields: Any) -> list[PersonResult]:
    """Make results of people whose two recordings have nearly the same embedding."""
    other_take = F.normalize(
        voices + 0.2 * torch.randn(voices.shape, generator=torch.Generator().manual_seed(4)), dim=1
    )
    return [
        PersonResult(
            speaker=f"p{i}",
            heard_file=f"p{i}/1.wav",
            compared_files=(f"p{i}/2.wav",),
            heard=_sound(voices[i]),
            rate=10.0,
            compared=(_sound(other_take[i], f0=7.0),),
            rows={row: _sound(x[i], f0=7.0 + i / 12, rate=11.0, dnsmos=3.0) for row, x in rows.items()},
            **fields,
        )
        for i in range(len(voices))
    ]


def test_a_perfect_predictor_has_identity_1_and_a_stranger_0(voices: Tensor) -> None:
    heard = voices.clone()
    # The other people's mean has exactly the mean cosine of the other people.
    strangers = (voices.sum(dim=0) - voices) / (PEOPLE - 1)
    report = people_report(_results(voices, {"mean": strangers, "encoder": heard}), {"s": _sound(voices[0])})
    assert report["rows"]["encoder"]["identity_a"] == pytest.approx(1)
    assert report["rows"]["encoder"]["identity_a_ci"] == pytest.approx([1, 1])
    assert report["rows"]["mean"]["identity_a"] == pytest.approx(0, abs=1e-6)
    for speaker in report["speakers"]:
        assert speaker["rows"]["encoder"]["identity"]["a"] == pytest.approx(1)
        assert speaker["rows"]["mean"]["identity"]["a"] == pytest.approx(0, abs=1e-5)


def test_identity_of_all_is_a_ratio_of_means_and_that_of_one_in_its_own_terms(voices: Tensor) -> None:
    spoken = F.normalize(voices.roll(1, dims=0) + voices, dim=1)
    results = _results(voices, {"encoder": spoken})
    report = people_report(results, {"s": _sound(voices[0])})
    compared = torch.stack([result.compared[0].embeddings["a"] for result in results])
    cosine = (spoken * compared).sum(dim=1).numpy()
    same = (voices * compared).sum(dim=1).numpy()
    other = np.array([(compared[i] @ voices.T).sum() - same[i] for i in range(PEOPLE)]) / (PEOPLE - 1)
    expected = (cosine.mean() - other.mean()) / (same.mean() - other.mean())
    assert report["rows"]["encoder"]["identity_a"] == pytest.approx(expected, rel=1e-5)
    low, high = report["rows"]["encoder"]["identity_a_ci"]
    assert low < expected < high
    for i, speaker in enumerate(report["speakers"]):
        own = (cosine[i] - other[i]) / (same[i] - other[i])
        assert speaker["rows"]["encoder"]["identity"]["a"] == pytest.approx(own, rel=1e-4)


def test_several_compared_recordings_count_alike(voices: Tensor) -> None:
    results = _results(voices, {"encoder": voices})
    results[0] = PersonResult(**{**vars(results[0]), "compared": (results[0].compared[0], _sound(voices[1], f0=9.0))})
    first = people_report(results, {"s": _sound(voices[0])})["speakers"][0]
    a, b = results[0].compared
    assert first["rows"]["encoder"]["f0_semitones"] == pytest.approx(12)  # 7 against the mean of 7 and 9
    cosines = [float(voices[0] @ sound.embeddings["a"]) for sound in (a, b)]
    others = [float((voices[1:] @ sound.embeddings["a"]).mean()) for sound in (a, b)]
    same, other = sum(cosines) / 2, sum(others) / 2
    assert first["rows"]["encoder"]["identity"]["a"] == pytest.approx((same - other) / (same - other))


def test_best_stock_voice_is_the_most_similar_one_of_each_person(voices: Tensor) -> None:
    stock = {"near_0": _sound(voices[0]), "near_1": _sound(voices[1])}
    spoken = voices.clone()
    spoken[3:] = -voices[3:]  # worse than any stock voice
    report = people_report(_results(voices, {"encoder": spoken, "refined": voices}), stock)
    assert [speaker["best_stock"]["a"]["voice"] for speaker in report["speakers"][:2]] == ["near_0", "near_1"]
    assert report["speakers"][0]["best_stock"]["a"]["identity"] == pytest.approx(1)
    # The first two are as good as their best stock voice, not better.
    assert report["above_best_stock"]["encoder"]["a"] == pytest.approx(1 / PEOPLE)
    assert report["above_best_stock"]["refined"]["a"] == pytest.approx(4 / PEOPLE)
    assert set(report["rows"]["best_stock"]) == {"identity_a", "identity_a_ci"}


def test_measures_beside_identity_and_their_errors(voices: Tensor) -> None:
    seconds = {"encoder": 0.5}
    results = _results(voices, {"encoder": voices}, seconds=seconds, degraded={"room": _sound(voices[0])})
    report = people_report(results, {"s": _sound(voices[0])})
    row = report["rows"]["encoder"]
    assert row["f0_semitones"] == pytest.approx(sum(range(PEOPLE)) / PEOPLE)
    assert row["f0_semitones_median"] == pytest.approx(2.5)
    assert row["rate_error"] == pytest.approx(0.1)
    assert row["dnsmos"] == 3 and "word_errors" not in row  # which nobody measured
    assert report["seconds"] == seconds
    assert list(report["degraded"]) == ["room"]
    assert report["speakers"][2]["rows"]["encoder"]["f0_semitones"] == pytest.approx(2)
    assert report["speakers"][2]["rows"]["encoder"]["word_errors"] is None


def test_unknown_values_of_some_people_are_ignored(voices: Tensor) -> None:
    results = _results(voices, {"encoder": voices})
    results[5] = PersonResult(**{**vars(results[5]), "rate": math.nan, "compared": (_sound(voices[5]),)})
    row = people_report(results, {"s": _sound(voices[0])})["rows"]["encoder"]
    assert row["rate_error"] == pytest.approx(0.1)
    assert row["f0_semitones"] == pytest.approx(2)


def test_median_ignores_nan() -> None:
    values = np.array([[1.0, np.nan, 3.0, 10.0], [np.nan] * 4])
    found = metrics.median(values)
    assert found[0] == 3 and np.isnan(found[1])


@pytest.mark.filterwarnings("error")
def test_median_of_nothing_warns_not() -> None:
    assert np.isnan(metrics.median(np.array([np.nan])))


def _marks(run: dict[str, Any]) -> dict[str, Any]:
    settings = validate(RunConfig, {"data": {"people": "people"}, **run}, "test")
    config = StyleEncoderConfig(
        encoder=settings.encoder, features=settings.features, whisper="fake", layers=(0,), channels=4, voices=3
    )
    return judge_marks(settings, config, ("campplus",), ("campplus", "resemblyzer"))


def test_judges_are_marked_by_what_the_model_had_of_them() -> None:
    nothing = _marks({})
    assert nothing["encoder"] == {}
    assert nothing["nearest"] == nothing["ridge"] == {"campplus": ["heard"]}
    assert nothing["refined"] == {"campplus": ["trained"]}
    assert nothing["inversion"] == {"campplus": ["trained", "heard"], "resemblyzer": ["trained"]}
    assert "mean" not in nothing
    for term in ("speaker", "surrogate"):
        assert _marks({"loss": {term: 0.1}})["encoder"] == {"campplus": ["trained"]}
    assert _marks({"mixes": {"found": 5}})["encoder"] == {"campplus": ["trained"]}
    assert _marks({"loss": {"speaker": 0, "speaker_encoders": ["resemblyzer"]}})["encoder"] == {}
    assert _marks({"features": {"speaker": "resemblyzer"}})["encoder"] == {"resemblyzer": ["heard"]}
    assert _marks({"objective": {"people": 1}})["encoder"] == {"resemblyzer": ["selected"]}
    both = _marks({"loss": {"speaker": 1}, "features": {"speaker": "all"}})
    assert both["encoder"] == {"campplus": ["trained", "heard"], "resemblyzer": ["heard"]}
    approached = {"features": {"speaker": "resemblyzer"}, "encoder": {"surrogate_steps": 5}}
    assert _marks(approached)["encoder"] == {"resemblyzer": ["trained", "heard"]}
    assert _marks(approached)["refined"] == {"campplus": ["trained"], "resemblyzer": ["trained", "heard"]}
