"""A ledger against a model of it: whatever is asked, reported, killed or full, no trial is lost or counted twice."""

import errno
import math
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from optuna.trial import TrialState

from tests.tune.search.ledgers import ledger, result, stored_trials
from tune.search.journal import StudyJournal
from tune.search.ledger import TrialLedger

BUDGET = 4


class LedgerMachine(RuleBasedStateMachine):
    """The model: the state of each trial, what it has reported, and which are open; ``waiting`` were left running."""

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.states: dict[int, TrialState] = {}
        self.losses: dict[int, list[float]] = {}
        self.params: dict[int, object] = {}
        self.open: set[int] = set()
        self.book: TrialLedger = ledger(self.folder, BUDGET)

    @property
    def waiting(self) -> set[int]:
        return {number for number, state in self.states.items() if state == TrialState.RUNNING} - self.open

    @property
    def has_budget(self) -> bool:
        return len(self.states) < BUDGET

    @rule()
    def ask(self) -> None:
        waiting = self.waiting
        asked = self.book.ask()
        if asked is None:
            assert not waiting and not self.has_budget
            return
        number = asked["number"]
        assert number in waiting or (not waiting and number == len(self.states) < BUDGET)
        assert self.params.setdefault(number, asked["params"]) == asked["params"]
        self.states[number] = TrialState.RUNNING
        self.losses.setdefault(number, [])
        self.open.add(number)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), losses=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=3), again=st.booleans())
    def report(self, data: st.DataObject, losses: list[float], again: bool) -> None:
        """A trial reports epochs; one that goes on from a checkpoint reports the last one twice."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        for loss in losses:
            self.losses[number].append(loss)
            assert self.book.report(number, result(len(self.losses[number]), loss))
        if again:
            assert self.book.report(number, result(len(self.losses[number]), 1e-3))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def report_nan(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        assert not self.book.report(number, result(len(self.losses[number]) + 1, math.nan))
        self._end(number, TrialState.FAIL)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        if fails:
            self.book.fail(number, "boom")
        self._end(number, TrialState.FAIL if fails or not self.losses[number] else TrialState.COMPLETE)

    def _end(self, number: int, state: TrialState) -> None:
        self.book.end(number)
        self.states[number] = state
        self.open.remove(number)

    @precondition(lambda self: len(self.open) > 1 or not self.has_budget)
    @rule(is_killed=st.booleans())
    def resume(self, is_killed: bool) -> None:
        """The driver is killed, or stopped as by Ctrl-C, and the sweep goes on in another one."""
        if not is_killed:
            self.book.close("stopped")
            self.book.interrupt_all()
        self.open.clear()
        self.book = ledger(self.folder, BUDGET)
        assert self.book.reopened == len(self.waiting)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fill_the_disk(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with patch.object(StudyJournal, "append_logs", side_effect=full):
            assert not self.book.report(number, result(len(self.losses[number]) + 1, 0.5))
        # There is space again, but what could not be written is missing.
        for other in sorted(self.open):
            self.book.end(other)
        assert self.book.ask() is None and self.book.disk_error is not None
        self.resume(is_killed=False)

    @invariant()
    def the_study_is_that_of_the_model(self) -> None:
        stored = {trial.number: trial for trial in stored_trials(self.folder)}
        assert {number: trial.state for number, trial in stored.items()} == self.states
        for number, losses in self.losses.items():
            assert list(stored[number].intermediate_values.values()) == losses
            if self.states[number] == TrialState.COMPLETE:
                assert stored[number].value == min(losses)

    def teardown(self) -> None:
        self._temporary.cleanup()


LedgerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, phases=[Phase.generate], deadline=None, database=None, derandomize=True
)
TestLedgerModel = LedgerMachine.TestCase
