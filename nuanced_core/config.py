"""The settings of one training run: frozen, strict YAML in, one clear line out when something is wrong."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nuanced_core.errors import ConfigError, DiskError

__all__ = [
    "Augment",
    "Data",
    "Encoder",
    "Features",
    "Loss",
    "Mixes",
    "Models",
    "Objective",
    "RunConfig",
    "Settings",
    "Train",
    "apply_overrides",
    "dotted_names",
    "nearest",
    "read_yaml",
    "validate",
    "write_yaml",
]

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
SignalToNoise = Annotated[float, Field(ge=-20, le=100)]
Decibels = Annotated[float, Field(ge=0, le=40)]
WindowFrames = Annotated[int, Field(ge=16)] | Literal["full"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Condition = Literal["clean", "snr20", "snr10", "telephone", "room"]  # see ``nuanced_core.augment.degraded``
S = TypeVar("S", bound="Settings")
T = TypeVar("T")
W = TypeVar("W", "Loss", "Objective")


class Settings(BaseModel):
    """A group of settings that refuses unknown names and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Models(Settings):
    """Which models, and where their files come from."""

    whisper: str = Field("tiny.en", description="Whisper model whose encoder hears the clips")
    source: str = Field("auto", description="auto, hub, packages, or a folder of model files")


class Data(Settings):
    """Who speaks what, and which of it no trial is trained on."""

    voices: str | tuple[str, ...] = Field("original", description="training voices: a named set, or a list of names")
    val_voices: tuple[str, ...] = Field(
        ("af_sky", "am_puck", "bf_alice", "bm_lewis"), min_length=1, description="validation voices"
    )
    sentences: str | tuple[str, ...] = Field(
        "train", description="training sentences: a built-in split, a text file, or a list"
    )
    val_sentences: str | tuple[str, ...] = Field(
        "validation", description="validation sentences: a built-in split, a text file, or a list"
    )
    sentences_per_voice: PositiveInt = Field(4, description="sentences that each training voice speaks")
    val_sentences_per_voice: Annotated[int, Field(ge=2)] = Field(
        2, description="sentences that each validation voice speaks, each heard saying another one"
    )
    max_phonemes: Annotated[int, Field(ge=4, le=510)] = Field(
        510, description="longer sentences are left out, in phonemes"
    )
    seed: Seed = Field(0, description="which sentences each voice speaks, which mixes there are, and Kokoro's noise")

    @field_validator("val_voices")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _without_repeats(names)


class Mixes(Settings):
    """Made-up voices that are trained on beside the stock ones; each speaks ``sentences`` sentences."""

    blends: Count = Field(0, description="convex mixes of stock voices")
    half_blends: Count = Field(0, description="as blends, but timbre and prosody are mixed each for itself")
    swaps: Count = Field(0, description="the timbre of one stock voice with the prosody of another")
    steps: Count = Field(0, description="blends that are then moved at random, by step_size and beyond")
    half_steps: Count = Field(0, description="as steps, but timbre and prosody are moved each for itself")
    members: PositiveInt = Field(3, description="stock voices in a blend")
    concentration: Annotated[float, Field(gt=0, le=100)] = Field(
        0.6,
        description="of the Dirichlet distribution of a blend's weights: small is near one voice, large near the mean",
    )
    step_size: Annotated[float, Field(ge=0, le=4)] = Field(
        0.5,
        description="length of a step along what tells the stock voices apart, in units of their own distance from "
        "their mean",
    )
    beyond: Annotated[float, Field(ge=0, le=4)] = Field(
        0.0, description="length of a step in any direction, also out of what stock voices can be mixed to; same units"
    )
    sentences: PositiveInt = Field(1, description="sentences that each made-up voice speaks")
    share: Probability | None = Field(
        None, description="of each batch that made-up voices speak; null: as they are many among the clips"
    )
    rows: Literal["own", "any"] = Field(
        "own",
        description="the style in which a made-up voice speaks a sentence: that for its phoneme count, or that for the "
        "count of any training sentence, however long",
    )


class Augment(Settings):
    """What happens to a training clip before Whisper hears it, as happens to recordings of people."""

    copies: Count = Field(2, description="changed versions of each training clip, heard beside the clean one")
    gain_db: Decibels = Field(6.0, description="largest change of level either way, in dB")
    equaliser_db: Decibels = Field(6.0, description="largest change of a band either way, in dB")
    noise: Probability = Field(0.6, description="how often noise is added")
    snr_db: tuple[SignalToNoise, SignalToNoise] = Field(
        (5.0, 35.0), description="least and most signal-to-noise ratio, in dB"
    )
    reverb: Probability = Field(0.4, description="how often a room is added")
    codec: Probability = Field(0.2, description="how often a lossy codec is passed through")
    band_limit: Probability = Field(0.3, description="how often the band is cut, as a telephone does")

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError("the least comes first; swap the two")
        return self


