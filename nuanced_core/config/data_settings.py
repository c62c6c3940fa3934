"""The settings of a run's models and clips: ``models``, ``data``, ``mixes`` and ``augment``; types of settings."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "Augment",
    "Condition",
    "Count",
    "Data",
    "Mixes",
    "Models",
    "PositiveInt",
    "Seed",
    "Settings",
    "Weight",
    "WindowFrames",
    "without_repeats",
]

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
SignalToNoise = Annotated[float, Field(ge=-20, le=100)]
Decibels = Annotated[float, Field(ge=0, le=40)]
WindowFrames = Annotated[int, Field(ge=16)] | Literal["full"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Degradations of a clip, see ``nuanced_core.hearing.augmentation.degraded``.
Condition = Literal["clean", "snr20", "snr10", "telephone", "room"]
T = TypeVar("T")


def without_repeats(items: tuple[T, ...]) -> tuple[T, ...]:
    """Return the items if none of them is repeated.

    Raises:
        ValueError: one is.
    """
    repeated = [item for item in items if items.count(item) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is listed twice; name each once")
    return items


class Settings(BaseModel):
    """Base class of the groups of settings: immutable, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Models(Settings):
    """The ``models`` section: the models, and the source of their files."""

    whisper: str = Field("tiny.en", description="Whisper model whose encoder gives the features of the clips")
    source: str = Field("auto", description="auto, hub, packages, or a folder of model files")


class Data(Settings):
    """The ``data`` section: voices and sentences for training and for validation."""

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
    sentences_per_voice: PositiveInt = Field(4, description="number of sentences that each training voice speaks")
    val_sentences_per_voice: Annotated[int, Field(ge=2)] = Field(
        2,
        description="number of sentences of each validation voice; the encoder gets another one than the scored",
    )
    max_phonemes: Annotated[int, Field(ge=4, le=510)] = Field(
        510, description="largest number of phonemes; longer sentences are left out"
    )
    seed: Seed = Field(0, description="seed of the sentences of each voice, of the mixes, and of Kokoro's noise")
    people: str | None = Field(None, description="folder of recordings of people, a folder a speaker; null: none")
    people_recordings: PositiveInt = Field(4, description="largest number of recordings of each person that are heard")
    people_seconds: Annotated[float, Field(ge=2, le=60)] = Field(
        10.0, description="seconds that are heard of each recording of a person"
    )

    @field_validator("val_voices")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return without_repeats(names)


class Mixes(Settings):
    """The ``mixes`` section: additional training voices that are mixed from stock voices."""

    blends: Count = Field(0, description="number of convex mixes of stock voices")
    half_blends: Count = Field(0, description="as blends, but with separate weights for timbre and prosody")
    swaps: Count = Field(
        0, description="number of voices with the timbre of one stock voice and the prosody of another"
    )
    steps: Count = Field(0, description="number of blends that are then moved at random, by step_size and beyond")
    half_steps: Count = Field(0, description="as steps, but timbre and prosody are moved separately")
    members: PositiveInt = Field(3, description="number of stock voices in a blend")
    concentration: Annotated[float, Field(gt=0, le=100)] = Field(
        0.6,
        description="concentration of the Dirichlet distribution of a blend's weights: low for blends near one voice, "
        "high for blends near the mean",
    )
    step_size: Annotated[float, Field(ge=0, le=4)] = Field(
        0.5,
        description="length of a step in the directions in which stock voices differ, in units of their distance from "
        "their mean",
    )
    beyond: Annotated[float, Field(ge=0, le=4)] = Field(
        0.0,
        description="length of a step in any direction, also out of the span of the stock voices; in the same units",
    )
    found: Count = Field(
        0,
        description="number of voices that are found in each of found_rounds for training people (data.people), by "
        "steps on the surrogate of loss.speaker_encoders, which learns from what is then heard of them",
    )
    found_rounds: PositiveInt = Field(2, description="rounds of finding and speaking voices")
    sentences: PositiveInt = Field(1, description="number of sentences that each mixed voice speaks")
    share: Probability | None = Field(
        None, description="share of mixed voices in each batch; null: their share of the clips"
    )
    rows: Literal["own", "any"] = Field(
        "own",
        description="style with which a mixed voice speaks a sentence: that of the sentence's phoneme count, or that "
        "of the phoneme count of any training sentence, however long",
    )


class Augment(Settings):
    """The ``augment`` section: augmentation of training clips, so that they resemble recordings of people."""

    copies: Count = Field(
        2, description="number of augmented copies of each training clip, used in addition to the clean one"
    )
    gain_db: Decibels = Field(6.0, description="largest change of level, up or down, in dB")
    equaliser_db: Decibels = Field(6.0, description="largest change of a band, up or down, in dB")
    noise: Probability = Field(0.6, description="probability of added noise")
    snr_db: tuple[SignalToNoise, SignalToNoise] = Field(
        (5.0, 35.0), description="lowest and highest signal-to-noise ratio, in dB"
    )
    reverb: Probability = Field(0.4, description="probability of room reverberation")
    codec: Probability = Field(0.2, description="probability of a lossy codec")
    band_limit: Probability = Field(0.3, description="probability of a band limit, such as that of a telephone")

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError("the lowest comes first; swap the two")
        return self
