"""The settings of a training run, with their types, ranges, defaults and descriptions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from nuanced_core.config.data_settings import (
    Augment,
    Condition,
    Count,
    Data,
    Mixes,
    Models,
    PositiveInt,
    Seed,
    Settings,
    Weight,
    WindowFrames,
    without_repeats,
)

__all__ = [
    "PEOPLE_TERMS",
    "PITCH",
    "Augment",
    "Condition",
    "Data",
    "Encoder",
    "Features",
    "Loss",
    "Mixes",
    "Models",
    "Objective",
    "RunConfig",
    "Settings",
    "SpeakerEncoderName",
    "Train",
    "WindowFrames",
    "result_settings",
]

# Names of ``nuanced_core.speakers.encoders.SPEAKER_ENCODERS``.
SpeakerEncoderName = Literal["campplus", "resemblyzer"]
PITCH = "pitch"  # the part of a clip's speaker features that is no speaker embedding
# Terms of the loss, in units of their own, that need ``data.people``.
PEOPLE_TERMS = ("speaker", "surrogate", "pitch", "rate", "hearing", "prior")
WeightsT = TypeVar("WeightsT", "Loss", "Objective")


class Features(Settings):
    """The ``features`` section: the input of the StyleEncoder."""

    layers: Literal["last", "all"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "last", description="Whisper encoder layers: last, all, or a list (0 is the input of the first block)"
    )
    combine: Literal["concat", "mix"] = Field(
        "concat",
        description="layers concatenated, or their softmax-weighted mean, with learned weights that start equal",
    )
    channel: Literal["none", "mean", "mean_std"] = Field(
        "none",
        description="statistics over time that are removed from the normalised features of each clip; without its "
        "mean, encoder.pooling mean has nothing left to pool unless encoder.frame_width projects first",
    )
    bound: Weight = Field(4.0, description="smooth bound of normalised features, in standard deviations; 0: no bound")
    speaker: Literal["none", "campplus", "resemblyzer", "all"] = Field(
        "none", description="speaker encoder whose embedding of the clip is an input beside Whisper's pooled features"
    )
    pitch: bool = Field(False, description="median and spread of the clip's F0 as inputs too")

    @property
    def speaker_encoders(self) -> tuple[SpeakerEncoderName, ...]:
        """Names of the speaker encoders that the setting ``speaker`` means."""
        if self.speaker == "all":
            return ("campplus", "resemblyzer")
        return () if self.speaker == "none" else (self.speaker,)

    @property
    def speaker_parts(self) -> tuple[str, ...]:
        """Names of the parts of the speaker features: speaker encoders, and ``PITCH``."""
        return (*self.speaker_encoders, *((PITCH,) if self.pitch else ()))

    @field_validator("layers")
    @classmethod
    def _no_repeats(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        return layers if isinstance(layers, str) else without_repeats(layers)


class Encoder(Settings):
    """The ``encoder`` section: the architecture of the StyleEncoder."""

    width: Annotated[int, Field(ge=4, le=8192)] = Field(256, description="hidden channels")
    depth: Annotated[int, Field(ge=1, le=16)] = Field(2, description="hidden layers")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    pooling: Literal["mean", "mean_std", "max", "attentive", "attentive_stats", "queries", "gru"] = Field(
        "mean", description="pooling of the feature frames into one vector"
    )
    frame_width: Annotated[int, Field(ge=0, le=8192)] = Field(
        0, description="channels to which each frame is projected before pooling; 0: no projection"
    )
    heads: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="number of heads of the attentive poolings, which share the channels; or number of queries of "
        "pooling queries",
    )
    standardise: bool = Field(
        True,
        description="scale each pooled channel to mean 0 and variance 1 over the training clips, by its statistics "
        "before training",
    )
    normalisation: Literal["none", "layer", "batch"] = Field(
        "none", description="normalisation of each hidden layer, before its activation"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    residual: bool = Field(
        False, description="add the input of a hidden layer to its output where both have width channels"
    )
    trunk: Literal["shared", "separate"] = Field(
        "shared", description="hidden layers shared by timbre and prosody, or separate ones for each"
    )
    output: Literal["offset", "blend", "span"] = Field(
        "offset",
        description="offset from the mean training voice; convex blend of the training voices plus a bounded "
        "residual; or any affine mix of the training voices, separately for timbre and prosody",
    )
    residual_bound: Weight = Field(
        0.5, description="largest residual of output blend, in standard deviations of the training voices"
    )
    phoneme_count: Literal["none", "rows", "embedding"] = Field(
        "rows",
        description="use of the phoneme count: none; it selects the row of the training voices; or it is also an input "
        "of the network",
    )
    surrogate_steps: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="gradient steps from the predicted style towards the speaker embeddings and pitch that were heard "
        "(features.speaker), on a surrogate that predicts them from the style; not in training; 0: none",
    )
    surrogate_prior: Weight = Field(
        0.1, description="weight that keeps these steps near the mean voice, beside 1 - cosine of each speaker encoder"
    )
    surrogate_anchor: Weight = Field(0.0, description="weight that keeps these steps near the predicted style")

    @model_validator(mode="after")
    def _heads_have_channels(self) -> "Encoder":
        if self.pooling.startswith("attentive") and 0 < self.frame_width < self.heads:
            raise ValueError(
                f"{self.heads} heads cannot share {self.frame_width} channels; lower heads or raise frame_width"
            )
        return self


def _with_some_weight(weights: WeightsT) -> WeightsT:
    if not any(value for name, value in weights if isinstance(value, float)):
        raise ValueError("all weights are 0, so there is nothing to learn; raise one of them")
    return weights


class Loss(Settings):
    """The ``loss`` section: weights of the terms of the training loss."""

    stft: Weight = Field(1.0, description="multi-resolution mel-STFT loss of the audio")
    linear_stft: Weight = Field(0.0, description="multi-resolution STFT loss on linear-frequency magnitudes")
    style: Weight = Field(1.0, description="style similarity: 1 - cosine + mean squared error")
    f0: Weight = Field(0.0, description="pitch, in octaves of voiced frames")
    energy: Weight = Field(0.0, description="Kokoro's energy curve")
    duration: Weight = Field(0.0, description="durations of phonemes before rounding")
    speaker: Weight = Field(
        0.0,
        description="1 - cosine of the speaker embeddings of what Kokoro speaks, through a random channel, and of a "
        "person (data.people), summed over speaker_encoders",
    )
    surrogate: Weight = Field(
        0.0, description="as speaker, with the embedding that a surrogate predicts from the style, without Kokoro"
    )
    pitch: Weight = Field(0.0, description="median and spread of F0 against the person's, in octaves")
    rate: Weight = Field(0.0, description="speaking rate against the person's, in octaves")
    hearing: Weight = Field(
        0.0, description="Whisper's early states of what Kokoro speaks against the person's, means over time"
    )
    prior: Weight = Field(
        0.0, description="distance of people's styles from the range of the stock voices, in their standard deviations"
    )
    speaker_encoders: tuple[SpeakerEncoderName, ...] = Field(
        ("campplus",), min_length=1, description="speaker encoders of the terms speaker and surrogate"
    )

    @field_validator("speaker_encoders")
    @classmethod
    def _no_repeats(cls, names: tuple[SpeakerEncoderName, ...]) -> tuple[SpeakerEncoderName, ...]:
        return without_repeats(names)

    @model_validator(mode="after")
    def _some_weight(self) -> "Loss":
        return _with_some_weight(self)

    @property
    def of_people(self) -> tuple[str, ...]:
        """Names of the terms that have a weight and compare with people, who have no true style."""
        return tuple(name for name in PEOPLE_TERMS if getattr(self, name))


class Objective(Settings):
    """The ``objective`` section: definition of ``val/loss``, by which trials are compared.

    It is the same for every trial, so a search space must not contain it.
    """

    stft: Weight = 1.0
    style: Weight = 1.0
    people: Weight = Field(
        0.0,
        description="1 - the identity of what Kokoro speaks in the voices of validation people: 0 another "
        "person, 1 the same, by people_encoder",
    )
    pitch: Weight = Field(0.0, description="error of validation people's median F0, in octaves")
    people_encoder: SpeakerEncoderName = Field(
        "resemblyzer", description="speaker encoder that judges people, of which no loss may consist"
    )
    people_count: Annotated[int, Field(ge=2)] = Field(16, description="number of validation people, at most")
    people_frames: Annotated[int, Field(ge=64)] = Field(
        80, description="Kokoro frames (25 ms) that are spoken for each of them; Resemblyzer hears at least 64"
    )
    window_frames: WindowFrames = Field(
        80, description="Kokoro frames (25 ms) that are spoken of each validation sentence, or full"
    )
    conditions: tuple[Condition, ...] = Field(
        ("clean", "snr20", "snr10", "telephone", "room"),
        min_length=1,
        description="conditions of the validation clips, assigned in turn: clean, in noise, by telephone, in a room",
    )

    @property
    def judges_people(self) -> bool:
        """Whether validation people are part of the objective."""
        return bool(self.people or self.pitch)

    @model_validator(mode="after")
    def _some_weight(self) -> "Objective":
        return _with_some_weight(self)


class Train(Settings):
    """The ``train`` section: length, batches, optimiser and device of a run."""

    epochs: PositiveInt = 10
    patience: Count = Field(0, description="stop after this many epochs without a lower val/loss; 0: never")
    steps_per_epoch: PositiveInt = 20
    batch_size: PositiveInt = Field(16, description="clips per step")
    spoken: PositiveInt = Field(2, description="clips of each batch that Kokoro speaks for the audio losses")
    speak_every: PositiveInt = Field(
        1, description="Kokoro speaks at every Nth step; the other steps train on the style loss alone"
    )
    window_frames: WindowFrames = Field(40, description="Kokoro frames (25 ms) that are spoken of each clip, or full")
    people: PositiveInt = Field(32, description="recordings of people per step, for the surrogate, with data.people")
    people_spoken: PositiveInt = Field(1, description="people of each of these in whose voice Kokoro speaks")
    people_frames: Annotated[int, Field(ge=40)] = Field(
        80, description="Kokoro frames (25 ms) that are spoken in a person's voice for the speaker encoders"
    )
    rows: Literal["own", "any"] = Field(
        "any",
        description="phoneme count for which the style loss is computed: that of the clip's sentence, or any",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="precision of Kokoro's convolutions in training"
    )
    checkpointing: bool = Field(
        False, description="recompute Kokoro's blocks in the backward pass instead of storing them: less memory"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-3, description="largest learning rate, reached after a short warm-up"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="schedule of the learning rate over all epochs"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.01, description="weight decay of AdamW")
    gradient_clip: Annotated[float, Field(gt=0)] = Field(1.0, description="largest norm of the gradient of a step")
    seed: Seed = Field(0, description="seed of the initial weights and of the order of clips")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class Show(Settings):
    """The ``show`` section: what of a run can be seen and heard. It changes no result."""

    clips: Annotated[int, Field(ge=0, le=16)] = Field(
        2, description="validation clips whose sounds and pictures are written, the first of different voices; 0: none"
    )
    people: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="the same of validation people, whose recordings are then copied into outputs/"
    )
    every: Count = Field(
        0,
        description="at every Nth epoch, and of the best one at the end; 0: of epochs 1, 4, 16, …, and at the end",
    )


class RunConfig(Settings):
    """All settings of a training run."""

    models: Models = Models()
    data: Data = Data()
    mixes: Mixes = Mixes()
    augment: Augment = Augment()
    features: Features = Features()
    encoder: Encoder = Encoder()
    loss: Loss = Loss()
    objective: Objective = Objective()
    train: Train = Train()
    show: Show = Show()

    @property
    def has_surrogate(self) -> bool:
        """Whether a run fits surrogates to its training clips."""
        return bool(self.encoder.surrogate_steps or self.loss.surrogate or self.mixes.found)

    @property
    def loss_encoders(self) -> tuple[SpeakerEncoderName, ...]:
        """The speaker encoders that a run is trained by: those of its losses, or of the voices that it finds."""
        trains = self.loss.speaker or self.loss.surrogate or self.mixes.found
        return self.loss.speaker_encoders if trains else ()

    @property
    def clip_parts(self) -> tuple[str, ...]:
        """What a run needs of each clip beside Whisper's states: names of speaker encoders, and ``PITCH``."""
        parts = list(self.features.speaker_parts)
        if self.loss.surrogate or self.mixes.found:
            parts += self.loss.speaker_encoders
        if self.has_surrogate:
            parts.append(PITCH)
        return tuple(dict.fromkeys(parts))

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "RunConfig":
        mean_removed = self.features.channel != "none"
        if mean_removed and self.encoder.pooling == "mean" and not self.encoder.frame_width:
            raise ValueError(
                f"features.channel {self.features.channel} removes the mean of each clip, so encoder.pooling mean has "
                "nothing left to pool; choose another pooling, set encoder.frame_width, or set features.channel none"
            )
        if self.encoder.surrogate_steps and not self.features.speaker_encoders:
            raise ValueError(
                f"encoder.surrogate_steps {self.encoder.surrogate_steps}: there is nothing to approach with "
                "features.speaker none; name a speaker encoder there, or set it to 0"
            )
        self._check_people()
        if self.train.speak_every > 1 and not self.loss.style:
            raise ValueError(
                f"train.speak_every {self.train.speak_every}: without loss.style, steps at which Kokoro does not speak "
                "learn nothing; set it to 1, or give loss.style a weight"
            )
        return self

    def _check_people(self) -> None:
        """Check what concerns people, whose recordings ``data.people`` names."""
        judged = [f"objective.{name}" for name in ("people", "pitch") if getattr(self.objective, name)]
        found = ["mixes.found"] if self.mixes.found else []
        wanted = [*(f"loss.{name}" for name in self.loss.of_people), *judged, *found]
        if wanted and self.data.people is None:
            raise ValueError(
                f"{wanted[0]} needs recordings of people; set data.people to a folder that holds a folder for each "
                "speaker, or set it to 0"
            )
        judge = self.objective.people_encoder
        if self.objective.people and self.encoder.surrogate_steps and judge in self.features.speaker_encoders:
            raise ValueError(
                f"objective.people_encoder {judge} judges what encoder.surrogate_steps approach by the same one, of "
                f"features.speaker {self.features.speaker}; choose another one, or set one of the two to 0"
            )
        if self.objective.people and judge in self.loss_encoders:
            raise ValueError(
                f"objective.people_encoder {judge} judges what loss.speaker_encoders trains by the same encoder; "
                "choose different ones"
            )


def result_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, as plain values, without those that change no result.

    These are the source of the model files, the device, and what is shown.
    """
    left = {"models": "source", "train": "device"}
    kept = {name: section for name, section in run.items() if name != "show"}
    return {
        name: {key: value for key, value in section.items() if key != left.get(name)} for name, section in kept.items()
    }