class Features(Settings):
    """What the StyleEncoder sees of a clip."""

    layers: Literal["last", "all"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "last", description="Whisper encoder layers: last, all, or a list (0 is the input of the first block)"
    )
    combine: Literal["concat", "mix"] = Field(
        "concat", description="layers side by side, or one softmax-weighted mean of them, learned, equal at first"
    )
    channel: Literal["none", "mean", "mean_std"] = Field(
        "none",
        description="what of each clip's own statistics over time is taken out of its normalised features; without its "
        "mean, encoder.pooling mean has nothing left to pool unless encoder.frame_width projects first",
    )
    bound: Weight = Field(
        4.0, description="normalised features are bounded smoothly at this many standard deviations; 0: not at all"
    )

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        return layers if isinstance(layers, str) else _without_repeats(layers)


class Encoder(Settings):
    """The shape of the StyleEncoder."""

    width: Annotated[int, Field(ge=4, le=8192)] = Field(256, description="hidden channels")
    depth: Annotated[int, Field(ge=1, le=16)] = Field(2, description="hidden layers")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    pooling: Literal["mean", "mean_std", "max", "attentive", "attentive_stats", "queries", "gru"] = Field(
        "mean", description="how feature frames become one vector"
    )
    frame_width: Annotated[int, Field(ge=0, le=8192)] = Field(
        0, description="channels that each frame is projected to before pooling; 0: as they are"
    )
    heads: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="of the attentive poolings: heads, which share the channels; of queries: how many"
    )
    standardise: bool = Field(
        True, description="give each pooled channel mean 0 and variance 1 over training clips, as it is pooled at first"
    )
    normalisation: Literal["none", "layer", "batch"] = Field(
        "none", description="of each hidden layer, before its activation"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    residual: bool = Field(False, description="add a hidden layer's input to its output where both have width channels")
    trunk: Literal["shared", "separate"] = Field(
        "shared", description="hidden layers for timbre and prosody together, or for each its own"
    )
    output: Literal["offset", "blend", "span"] = Field(
        "offset",
        description="offset from the mean training voice; convex blend of the training voices plus a bounded "
        "residual; or any affine mix of the training voices, timbre and prosody each for itself",
    )
    residual_bound: Weight = Field(
        0.5, description="of output blend: largest residual, in standard deviations of the training voices"
    )
    phoneme_count: Literal["none", "rows", "embedding"] = Field(
        "rows",
        description="what the phoneme count does: nothing; it picks the training voices' row; that, and the network "
        "sees it too",
    )

    @model_validator(mode="after")
    def _heads_have_channels(self) -> "Encoder":
        if self.pooling.startswith("attentive") and 0 < self.frame_width < self.heads:
            raise ValueError(
                f"{self.heads} heads cannot share {self.frame_width} channels; lower heads or raise frame_width"
            )
        return self


def _without_repeats(items: tuple[T, ...]) -> tuple[T, ...]:
    repeated = [item for item in items if items.count(item) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} stands twice; name each once")
    return items


def _with_some_weight(weights: W) -> W:
    if not any(value for name, value in weights if isinstance(value, float)):
        raise ValueError("all weights are 0, so there is nothing to learn; raise one of them")
    return weights


class Loss(Settings):
    """What a trial minimises: weights of the terms of its training loss."""

    stft: Weight = Field(1.0, description="multi-resolution mel-STFT loss of the audio")
    linear_stft: Weight = Field(0.0, description="multi-resolution STFT loss on linear-frequency magnitudes")
    style: Weight = Field(1.0, description="style similarity: 1 - cosine + mean squared error")
    f0: Weight = Field(0.0, description="pitch, in octaves of voiced frames")
    energy: Weight = Field(0.0, description="Kokoro's energy curve")
    duration: Weight = Field(0.0, description="durations of phonemes before rounding")

    @model_validator(mode="after")
    def _some_weight(self) -> "Loss":
        return _with_some_weight(self)


class Objective(Settings):
    """What trials are compared by (``val/loss``): the same for every trial, so no search space may name it."""

    stft: Weight = 1.0
    style: Weight = 1.0
    window_frames: WindowFrames = Field(80, description="frames of each validation sentence that are spoken")
    conditions: tuple[Condition, ...] = Field(
        ("clean", "snr20", "snr10", "telephone", "room"),
        min_length=1,
        description="how validation clips are heard, in turn: as spoken, in noise, by telephone, in a room",
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "Objective":
        return _with_some_weight(self)


class Train(Settings):
    """How a run trains."""

    epochs: PositiveInt = 10
    patience: Count = Field(0, description="stop after so many epochs without a better val/loss; 0: never")
    steps_per_epoch: PositiveInt = 20
    batch_size: PositiveInt = Field(16, description="clips a step")
    spoken: PositiveInt = Field(2, description="clips of each batch that Kokoro speaks for the audio losses")
    speak_every: PositiveInt = Field(1, description="Kokoro speaks at every Nth step; the others train style alone")
    window_frames: WindowFrames = Field(40, description="Kokoro frames (25 ms) spoken of each clip, or full")
    rows: Literal["own", "any"] = Field(
        "any",
        description="for which phoneme count the style loss asks: that of the sentence that is heard, or any",
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="of Kokoro's convolutions in training")
    checkpointing: bool = Field(False, description="compute Kokoro's blocks twice rather than keep them: less memory")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(1e-3, description="the largest, after a short warm-up")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="of the learning rate, over all epochs")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.01, description="of AdamW")
    gradient_clip: Annotated[float, Field(gt=0)] = Field(1.0, description="largest norm of a step's gradient")
    seed: Seed = Field(0, description="initial weights and order of clips")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class RunConfig(Settings):
    """One training run, whole."""

    models: Models = Models()
    data: Data = Data()
    mixes: Mixes = Mixes()
    augment: Augment = Augment()
    features: Features = Features()
    encoder: Encoder = Encoder()
    loss: Loss = Loss()
    objective: Objective = Objective()
    train: Train = Train()

    @model_validator(mode="after")
    def _something_reaches_the_encoder(self) -> "RunConfig":
        blind = self.features.channel != "none" and self.encoder.pooling == "mean" and not self.encoder.frame_width
        if blind:
            raise ValueError(
                f"features.channel {self.features.channel} takes each clip's mean out, and encoder.pooling mean has "
                "nothing left; take another pooling, set encoder.frame_width, or set features.channel none"
            )
        if self.train.speak_every > 1 and not self.loss.style:
            raise ValueError(
                f"train.speak_every {self.train.speak_every}: without loss.style the steps at which Kokoro is silent "
                "learn nothing; set it to 1, or give loss.style a weight"
            )
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, on top of the file that its ``extends`` names (relative to it), if any.

    Raises:
        ConfigError: the file is missing, is not YAML, repeats a key, or extends itself.
    """
    return _read_yaml(path, ())


def _read_yaml(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in extending:
        raise ConfigError(f"{path}: extends itself; remove the circle of 'extends'")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; there are: {', '.join(others)}" if others else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__}; settings are 'name: value' lines")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: {base!r} is not the name of a file")
    return _merged(_read_yaml(path.parent / base, (*extending, path.resolve())), data)


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same text, four times as fast


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one.

    Raises:
        DiskError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        text: str = yaml.dump(dict(data), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``data`` with ``section.name=value`` overrides applied; values are read as YAML.

    Raises:
        ConfigError: an override is not of that form.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: not of the form section.name=value")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: {_yaml_problem(error)}") from None
        for key in reversed(keys):
            value = {key: value}
        data = _merged(data, value)
    return data


def validate(settings: type[S], data: Mapping[str, Any], place: str) -> S:
    """``data`` as ``settings``; ``place`` is named in errors.

    Raises:
        ConfigError: one line that names the first wrong setting, its value and the fix.
    """
    try:
        # Through JSON, so that strict types take a YAML list for a tuple but never "3" for 3.
        return settings.model_validate_json(json.dumps(data, allow_nan=True), strict=True)
    except TypeError as error:
        raise ConfigError(f"{place}: {error}") from None
    except ValidationError as error:
        problems = error.errors()
        raise ConfigError(f"{place}: {_problem(settings, problems)}") from None


def dotted_names(settings: type[BaseModel]) -> Iterator[str]:
    """The names of all settings, as ``section.name``."""
    for name, field in settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from (f"{name}.{rest}" for rest in dotted_names(inner))
        else:
            yield name


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the nearest right name, or at all of them where none is near."""
    last = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close += [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], list(last), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: 1e-3 is a number, yes and no are words, a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the name {key!r} is not a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is set twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        return f"{where}{error.problem or error.context}"
    return " ".join(str(error).split())


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _problem(settings: type[BaseModel], problems: Sequence[Any]) -> str:
    """One line for the first of pydantic's problems, in the words of the YAML file."""
    names = set(dotted_names(settings)) | {name.split(".")[0] for name in dotted_names(settings)}
    first = problems[0]
    keys = [str(key) for key in first["loc"]]
    # A union adds its own steps to the location: keep what is a name of ours.
    known = max((n for n in range(len(keys) + 1) if ".".join(keys[:n]) in names), default=0)
    if first["type"] == "extra_forbidden":
        unknown = ".".join(keys[: known + 1])
        section = ".".join(keys[:known])
        inside = [n for n in dotted_names(settings) if not section or n.startswith(section + ".")]
        tops = list(settings.model_fields) if not section else []
        return f"{unknown}: unknown setting; {nearest(unknown, tops + inside)}"
    same = [p for p in problems if [str(k) for k in p["loc"]][:known] == keys[:known]]
    place = ".".join(keys[:known])
    value = first["input"] if known == len(keys) or not same[1:] else _input_at(same)
    told = " or ".join(dict.fromkeys(_told(p) for p in same))
    prefix = f"{place}: " if place else ""
    return f"{prefix}{json.dumps(value, default=str)[:80]}: {told}"


def _input_at(problems: Sequence[Any]) -> Any:
    """The shortest location's input: the value that the user wrote, not a part of it."""
    return min(problems, key=lambda p: len(p["loc"]))["input"]


def _told(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:]
