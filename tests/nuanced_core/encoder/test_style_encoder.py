import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from nuanced_core import StyleEncoder
from nuanced_core.audio import resample
from nuanced_core.config.settings import Encoder, Features, RunConfig, Settings
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.export import export_encoder
from nuanced_core.encoder.style_encoder import StyleEncoderConfig
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.training.run import BEST, Run

VOICES = 5
LAYERS, CHANNELS = (1, 2), 4


def _config(**settings: Any) -> StyleEncoderConfig:
    """A small encoder's; ``settings`` are named as in Encoder or Features."""
    features = {name: settings.pop(name) for name in list(settings) if name in Features.model_fields}
    return StyleEncoderConfig(
        encoder=Encoder(**{"width": 8, **settings}),
        features=Features(**features),
        whisper="tiny.en",
        layers=LAYERS,
        channels=CHANNELS,
        voices=VOICES,
    )


def _packs() -> torch.Tensor:
    """Voices that change evenly from the first row to the last."""
    ends = torch.randn(VOICES, 2, 256, generator=torch.Generator().manual_seed(1))
    return torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, 510).reshape(1, 510, 1))


def _encoder(**settings: Any) -> StyleEncoder:
    torch.manual_seed(0)
    encoder = StyleEncoder(_config(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    shape = (len(LAYERS), CHANNELS)
    statistics = FeatureStatistics(torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) + 1)
    encoder.calibrate(statistics, _packs())
    return encoder


def _trained(**settings: Any) -> StyleEncoder:
    """As ``_encoder``, with everything moved away from where it starts."""
    encoder = _encoder(**settings)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder


def _clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(2))
    return features, torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.tensor([1, 40, 600])


def _choices(settings: type[Settings], name: str) -> list[Any]:
    return (
        [False, True] if name in ("residual", "standardise") else list(get_args(settings.model_fields[name].annotation))
    )


SPACE = {
    **{name: _choices(Features, name) for name in ("combine", "channel")},
    **{
        name: _choices(Encoder, name)
        for name in (
            "activation",
            "pooling",
            "normalisation",
            "residual",
            "standardise",
            "trunk",
            "output",
            "phoneme_count",
        )
    },
    "standardise": [False, True],
    "bound": [0.0, 4.0],
    "frame_width": [0, 6],
    "heads": [1, 3],
    "depth": [1, 3],
    "dropout": [0.0, 0.3],
    "residual_bound": [0.0, 0.5],
}


def _pairwise() -> Iterator[dict[str, Any]]:
    """Settings that hold every pair of choices of two settings at least once."""
    wanted = {
        ((a, x), (b, y)) for a, b in itertools.combinations(SPACE, 2) for x, y in itertools.product(SPACE[a], SPACE[b])
    }
    draw = random.Random(0)
    while wanted:
        (a, x), (b, y) = next(iter(sorted(wanted, key=str)))
        # Of some random settings around a pair that lacks, the one that holds most of what lacks.
        tries = [{n: draw.choice(choices) for n, choices in SPACE.items()} | {a: x, b: y} for _ in range(30)]
        best = max(tries, key=lambda settings: len(wanted & set(itertools.combinations(settings.items(), 2))))
        wanted -= set(itertools.combinations(best.items(), 2))
        yield best


PAIRWISE = list(_pairwise())
OUTPUTS = [
    {"output": output, "trunk": trunk, "phoneme_count": count}
    for output, trunk, count in itertools.product(*(SPACE[name] for name in ("output", "trunk", "phoneme_count")))
]


def test_the_pairs_are_those_of_all_settings() -> None:
    assert {*SPACE, "layers", "width"} == {*Features.model_fields, *Encoder.model_fields}
    assert 28 <= len(PAIRWISE) < 50  # 7 poolings with 4 activations each


