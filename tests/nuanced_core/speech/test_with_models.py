"""The shipped encoder's voice of a clip, spoken here and by others' packages, and transcribed by Whisper."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, load_audio
from nuanced_core.data.model_set import ModelSet
from nuanced_core.judges.words import word_errors
from nuanced_core.refinement import person
from nuanced_core.speech import voices
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.packs import read_pack
from nuanced_core.speech.speaking import Speaker
from nuanced_core.speech.voices import Voice, refine_voice
from nuanced_core.weights import packages
from tests.nuanced_core.speech.conftest import TEXT

pytestmark = pytest.mark.real

Hear = Callable[[Tensor], str]


def test_the_voice_is_close_to_that_of_the_clip(speech: SpeechModels, voice: Voice, clip: Path, hear: Hear) -> None:
    pieces = list(Speaker(speech).say(f"{TEXT} A red bird sang.", voice.pack))
    assert len(pieces) == 2
    spoken = torch.cat(pieces)
    assert word_errors(hear(spoken), f"{TEXT} A red bird sang.") == (0, 8)
    assert voice.notes == ()
    # Samples at the joint, where one piece ends and the next begins, are 0.
    assert pieces[0][-1] == 0 and pieces[1][0] == 0
    embed = speech.models.speaker_encoder("resemblyzer").embed
    heard = embed(load_audio(clip, KOKORO_RATE), KOKORO_RATE)
    (woman,) = Speaker(speech).say(TEXT, speech.models.voices.pack("af_heart")[:, None])
    assert float(embed(spoken, KOKORO_RATE) @ heard) > float(embed(woman, KOKORO_RATE) @ heard) + 0.1


def test_a_short_refinement_says_what_it_gained(
    speech: SpeechModels, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voices, "load_sentences", lambda split: ["Red door.", "No rain."])
    monkeypatch.setattr(person, "STOPPING", 1)
    monkeypatch.setattr(speech.encoder, "surrogate", None)  # its first round alone takes 10 s
    refined = refine_voice(speech, voice, 1e-6)
    assert "by Resemblyzer, which its loss did not see" in refined.refinement
    assert torch.isfinite(refined.pack).all()


def test_kokoro_speaks_the_pt_unchanged(models: ModelSet, packs: Path, hear: Hear) -> None:
    from kokoro import KModel, KPipeline

    config, repository = json.loads(models.kokoro_files.config.read_text()), "hexgrad/Kokoro-82M"
    model = KModel(repository, config=config, model=str(models.kokoro_files.model)).eval()
    # Its English pipelines would fetch a spaCy model; phonemes are spoken by any.
    pipeline = KPipeline("e", repo_id=repository, model=model)
    (spoken,) = pipeline.generate_from_tokens(models.phonemizer(TEXT), voice=str(packs / "my_voice.pt"))
    assert word_errors(hear(spoken.audio), TEXT) == (0, 4)
    assert torch.equal(pipeline.load_voice(str(packs / "my_voice.pt")), read_pack(packs / "my_voice.bin"))


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kokoro's int8 ONNX export, which kokoro-onnx and kokoro-js run."""
    folder = tmp_path_factory.mktemp("onnx")
    data, _ = packages.download_kokoro(folder)
    (folder / "kokoro.onnx").write_bytes(data)
    return folder / "kokoro.onnx"


def test_kokoro_onnx_speaks_the_npz_unchanged(
    models: ModelSet, packs: Path, hear: Hear, request: pytest.FixtureRequest
) -> None:
    # It wants another phonemizer than misaki does, of the same import name.
    kokoro_onnx = pytest.importorskip("kokoro_onnx", reason="pip install --no-deps kokoro-onnx")
    onnx_file = request.getfixturevalue("onnx_file")
    kokoro = kokoro_onnx.Kokoro(str(onnx_file), str(packs / "my_voice.npz"))
    audio, rate = kokoro.create(models.phonemizer(TEXT), voice="my_voice", is_phonemes=True)
    assert rate == KOKORO_RATE and word_errors(hear(torch.from_numpy(np.asarray(audio))), TEXT) == (0, 4)


def test_kokoro_js_speaks_the_bin_unchanged(
    models: ModelSet, packs: Path, tmp_path: Path, hear: Hear, request: pytest.FixtureRequest
) -> None:
    modules = Path(os.environ.get("NODE_PATH", Path(__file__).parents[3] / "node_modules"))
    if shutil.which("node") is None or not (modules / "kokoro-js").is_dir():
        pytest.skip("needs node, and kokoro-js in node_modules: npm install --no-save kokoro-js")
    _kokoro_js_with(packs / "my_voice.bin", modules, tmp_path)
    _as_kokoro_js_names_it(request.getfixturevalue("onnx_file"), tmp_path / "models" / "kokoro")
    script = shutil.copy(Path(__file__).with_name("speak_with_kokoro_js.mjs"), tmp_path)
    tokens = ",".join(map(str, models.kokoro.tokens(models.phonemizer(TEXT))))
    command = ["node", script, f"{tmp_path}/models/", tokens, "my_voice", str(tmp_path / "out.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert word_errors(hear(load_audio(tmp_path / "out.wav", KOKORO_RATE)), TEXT) == (0, 4)


def _kokoro_js_with(pack: Path, modules: Path, folder: Path) -> None:
    """Lay out a node_modules in which kokoro-js, unchanged, has one voice more."""
    for module in modules.iterdir():
        target = folder / "node_modules" / module.name
        target.parent.mkdir(exist_ok=True)
        if module.name == "kokoro-js":
            shutil.copytree(module, target, ignore=shutil.ignore_patterns("voices"))
        else:
            target.symlink_to(module.resolve())
    (folder / "node_modules" / "kokoro-js" / "voices").mkdir()
    shutil.copy(pack, folder / "node_modules" / "kokoro-js" / "voices")


def _as_kokoro_js_names_it(onnx_file: Path, folder: Path) -> None:
    """Write the export with the names of input and output that kokoro-js's own export of the model has."""
    import onnx

    model = onnx.load(str(onnx_file))
    names = {"tokens": "input_ids", model.graph.output[0].name: "waveform"}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for list_of_names in (node.input, node.output):
            for index, name in enumerate(list_of_names):
                list_of_names[index] = names.get(name, name)
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, str(folder / "onnx" / "model_quantized.onnx"))
    (folder / "config.json").write_text('{"model_type": "style_text_to_speech_2"}')
