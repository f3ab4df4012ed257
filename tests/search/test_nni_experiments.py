"""Real NNI experiments whose trials are `toy_trial.py`: pytest -m nni tests/search"""

import http.client
import json
import signal
import socket

import psutil
import pytest
from lab import LIMIT, Lab, wait_for
from toy_trial import toy_score, toy_spec, toy_table

from spos.cost.constraints import Constraint
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search

pytestmark = [pytest.mark.nni, pytest.mark.slow]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where this process looks for experiments
    lab = Lab(tmp_path)
    yield lab
    lab.end()


def check_scores(entries, count):
    """Every score belongs to its architecture, by evaluating all of them again."""
    assert len(entries) == len({each.id for each in entries}) == count
    table = toy_table()
    for each in entries:
        assert each.id == toy_spec().architecture(each.choices).id
        assert each.score == toy_score(each.choices)
        assert table.cost(each.choices) <= LIMIT


def test_plain_nnictl_reaches_done_by_itself(lab):
    lab.configure(rounds=2, population=4)
    lab.run("nnictl", "ss_gen", "-t", "python toy_trial.py", "-f", "space.json")
    lab.run("nnictl", "create", "--config", "config.yml", "--port", lab.port)
    wait_for(lambda: lab.server.status() == "DONE", what="DONE")
    check_scores(lab.entries(), 8)
    assert set(lab.evaluated().values()) == {1}
    assert len(lab.server.trials()) == 8
    assert (lab.log / "checkpoints" / "round_002").is_dir()


def test_concurrent_search_with_dying_trials_behind_protection(lab):
    lab.configure(rounds=2, population=8, trial="--fail die --seconds 0.3", concurrency=2)
    process = lab.search("start", "--config", "config.yml")
    wait_for(lambda: lab.experiments and lab.entries(), what="a first result")

    (known,) = lab.experiments
    manager = psutil.Process(known.pid)
    listening = [each.laddr for each in manager.net_connections() if each.status == "LISTEN"]
    assert [(each.ip, each.port) for each in listening] == [("127.0.0.1", lab.port)]
    for address in external_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, lab.port), timeout=5).close()
    assert ask(lab.port, {}) == 200
    assert ask(lab.port, {"Host": "evil.example"}) == 403
    assert ask(lab.port, {"Host": f"192.0.2.1:{lab.port}"}) == 403
    assert ask(lab.port, {"Origin": "http://evil.example"}) == 403
    assert ask(lab.port, {"Origin": "null"}) == 403
    assert ask(lab.port, {"Origin": f"http://localhost:{lab.port}"}) == 200
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Host": "evil.example"}
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(lab.port, websocket, path="/tuner")

    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_scores(lab.entries(), 16)
    # Every fourth architecture dies at its first evaluation; nothing else is evaluated twice.
    expected = {each.id: 1 + (int(each.id, 16) % 4 == 0) for each in lab.entries()}
    assert lab.evaluated() == expected and max(expected.values()) == 2
    best = max(lab.entries(), key=lambda each: each.score)
    assert best.id in out and "16 candidates evaluated, 0 failed" in out
    assert not lab.processes()


def test_search_whose_trials_all_fail_says_why(lab):
    lab.configure(rounds=2, population=8, trial="--fail always", concurrency=2)
    process = lab.search("start", "--config", "config.yml")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "10 evaluations failed in a row" in err and err.count("\n") == 1
    assert sum(lab.evaluated().values()) <= 13
    assert not lab.processes()


def test_finished_search_evaluates_again_what_failed(lab):
    lab.configure(rounds=1, population=2, trial="--fail always")
    out, err = lab.search("start", "--config", "config.yml").communicate(timeout=120)
    (known,) = lab.experiments
    assert "0 candidates evaluated, 2 failed" in out, err
    assert f"python -m spos search resume {known.id} --retry-failed" in out
    assert lab.evaluated().total() == 4
    (lab.folder / "mended").touch()
    process = lab.search("resume", known.id, "--retry-failed")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "2 candidates evaluated, 0 failed" in out
    check_scores(lab.entries(), 2)
    assert set(lab.evaluated().values()) == {3} and not lab.processes()


def test_hanging_trial_is_ended_tried_again_and_excluded(lab):
    """NNI's maxTrialDuration: SIGINT, which this trial ignores, and SIGKILL five seconds later."""
    search = Search(FeasibleSpace(toy_table(), [Constraint("macs", 0, LIMIT)]), Evolution(1, 4))
    hangs = toy_spec().architecture([search.ask() for _ in range(4)][1]).id
    lab.configure(rounds=1, population=4, trial=f"--hang {hangs}", trial_seconds=8)
    process = lab.search("start", "--config", "config.yml")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "3 candidates evaluated, 1 failed" in out
    entries = {each.id: each for each in lab.entries()}
    assert entries[hangs].failure == "the trial ended without a result"
    assert lab.evaluated() == {name: 1 + (name == hangs) for name in entries} and len(entries) == 4
    assert not lab.processes()