@pytest.mark.parametrize("settings", PAIRWISE, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_padding_never_matters(settings: dict[str, Any]) -> None:
    encoder = _trained(**settings)
    features, mask, counts = _clips()
    styles = encoder(features, mask, counts)
    assert torch.isfinite(styles).all()
    junk = features.masked_fill(~mask[:, None, :, None], float("nan"))
    torch.testing.assert_close(encoder(junk, mask, counts), styles)
    alone = encoder(features[1:2, :, :4], mask[1:2, :4], counts[1:2])
    torch.testing.assert_close(styles[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", PAIRWISE, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_gradients_reach_every_parameter(settings: dict[str, Any]) -> None:
    blind = settings["pooling"] == "mean" and settings["channel"] != "none" and not settings["frame_width"]
    encoder = _trained(**{**settings, **({"channel": "none"} if blind else {})}).train()
    features, mask, counts = _clips()
    features = features.repeat(4, 1, 1, 1) + torch.randn(12, 2, 7, 4, generator=torch.Generator().manual_seed(3))
    mask = mask.repeat(4, 1)
    features = features.masked_fill(~mask[:, None, :, None], float("nan"))
    encoder(features, mask, counts.repeat(4)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-5, name
    assert all((head.bias.grad != 0).all() for head in encoder.heads)  # each output does something


@pytest.mark.parametrize("settings", OUTPUTS, ids=lambda s: "-".join(s.values()))
def test_untrained_it_is_the_mean_voice(settings: dict[str, Any]) -> None:
    encoder = _encoder(**settings)
    mean = _packs().mean(dim=0)
    if settings["phoneme_count"] == "none":
        mean = mean.mean(dim=0, keepdim=True).expand(510, 256)
    torch.testing.assert_close(encoder(*_clips()), mean[[0, 39, 509]])
    features, mask, _ = _clips()
    torch.testing.assert_close(encoder.pack(features[:1], mask[:1]).squeeze(1), mean)


@pytest.mark.parametrize("settings", OUTPUTS, ids=lambda s: "-".join(s.values()))
def test_a_pack_has_the_style_of_each_phoneme_count(settings: dict[str, Any]) -> None:
    encoder = _trained(**settings)
    features, mask, _ = _clips()
    pack = encoder.pack(features[:1], mask[:1])
    assert pack.shape == (510, 1, 256)
    styles = encoder(features[:1].expand(510, -1, -1, -1), mask[:1].expand(510, -1), torch.arange(1, 511))
    torch.testing.assert_close(pack.squeeze(1), styles)
    rows_differ = (pack[1:] - pack[:-1]).abs().amax(dim=(1, 2)) > 1e-5
    assert not rows_differ.any() if settings["phoneme_count"] == "none" else rows_differ.all()


def test_only_an_embedding_moves_the_offset_with_the_phoneme_count() -> None:
    features, mask, _ = _clips()
    for phoneme_count in ("rows", "embedding"):
        encoder = _trained(phoneme_count=phoneme_count)
        offsets = encoder.pack(features[:1], mask[:1]).squeeze(1) - encoder.mean_pack
        assert torch.allclose(offsets, offsets[:1], atol=1e-5) == (phoneme_count == "rows")
        steps = (offsets[1:] - offsets[:-1]).abs().amax(dim=1)
        assert steps[300:].max() < 0.1 * offsets.abs().max()


def test_a_separate_trunk_says_nothing_of_the_other_half() -> None:
    for output in SPACE["output"]:
        encoder = _trained(trunk="separate", output=output)
        before = encoder(*_clips())
        for parameter in [*encoder.trunks[0].parameters(), *encoder.heads[0].parameters()]:
            torch.nn.init.zeros_(parameter)
        moved = (encoder(*_clips()) - before).abs().amax(dim=0)
        assert (moved[:128] > 0).all() and (moved[128:] == 0).all()


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_span_holds_each_training_voice_and_any_pair_of_halves(trunk: str) -> None:
    encoder = _encoder(output="span", trunk=trunk)
    packs = _packs()
    for timbre, prosody in ((2, 2), (0, 4)):
        weights = torch.zeros(2, VOICES)
        weights[0, timbre] = weights[1, prosody] = 1
        biases = [weights.flatten()] if trunk == "shared" else list(weights)
        for head, bias in zip(encoder.heads, biases, strict=True):
            head.bias.data = bias
        expected = torch.cat([packs[timbre, :, :128], packs[prosody, :, 128:]], dim=1)
        features, mask, _ = _clips()
        found = encoder.pack(features[:1], mask[:1]).squeeze(1)
        assert cosine_similarity(found, expected).min() > 0.9999


def test_span_is_an_affine_mix_of_each_half() -> None:
    encoder = _encoder(output="span")
    weights = torch.randn(2, VOICES, generator=torch.Generator().manual_seed(4))
    encoder.heads[0].bias.data = weights.flatten()
    mean, offsets = _packs().mean(dim=0), _packs() - _packs().mean(dim=0)
    half = [
        mean[:, part] + torch.tensordot(w, offsets[..., part], 1) for w, part in zip(weights, _halves(), strict=True)
    ]
    features, mask, _ = _clips()
    found = encoder.pack(features[:1], mask[:1]).squeeze(1)
    torch.testing.assert_close(found, torch.cat(half, dim=1), rtol=0, atol=3e-3)


def _halves() -> tuple[slice, slice]:
    return slice(0, 128), slice(128, 256)


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_blend_is_convex_but_for_a_bounded_residual(trunk: str) -> None:
    encoder = _encoder(output="blend", trunk=trunk, residual_bound=0.5)
    generator = torch.Generator().manual_seed(5)
    biases = [torch.randn(head.bias.shape, generator=generator) * 3 for head in encoder.heads]
    for head, bias in zip(encoder.heads, biases, strict=True):
        head.bias.data = bias
    parts = [slice(0, 256)] if trunk == "shared" else _halves()
    spread = (_packs() - _packs().mean(dim=0)).square().mean(dim=(0, 1)).sqrt()
    expected = [
        torch.tensordot(torch.softmax(bias[:VOICES], dim=0), _packs()[..., part], 1)
        + 0.5 * spread[part] * torch.tanh(bias[VOICES:])
        for bias, part in zip(biases, parts, strict=True)
    ]
    features, mask, _ = _clips()
    found = encoder.pack(features[:1], mask[:1]).squeeze(1)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=3e-3)


def test_offset_is_in_standard_deviations_of_the_training_voices() -> None:
    encoder = _encoder(output="offset")
    encoder.heads[0].bias.data.fill_(2)
    spread = (_packs() - _packs().mean(dim=0)).square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(encoder(*_clips()), _packs().mean(dim=0)[[0, 39, 509]] + 2 * spread)


@pytest.mark.parametrize("channel", ["none", "mean", "mean_std"])
@pytest.mark.parametrize("bound", [0.0, 1.5])
@pytest.mark.parametrize("combine", ["concat", "mix"])
def test_frames_are_normalised_stripped_of_the_channel_and_bounded(channel: str, bound: float, combine: str) -> None:
    encoder = _trained(channel=channel, bound=bound, combine=combine)
    features, mask, _ = _clips()
    found = encoder.frames(features, mask)
    for i, length in enumerate((7, 4, 1)):
        x = (features[i, :, :length].double() - encoder.feature_mean[:, None]) / encoder.feature_std[:, None]
        if channel != "none":
            x = x - x.mean(dim=1, keepdim=True)
        if channel == "mean_std":
            x = x / x.std(dim=1, keepdim=True, correction=0) if length > 1 else torch.zeros_like(x)
        if bound:
            x = bound * torch.tanh(x / bound)
        if combine == "mix":
            assert encoder.layer_logits is not None
            weights = torch.softmax(encoder.layer_logits.detach().double(), dim=0)
            expected = weights[0] * x[0] + weights[1] * x[1]
        else:
            expected = torch.cat([x[0], x[1]], dim=1)
        torch.testing.assert_close(found[i, :length].detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_a_mix_of_layers_starts_with_equal_weights() -> None:
    features, mask, _ = _clips()
    mixed = _encoder(combine="mix").frames(features, mask)
    both = _encoder(combine="concat").frames(features, mask)
    torch.testing.assert_close(mixed[mask], ((both[..., :4] + both[..., 4:]) / 2)[mask])


def test_without_its_channel_a_clip_sounds_the_same_through_any_filter_and_gain() -> None:
    features, mask, counts = _clips()
    generator = torch.Generator().manual_seed(6)
    shift, scale = torch.randn(3, 2, 1, 4, generator=generator), torch.rand(3, 2, 1, 4, generator=generator) + 0.5
    for channel, other in (("mean", features + shift), ("mean_std", features * scale + shift)):
        encoder = _trained(channel=channel, pooling="mean_std")
        torch.testing.assert_close(encoder(other, mask, counts), encoder(features, mask, counts), rtol=1e-3, atol=1e-3)
        plain = _trained(channel="none", pooling="mean_std")
        assert (plain(other, mask, counts) - plain(features, mask, counts)).abs().max() > 0.1


@pytest.mark.parametrize("standardise", [True, False])
def test_pooled_channels_are_standardised_over_the_clips_given_if_asked(standardise: bool) -> None:
    encoder = _trained(standardise=standardise, pooling="mean_std", dropout=0.0)
    features, mask, counts = _clips()
    pooled = encoder.pooled(features, mask)
    before = encoder(features, mask, counts)
    encoder.calibrate_pooled(10 * pooled + 3)
    expected = (pooled - (10 * pooled + 3).mean(dim=0)) / (10 * pooled).std(dim=0, correction=0).clamp(min=1e-3)
    after = encoder(features, mask, counts)
    assert torch.equal(after, before) is not standardise
    encoder.pooled_mean.zero_()
    encoder.pooled_std.fill_(1)
    torch.testing.assert_close(encoder.styles(expected if standardise else pooled, counts), after)


def test_residuals_add_up_where_shapes_agree() -> None:
    encoder = _trained(residual=True, depth=3, width=8)
    first, second, third = encoder.trunks[0]
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(7))
    plain = lambda layer, x: torch.nn.functional.gelu(x @ layer.linear.weight.T + layer.linear.bias)  # noqa: E731
    y = x + plain(first, x)
    y = y + plain(second, y)
    torch.testing.assert_close(encoder.trunks[0](x), y + plain(third, y))
    projecting = _trained(residual=True, depth=1, width=5).trunks[0]
    torch.testing.assert_close(projecting(x), plain(projecting[0], x))


def test_batch_normalisation_takes_a_batch_of_one() -> None:
    encoder = _trained(normalisation="batch")
    features, mask, counts = _clips()
    one = (features[:1], mask[:1], counts[:1])
    expected = encoder(*one)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    torch.testing.assert_close(encoder.train()(*one), expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    encoder(features, mask, counts)
    norm = encoder.trunks[0][0].normalisation
    assert not torch.equal(norm.running_mean, before["trunks.0.0.normalisation.running_mean"])


def test_dropout_is_of_training_alone() -> None:
    encoder = _trained(dropout=0.5)
    assert torch.equal(encoder(*_clips()), encoder(*_clips()))
    encoder.train()
    assert not torch.equal(encoder(*_clips()), encoder(*_clips()))


def test_packs_of_another_number_of_voices_are_refused() -> None:
    encoder = _encoder()
    statistics = FeatureStatistics(encoder.feature_mean, encoder.feature_std)
    with pytest.raises(ConfigError, match=r"packs: shape \(1, 510, 256\) is not \(5, 510, 256\)"):
        encoder.calibrate(statistics, _packs()[:1])


def test_heads_that_find_no_channel_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder: .*4 heads cannot share 2 channels"):
        validate(RunConfig, {"encoder": {"pooling": "attentive", "heads": 4, "frame_width": 2}}, "x.yaml")


@pytest.mark.parametrize("settings", PAIRWISE[:10], ids=lambda s: "-".join(str(v) for v in s.values()))
def test_weights_and_configuration_survive_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    encoder = _trained(**settings)
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"style_encoder": encoder.config.to_dict()}))
    loaded = StyleEncoder.from_pretrained(tmp_path)
    assert loaded.config == encoder.config
    torch.testing.assert_close(loaded(*_clips()), encoder(*_clips()), rtol=0, atol=0)


def test_a_configuration_is_read_strictly() -> None:
    data = _config(pooling="queries").to_dict()
    assert StyleEncoderConfig.from_dict(json.loads(json.dumps(data)), "x") == _config(pooling="queries")
    for change, told in (
        ({"voices": None}, "voices"),
        ({"voices": "5"}, "voices"),
        ({"layers": []}, "layers"),
        ({"channel": 3}, "channel: unknown setting"),
        ({"encoder": {**_config().encoder.model_dump(), "widht": 3}}, "encoder.widht: unknown setting"),
    ):
        with pytest.raises(ConfigError, match=told):
            StyleEncoderConfig.from_dict({**data, **change}, "x")
    old = {name: value for name, value in data.items() if name not in ("features", "voices")}
    with pytest.raises(ConfigError, match=r"x: features: .*field required; not a StyleEncoder of this version"):
        StyleEncoderConfig.from_dict(old, "x")


@pytest.mark.real
def test_knots_give_the_stock_voices_back(models: ModelSet) -> None:
    names = models.voices.training_voices("all", ("af_sky",))
    packs = torch.stack([models.voices.pack(name) for name in names])
    config = _config(output="span").model_copy(update={"voices": len(names)})
    encoder = StyleEncoder(config).eval()
    encoder.calibrate(FeatureStatistics(encoder.feature_mean, encoder.feature_std), packs)
    assert encoder.voice_offsets.nbytes < 1e6
    features, mask, _ = _clips()
    for voice, pack in enumerate(packs):
        weights = torch.zeros(2, len(names))
        weights[:, voice] = 1
        encoder.heads[0].bias.data = weights.flatten()
        with torch.no_grad():
            found = encoder.pack(features[:1], mask[:1]).squeeze(1)
        for half in _halves():
            cosine = cosine_similarity(found[:, half], pack[:, half])
            assert cosine.min() > 0.999 and cosine.mean() > 0.99999, names[voice]


@pytest.fixture(params=SPACE["output"])
def exported(
    tmp_path: Path, fakes: SimpleNamespace, tiny_run: RunConfig, request: pytest.FixtureRequest
) -> tuple[Run, Path]:
    data = apply_overrides(tiny_run.model_dump(mode="json"), [f"encoder.output={request.param}"])
    config = validate(RunConfig, data, "tiny")
    run = Run(config, Dataset(fakes, tmp_path / "cache"), tmp_path / "run", lambda step, scalars: None)
    run.run_epoch()
    return run, export_encoder(tmp_path / "run" / BEST, tmp_path / "models" / "mine", {"val/skill": 0.25})


def test_an_exported_encoder_says_the_same(exported: tuple[Run, Path]) -> None:
    run, folder = exported
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]
    encoder = StyleEncoder.from_pretrained(folder)
    assert encoder.config.encoder == run.config.encoder and encoder.config.features == run.config.features
    batch = run._val_batch
    inputs = (batch.features, batch.mask, batch.phoneme_counts)
    torch.testing.assert_close(encoder(*inputs), run.encoder.eval()(*inputs))
    config = json.loads((folder / "config.json").read_text())
    assert config["style_encoder"]["whisper"] == "tiny.en"
    assert config["facts"]["val/skill"] == 0.25
    card = (folder / "README.md").read_text()
    assert "# mine" in card and "| val/skill | 0.25 |" in card


