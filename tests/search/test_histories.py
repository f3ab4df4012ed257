"""Any history of an experiment, for every searcher: pytest tests/search/test_histories.py

A tuner with its files lives through random events of `nni_double.Nni`: results, failures of every
kind, events twice, late and in any order, and kills in the middle of writing followed by
`nnictl resume`. Then the search is run to its end.
"""

import fcntl
import logging
import math
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from nni_double import Nni, Trial, final
from toy_trial import toy_score, toy_table

from spos.architecture import SearchSpec
from spos.files import read_journal
from spos.search import tuner as tuner_module
from spos.search.arguments import METHODS, ExperimentPaths, build_search
from spos.search.history import FAILED
from spos.search.launch import RETRY_VARIABLE
from spos.search.local import run_search
from spos.search.nni_server import NniTrial
from spos.search.results import JOURNAL, read_entries
from spos.search.searcher import MAX_ATTEMPTS
from spos.search.tuner import PAIRED_VARIABLE, QUIET_POLLS, SearchTuner

BLOCKS = ("k3", "k5", "k7")
SPEC = SearchSpec("toy", {}, {"a": BLOCKS, "channel_1": (2, 4, 6), "c": BLOCKS})
TABLE = toy_table(SPEC)
LIMIT = 1700  # of macs
EVERY = [{"a": a, "channel_1": b, "c": c} for a in BLOCKS for b in (2, 4, 6) for c in BLOCKS]
NUM_ALLOWED = sum(TABLE.cost(choices) <= LIMIT for choices in EVERY)
MAX_CONCURRENCY = 3
STRANGER = 10**6  # a parameter id of nobody
FAILURES = (math.nan, math.inf, None, "0.9", "error")


class Killed(BaseException):
    """kill -9 of the tuner's process."""


class Enough(BaseException):
    """The closing thread was run for long enough."""


@dataclass
class ThreadOnCall:
    """A thread that does its work when `run` is called."""

    target: Callable[[], None]
    name: str
    daemon: bool

    def start(self):
        pass

    def run(self):
        self.target()


def arguments_of(searcher: str) -> dict:
    arguments = {"searcher": searcher, "rounds": 3, "population": 3, "max_failures": 4}
    arguments["constraints"] = {"macs": [0, LIMIT]}
    return arguments | ({"num_random": 2, "pool_size": 20} if searcher == "predictor" else {})


def identify(choices) -> str:
    return SPEC.architecture(choices).id


def outcome(folder: Path) -> list[tuple]:
    return [(each.round, each.id, each.score) for each in read_entries(folder)]


def ranked_files(folder: Path) -> dict[Path, bytes]:
    """The best architectures: of every round, of all, and the front."""
    paths = (folder / "checkpoints").rglob("*.json")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


