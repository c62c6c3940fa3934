"""The API with the real models: a clip becomes a voice, which speaks, is mixed, and is downloaded."""

import io
from pathlib import Path

import httpx2
import numpy as np
import soundfile
import torch

from nuanced_core.judges.words import SpokenWords
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.packs import read_pack
from nuanced_core.speech.voices import voice_from_clips
from tests.nuanced_core.serving.conftest import error_of, speech_of

TEXT = "Open the old door."


def test_a_clip_becomes_a_voice_that_speaks_and_can_be_downloaded(
    real: str, clip: Path, speech: SpeechModels, tmp_path: Path
) -> None:
    with httpx2.Client(base_url=real, timeout=120) as client:
        stock = {voice["id"] for voice in client.get("/v1/voices").json()["data"]}
        files = {"files": ("my clip.wav", clip.read_bytes(), "audio/wav")}
        made = client.post("/v1/voices", data={"name": "mine"}, files=files)
        assert made.status_code == 201, made.text
        voice = made.json()
        assert voice["id"] == "mine" and voice["nearest"] in stock and 0.3 < voice["similarity"] <= 1
        assert {one["id"] for one in client.get("/v1/voices").json()["data"]} == stock | {"mine"}
        assert error_of(client.post("/v1/voices", data={"name": "mine"}, files=files), 409)["code"] == "name_taken"

        packs = {}
        for kind in ("pt", "npz", "bin"):
            answer = client.get("/v1/packs", params={"voice": "mine", "format": kind})
            assert answer.headers["content-disposition"] == f'attachment; filename="mine.{kind}"'
            (tmp_path / f"mine.{kind}").write_bytes(answer.content)
            packs[kind] = read_pack(tmp_path / f"mine.{kind}")
            torch.testing.assert_close(packs[kind], voice_from_clips(speech, [clip]).pack, rtol=0, atol=1e-4)
        blend = client.get("/v1/packs", params={"voice": "mine(3)+af_sky", "format": "npz"}).content
        expected = 0.75 * packs["npz"] + 0.25 * speech.models.voices.pack("af_sky")[:, None]
        (found,) = np.load(io.BytesIO(blend)).values()
        torch.testing.assert_close(torch.from_numpy(found), expected)

        answer = speech_of(client, input=TEXT, voice="mine")
        assert answer.headers["content-type"] == "audio/wav"
        samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        assert rate == 24_000
        words = SpokenWords(speech.models.whisper_file.path).transcribe(torch.from_numpy(samples), rate)
        assert words.lower().strip(" .") == "open the old door"

        assert client.delete("/v1/voices/mine").status_code == 204
        assert error_of(speech_of(client, voice="mine"), 404)["code"] == "voice_not_found"
