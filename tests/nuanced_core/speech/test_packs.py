"""nuanced_core.speech.packs: formats of packs, bad files, and voices by name, file and mix."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.errors import ConfigError, DiskError, NuancedError, VoiceError
from nuanced_core.speech.packs import (
    blend,
    parse_weights,
    read_pack,
    resolve_voice,
    scale_offset,
    with_half,
    write_pack,
)


@pytest.fixture
def pack() -> Tensor:
    return torch.randn(510, 1, 256, generator=torch.Generator().manual_seed(0))


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pt", "npz", "bin", "npy"])
def test_a_pack_is_read_as_it_was_written(tmp_path: Path, pack: Tensor, suffix: str) -> None:
    write_pack(tmp_path / f"me.{suffix}", pack)
    assert torch.equal(read_pack(tmp_path / f"me.{suffix}"), pack)
    assert [file.name for file in tmp_path.iterdir()] == [f"me.{suffix}"]
    assert (tmp_path / f"me.{suffix}").stat().st_size < 540_000


def test_files_are_those_that_others_read(tmp_path: Path, pack: Tensor) -> None:
    for suffix in ("pt", "npz", "bin"):
        write_pack(tmp_path / f"me.{suffix}", pack)
    kokoro = torch.load(tmp_path / "me.pt", weights_only=True)
    assert kokoro.shape == (510, 1, 256) and kokoro.dtype == torch.float32
    with np.load(tmp_path / "me.npz") as kokoro_onnx:
        assert kokoro_onnx.files == ["me"] and kokoro_onnx["me"].shape == (510, 1, 256)
    kokoro_js = np.frombuffer((tmp_path / "me.bin").read_bytes(), "<f4")
    assert np.array_equal(kokoro_js, pack.flatten().numpy())


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "ünïcode 2.0", "\udcff"])
def test_a_voice_in_an_npz_may_have_any_name(tmp_path: Path, pack: Tensor, name: str) -> None:
    path = tmp_path / f"{name}.npz"
    write_pack(path, pack)
    assert torch.equal(read_pack(path), pack)
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == [name.replace("\udcff", "?")]
    np.savez(tmp_path / "numpy.npz", me=pack.numpy())
    write_pack(tmp_path / "me.npz", pack)
    assert (tmp_path / "me.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_a_named_format_needs_no_suffix(tmp_path: Path, pack: Tensor) -> None:
    write_pack(tmp_path / "voice", pack, "bin")
    assert (tmp_path / "voice").stat().st_size == 510 * 256 * 4


def test_one_voice_of_several_in_an_npz(tmp_path: Path, pack: Tensor) -> None:
    np.savez(tmp_path / "voices.npz", a=pack.numpy(), b=2 * pack.numpy())
    assert torch.equal(read_pack(f"{tmp_path}/voices.npz:b"), 2 * pack)
    with pytest.raises(VoiceError, match=r"has 2 voices \(a, b, …\); name one: .*voices.npz:a"):
        read_pack(tmp_path / "voices.npz")
    with pytest.raises(VoiceError, match="has no voice 'c'; it has a, b"):
        read_pack(f"{tmp_path}/voices.npz:c")


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _npy(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


PACK = torch.zeros(510, 1, 256)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pt", b"", "not a pack"),
        ("a.pt", b"nonsense", "holds code or objects beside numbers, or is damaged"),
        ("a.pt", _saved(PACK)[:1000], "not a pack"),
        ("a.pt", _saved(torch.zeros(511, 1, 256)), r"shape \(511, 1, 256\) is not that of a pack, \(510, 1, 256\)"),
        ("a.pt", _saved({"voice": PACK}), "holds a dict instead of a tensor"),
        ("a.pt", _saved(PACK.int()), "finite floating-point numbers"),
        ("a.pt", _saved(PACK * torch.nan), "finite floating-point numbers"),
        ("a.npy", _npy(np.zeros((2, 2), np.float32)), r"shape \(2, 2\)"),
        ("a.npy", _npy(np.zeros((510, 1, 256), np.int64)), "finite floating-point numbers, this file has int64"),
        ("a.npy", b"PK nonsense", "not a pack"),
        ("a.npz", _npy(PACK.numpy()), "is one array; rename it to .npy"),
        ("a.npz", b"", "not a pack"),
        ("a.bin", b"1234", "4 bytes are not the 522240"),
        ("a.bin", b"\xff" * 522_240, "finite floating-point numbers"),
        ("a.wav", b"RIFF", "a pack's name ends with .pt"),
        ("missing.pt", None, "no such file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(VoiceError, match=message) as caught:
        read_pack(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dump", [lambda evil, file: torch.save(evil, file), pickle.dump])
def test_code_in_a_pack_does_not_run(tmp_path: Path, dump: object) -> None:
    with (tmp_path / "evil.pt").open("wb") as file:
        dump(Evil(tmp_path / "ran"), file)  # type: ignore[operator]
    with pytest.raises(VoiceError, match="holds code or objects"):
        read_pack(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("me.wav", ConfigError, "its name says no format; end it with .pt, .npz or .bin"),
        ("nowhere/me.pt", DiskError, "there is no folder .*nowhere; create it"),
        ("folder.pt", DiskError, "is a folder"),
    ],
)
def test_where_no_pack_can_be_written_nothing_is_left(
    tmp_path: Path, pack: Tensor, name: str, error: type[NuancedError], message: str
) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(error, match=message):
        write_pack(tmp_path / name, pack)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.pt"]


def test_a_pack_with_nan_does_not_replace_an_old_one(tmp_path: Path, pack: Tensor) -> None:
    write_pack(tmp_path / "me.pt", pack)
    with pytest.raises(VoiceError, match="finite"):
        write_pack(tmp_path / "me.pt", pack * torch.inf)
    assert torch.equal(read_pack(tmp_path / "me.pt"), pack)


def test_voices_by_name_file_and_mix(tmp_path: Path, pack: Tensor, fakes: SimpleNamespace) -> None:
    bank = fakes.voices
    bella, sky = bank.pack("af_bella")[:, None], bank.pack("af_sky")[:, None]
    assert torch.equal(resolve_voice("af_bella", bank), bella)
    file = tmp_path / "me+you.pt"
    write_pack(file, pack)
    assert torch.equal(resolve_voice(file, bank), pack)
    torch.testing.assert_close(resolve_voice("af_bella(2)+af_sky(1)", bank), (2 * bella + sky) / 3)
    torch.testing.assert_close(resolve_voice("af_bella + af_sky", bank), (bella + sky) / 2)
    write_pack(tmp_path / "me.bin", pack)
    torch.testing.assert_close(resolve_voice(f"{tmp_path}/me.bin(3)+af_sky", bank), (3 * pack + sky) / 4)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("af_bela", "'af_bela' is not a voice; did you mean af_bella?"),
        ("af_bela+af_sky", "'af_bela' is not a voice"),
        ("", "'' is not a voice"),
        ("af_bella(2)+", "'' is not a voice with a weight; write it like"),
        ("af_bella(two)", "the weight 'two' of af_bella is not a number of at least 0"),
        ("af_bella(-1)+af_sky", "the weight '-1' of af_bella is not a number"),
        ("af_bella(nan)+af_sky", "is not a number"),
        ("af_bella(0)+af_sky(0)", "its weights add up to 0; give weights above 0"),
        ("af_bella(2)af_sky", "is not a voice with a weight"),
        ("missing.pt", "missing.pt: no such file"),
    ],
)
def test_a_voice_that_is_not_there_is_refused(fakes: SimpleNamespace, expression: str, message: str) -> None:
    with pytest.raises(VoiceError) as caught:
        resolve_voice(expression, fakes.voices)
    assert message in str(caught.value)


def test_shares_strength_and_halves(pack: Tensor, fakes: SimpleNamespace) -> None:
    assert parse_weights("af_heart=0.3, bm_lewis=0.1") == {"af_heart": 0.3, "bm_lewis": 0.1}
    heart = fakes.voices.pack("af_heart")[:, None]
    torch.testing.assert_close(blend(pack, {"af_heart": 0.25}, {"af_heart": heart}), 0.75 * pack + 0.25 * heart)
    mean = torch.ones(510, 256)
    torch.testing.assert_close(scale_offset(pack, mean, 2.0), 1 + 2 * (pack - 1))
    assert torch.equal(scale_offset(pack, mean, 0.0), mean[:, None])
    timbre = with_half(pack, heart, "timbre")
    assert torch.equal(timbre[..., :128], heart[..., :128]) and torch.equal(timbre[..., 128:], pack[..., 128:])
    prosody = with_half(pack, heart, "prosody")
    assert torch.equal(prosody[..., 128:], heart[..., 128:]) and torch.equal(prosody[..., :128], pack[..., :128])


@pytest.mark.parametrize("text", ["a=0.20,b=0.40,c=0.30,d=0.10", "a=0.5,b=0.5000000000000002"])
def test_shares_may_add_up_to_one_as_they_are_written(pack: Tensor, text: str) -> None:
    shares = parse_weights(text)  # their sum is 1.0000000000000002
    others = {name: torch.full_like(pack, 2.0**number) for number, name in enumerate(shares)}
    expected = sum((share * others[name] for name, share in shares.items()), torch.zeros_like(pack))
    assert torch.equal(blend(1e30 * pack, shares, others), expected)  # nothing of the voice itself is left


@pytest.mark.parametrize("text", ["a=0.5,b=0.500001", "a=1e308,b=1e308"])
def test_shares_of_more_than_one_are_refused(text: str) -> None:
    with pytest.raises(VoiceError, match="the shares add up to"):
        parse_weights(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("af_heart", "'af_heart' has no voice or no share"),
        ("=0.3", "has no voice or no share"),
        ("af_heart=x", "the share 'x' of af_heart is not a number"),
        ("af_heart=0.7,bm_lewis=0.4", "the shares add up to 1.1"),
        ("af_heart=0.1,af_heart=0.2", "af_heart is there twice"),
    ],
)
def test_a_blend_that_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(VoiceError) as caught:
        parse_weights(text)
    assert message in str(caught.value)