def test_export_refuses_what_exists_and_what_is_no_checkpoint(exported: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = exported
    with pytest.raises(ConfigError, match="exists"):
        export_encoder(run.folder / BEST, folder)
    with pytest.raises(WeightsError, match="no such checkpoint"):
        export_encoder(tmp_path / "none.safetensors", tmp_path / "new")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        export_encoder(tmp_path / "junk.safetensors", tmp_path / "new")
    old = json.dumps({"style_encoder": {"whisper": "tiny.en", "layers": [1], "channels": 4}})
    save_file({"encoder.mean_pack": torch.zeros(510, 256)}, tmp_path / "old.safetensors", {"progress": old})
    with pytest.raises(ConfigError, match=r"old\.safetensors: encoder: .*not a StyleEncoder of this version"):
        export_encoder(tmp_path / "old.safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_encoder_is_told(exported: tuple[Run, Path], tmp_path: Path) -> None:
    _, folder = exported
    with pytest.raises(WeightsError, match="no such file"):
        StyleEncoder.from_pretrained(tmp_path)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(WeightsError, match="does not fit"):
        StyleEncoder.from_pretrained(folder)
    config.write_text(text.replace('"pooling": "mean"', '"pooling": "men"'))
    with pytest.raises(ConfigError, match="pooling"):
        StyleEncoder.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(ConfigError, match="not a StyleEncoder's configuration"):
        StyleEncoder.from_pretrained(folder)


SHIPPED = Path(__file__).parents[3] / "models" / "default"


def test_the_shipped_encoder_is_small_and_its_card_has_its_numbers() -> None:
    encoder = StyleEncoder.from_pretrained(SHIPPED)
    assert encoder.config.whisper == "tiny.en"
    assert (SHIPPED / "model.safetensors").stat().st_size < 5_000_000
    report = json.loads((SHIPPED / "evaluation.json").read_text())
    assert f"| {report['rows']['encoder']['style_cosine']:.3f} ±" in (SHIPPED / "README.md").read_text()


@pytest.mark.real
def test_the_shipped_encoder_hears_a_voice_that_it_was_not_trained_on(models: ModelSet, tmp_path: Path) -> None:
    encoder = StyleEncoder.from_pretrained(SHIPPED)
    phonemes = "ʃi ˈoʊpənd ðə ˈoʊld dˈɔɹ ænd lˈʊkt ɪntʊ ðə ɡˈɑɹdən."
    cosines = []
    for voice in ("af_sky", "am_puck"):
        style = models.voices.style(voice, len(phonemes))
        with torch.no_grad():
            text = models.kokoro.encode_text([phonemes])
            prosody = models.kokoro.prosody(text, style[None])
            audio = models.kokoro.speak(text, prosody, style[None], [0]).item(0)
            features = models.whisper(resample(audio, 24_000, 16_000))[None].float()
            mask = torch.ones(1, features.shape[2], dtype=torch.bool)
            pack = encoder.pack(features, mask)[:, 0]
        row = len(phonemes) - 1
        of_mean = torch.cosine_similarity(encoder.mean_pack[row], style, dim=0)
        assert torch.cosine_similarity(pack[row], style, dim=0) > of_mean + 0.05
        cosines.append(torch.cosine_similarity(pack[row], pack[300], dim=0))
    assert max(cosines) < 0.99  # rows differ, as those of stock voices do