class Histories(RuleBasedStateMachine):
    """One experiment; `undisturbed` is the folder of the same search without any trouble."""

    searcher: str
    home: Path
    undisturbed: Path

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.home))
        self.num_steps_left = math.inf  # of writing, until the tuner is killed
        self.num_polls_left = 0.0  # of NNI's server, until it runs a trial
        self.ended_after: list[int] = []
        self.num_failed: Counter[str] = Counter()  # runs of each candidate without a score
        self.is_comparable = True
        self.patch = pytest.MonkeyPatch()
        server = SimpleNamespace(trials=self.poll, end_after=self.ended_after.append)
        threads = SimpleNamespace(RLock=threading.RLock, Thread=ThreadOnCall)
        self.patch.setattr(tuner_module, "threading", threads)
        self.patch.setattr(tuner_module, "NniServer", SimpleNamespace(of_tuner=lambda _: server))
        self.patch.setattr(tuner_module, "POLL_SECONDS", 0)
        self.patch.setattr(os, "fsync", self.reach_disk)
        self.patch.setattr(fcntl, "flock", self.reach_disk)  # before a line is written
        self.patch.setenv("NNI_CHECKPOINT_DIRECTORY", str(self.folder))
        self.patch.chdir(self.folder)

    @initialize(concurrency=st.sampled_from([1, 1, MAX_CONCURRENCY]), is_paired=st.booleans())
    def begin(self, concurrency, is_paired):
        self.patch.setenv(PAIRED_VARIABLE, str(int(is_paired)))
        self.is_comparable = concurrency == 1
        tuner = self.make_tuner(is_resumed=False)
        self.nni = Nni(tuner, concurrency=concurrency, is_paired=is_paired)
        self.request()

    def make_tuner(self, *, is_resumed: bool) -> SearchTuner:
        path = self.undisturbed.parent / "cost.json"
        tuner = SearchTuner(cost_table=str(path), **arguments_of(self.searcher))
        if is_resumed:
            tuner.load_checkpoint()
        tuner.update_search_space(SPEC.search_space())
        return tuner

    def reach_disk(self, *_):
        if self.num_steps_left == 0:
            raise Killed
        self.num_steps_left -= 1

    # -- what happens ----------------------------------------------------------------------------

    @precondition(lambda self: self.nni.num_owed)
    @rule()
    def request(self):
        # A candidate whose end is not told yet is not there for the next generation.
        self.is_comparable &= all(each.value is not None for each in self.nni.untold)
        self.nni.request()

    @rule(count=st.integers(1, 12))
    def go_on(self, count):
        """Some trials go through without trouble."""
        for _ in range(count):
            self.advance()

    @precondition(lambda self: self.nni.running)
    @rule(data=st.data())
    def succeed(self, data):
        """A result, or the same once more; the end comes later."""
        trial = data.draw(st.sampled_from(self.nni.running))
        self.nni.report(trial, final(trial.choices))

    @precondition(lambda self: self.without_score)
    @rule(data=st.data(), failure=st.sampled_from(FAILURES))
    def fail(self, data, failure):
        trial = data.draw(st.sampled_from(self.without_score))
        if trial.value is None and not trial.has_ended:
            self.num_failed[identify(trial.choices)] += 1
        value = {"default": failure, "arch": trial.choices}
        if failure == "error":
            value = {"default": 0.0, "arch": trial.choices, "error": {"reason": "out of memory"}}
        self.nni.report(trial, value)

    @rule(count=st.integers(1, 15))
    def go_wrong(self, count):
        """Some trials fail, one after the other, as on a full disk."""
        for _ in range(count):
            running = self.nni.running
            if not running:
                self.advance()
            elif running[0].value is not None:
                self.nni.end(running[0])
            else:
                self.num_failed[identify(running[0].choices)] += 1
                self.nni.report(running[0], {"default": None, "arch": running[0].choices})

    @precondition(lambda self: self.nni.running)
    @rule(data=st.data())
    def end(self, data):
        """With a result or without one: by itself, killed, or at its time limit."""
        trial = data.draw(st.sampled_from(self.nni.running))
        if trial.value is None:
            self.num_failed[identify(trial.choices)] += 1
        self.nni.end(trial)
        is_known = trial.value is not None or (self.nni.is_paired and not trial.is_rerun)
        self.is_comparable &= is_known  # else its candidate is missing until the end

    @precondition(lambda self: self.nni.untold)
    @rule(data=st.data())
    def tell_end(self, data):
        self.nni.tell_end(data.draw(st.sampled_from(self.nni.untold)))

    @precondition(lambda self: self.silent)
    @rule(data=st.data())
    def succeed_late(self, data):
        """After its end: its candidate may wait, run again, be excluded or be scored by now."""
        trial = data.draw(st.sampled_from(self.silent))
        self.nni.report(trial, final(trial.choices))

    @precondition(lambda self: self.scored)
    @rule(data=st.data(), score=st.sampled_from([*FAILURES[:3], 2.0]))
    def contradict(self, data, score):
        """A second result for a candidate that has its score changes nothing."""
        choices = data.draw(st.sampled_from(self.scored))
        before = (self.folder / "search.json").read_bytes()
        self.nni.tuner.receive_trial_result(STRANGER, "", {"default": score, "arch": choices})
        self.nni.tuner.import_data([{"parameter": choices, "value": final(choices, 2.0)}])
        assert (self.folder / "search.json").read_bytes() == before

    @rule(choices=st.sampled_from(EVERY), is_imported=st.booleans())
    def hear_of_a_stranger(self, choices, is_imported):
        """A result of a candidate that is not being evaluated."""
        if choices in [each.choices for each in self.nni.trials + self.nni.past]:
            return
        self.is_comparable = False
        if is_imported:
            entry = {"parameter": {}, "value": final(choices), "trialJobId": "other"}
            self.nni.tuner.import_data([entry])
        else:
            self.nni.tuner.receive_trial_result(STRANGER, "", final(choices))

    @precondition(lambda self: self.closing and not self.is_busy)
    @rule()
    def wait(self):
        """Nothing runs for a while: the tuner looks for candidates that were lost."""
        self.num_polls_left = QUIET_POLLS + 1
        with pytest.raises(Enough):
            self.closing.run()
            raise Enough  # the search had finished

    @rule(num_steps=st.integers(0, 8), rerun=st.sets(st.sampled_from(range(MAX_CONCURRENCY))))
    def kill(self, num_steps, rerun):
        """kill -9 while the tuner writes, or between events; then it goes on, perhaps again.

        NNI runs those of the running trials again whose places are in ``rerun``.
        """
        self.num_steps_left = num_steps
        try:
            self.advance()
            self.resume(rerun)
        except Killed:
            self.num_steps_left = math.inf
            self.resume(rerun)
        self.num_steps_left = math.inf

    @precondition(lambda self: self.excluded)
    @rule(num_steps=st.integers(0, 6), rerun=st.sets(st.sampled_from(range(MAX_CONCURRENCY))))
    def retry_failed(self, num_steps, rerun):
        """`search resume --retry-failed`, or killed while it writes and then resumed without."""
        self.is_comparable = False  # others were bred without them
        self.ended_after.clear()  # it may have finished
        excluded, self.num_steps_left = self.excluded, num_steps
        try:
            with self.patch.context() as patch:
                patch.setenv(RETRY_VARIABLE, "1")
                self.resume(rerun)
            assert not self.excluded
        except Killed:
            self.num_steps_left = math.inf
            self.resume(rerun)
            assert self.excluded in ([], excluded)
        self.num_steps_left = math.inf
        for each in {*excluded}.difference(self.excluded):
            del self.num_failed[each]
        failed = {each.id for each in read_entries(self.folder) if each.score is None}
        assert failed == {*self.excluded}

    def resume(self, places):
        rerun = [each for place, each in enumerate(self.nni.running) if place in places]
        tuner = self.make_tuner(is_resumed=True)
        self.nni.resume(tuner, rerun=rerun)
        known = [each.choices for each in rerun]
        lost = [each for each in tuner._search.running if each not in known]
        if not self.nni.is_paired:  # else they are handed out as if they had not been
            self.num_failed.update(map(identify, lost))
            self.is_comparable &= not lost
        self.nni.request()

    @invariant()
    def only_what_failed_twice_is_excluded(self):
        assert all(self.num_failed[each] >= MAX_ATTEMPTS for each in self.excluded)

    @invariant()
    def nothing_is_forgotten(self):
        """Where trials are paired; else a candidate without a trial is found at the end."""
        if self.nni.is_paired and not self.is_busy:
            begun = [each.choices for each in self.nni.trials]
            assert all(each in begun for each in self.nni.tuner._search.running)

    # -- what is going on ------------------------------------------------------------------------

    @property
    def closing(self) -> ThreadOnCall | None:
        return self.nni.tuner._closing

    @property
    def is_busy(self) -> bool:
        """Whether a trial runs, or NNI has yet to say or ask something."""
        return bool(self.nni.running or self.nni.untold or self.nni.num_owed)

    @property
    def scored(self) -> list[dict]:
        return [each.choices for each in self.nni.tuner._search.ranking()]

    @property
    def excluded(self) -> list[str]:
        search = self.nni.tuner._search
        every = search.history.items()
        return [
            identify(search.space.choices(genes))
            for genes, known in every
            if known.status == FAILED
        ]

    @property
    def without_score(self) -> list[Trial]:
        """Trials that may fail, also once more or late; those that run again do so only once."""
        return [
            each
            for each in self.nni.trials
            if not each.has_score and not (each.is_rerun and (each.value or each.has_ended))
        ]

    @property
    def silent(self) -> list[Trial]:
        return [each for each in self.nni.trials if each.has_ended and each.value is None]

    def poll(self) -> list[NniTrial]:
        """NNI's answer to the closing thread; trials go on meanwhile."""
        if self.num_polls_left == 0:
            raise Enough
        self.num_polls_left -= 1
        if self.num_polls_left == math.inf:
            self.advance()
        return [
            NniTrial("FAILED" if each.has_ended else "RUNNING", each.number)
            for each in self.nni.trials
        ]

    def advance(self) -> bool:
        """The next event of an experiment in which all goes well; whether there is one."""
        nni = self.nni
        if nni.running and not nni.running[0].has_score:
            nni.report(nni.running[0], final(nni.running[0].choices))
        elif nni.running:
            nni.end(nni.running[0])
        elif nni.untold:
            nni.tell_end(nni.untold[0])
        elif nni.num_owed:
            nni.request()
        else:
            return False
        return True

    # -- the end ---------------------------------------------------------------------------------

    def teardown(self):
        try:
            if hasattr(self, "nni"):
                self.finish()
                self.check()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    def finish(self):
        """Run the search to its end, resuming it where too many evaluations failed in a row."""
        self.num_polls_left = math.inf
        while not self.ended_after:
            while self.advance():
                pass
            if not self.nni.errors:
                assert self.closing is not None
                self.closing.run()
            if self.nni.errors:
                assert all("failed in a row" in each for each in self.nni.errors)
                self.nni.resume(self.make_tuner(is_resumed=True), rerun=[])
        assert self.nni.tuner._search.is_finished

    def check(self):
        search = self.nni.tuner._search
        lines = read_journal(self.folder / JOURNAL)
        entries = {each.id: each for each in read_entries(self.folder)}
        chosen = [each for each in entries.values() if each.round > 0]
        is_exhausted = len(entries) == NUM_ALLOWED  # by strangers
        assert len(chosen) == search.num_planned or is_exhausted
        for each in entries.values():
            assert each.score in (None, toy_score(each.choices))
            assert TABLE.cost(each.choices) <= LIMIT
        scores = [line["id"] for line in lines if line["score"] is not None]
        assert len(scores) == len(set(scores))
        if self.is_comparable and all(each["score"] is not None for each in lines):
            # Within a round a candidate that was tried twice comes later.
            order = sorted if self.num_failed else list
            assert order(outcome(self.folder)) == order(outcome(self.undisturbed))
            assert ranked_files(self.folder) == ranked_files(self.undisturbed)


@pytest.fixture(params=METHODS)
def machine(request, memory_folder, caplog):
    """The state machine of a searcher."""
    caplog.set_level(logging.CRITICAL, logger="nni.spos")  # a thousand failures are no news
    TABLE.save(memory_folder / "cost.json")
    search = build_search(ExperimentPaths(memory_folder), **arguments_of(request.param))
    undisturbed = memory_folder / "undisturbed"
    run_search(search, toy_score, folder=undisturbed)
    names = {"searcher": request.param, "home": memory_folder, "undisturbed": undisturbed}
    return type("Machine", (Histories,), names)


@pytest.mark.slow
def test_search_keeps_its_promises_in_any_history(machine):
    run_state_machine_as_test(
        machine, settings=settings(max_examples=300, stateful_step_count=20, deadline=None)
    )
