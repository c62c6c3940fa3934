"""The settings of one training run: frozen, strict YAML in, one clear line out when something is wrong."""

import os.path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

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
    "UserPath",
]

# A path whose leading ``~`` is replaced by the home directory.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
SignalToNoise = Annotated[float, Field(ge=-20, le=100)]
Decibels = Annotated[float, Field(ge=0, le=40)]
WindowFrames = Annotated[int, Field(ge=16)] | Literal["full"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Condition = Literal[
    "clean", "snr20", "snr10", "telephone", "room"
]  # see ``nuanced_core.hearing.augmentation.degraded``
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
