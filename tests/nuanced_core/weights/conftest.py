"""Fakes of the sources: tiny models, fake pip and npm, and a hub on the loopback interface."""

import hashlib
import io
import json
import logging
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from nuanced_core.weights import folder as folder_source
from nuanced_core.weights import hub, kokoro_onnx, manifest, packages, store
from nuanced_core.weights.manifest import WheelFile, WhisperPackage
from tests.nuanced_core.weights.ctranslate2_writer import as_ctranslate2
from tests.nuanced_core.weights.fake_hub import FakeHub

VOICES = ("af_heart", "jf_alpha", "jm_kumo")
JAPANESE = ("jf_alpha", "jm_kumo")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@dataclass
class Tiny:
    """Tiny versions of all model files, the same for every source."""

    config: dict[str, Any]
    kokoro: dict[str, dict[str, torch.Tensor]]
    packs: dict[str, np.ndarray]
    japanese: tuple[str, ...]  # the voices that do not need npm
    whisper: Whisper
    checkpoint: dict[str, Any]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    dims = ModelDimensions(
        n_mels=5,
        n_audio_ctx=6,
        n_audio_state=8,
        n_audio_head=2,
        n_audio_layer=2,
        n_vocab=11,
        n_text_ctx=7,
        n_text_state=8,
        n_text_head=2,
        n_text_layer=1,
    )
    model = Whisper(dims).half()
    for parameter in model.parameters():
        parameter.data.normal_()
    checkpoint = {"dims": vars(dims), "model_state_dict": dict(model.state_dict())}
    packs = {name: random.standard_normal((510, 1, 256)).astype("<f4") for name in VOICES}
    kokoro = {"bert": {"weight": torch.randn(3, 4)}, "decoder": {"bias": torch.randn(5)}}
    return Tiny({"vocab": {"a": 1, "ə": 2}}, kokoro, packs, JAPANESE, model, checkpoint)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in the state of a new process."""
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_verified", set())
    return tmp_path / "cache"


@dataclass
class Registry:
    """Fake pip and npm: wheels by requirement, and the files of npm's archive; both can be made to fail."""

    wheels: dict[str, dict[str, bytes]] = field(default_factory=dict)
    npm: dict[str, bytes] = field(default_factory=dict)
    pip_fails: str = ""
    npm_fails: str = ""
    npm_path: str | None = "npm"
    calls: list[str] = field(default_factory=list)

    def run(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        tool = "pip" if "pip" in command else "npm"
        self.calls.append(tool)
        if failure := self.pip_fails if tool == "pip" else self.npm_fails:
            return subprocess.CompletedProcess(command, 1, "", failure)
        if tool == "npm":
            folder = Path(command[command.index("--pack-destination") + 1])
            with tarfile.open(folder / "kokoro-js.tgz", "w:gz") as archive:
                for name, data in self.npm.items():
                    about = tarfile.TarInfo(name)
                    about.size = len(data)
                    archive.addfile(about, io.BytesIO(data))
        else:
            folder = Path(command[command.index("-d") + 1])
            for requirement in (part for part in command if "==" in part):
                name = requirement.replace("-", "_").replace("==", "-")
                with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
                    for member, data in self.wheels[requirement].items():
                        wheel.writestr(member, data)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with the tiny files, and a manifest with their hashes."""
    registry = Registry()

    def wheel(package: str, member: str, data: bytes) -> WheelFile:
        registry.wheels.setdefault(f"{package}==1.0", {})[member] = data
        return WheelFile(package, "1.0", member, sha256(data))

    onnx = saved(tiny.kokoro)
    half = len(onnx) // 2
    parts = (wheel("kokoro-part-1", "part.bin", onnx[:half]), wheel("kokoro-part-2", "part.bin", onnx[half:]))
    monkeypatch.setattr(manifest, "KOKORO_PARTS", parts)
    monkeypatch.setattr(manifest, "KOKORO_ONNX_SHA256", sha256(onnx))
    vocab = wheel("kokoro-ja", "vocab.json", json.dumps(tiny.config).encode())
    monkeypatch.setattr(manifest, "KOKORO_VOCAB", vocab)
    npz = io.BytesIO()
    np.savez(npz, **{name: tiny.packs[name] for name in JAPANESE})
    monkeypatch.setattr(manifest, "JAPANESE_VOICES", wheel("kokoro-ja", "voices.npz", npz.getvalue()))

    voices = {name: tiny.packs[name].tobytes() for name in VOICES}
    registry.npm = {f"package/voices/{name}.bin": data for name, data in voices.items()}
    monkeypatch.setattr(manifest, "NPM_VOICES", {name: sha256(data) for name, data in voices.items()})

    model = as_ctranslate2(tiny.whisper)
    package = WhisperPackage((wheel("whisper-tiny", "model.bin", model),), sha256(model))
    monkeypatch.setattr(manifest, "WHISPER_PACKAGES", {"tiny.en": package, "base": package})

    # The conversion has its user tests on the real file; here the "ONNX" file contains the state dicts themselves.
    monkeypatch.setattr(kokoro_onnx, "state_dicts", lambda data: torch.load(io.BytesIO(data)))
    monkeypatch.setattr(kokoro_onnx, "check_loads", lambda config, model: None)
    monkeypatch.setattr(kokoro_onnx, "kokoro_config", lambda vocab: {"vocab": vocab})
    monkeypatch.setattr(packages, "run", registry.run)
    monkeypatch.setattr(packages.shutil, "which", lambda name: registry.npm_path)
    return registry


@pytest.fixture
def fake_hub(tiny: Tiny, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny files, a manifest with their hashes, and its URL in HF_ENDPOINT."""
    server = FakeHub()
    base = f"/{manifest.HUB_REPO}/resolve/{manifest.HUB_REVISION}"
    config, model = json.dumps(tiny.config).encode(), saved(tiny.kokoro)
    server.files |= {f"{base}/config.json": config, f"{base}/kokoro-v1_0.pth": model}
    monkeypatch.setattr(manifest, "HUB_CONFIG", ("config.json", sha256(config)))
    monkeypatch.setattr(manifest, "HUB_MODEL", ("kokoro-v1_0.pth", sha256(model)))
    for name in VOICES:
        data = saved(torch.from_numpy(tiny.packs[name]))
        server.files[f"{base}/voices/{name}.pt"] = data
        server.lfs[f"voices/{name}.pt"] = sha256(data)
    monkeypatch.setattr(manifest, "HUB_VOICES", {"af_heart": server.lfs["voices/af_heart.pt"]})
    checkpoint = saved(tiny.checkpoint)
    address = f"/models/{sha256(checkpoint)}/tiny.en.pt"
    server.files[address] = checkpoint
    monkeypatch.setitem(whisper._MODELS, "tiny.en", server.url + address)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with fresh_session(monkeypatch):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a closed port, set as the address of the hub."""
    closed = FakeHub()
    url = closed.url
    closed.server_close()
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setitem(whisper._MODELS, "tiny.en", f"{url}/models/{'0' * 64}/tiny.en.pt")
    with fresh_session(monkeypatch):
        yield url


@contextmanager
def fresh_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clear the state that huggingface_hub and the probe keep of earlier servers."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for forget in (huggingface_hub.close_session, hub._probe.cache_clear):
        forget()
    yield
    for forget in (huggingface_hub.close_session, hub._probe.cache_clear):
        forget()


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with model files, and with voices in all three formats."""
    monkeypatch.setattr(folder_source, "check_kokoro", lambda config, model: None)  # test_folder.py has the real ones
    monkeypatch.setitem(manifest.WHISPER_ENCODERS, "tiny", (2, 8))
    folder = tmp_path / "user"
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny.config))
    (folder / "kokoro-v1_0.pth").write_bytes(saved(tiny.kokoro))
    (folder / "tiny.en.pt").write_bytes(saved(tiny.checkpoint))
    voices = folder / "voices"
    (voices / "af_heart.pt").write_bytes(saved(torch.from_numpy(tiny.packs["af_heart"])))
    np.save(voices / "jf_alpha.npy", tiny.packs["jf_alpha"])
    (voices / "jm_kumo.bin").write_bytes(tiny.packs["jm_kumo"].tobytes())
    return folder


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns what nuanced_core.weights has logged so far, as "LEVEL message", without beginnings."""
    caplog.set_level(logging.INFO, "nuanced_core.weights")

    def messages() -> list[str]:
        records = [record for record in caplog.records if record.name.startswith("nuanced_core.weights")]
        lines = [f"{record.levelname} {record.getMessage()}" for record in records]
        return [line for line in lines if ": fetching from " not in line]

    return messages
