"""nuanced_core.refinement.person: what is kept out of a refinement, and what the judge says of it."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.refinement.person import Judge, PersonRefinement, default_judge, hold_out, refine_person
from tests.fakes import LivelyKokoro

SENTENCES = ("abcdefghij", "abcdefghijkl", "bcdefghijklm")
OTHERS = ("cdefghijklmn", "defghijklm", "efghijklmn", "fghijklmnop")


@pytest.mark.parametrize(
    ("seconds", "kept_out"),
    [((10.0,), 3.0), ((3.0,), 1.5), ((2.0,), 1.0), ((100.0, 100.0), 20.0), ((4.0, 6.0), 3.0)],
)
def test_the_ends_of_clips_are_kept_out(seconds: tuple[float, ...], kept_out: float) -> None:
    clips = [torch.arange(16_000 * s) for s in seconds]
    heard, held_out = hold_out(clips)
    assert len(held_out) / 16_000 == pytest.approx(kept_out, abs=1e-3)
    ends = held_out.split([len(clip) - len(part) for clip, part in zip(clips, heard, strict=True)])
    for clip, part, end in zip(clips, heard, ends, strict=True):
        assert torch.equal(torch.cat([part, end]), clip)


@pytest.fixture
def person(fakes: SimpleNamespace) -> SimpleNamespace:
    """What am_michael says, for a refinement of af_heart."""
    fakes.kokoro = LivelyKokoro()
    style = fakes.voices.style("am_michael", 12)[None]
    text = fakes.kokoro.encode_text(["abcdefghijkl"])
    audio = fakes.kokoro.speak(text, fakes.kokoro.prosody(text, style), style, [3]).item(0)
    names = ("af_heart", "am_michael", "af_bella", "bm_lewis")
    frame = StyleFrame(torch.stack([fakes.voices.pack(name) for name in names]))
    return SimpleNamespace(models=fakes, audio=audio[: 16_000 * 2], frame=frame)


def _refine(person: SimpleNamespace, judge: Judge, seconds: float = 0.5) -> PersonRefinement:
    start = person.models.voices.pack("af_heart")
    audio, models = person.audio, person.models
    return refine_person(models, start, [audio], audio, person.frame, SENTENCES, OTHERS, judge, seconds=seconds)


def test_the_judge_is_not_in_the_loss_and_decides(person: SimpleNamespace) -> None:
    heard: list[int] = []

    def embed(audio: Tensor, rate: int) -> Tensor:
        heard.append(rate)
        return torch.nn.functional.normalize(torch.tensor([1.0, float(len(heard) == 2)]), dim=0)

    found = _refine(person, Judge("a judge", embed, ("campplus",)))
    # It hears what is kept out, then the voice before and after; the made-up judge finds the refined one more similar.
    assert heard == [16_000, 24_000, 24_000] and found.steps > 0
    assert (found.before, found.after) == (pytest.approx(0.5**0.5), pytest.approx(1.0)) and found.is_better
    assert found.seconds == 2.0 and found.offset.shape == (256,)
    used = set(person.models.speakers.used)
    assert used == {"campplus"}


def test_without_another_judge_resemblyzer_judges_campplus(person: SimpleNamespace) -> None:
    judge = default_judge(person.models)
    assert judge.loss_encoders == ("campplus",)
    assert torch.equal(
        judge.embed(person.audio, 16_000), person.models.speaker_encoder("resemblyzer").embed(person.audio, 16_000)
    )


def test_time_ends_a_refinement_after_one_step(person: SimpleNamespace) -> None:
    assert _refine(person, default_judge(person.models), seconds=0.0).steps <= 1
