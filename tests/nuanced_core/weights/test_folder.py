"""nuanced_core.weights.folder: packs of other tools, and model files that are not what their names say."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nuanced_core.errors import WeightsError
from nuanced_core.hearing.whisper_features import feature_shape
from nuanced_core.weights import folder as folder_source
from nuanced_core.weights import kokoro_onnx, manifest
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper
from nuanced_core.weights.store import cached

PACK = np.random.default_rng(0).standard_normal((510, 1, 256)).astype("<f4")
VOICE_FIX = "replace it by that of a voice of Kokoro-82M v1.0, or remove it"
real_check_kokoro = folder_source.check_kokoro


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("flat.npy", lambda path: np.save(path, PACK[:, 0])),
        ("double.npy", lambda path: np.save(path, PACK.astype(np.float64))),
        ("flat.pt", lambda path: torch.save(torch.from_numpy(PACK[:, 0]), path)),
        ("bfloat.pt", lambda path: torch.save(torch.from_numpy(PACK).bfloat16(), path)),
        ("parameter.pt", lambda path: torch.save(torch.nn.Parameter(torch.from_numpy(PACK)), path)),
        ("torch.npy", lambda path: torch.save(torch.from_numpy(PACK), path)),
        ("old.pt", lambda path: torch.save(torch.from_numpy(PACK), path, _use_new_zipfile_serialization=False)),
        ("numpy.pt", lambda path: np.save(path.open("wb"), PACK)),
        ("torch.bin", lambda path: torch.save(torch.from_numpy(PACK), path)),
        ("raw.bin", lambda path: PACK.tofile(path)),
    ],
)
def test_packs_of_other_tools_are_recognised_by_their_content(cache, folder, name, save):
    save(folder / "voices" / name)
    pack = np.load(fetch_voices(str(folder)).packs[Path(name).stem])
    assert pack.dtype == np.float32
    np.testing.assert_allclose(pack, PACK, rtol=0.01 if "bfloat" in name else 0)


@pytest.mark.parametrize(
    ("name", "save", "problem"),
    [
        (
            "v019.npy",
            lambda path: np.save(path, np.zeros((511, 1, 256), "f4")),
            "shape (511, 1, 256) (a voice of Kokoro v0.19) is not (510, 1, 256), that of a voice of Kokoro-82M v1.0",
        ),
        ("v019.bin", lambda path: np.zeros(511 * 256, "<f4").tofile(path), "shape (511, 1, 256) (a voice of Kokoro v0"),
        ("one.pt", lambda path: torch.save(torch.zeros(1, 256), path), "shape (1, 256) is not"),
        ("int.npy", lambda path: np.save(path, np.zeros((510, 1, 256), int)), "int64 are not the floating-point"),
        ("int.pt", lambda path: torch.save(torch.zeros(510, 1, 256).int(), path), "int32 are not the floating-point"),
        ("nan.npy", lambda path: np.save(path, PACK * np.nan), "130560 values are NaN or infinite"),
        ("state.pt", lambda path: torch.save({"a": torch.zeros(2)}, path), "holds a dict, not a tensor"),
        (
            "objects.npy",
            lambda path: np.save(path, np.array([{}]), allow_pickle=True),
            "not a voice pack (Object arrays",
        ),
        ("text.pt", lambda path: path.write_text("hello"), "not a file of PyTorch's tensors"),
        ("empty.npy", lambda path: path.touch(), "not a file of PyTorch's tensors"),
        ("odd.bin", lambda path: path.write_bytes(bytes(1000)), "1000 bytes are not rows of 1024"),
    ],
)
def test_a_file_that_is_no_pack_is_named_with_what_it_is_and_a_fix_that_helps(cache, folder, name, save, problem):
    save(folder / "voices" / name)
    with pytest.raises(WeightsError) as caught:
        fetch_voices(str(folder))
    assert str(caught.value).startswith(f"{folder / 'voices' / name}: {problem}")
    assert str(caught.value).endswith(f"; {VOICE_FIX}")
    assert "\n" not in str(caught.value) and "again" not in str(caught.value)
    assert cached() == []


def test_archives_pointers_and_hidden_files_among_the_voices(cache, folder):
    (folder / "voices" / "._af_heart.pt").write_bytes(b"resource fork")
    (folder / "voices" / "more.pt").mkdir()
    assert len(fetch_voices(str(folder)).packs) == 3
    np.savez(folder / "voices" / "voices-v1.0.npz", af_sky=PACK, am_adam=PACK)
    (folder / "voices" / "voices-v1.0.npz").rename(folder / "voices" / "voices-v1.0.bin")
    with pytest.raises(
        WeightsError, match=r"v1\.0\.bin: an archive of 2 voices \(af_sky, am_adam, …\); save each as a f"
    ):
        fetch_voices(str(folder))
    (folder / "voices" / "voices-v1.0.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(WeightsError, match="is a pointer of Git LFS, not the file; run 'git lfs pull' in its folder"):
        fetch_voices(str(folder))


def test_a_pack_that_is_wrong_though_its_hash_is_right_is_not_fetched_again():
    for fix in ("use the source packages or a folder", "use the source hub or a folder"):
        with pytest.raises(WeightsError, match=rf"^voice af_heart: shape \(3,\) is not \(510, 1, 256\), .*; {fix}$"):
            manifest.check_pack("voice af_heart", np.zeros(3), fix)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"dims": {"n_audio_layer": 6, "n_audio_state": 512}, "model_state_dict": {}},
            "its encoder has 6 layers of 512 channels, so it is Whisper base, not the 2 layers of 8 of Whisper tiny.en",
        ),
        (
            {"model.encoder.conv1.weight": torch.zeros(2)},
            "has no 'dims', so it is not a checkpoint of openai-whisper (those of other libraries are in other",
        ),
        (torch.zeros(3), "holds a Tensor, not a checkpoint of openai-whisper"),
        (None, "not a file of PyTorch's tensors"),
    ],
)
def test_another_whisper_is_refused(cache, folder, content: Any, problem: str):
    path = folder / "tiny.en.pt"
    assert fetch_whisper("tiny.en", str(folder)).path == path
    path.write_text("hello")
    if content is not None:
        torch.save(content, path)
    for _ in range(2):  # the first check has passed for another content only
        with pytest.raises(WeightsError, match=f"^{re.escape(f'{path}: {problem}')}") as caught:
            fetch_whisper("tiny.en", str(folder))
        assert str(caught.value).endswith("put OpenAI's tiny.en.pt there, or use the source auto, hub or packages")


def test_the_sizes_of_whisper_are_those_of_its_features():
    for name, (layers, width) in manifest.WHISPER_ENCODERS.items():
        assert feature_shape(name) == (layers + 1, width)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "not the config of a Kokoro model (Expecting property name"),
        ('{"model_type": "style_text_to_speech_2"}', "not the config of a Kokoro model ('istftnet')"),
        (
            '{"style_dim": 128, "istftnet": {"upsample_rates": [10, 6], "gen_istft_hop_size": 5}}',
            "KModel cannot be built ('vocab')",
        ),
        ("[]", "not the config of a Kokoro model (list indices"),
        (
            '{"style_dim": 64, "istftnet": {"upsample_rates": [8, 8], "gen_istft_hop_size": 4}}',
            "the config of another Kokoro: style_dim is 64 and a frame 512 samples, not 128 and 600",
        ),
    ],
)
def test_another_config_than_kokoros_is_refused(cache, folder, monkeypatch, config: str, problem: str):
    monkeypatch.setattr(folder_source, "check_kokoro", real_check_kokoro)
    (folder / "config.json").write_text(config)
    with pytest.raises(WeightsError) as caught:
        fetch_kokoro(str(folder))
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {problem}")
    assert str(caught.value).endswith(
        "put config.json and kokoro-v1_0.pth of Kokoro-82M v1.0 there, or use the source auto, hub or packages"
    )


@pytest.mark.slow
def test_a_kokoro_of_a_user_is_checked_once_and_one_with_other_parameters_is_refused(
    cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kokoro.model import KModel

    def save(groups: dict[str, dict[str, torch.Tensor]]) -> None:
        torch.save(groups, tmp_path / "kokoro-v1_0.pth")

    save({})
    settings = kokoro_onnx.kokoro_config({"a": 1})
    with torch.device("meta"):  # names and shapes without memory
        model = KModel("hexgrad/Kokoro-82M", config=settings, model=str(tmp_path / "kokoro-v1_0.pth"))
    # As in the published file: with this prefix, without what KModel never uses or what is the identity.
    groups = {
        group: {
            f"module.{name}": torch.zeros(1).expand(value.shape)
            for name, value in part.state_dict().items()
            if "pooler" not in name and not name.endswith((".norm.weight", ".norm.bias"))
        }
        for group, part in model.named_children()
    }
    save(groups)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert fetch_kokoro(str(tmp_path)).source == "folder"
    with monkeypatch.context() as context:
        context.setattr(folder_source, "check_kokoro", lambda *files: pytest.fail("checked twice"))
        fetch_kokoro(str(tmp_path))
    renamed = {name.replace("cnn", "convolution"): value for name, value in groups["text_encoder"].items()}
    for wrong, problem in (
        (
            {**groups, "text_encoder": renamed},
            r"15 of \d+ parameters of text_encoder are missing or .*, such as cnn\.0\.0",
        ),
        ({name: groups[name] for name in groups if name != "bert"}, r"23 of 25 parameters of bert are missing"),
        ({"bert": torch.zeros(1)}, "parameters of bert are missing"),
        (torch.zeros(1), "parameters of bert are missing"),
    ):
        save(wrong)  # type: ignore[arg-type]
        with pytest.raises(WeightsError, match=rf"^{tmp_path}/kokoro-v1_0\.pth: .*{problem}"):
            fetch_kokoro(str(tmp_path))
    save(groups)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "n_token": 50}))
    with pytest.raises(
        WeightsError, match=r"1 of \d+ parameters of bert .* such as embeddings\.word_embeddings\.weight"
    ):
        fetch_kokoro(str(tmp_path))