def search_on_gpus(lab, *, num_gpus: int, population: int) -> list[str]:
    """Search with a trial on each of so many stand-ins; returns what GPUs each trial was given."""
    (lab.folder / "lib").mkdir()
    (lab.folder / "lib" / "pynvml.py").write_text(STAND_IN_FOR_A_DRIVER)
    lab.environment["PYTHONPATH"] = str(lab.folder / "lib")
    lab.environment["STAND_IN_LOG"] = str(lab.folder / "queries.log")
    lab.environment["STAND_IN_GPUS"] = str(num_gpus)
    service = {"trialGpuNumber": 1, "useActiveGpu": True, "maxTrialNumberPerGpu": 1}
    lab.configure(rounds=1, population=population, trial="--log-gpu", service=service)
    process = lab.search("start", "--config", "config.yml", "--concurrency", str(num_gpus))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_scores(lab.entries(), population)
    return (lab.folder / "gpus.log").read_text().splitlines()


def test_one_gpu_can_be_asked_for(lab):
    """NNI alone refuses the only GPU, and asks again for ever, in hundreds of processes."""
    assert search_on_gpus(lab, num_gpus=1, population=5) == ["0"] * 5
    assert len((lab.folder / "queries.log").read_text().splitlines()) < 20


def test_several_gpus_get_a_trial_each(lab):
    given = search_on_gpus(lab, num_gpus=3, population=9)
    assert len(given) == 9 and set(given) == {"0", "1", "2"}


STAND_IN_FOR_A_DRIVER = """
import os
from types import SimpleNamespace

class NVMLError(Exception):
    pass

def nvmlInit():
    with open(os.environ["STAND_IN_LOG"], "a") as file:
        print("query", file=file)

def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return int(os.environ["STAND_IN_GPUS"])
def nvmlSystemGetDriverVersion(): return "1"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(device): return "stand-in"
def nvmlDeviceGetNumGpuCores(device): return 1
def nvmlDeviceGetMemoryInfo(device): return SimpleNamespace(total=1, free=1)
def nvmlDeviceGetUtilizationRates(device): return SimpleNamespace(gpu=0, memory=0)
def nvmlDeviceGetComputeRunningProcesses_v3(device): return []
def nvmlDeviceGetGraphicsRunningProcesses_v3(device): return []
"""


@pytest.mark.parametrize("victim", ["manager", "everything"])
def test_killed_search_is_resumed(lab, victim):
    lab.configure(rounds=3, population=5, trial="--seconds 0.5", concurrency=2)
    first = lab.search("start", "--config", "config.yml")
    wait_for(lambda: len(lab.entries()) >= 4, what="four results")
    (known,) = lab.experiments
    if victim == "manager":  # the tuner and the trials become orphans
        psutil.Process(known.pid).kill()
        _, err = first.communicate(timeout=30)
        assert first.returncode == 2 and f"search resume {known.id}" in err
    else:
        first.kill()
        lab.kill_everything()
    before = Finished(lab)
    second = lab.search("resume", known.id)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    check_scores(lab.entries(), 15)
    before.check(lab, num_planned=15, num_in_flight=2)


def test_terminated_search_says_how_to_go_on(lab):
    lab.configure(rounds=2, population=5, trial="--seconds 0.5", concurrency=2)
    first = lab.search("start", "--config", "config.yml")
    wait_for(lambda: len(lab.entries()) >= 3, what="three results")
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=90)
    (known,) = lab.experiments
    assert first.returncode == 143, err
    assert f"search resume {known.id}" in out
    assert not lab.processes()
    before = Finished(lab)
    second = lab.search("resume", known.id)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    check_scores(lab.entries(), 10)
    before.check(lab, num_planned=10, num_in_flight=2)


class Finished:
    """What had been evaluated at some moment."""

    def __init__(self, lab):
        self.entries, self.counts = lab.entries(), lab.evaluated()

    def check(self, lab, *, num_planned, num_in_flight):
        """Nothing of it was evaluated again; of the rest at most what was in flight."""
        counts = lab.evaluated()
        assert lab.entries()[: len(self.entries)] == self.entries
        assert all(counts[each.id] == self.counts[each.id] for each in self.entries)
        assert counts.total() <= num_planned + num_in_flight
        assert not lab.processes()


def external_addresses() -> list[str]:
    return [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]


def ask(port, headers, *, path="/api/v1/nni/check-status") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        text = response.read()
        if response.status == 200:
            json.loads(text)
        return response.status
    finally:
        connection.close()
