"""Nuanced Speech's core: from the sound of a voice to a Kokoro style vector, trained through Kokoro.

The public names are those in ``__all__``; each is imported when it is first used. Everything else may move.

    from nuanced_core import StyleEncoder, evaluate_clips

    encoder = StyleEncoder.from_pretrained("models/default")
    report = evaluate_clips("models/default", "recordings")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuanced_core.audio import load_audio, write_audio
    from nuanced_core.config.settings import RunConfig
    from nuanced_core.data.model_set import ModelSet
    from nuanced_core.encoder.style_encoder import StyleEncoder
    from nuanced_core.errors import NuancedError
    from nuanced_core.evaluation.recordings import evaluate_clips
    from nuanced_core.evaluation.test_split import evaluate_test_split
    from nuanced_core.export.folder import export_encoder
    from nuanced_core.hearing.whisper_features import WhisperFeatures
    from nuanced_core.kokoro.model import DifferentiableKokoro
    from nuanced_core.kokoro.voices import VoiceBank
    from nuanced_core.speech.models import SpeechModels
    from nuanced_core.speech.packs import read_pack, resolve_voice, write_pack
    from nuanced_core.speech.speaking import Speaker
    from nuanced_core.speech.voices import voice_from_clips
    from nuanced_core.text.phonemes import make_phonemizer
    from nuanced_core.text.splitting import split_sentences
    from nuanced_core.training.preparation import prepare
    from nuanced_core.training.run import Run, start_run, train

__all__ = [
    "DifferentiableKokoro",
    "ModelSet",
    "NuancedError",
    "Run",
    "RunConfig",
    "Speaker",
    "SpeechModels",
    "StyleEncoder",
    "VoiceBank",
    "WhisperFeatures",
    "evaluate_clips",
    "evaluate_test_split",
    "export_encoder",
    "load_audio",
    "make_phonemizer",
    "prepare",
    "read_pack",
    "resolve_voice",
    "split_sentences",
    "start_run",
    "train",
    "voice_from_clips",
    "write_audio",
    "write_pack",
]

_MODULES = {
    "DifferentiableKokoro": "kokoro.model",
    "ModelSet": "data.model_set",
    "NuancedError": "errors",
    "Run": "training.run",
    "RunConfig": "config.settings",
    "Speaker": "speech.speaking",
    "SpeechModels": "speech.models",
    "StyleEncoder": "encoder.style_encoder",
    "VoiceBank": "kokoro.voices",
    "WhisperFeatures": "hearing.whisper_features",
    "evaluate_clips": "evaluation.recordings",
    "evaluate_test_split": "evaluation.test_split",
    "export_encoder": "export.folder",
    "load_audio": "audio",
    "make_phonemizer": "text.phonemes",
    "prepare": "training.preparation",
    "read_pack": "speech.packs",
    "resolve_voice": "speech.packs",
    "split_sentences": "text.splitting",
    "start_run": "training.run",
    "train": "training.run",
    "voice_from_clips": "speech.voices",
    "write_audio": "audio",
    "write_pack": "speech.packs",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `nuanced --help` should not.
    if name in _MODULES:
        return getattr(import_module(f"nuanced_core.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
