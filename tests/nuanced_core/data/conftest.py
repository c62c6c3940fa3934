"""Utterances of the tiny run, planned with the fakes."""

from types import SimpleNamespace

from nuanced_core.config.settings import Data, Mixes, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.utterances import Split, plan_utterances


def plan_with(fakes: SimpleNamespace, run: RunConfig, mixes: Mixes = Mixes(), **changes: object) -> Split:  # noqa: B008
    """Plan the utterances of a run with some ``data`` settings changed."""
    data = validate(Data, {**run.data.model_dump(mode="json"), **changes}, "x")
    return plan_utterances(data, mixes, fakes.voices, fakes.phonemizer)
