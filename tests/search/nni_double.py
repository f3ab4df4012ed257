"""NNI's manager and dispatcher as a tuner sees them, in one process and without a clock.

It does what `nni/runtime/msg_dispatcher.py` and NNI's manager were seen to do: a request that got
no answer stays open; the end of a trial is told by a thread of its own, so at any time after it;
after a resume the trials that were filed as running run again under their old ids, their results
come by `import_data` and nobody tells their ends.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from toy_trial import toy_score

from spos.search.tuner import SearchTuner


def final(choices: dict, score: float | None = None) -> dict:
    """What a trial reports of a candidate."""
    return {"default": toy_score(choices) if score is None else score, "arch": dict(choices)}


@dataclass(eq=False)
class Trial:
    """A trial as NNI knows it.

    Attributes:
        number: its parameter id.
        choices: its candidate.
        value: what it reported last.
        has_ended: whether NNI has noticed its end.
        is_told: whether the tuner was told so, or will never be.
        is_rerun: whether it runs again since a resume.
    """

    number: int
    choices: dict
    value: Any = None
    has_ended: bool = False
    is_told: bool = False
    is_rerun: bool = False

    @property
    def has_score(self) -> bool:
        return isinstance(self.value, dict) and self.value == final(self.choices)


class Nni:
    """An experiment with slots for ``concurrency`` trials; events happen when they are called.

    `run` and `step` let trials, drawn with ``seed``, report what ``evaluate`` says (None: nothing)
    and end; ``end_first``: the tuner hears of the end before it hears of the result.
    """

    def __init__(
        self,
        tuner: SearchTuner,
        *,
        concurrency: int,
        is_paired: bool = True,
        seed: int = 0,
        end_first: bool = False,
        evaluate: Callable[[dict], Any] = final,
    ):
        self.tuner, self.concurrency, self.is_paired = tuner, concurrency, is_paired
        self.random, self.end_first, self.evaluate = random.Random(seed), end_first, evaluate
        self.trials: list[Trial] = []  # since the start or the last resume
        self.past: list[Trial] = []  # those before that reported something
        self.evaluated: list[dict] = []
        self.errors: list[str] = []
        self.recovered_trial_params: dict[int, dict] = {}  # read by the tuner
        self.unnamed: list[int] = []  # parameter ids whose end was not told
        self.next_number = 0
        self.num_owed = concurrency  # slots that no candidate was asked for

    def send_trial_callback(self, number: int, choices: dict):
        finished = [each.choices for each in self.past + self.trials if each.has_score]
        assert choices not in finished, f"{choices} would be evaluated again"
        self.trials.append(Trial(number, choices))
        self.unnamed.append(number)

    def report_error(self, text: str):
        self.errors.append(text)

    @property
    def running(self) -> list[Trial]:
        return [each for each in self.trials if not each.has_ended]

    @property
    def untold(self) -> list[Trial]:
        return [each for each in self.trials if each.has_ended and not each.is_told]

    # -- events ----------------------------------------------------------------------------------

    def request(self):
        """Ask for a candidate for every slot that is owed one."""
        numbers = range(self.next_number, self.next_number + self.num_owed)
        self.next_number, self.num_owed = numbers.stop, 0
        callback = self.send_trial_callback
        given = self.tuner.generate_multiple_parameters(list(numbers), st_callback=callback)
        for number, choices in zip(numbers, given, strict=False):
            callback(number, choices)

    def report(self, trial: Trial, value: Any):
        trial.value = value
        if trial.is_rerun:
            self.tuner.import_data([{"parameter": trial.choices, "value": value}])
        else:
            job = f"t{trial.number}"
            self.tuner.receive_trial_result(trial.number, "", value, trial_job_id=job)

    def end(self, trial: Trial):
        trial.has_ended, trial.is_told = True, trial.is_rerun
        self.num_owed += 1

    def tell_end(self, trial: Trial):
        """Tell the tuner that a trial has ended; unless they are paired, under another's id."""
        if not trial.is_told:
            trial.is_told = True
            number = trial.number if self.is_paired else min(self.unnamed)
            self.unnamed.remove(number)
            self.tuner.trial_end(number, trial.value is not None)

    def resume(self, tuner: SearchTuner, *, rerun: Sequence[Trial]):
        """`nnictl resume` with a new tuner that has read its files; it runs ``rerun`` again.

        Of the others, those that reported have ended, and the rest was not filed yet.
        """
        self.past += [each for each in self.trials if each not in rerun and each.value is not None]
        self.trials = list(rerun)
        for trial in rerun:
            trial.is_rerun, trial.value = True, None
        self.tuner, self.num_owed = tuner, self.concurrency
        self.errors.clear()
        self.unnamed.clear()
        self.recovered_trial_params = {each.number: each.choices for each in rerun}
        self.next_number = 1 + max(self.recovered_trial_params, default=-1)
        # Where trials are not paired, results stand beside the parameters of others.
        given = self.past[0].choices if self.past else {}
        ended = [{"parameter": given, "value": each.value, "trialJobId": "t"} for each in self.past]
        tuner.import_data(ended)

    # -- trials that run by themselves -----------------------------------------------------------

    def step(self):
        """One trial ends."""
        trial = self.random.choice(self.running)
        value = self.evaluate(trial.choices)
        self.evaluated.append(trial.choices)
        self.end(trial)
        if self.end_first:
            self.tell_end(trial)
        if value is not None:
            self.report(trial, value)
        self.request()
        if not self.end_first:
            self.tell_end(trial)

    def run(self, *, max_steps: int = 1000):
        self.request()
        while self.running and max_steps:
            self.step()
            max_steps -= 1
