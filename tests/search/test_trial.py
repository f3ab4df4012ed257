"""A trial's client against a server that behaves like NNI's: pytest tests/search/test_trial.py"""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from spos.architecture import SearchSpec
from spos.errors import SearchError
from spos.search import trial as trial_module
from spos.search.record import read_result
from spos.search.trial import in_trial, start_trial


class Manager:
    """NNI's manager: a channel, a list of trials, and the habit of dropping early metrics."""

    def __init__(self, *, num_timeouts=0, num_unfiled=0):
        self.num_timeouts, self.num_unfiled = num_timeouts, num_unfiled
        self.metrics, self.dropped, self.requests = [], [], []
        self.parameters = {"parameter_id": 7, "parameters": {"layer_1": "k5"}}
        self.is_asked = False
        self.closed = False

    def get(self, path):
        if path.endswith("/trial-jobs/abcde"):
            if self.num_unfiled > 0:
                self.num_unfiled -= 1
                return 404, b"{}"
            return 200, b'{"trialJobId": "abcde"}'
        if self.closed:
            return 410, b"Gone"
        if self.num_timeouts > 0 or not self.is_asked:
            self.num_timeouts -= 1
            self.is_asked = False  # NNI drops a request that it cannot answer
            return 408, b"Request Timeout"
        return 200, json.dumps({"parameter": json.dumps(self.parameters)}).encode()

    def put(self, path, command):
        if self.closed:
            return 410, b"Gone"
        if command["type"] == "request_parameter":
            self.is_asked = True
        elif self.num_unfiled > 0:
            self.dropped.append(command)
        else:
            self.metrics.append(json.loads(command["metric"]))
        return 200, b""


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(manager, prefix=""):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(*manager.get(self.path))

            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                manager.requests.append(self.path)
                self.answer(*manager.put(self.path, json.loads(body)))

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}{prefix}/env/local-env/abcde"
        monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", url)
        monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abcde")
        return manager

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("prefix", ["", "/secret"])
def test_trial_asks_and_reports(serve, prefix):
    manager = serve(Manager(num_timeouts=2), prefix)
    assert in_trial()
    trial = start_trial()
    assert (trial.parameters, trial.parameter_id) == ({"layer_1": "k5"}, 7)
    trial.report_intermediate(0.1)
    trial.report_intermediate({"default": 0.2, "loss": 1})
    trial.report_final({"default": 0.5, "arch": trial.parameters})
    kinds = [(each["type"], each["sequence"], each["parameter_id"]) for each in manager.metrics]
    assert kinds == [("PERIODICAL", 0, 7), ("PERIODICAL", 1, 7), ("FINAL", 0, 7)]
    values = [json.loads(each["value"]) for each in manager.metrics]
    assert values == [
        0.1,
        {"default": 0.2, "loss": 1},
        {"default": 0.5, "arch": {"layer_1": "k5"}},
    ]
    assert {each["trial_job_id"] for each in manager.metrics} == {"abcde"}
    assert set(manager.requests) == {f"{prefix}/env/local-env/abcde"}


def test_reports_say_what_was_evaluated_with(serve):
    manager = serve(Manager())
    trial = start_trial()
    trial.supernet = {"space": "toy", "options": {"image_size": 32}}
    trial.report_final({"default": 0.5, "arch": trial.parameters})
    trial.report_failure("out of memory")
    values = [json.loads(each["value"]) for each in manager.metrics]
    assert [each["supernet"] for each in values] == [trial.supernet] * 2
    for size, is_foreign in ((32, False), (64, True)):
        spec = SearchSpec("toy", {"image_size": size}, {"layer_1": ("k3", "k5")})
        found = [read_result(each, spec, expected=None) for each in values]
        assert [each.is_foreign for each in found] == [is_foreign] * 2


def test_metrics_wait_until_the_manager_knows_the_trial(serve):
    manager = serve(Manager(num_unfiled=5))
    start_trial().report_final({"default": 0.5})
    assert not manager.dropped and len(manager.metrics) == 1


def test_metrics_are_sent_where_the_manager_lists_no_trials(serve, monkeypatch):
    monkeypatch.setattr(trial_module, "FILED_SECONDS", 0.1)
    manager = serve(Manager(num_unfiled=10**6))
    start_trial().report_final({"default": 0.5})
    assert len(manager.dropped) == 1


