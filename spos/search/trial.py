"""One NNI trial's side of the conversation: ask for parameters, report results, in a few ms.

Imports the standard library and `spos.errors` only: importing `nni` in every trial costs 0.8 s.

The protocol is NNI 3.0's own HTTP channel (`NNI_TRIAL_COMMAND_CHANNEL`), whose upstream is
archived, so it does not move. What a trial must do about NNI's defects is done here: a metric that
comes before the manager has filed the trial is dropped, so reports wait until it has; parameters
may be handed to another trial than NNI's database says, so the final result carries ``arch``. One
thing is left to the script: after a stop or a crash NNI also runs trials again whose result it had
or dropped, so keep results in a file before reporting them and look there first, as tester.py does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spos.errors import SearchError

PARAMETER_SECONDS = 600.0  # how long to wait for parameters before giving up
FILED_SECONDS = 10.0  # how long to wait until the manager lists this trial
REMOTE_SECONDS = 1.0  # on another machine: so long after its start the manager has filed a trial
SUPERNET = "supernet"  # in a final result: what was evaluated with, as `space` and `options`
NO_SCORE = -1.0  # in place of an accuracy where there is none; no accuracy is below 0
REQUEST_SECONDS = 60.0  # one HTTP request
RETRIES = 5  # of a request that the manager's machine refused or dropped


def in_trial() -> bool:
    """Whether this process was started by NNI as a trial."""
    return "NNI_TRIAL_COMMAND_CHANNEL" in os.environ


@dataclass
class Trial:
    """A running trial; made by `start_trial`.

    Attributes:
        parameters: what the tuner wants evaluated: label -> candidate.
        parameter_id: the tuner's number for it.
        supernet: ``space`` and ``options`` of the network that it evaluates with, once it knows
            them: they go with its result, and a tuner whose cost table is of another one stops.
    """

    parameters: dict[str, Any]
    parameter_id: int
    supernet: Mapping[str, Any] | None = field(default=None, init=False)
    _channel: _Channel = field(repr=False)
    _num_reported: int = field(default=0, repr=False)

    def report_intermediate(self, value: float | Mapping[str, Any]) -> None:
        """Report an intermediate result (a finite number, or a dict with ``default``)."""
        _check_result(value if isinstance(value, Mapping) else {"default": value})
        self._channel.report(self.parameter_id, value, kind="PERIODICAL", number=self._num_reported)
        self._num_reported += 1

    def report_final(self, value: Mapping[str, Any]) -> None:
        """Report the final result: numbers, ``default`` (the score) and ``arch`` (the choices).

        Raises:
            SearchError: if ``default`` is missing or a number is not finite (report the failure
                with `report_failure` instead), or the manager does not answer.
        """
        _check_result(value)
        self._report_final(value)

    def report_failure(self, reason: str) -> None:
        """Tell the tuner that this candidate could not be evaluated, and why.

        Exit with a status other than 0 afterwards. A trial that dies without a word costs more:
        NNI 3.0 cannot say for certain which parameters it had.
        """
        self._report_error(reason, {})

    def report_infeasible(self, reason: str, costs: Mapping[str, float]) -> None:
        """Tell the tuner that this candidate violates a constraint and was not evaluated.

        For tuners that know no constraints: to them the score is worse than any accuracy. Exit with
        status 0 afterwards.
        """
        self._report_error(f"{reason}; not evaluated", costs)

    def _report_error(self, reason: str, costs: Mapping[str, float]) -> None:
        # A string would become an axis of the WebUI's plots, so the reason sits in an object. The
        # number is there because NNI and its own tuners want one; ours looks at `error` first.
        error = {"reason": reason}
        self._report_final({"default": NO_SCORE, **costs, "error": error, "arch": self.parameters})

    def _report_final(self, value: Mapping[str, Any]) -> None:
        known = {} if self.supernet is None else {SUPERNET: self.supernet}
        self._channel.report(self.parameter_id, {**value, **known}, kind="FINAL", number=0)


def start_trial() -> Trial:
    """Ask NNI for this trial's parameters.

    Raises:
        SearchError: outside a trial, or if the manager does not give parameters.
    """
    if not in_trial():
        raise SearchError(
            "this process is not an NNI trial (NNI_TRIAL_COMMAND_CHANNEL is not set); start the "
            "search with `python -m spos search start` or `nnictl create --config "
            "config_search.yml`, or evaluate one architecture with `python tester.py --arch FILE`"
        )
    channel = _Channel(os.environ["NNI_TRIAL_COMMAND_CHANNEL"], os.environ["NNI_TRIAL_JOB_ID"])
    record = channel.request_parameters()
    try:
        parameters, parameter_id = record["parameters"], record["parameter_id"]
    except (KeyError, TypeError):
        raise SearchError(f"NNI sent a trial something else than parameters: {record!r}") from None
    return Trial(parameters, parameter_id, channel)


class _Channel:
    """Requests to the manager at the address that NNI gave this trial."""

    def __init__(self, url: str, trial_id: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise SearchError(
                f"NNI_TRIAL_COMMAND_CHANNEL is {url!r}, expected an http address as NNI 3.0 sets it"
            )
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._trial_id = trial_id
        self._is_filed = False
        self._began = time.monotonic()

    def request_parameters(self) -> Any:
        give_up_at = time.monotonic() + PARAMETER_SECONDS
        status = http.client.REQUEST_TIMEOUT
        while status == http.client.REQUEST_TIMEOUT and time.monotonic() < give_up_at:
            # Asked again after every 408: by then the manager has dropped the earlier request.
            self._request("PUT", self._path, {"type": "request_parameter"})
            status, body = self._request("GET", self._path)
            if status == http.client.OK:
                return json.loads(json.loads(body)["parameter"])
        raise SearchError(
            f"trial {self._trial_id}: the NNI manager at port {self._port} gave no parameters "
            f"(last status {status}); the experiment may have been stopped"
        )

    def report(self, parameter_id: int, value: Any, *, kind: str, number: int) -> None:
        self._wait_until_filed()
        metric = {
            "parameter_id": parameter_id,
            "trial_job_id": self._trial_id,
            "type": kind,
            "sequence": number,
            "value": json.dumps(value, allow_nan=False),
        }
        command = {"type": "metric", "metric": json.dumps(metric)}
        status, _ = self._request("PUT", self._path, command)
        if status != http.client.OK:
            raise SearchError(
                f"trial {self._trial_id}: the NNI manager at port {self._port} refused the result "
                f"(status {status}); the experiment may have been stopped"
            )

    def _wait_until_filed(self) -> None:
        """Wait until the manager lists this trial: an earlier metric would be dropped.

        On a worker of the remote service it cannot be asked: only the machine's own part of NNI,
        which passes our metrics on, is reached there.
        """
        if os.environ.get("NNI_PLATFORM") == "remote":
            time.sleep(max(0.0, self._began + REMOTE_SECONDS - time.monotonic()))
            self._is_filed = True
        address = f"{self._path.split('/env/')[0]}/api/v1/nni/trial-jobs/{self._trial_id}"
        give_up_at = time.monotonic() + FILED_SECONDS
        while not self._is_filed and time.monotonic() < give_up_at:
            status, body = self._request("GET", address)
            self._is_filed = status == http.client.OK and b'"trialJobId"' in body
            if not self._is_filed:
                time.sleep(0.02)
        self._is_filed = True  # or never will be

    def _request(self, method: str, path: str, value: Any = None) -> tuple[int, bytes]:
        body = None if value is None else json.dumps(value)
        for attempt in range(RETRIES):
            # A connection for each request: these are few, and one cannot go stale in between.
            connection = http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_SECONDS)
            with contextlib.closing(connection):
                try:
                    connection.request(method, path, body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    return response.status, response.read()
                except (OSError, http.client.HTTPException) as problem:
                    reason = problem
            time.sleep(0.2 * 2**attempt)
        raise SearchError(
            f"trial {self._trial_id}: the NNI manager at {self._host}:{self._port} does not answer "
            f"({reason}); the experiment may have been stopped"
        )


def _check_result(value: Mapping[str, Any]) -> None:
    if type(value.get("default")) not in (int, float):
        raise SearchError(
            f'a result needs a number "default" (the score), found {value.get("default")!r}'
        )
    for name, number in value.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise SearchError(f"the result's {name!r} is {number}, expected a finite number")
