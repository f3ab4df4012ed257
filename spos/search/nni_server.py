"""Requests to NNI's own server on this machine: status, trials, budget, stop.

Imports the standard library and `spos.errors` only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

from spos.errors import SearchError

REQUEST_SECONDS = 10.0


@dataclass(frozen=True)
class NniTrial:
    """A trial as NNI lists it: its status and the number of the parameters meant for it."""

    status: str
    parameter_id: int | None

    @property
    def is_active(self) -> bool:
        """Whether it may still report."""
        return self.status in ("WAITING", "RUNNING", "UNKNOWN")


@dataclass(frozen=True)
class NniServer:
    """The server of one experiment; ``prefix`` is its ``--url_prefix``, if it has one."""

    port: int
    prefix: str = ""

    @classmethod
    def of_tuner(cls, channel: str) -> NniServer:
        """The server behind ``NNI_TUNER_COMMAND_CHANNEL`` (``ws://localhost:8080/tuner``)."""
        parts = urllib.parse.urlsplit(channel)
        return cls(parts.port or 0, parts.path.rsplit("/", 1)[0])

    def status(self) -> str:
        """``RUNNING``, ``DONE``, ``ERROR``, ...; see NNI's documentation."""
        return str(self._request("GET", "/check-status")["status"])

    def experiment_id(self) -> str:
        """The experiment that this server runs."""
        return str(self._request("GET", "/experiment")["id"])

    def trials(self) -> list[NniTrial]:
        """Every trial that was started, this session's and earlier ones'."""
        return [
            NniTrial(str(job.get("status")), _parameter_id(job))
            for job in self._request("GET", "/trial-jobs")
        ]

    def end_after(self, num_trials: int) -> None:
        """Lower or raise the experiment's budget; it is DONE once so many trials have ended."""
        profile = self._request("GET", "/experiment")
        profile["params"]["maxTrialNumber"] = num_trials
        self._request("PUT", "/experiment?update_type=MAX_TRIAL_NUM", profile)

    def stop(self) -> None:
        """Stop the experiment, its trials and the server itself."""
        self._request("DELETE", "/experiment")

    def _request(self, method: str, path: str, value: Any = None) -> Any:
        """JSON in, JSON out.

        Raises:
            SearchError: if the server does not answer, or not with a success.
        """
        connection = http.client.HTTPConnection("localhost", self.port, timeout=REQUEST_SECONDS)
        body = None if value is None else json.dumps(value)
        with contextlib.closing(connection):
            try:
                connection.request(
                    method,
                    f"{self.prefix}/api/v1/nni{path}",
                    body,
                    {"Content-Type": "application/json"},
                )
                response = connection.getresponse()
                text = response.read()
                if response.status != http.client.OK:
                    raise SearchError(
                        f"the NNI server at port {self.port} answered {method} {path} with status "
                        f"{response.status}: {text[:200].decode(errors='replace')}"
                    )
                return json.loads(text) if text else None
            except (OSError, http.client.HTTPException, ValueError) as problem:
                if isinstance(problem, SearchError):
                    raise
                raise SearchError(
                    f"the NNI server at port {self.port} does not answer ({problem})"
                ) from None


def _parameter_id(job: dict[str, Any]) -> int | None:
    try:
        return json.loads(job["hyperParameters"][0])["parameter_id"]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