def test_failure_is_a_result_with_a_reason(serve):
    manager = serve(Manager())
    start_trial().report_failure("out of memory")
    (value,) = [json.loads(each["value"]) for each in manager.metrics]
    assert value == {
        "default": -1.0,
        "error": {"reason": "out of memory"},
        "arch": {"layer_1": "k5"},
    }


def test_infeasible_candidate_is_no_accuracy(serve):
    manager = serve(Manager())
    trial = start_trial()
    trial.report_infeasible("macs is 400, outside 0 to 330", {"macs": 400})
    (metric,) = manager.metrics
    value = json.loads(metric["value"])
    assert metric["type"] == "FINAL" and value == {
        "default": -1.0,
        "macs": 400,
        "error": {"reason": "macs is 400, outside 0 to 330; not evaluated"},
        "arch": {"layer_1": "k5"},
    }
    spec = SearchSpec("toy", {}, {"layer_1": ("k3", "k5")})
    result = read_result(value, spec, expected=None)  # what our own tuner takes it for
    assert result.score is None and result.failure == value["error"]["reason"]


def test_remote_trial_waits_a_second_instead_of_asking(serve, monkeypatch):
    """On a worker the server is the machine's own part of NNI, which knows no such address."""
    manager = serve(Manager())
    monkeypatch.setattr(manager, "get", refuse_address(manager.get))
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    monkeypatch.setattr(trial_module, "REMOTE_SECONDS", 0.3)
    began = time.monotonic()
    trial = start_trial()
    trial.report_final({"default": 0.5})
    assert 0.3 <= time.monotonic() - began < 5
    assert [each["type"] for each in manager.metrics] == ["FINAL"]


def refuse_address(get):
    def answer(path):
        assert "/trial-jobs/" not in path
        return get(path)

    return answer


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"default": None},
        {"default": "0.5"},
        {"default": True},
        {"default": float("nan")},
        {"default": 0.5, "loss": float("inf")},
    ],
)
def test_results_without_finite_numbers_are_refused(serve, value):
    manager = serve(Manager())
    trial = start_trial()
    with pytest.raises(SearchError):
        trial.report_final(value)
    assert manager.metrics == []


def test_intermediate_results_must_be_finite_too(serve):
    serve(Manager())
    with pytest.raises(SearchError, match="nan"):
        start_trial().report_intermediate(float("nan"))


def test_outside_a_trial_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("NNI_TRIAL_COMMAND_CHANNEL", raising=False)
    assert not in_trial()
    with pytest.raises(SearchError, match=r"tester.py --arch"):
        start_trial()


@pytest.mark.parametrize("url", ["", "nonsense", "import://module.Class", "http://nohost"])
def test_unknown_channel_is_refused(monkeypatch, url):
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", url)
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abcde")
    with pytest.raises(SearchError, match="NNI_TRIAL_COMMAND_CHANNEL"):
        start_trial()


def test_closed_channel_ends_the_trial(serve):
    manager = serve(Manager())
    trial = start_trial()
    manager.closed = True
    with pytest.raises(SearchError, match="refused the result"):
        trial.report_final({"default": 0.5})
    with pytest.raises(SearchError, match="gave no parameters"):
        start_trial()


def test_parameters_that_never_come_end_the_trial(serve, monkeypatch):
    monkeypatch.setattr(trial_module, "PARAMETER_SECONDS", 0.2)
    serve(Manager(num_timeouts=10**6))
    with pytest.raises(SearchError, match="gave no parameters"):
        start_trial()


def test_manager_that_is_gone_ends_the_trial(monkeypatch):
    monkeypatch.setattr(trial_module, "RETRIES", 2)
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", "http://127.0.0.1:9/env/local-env/abcde")
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abcde")
    with pytest.raises(SearchError, match="does not answer"):
        start_trial()


def test_search_side_starts_without_torch_or_nni():
    script = (
        "import sys, spos.search.trial; trial = set(sys.modules);"
        "import spos.search.searcher, spos.search.record, spos.search.launch, spos.search.watch;"
        "assert not {'numpy', 'nni', 'yaml'} & trial, trial;"
        "assert not {'nni', 'torch'} & set(sys.modules);"
        "import spos.search.tuner; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
