"""What only a GPU can show, with the real models; skipped on machines without one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from nuanced_core.losses.reference import MelSTFTLoss
from nuanced_core.refinement.person import Judge
from nuanced_core.speech.voices import refine_voice, voice_from_clips
from nuanced_core.training.run import start_run
from tests.speech_models import shipped_speech
from tune.cli.app import main
from tune.show.status import status
from tune.trial.resources import measure_peak, share_for

pytestmark = [pytest.mark.real, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TEXTS = ("Where is it?", "The harbor lights went out one by one.")
RUN: dict[str, dict[str, Any]] = {
    "data": {
        "voices": ["af_heart", "am_fenrir", "am_michael", "bf_emma"],
        "val_voices": ["af_sky", "bm_lewis"],
        "sentences": list(TEXTS),
        "val_sentences": ["He walked home.", "Is this your coat?"],
    },
    "augment": {"copies": 0},
    "features": {"speaker": "campplus", "pitch": True},
    "encoder": {"pooling": "gru", "width": 64, "depth": 1},
    "train": {"epochs": 2, "steps_per_epoch": 4, "batch_size": 4, "spoken": 2, "window_frames": 40, "device": "cuda"},
    "objective": {"window_frames": 40},
    "show": {"clips": 1},
}


@pytest.fixture(scope="module")
def on_gpu() -> ModelSet:
    return ModelSet.fetch(Models(), "cuda")


def _run(**sections: dict[str, Any]) -> RunConfig:
    return validate(RunConfig, {**RUN, **{name: {**RUN.get(name, {}), **s} for name, s in sections.items()}}, "gpu")


def _gradient(models: ModelSet, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of an audio loss and of one of prosody, and F0, of two sentences of unequal lengths."""
    phonemes = [models.phonemizer(text) for text in TEXTS]
    voices = zip(("af_heart", "am_michael"), phonemes, strict=True)
    style = torch.stack([models.voices.style(name, len(p)) for name, p in voices]).to(models.device).requires_grad_()
    kokoro, mel = models.kokoro, MelSTFTLoss().to(models.device)
    text = kokoro.encode_text(phonemes)
    frames = [torch.full((n,), 3) for n in text.lengths]
    prosody = kokoro.prosody(text, style, torch.nn.utils.rnn.pad_sequence(frames, batch_first=True))
    speech = kokoro.speak(text, prosody, style, [1, 2], [(2, 24), (4, 16)], **options)
    spoken = sum(sum(s.log1p().mean() for s in mel.spectra(speech.item(i)[None])) for i in (0, 1))
    (of_audio,) = torch.autograd.grad(spoken, style, retain_graph=True)
    curves = prosody.f0.sum() / 1e4 + prosody.energy.sum() / 1e3 + prosody.durations.sum() / 1e2
    (of_prosody,) = torch.autograd.grad(curves, style)
    return of_audio.cpu(), of_prosody.cpu(), prosody.f0.detach().cpu()


@torch.no_grad()
def _spoken(models: ModelSet) -> Tensor:
    """Return a sentence in a stock voice, (samples,) at 16 kHz on the CPU."""
    phonemes = models.phonemizer("We walked along the river until it was too dark to see, and nobody had told her.")
    style = models.voices.style("am_puck", len(phonemes))[None].to(models.device)
    text = models.kokoro.encode_text([phonemes])
    spoken = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
    return resample(spoken.cpu(), KOKORO_RATE, WHISPER_RATE)


def test_gradients_through_kokoro_are_those_of_the_cpu(models: ModelSet, on_gpu: ModelSet) -> None:
    """cuDNN's LSTMs, packed batches and the fused steps, forward and backward. The noise differs by device."""
    assert not on_gpu.kokoro.item_by_item
    expected, found = _gradient(models), _gradient(on_gpu)
    torch.testing.assert_close(found[2], expected[2], atol=0.5, rtol=2e-3)  # Hz
    assert torch.nn.functional.cosine_similarity(found[0], expected[0]).min() > 0.97
    assert torch.nn.functional.cosine_similarity(found[1], expected[1]).min() > 0.999


def test_bf16_and_checkpointing_keep_the_gradient(on_gpu: ModelSet) -> None:
    exact, rounded, again = (
        _gradient(on_gpu),
        _gradient(on_gpu, precision="bf16"),
        _gradient(on_gpu, checkpointing=True),
    )
    assert not torch.equal(exact[0], rounded[0])
    assert torch.nn.functional.cosine_similarity(exact[0], rounded[0]).min() > 0.99
    assert torch.nn.functional.cosine_similarity(exact[0], again[0]).min() > 0.999


