"""The NNI tuner around a search: hands out candidates, keeps what came of them on disk.

Imports NNI and the rest of the search; never torch (the tuner must start within ten seconds).

NNI 3.0 asks for care, and gets it here:

- An exception in a tuner leaves the experiment RUNNING and idle for ever. No method raises; a
  problem ends the experiment with status ERROR and is in ``log/dispatcher.log``.
- Results are known by the ``arch`` inside them, else by our own map of parameter ids, never by
  NNI's rows: it may pair a score with another architecture.
- A trial that dies without a word is known only by a parameter id that may be another trial's,
  unless our preload pairs them (`PAIRED_VARIABLE`). Otherwise it is only counted, and what is
  missing at the end, when no trial runs any more, is tried again then.
- Requests that cannot be answered are kept and answered later, so that no slot is lost.
- After a resume NNI asks for as many candidates as it has slots, though trials that it runs again
  take some of them: so many requests are held back, else the search would run ahead of its scores.
- The experiment is DONE only by reaching ``maxTrialNumber``: when the search has finished, that
  number is lowered to the number of trials so far, as ``nnictl update trialnum`` does.
- NNI never saves a tuner's state: it is saved after every event.
- A tuner whose manager was killed goes on trying to connect, and reaches the manager that resumes
  the experiment, beside the tuner that this one starts. So it exits when its own is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nni.tuner import Tuner

from spos.architecture import Choices
from spos.errors import ConstraintError, SearchError, SposError
from spos.files import open_atomic
from spos.search.arguments import (
    COST_TABLE,
    ExperimentPaths,
    build_search,
    complete_arguments,
    load_method,
)
from spos.search.feasible import FeasibleSpace, check_search_space
from spos.search.launch import RETRY_VARIABLE
from spos.search.nni_server import NniServer
from spos.search.record import Result, SearchRecord, read_result
from spos.search.results import STATE_FILE
from spos.search.searcher import Search
from spos.search.trained import describe_limits

PAIRED_VARIABLE = "SPOS_PAIRED_TRIALS"  # "1" where the preload gives each trial its own parameters
POLL_SECONDS = 2.0
MANAGER_SECONDS = 0.5
QUIET_POLLS = 3  # so many polls without a running trial: what is missing is lost
MAX_UNANSWERED = 30  # requests to NNI's server in a row

_logger = logging.getLogger("nni.spos.tuner")  # below "nni", so that it reaches dispatcher.log


@dataclass(frozen=True)
class _Issued:
    """A candidate that a parameter id stands for in this session."""

    choices: Choices
    began: float


class SearchTuner(Tuner):
    """Any of our searchers for ``nnictl create`` (see ``config_search.yml``).

    Args:
        searcher: one of `spos.search.arguments.METHODS`, or ``module:Class`` of the user's own.
        arguments: what is searched (`spos.search.arguments.TASK`), such as
            ``constraints={macs: [0, 330M]}``, and the settings of the searcher, such as
            ``rounds``, ``population`` and ``seed``.

    Raises:
        SposError: if an argument is wrong or a constraint cannot be met.
    """

    def __init__(self, searcher: str = "evolution", **arguments: Any) -> None:
        super().__init__()
        state_path = Path(os.environ.get("NNI_CHECKPOINT_DIRECTORY", ".")) / STATE_FILE
        search = _build_search(searcher, arguments, state_path)
        self._record = SearchRecord(search, folder=Path.cwd(), state_path=state_path)
        self._search, self._spec = search, search.space.spec
        _log_limits(search.space)
        self._is_paired = os.environ.get(PAIRED_VARIABLE) == "1"
        self._lock = threading.RLock()  # NNI calls trial_end from a thread of its own
        self._issued: dict[int, _Issued] = {}
        self._reported: set[int] = set()  # ids with a result
        self._ended: set[int] = set()  # ids whose trial has ended
        self._num_lost = 0
        self._idle: deque[int] = deque()  # ids that NNI asked for when there was nothing to give
        self._num_held = 0  # of them are held back
        self._is_resumed = False  # and not yet asked for a candidate
        self._send: Callable[[int, Choices], None] | None = None
        self._num_events = 0
        self._problem: str | None = None
        self._is_problem_sent = False
        self._closing: threading.Thread | None = None
        if os.environ.get("SDK_PROCESS") == "dispatcher":  # set by NNI's manager
            threading.Thread(target=_exit_with_manager, name="manager", daemon=True).start()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any], *, paths: ExperimentPaths) -> Search:
        """Check ``classArgs`` without starting anything; the search that they describe.

        Raises:
            SposError: as the constructor.
        """
        return build_search(paths, **arguments)

    # -- what NNI calls ------------------------------------------------------------------------

    def update_search_space(self, search_space: Any) -> None:
        """Check that the experiment's search space is the one that costs are known for."""
        with self._event():
            check_search_space(search_space, self._spec, source="the experiment's search space")

    def generate_multiple_parameters(
        self,
        parameter_id_list: Sequence[int],
        st_callback: Callable[[int, Choices], None] | None = None,
        **_: Any,
    ) -> list[Choices]:
        """The next candidates, one for each id; fewer if there is nothing to hand out now."""
        handed_out: list[Choices] = []
        with self._event():
            self._send = st_callback or self._send
            self._judge_ended()
            if self._is_resumed:
                self._match_trials()
            num_asked = len(parameter_id_list) + len(self._idle) - self._num_held
            for number, parameter_id in enumerate(parameter_id_list):
                choices = self._hand_out(parameter_id) if number < num_asked else None
                if choices is None:
                    self._idle.append(parameter_id)
                else:
                    handed_out.append(choices)
        return handed_out

    def receive_trial_result(
        self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """Take a trial's final result; ``parameters`` is not looked at (NNI may blank it)."""
        with self._event():
            issued = self._issued.get(parameter_id)
            result = read_result(value, self._spec, expected=issued.choices if issued else None)
            if result.score is None and parameter_id in self._reported:
                return  # it has failed before: its candidate may be in its second trial by now
            self._reported.add(parameter_id)
            self._record.settle(
                result,
                trial=kwargs.get("trial_job_id"),
                seconds=round(time.monotonic() - issued.began, 3) if issued else None,
            )

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """Note that a trial ended; whether it reported is judged when NNI asks for the next.

        The result, if there is one, was sent before and is handled by another thread.
        """
        with self._event():
            if parameter_id in self._issued:
                self._ended.add(parameter_id)

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Take results of trials that ended before, or were running at, a stop.

        Entries of ended trials (they have ``trialJobId``) may be paired with other parameters, so
        only the ``arch`` in their value counts; those of trials that NNI ran again are right.
        """
        with self._event():
            for entry in data:
                is_old = "trialJobId" in entry
                expected = None if is_old else entry.get("parameter")
                result = read_result(entry.get("value"), self._spec, expected=expected)
                # Of an ended trial only a score counts: its failure was dealt with when it ended.
                if result.score is not None or not is_old:
                    self._record.settle(result, trial=entry.get("trialJobId"))

    def load_checkpoint(self) -> None:
        """Continue the search (``nnictl resume``)."""
        with self._event():
            self._record.load()
            if os.environ.get(RETRY_VARIABLE) == "1":
                self._record.retry_failed()
            self._is_resumed = True
            _logger.info("the search continues in round %d", self._search.round)

    def save_checkpoint(self) -> None:
        """Nothing to do: the state is saved after every event."""

    # -- events --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _event(self) -> Iterator[None]:
        """One event: under the lock, followed by its consequences, never raising."""
        with self._lock:
            self._num_events += 1
            try:
                yield
                self._follow_up()
            except Exception as problem:  # whatever escaped would leave NNI idle for ever
                is_known = isinstance(problem, SposError)
                _logger.error("the search stops", exc_info=not is_known)
                text = str(problem) if is_known else f"{type(problem).__name__}: {problem}"
                self._problem = self._problem or text
                with contextlib.suppress(Exception):  # a full disk may be the problem
                    self._record.save(self._problem)
            self._send_problem()

    def _follow_up(self) -> None:
        search = self._search
        if search.is_stopped and self._problem is None:
            self._problem = (
                f"{search.failures_in_a_row} evaluations failed in a row, the last with: "
                f"{self._record.last_failure}; look into search.jsonl and the trials' stderr, mend "
                "the cause, then continue with `python -m spos search resume` (with --retry-failed "
                "also where evaluations have failed twice)"
            )
        answers: list[tuple[int, Choices]] = []
        while (
            len(self._idle) > self._num_held
            and (choices := self._hand_out(self._idle[0])) is not None
        ):
            answers.append((self._idle.popleft(), choices))
        self._record.save(self._problem)  # before NNI knows, so that nothing is handed out twice
        for parameter_id, choices in answers:
            if self._send is not None:
                self._send(parameter_id, choices)
        if (self._idle or search.is_finished) and not self._closing and not self._problem:
            self._closing = threading.Thread(target=self._close, name="close", daemon=True)
            self._closing.start()

    def _hand_out(self, parameter_id: int) -> Choices | None:
        choices = None if self._problem else self._search.ask()
        if choices is not None:
            self._issued[parameter_id] = _Issued(choices, time.monotonic())
        return choices

    def _judge_ended(self) -> None:
        """Trials that ended without a result have failed.

        By now their results would be here: NNI asks for the next after it passed on the last.
        """
        failure = "the trial ended without a result"
        if self._is_paired:
            for parameter_id in self._ended - self._reported:
                self._reported.add(parameter_id)
                choices = self._issued[parameter_id].choices
                self._record.settle(Result(choices, failure=failure))
            return
        num_lost = len(self._ended) - len(self._reported)
        for _ in range(num_lost - self._num_lost):
            _logger.warning("%s; which candidate it had is not certain", failure)
            self._search.count_failure()
            self._record.last_failure = failure
        self._num_lost = max(self._num_lost, num_lost)

    def _match_trials(self) -> None:
        """After a resume: what NNI runs again, and what was handed out but never reached it.

        NNI runs again the trials that it had filed as running, and knows no others.
        """
        self._is_resumed = False
        dispatcher = getattr(self._send, "__self__", None)  # NNI told it before it asked us
        rerun = list(getattr(dispatcher, "recovered_trial_params", {}).values())
        self._num_held = len(rerun)
        for choices in reversed(self._search.running if self._is_paired else []):
            if choices not in rerun:
                self._search.take_back(choices)

    def _send_problem(self) -> None:
        """Make NNI show status ERROR; its log holds the text."""
        # The callback is a method of NNI's dispatcher, which alone can report an error.
        report = getattr(getattr(self._send, "__self__", None), "report_error", None)
        if self._problem is None or self._is_problem_sent or report is None:
            return
        self._is_problem_sent = True
        _logger.error("the search stops: %s", self._problem)
        report(f"the search stops: {self._problem}")

    # -- the end -------------------------------------------------------------------------------

    def _close(self) -> None:
        """Until the search has finished, look for candidates that got lost; then end it."""
        server = NniServer.of_tuner(os.environ.get("NNI_TUNER_COMMAND_CHANNEL", ""))
        num_unanswered = num_quiet = 0
        num_events = -1
        while num_unanswered < MAX_UNANSWERED and self._problem is None:
            time.sleep(POLL_SECONDS)
            try:
                trials = server.trials()
                with self._lock:
                    is_finished = self._search.is_finished
                if is_finished:
                    server.end_after(max(1, len(trials)))
                    _logger.info("the search has finished")
                    return
            except SearchError as problem:
                num_unanswered += 1
                _logger.warning("%s", problem)
                continue
            num_unanswered = 0
            with self._lock:
                # Those that NNI has not started yet (it may wait for a GPU) are not lost.
                is_started = self._issued.keys() <= {each.parameter_id for each in trials}
                is_active = any(each.is_active for each in trials)
                is_quiet = is_started and not is_active and num_events == self._num_events
                num_quiet = num_quiet + 1 if is_quiet else 0
                num_events = self._num_events
            if num_quiet >= QUIET_POLLS:
                with self._event():
                    self._lose_running()

    def _lose_running(self) -> None:
        """No trial runs any more: what is missing is lost, and nothing is held back for it."""
        self._judge_ended()
        self._reported.update(self._issued)  # a failure told from now on is this one
        self._num_lost = self._num_held = 0
        self._record.lose_running()


def _build_search(searcher: str, arguments: Mapping[str, Any], state_path: Path) -> Search:
    """The search, with a cost table of its own beside its state.

    The one beside the search space is written over when another search is started there.
    """
    paths = ExperimentPaths.of_dispatcher(sys.argv)
    kept = state_path.with_name(COST_TABLE).resolve()
    is_resumed = state_path.exists() and kept.exists()
    changes = {"cost_table": str(kept)} if is_resumed else {}
    load_method(searcher)
    search = build_search(paths, searcher=searcher, **{**arguments, **changes})
    source = paths.cost_table(arguments.get("cost_table"))
    if not is_resumed and source.resolve() != kept:
        with open_atomic(kept) as file:
            file.write(source.read_bytes())
    return search


@dataclass(frozen=True)
class NamedTuner:
    """`SearchTuner` with its searcher given; NNI calls it as it calls a class.

    Attributes:
        name: one of `spos.search.arguments.TUNERS`.
    """

    name: str

    def __call__(self, **arguments: Any) -> SearchTuner:
        """The tuner with these ``classArgs``."""
        return SearchTuner(**complete_arguments(self.name, arguments))

    def check_arguments(self, arguments: Mapping[str, Any], *, paths: ExperimentPaths) -> Search:
        """As `SearchTuner.check_arguments`."""
        completed = complete_arguments(self.name, arguments)
        return SearchTuner.check_arguments(completed, paths=paths)


EvolutionTuner = NamedTuner("EvolutionTuner")
RandomTuner = NamedTuner("RandomTuner")
TwoStageTuner = NamedTuner("TwoStageTuner")


def _log_limits(space: FeasibleSpace) -> None:
    """What `search start` says before it starts; a search that is resumed is not refused."""
    try:
        remark = describe_limits(space, space.table.trained)
    except ConstraintError as problem:
        remark = str(problem)
    if remark:
        _logger.warning("%s", remark)


def _exit_with_manager() -> None:
    """Exit when NNI's manager (Node) is gone. It may have a shell between it and us."""
    manager = next((each for each in psutil.Process().parents() if "node" in each.name()), None)
    while manager is not None and _is_alive(manager):
        time.sleep(MANAGER_SECONDS)
    if manager is not None:
        _logger.error("NNI's manager is gone; the search can be resumed")
        os._exit(1)  # the main thread would go on trying to connect


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