def test_a_speaker_encoder_has_the_embeddings_and_gradients_of_the_cpu(models: ModelSet, on_gpu: ModelSet) -> None:
    audio = _spoken(models)[None]
    for name in ("campplus", "resemblyzer"):
        results = []
        for one in (models, on_gpu):
            heard = audio.to(one.device).requires_grad_()
            embedding = one.speaker_encoder(name)(heard)
            (gradient,) = torch.autograd.grad(embedding[0, :8].sum(), heard)
            results.append((embedding.detach().cpu(), gradient.cpu()))
        for on_cpu, found in zip(*results, strict=True):
            assert torch.nn.functional.cosine_similarity(on_cpu, found).item() > 0.99


def test_a_run_scores_as_on_the_cpu_and_continues_from_its_checkpoint(
    models: ModelSet, on_gpu: ModelSet, tmp_path: Path
) -> None:
    curves: dict[str, list[dict[str, float]]] = {}
    for name, one, device in (("cpu", models, "cpu"), ("gpu", on_gpu, "cuda"), ("stopped", on_gpu, "cuda")):
        for _ in range(2 if name == "stopped" else 1):
            run = start_run(_run(train={"device": device}), tmp_path / name, lambda *reported: None, one, tmp_path)
            while not run.finished:
                curves.setdefault(name, []).append(run.run_epoch())
                if name == "stopped":
                    break
            run.close()
    assert len(curves["cpu"]) == len(curves["gpu"]) == len(curves["stopped"]) == 2
    for epoch in (0, 1):
        cpu, gpu, stopped = (curves[name][epoch] for name in ("cpu", "gpu", "stopped"))
        for scalar in ("baseline/loss", "val/loss", "loss/style", "loss/stft"):
            assert gpu[scalar] == pytest.approx(cpu[scalar], rel=0.03)
            assert stopped[scalar] == pytest.approx(gpu[scalar], rel=5e-3)
        assert 0 < gpu["train/peak_memory_gb"] < 8


def test_a_voice_is_made_and_refined(on_gpu: ModelSet) -> None:
    speech = shipped_speech(on_gpu)
    voice = voice_from_clips(speech, [_spoken(on_gpu)])
    judge = Judge("GE2E", on_gpu.speaker_encoder("resemblyzer").embed, ("campplus",))
    refined = refine_voice(speech, voice, 0.2, judge)
    assert refined.pack.shape == (510, 1, 256)
    assert refined.refinement.startswith("refinement: similarity to")
    assert torch.isfinite(refined.pack).all()


def _sweep(folder: Path, *settings: str) -> tuple[int, dict[str, Any]]:
    """Run a sweep of two trials; return its exit code and status."""
    file = folder / "sweep.yaml"
    sections = {**RUN, "train": {**RUN["train"], "device": "auto"}, "show": {"clips": 0}}
    search = {"encoder.width": {"low": 16, "high": 64}}
    file.write_text(
        json.dumps({**sections, "search": search, "sweep": {"trials": 2, "pruner": "none"}}), encoding="utf-8"
    )
    code = main(["sweep", str(file), "--name", "s", f"--outputs={folder}", *[f"--set={text}" for text in settings]])
    return code, status(folder / "s")


def test_a_sweep_measures_the_share_of_a_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peak = measure_peak(start_run, _run())
    assert 1e8 < peak.held < 8e9 < peak.total
    code, found = _sweep(tmp_path, "sweep.gpus_per_trial=auto")
    assert code == 0
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    assert f"each trial gets {share_for(peak):.3g} of a GPU" in capsys.readouterr().err


def test_a_trial_that_is_out_of_its_share_of_the_memory_gets_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process with a hundredth of a GPU cannot take a step."""
    code, found = _sweep(tmp_path, "sweep.gpus_per_trial=0.01", "sweep.trials=1", "train.window_frames=full")
    assert code == 0
    assert [trial["state"] for trial in found["trials"]] == ["complete"]
    line = r"trial 0: out of GPU memory at \d+% of the card; it starts again with 0\.\d+ of a GPU"
    assert re.search(line, capsys.readouterr().err)
