"""The evaluator's manners on its socket: order, hostile requests, idleness, permissions."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import ROOT

from spos.errors import ArchitectureError, SearchError
from spos.evaluation import server as server_module
from spos.evaluation.address import (
    MAX_SOCKET_PATH,
    find_address,
    open_socket,
    read_socket_path,
    take_lock,
)
from spos.evaluation.client import ask_evaluator, connect
from spos.evaluation.server import serve
from spos.evaluation.settings import EvaluationSettings
from spos.files import write_json

RESULT = {"top1": 0.5, "macs": 12}


class Scores:
    """Stands for `Candidates`: remembers what it was asked, answers, fails or waits."""

    def __init__(self, folder: Path):
        self.run = SimpleNamespace(path=folder)
        self.current = True
        self.asked: list = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def is_current(self):
        return self.current

    def score(self, choices, *, progress):
        self.asked.append(choices)
        if "bad" in choices:
            raise ArchitectureError("no such layer")
        if "bug" in choices:
            raise RuntimeError("out of memory")
        progress(0.25)
        assert self.may_go_on.wait(20)
        progress(0.5)
        return RESULT


class Served:
    """An evaluator in a thread of this process."""

    def __init__(self, folder: Path, *, idle_seconds: float = 20.0):
        (folder / "args.json").touch()
        self.settings = EvaluationSettings(folder, device="cpu")
        self.address = find_address(self.settings)
        self.scores = Scores(folder)
        lock = take_lock(self.address)
        assert lock is not None
        self.lock = lock
        self.failure: Exception | None = None
        self.idle_seconds = idle_seconds
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        while self.thread.is_alive() and read_socket_path(self.address) is None:
            time.sleep(0.005)

    def _serve(self):
        try:
            serve(self.scores, self.address, idle_seconds=self.idle_seconds)  # type: ignore
        except Exception as problem:
            self.failure = problem
        finally:
            os.close(self.lock)

    def connect(self) -> socket.socket:
        connection = connect(self.address)
        assert connection is not None
        return connection

    def say(self, data: bytes) -> list[dict]:
        """Everything that it answers to some bytes."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return [json.loads(line) for line in connection.makefile("rb")]

    def ask(self, **choices) -> tuple:
        seen: list[float] = []
        answer = ask_evaluator(self.settings, choices, idle_seconds=1, progress=seen.append)
        return answer, seen

    def end(self) -> None:
        self.scores.may_go_on.set()
        self.scores.current = False
        if connection := connect(self.address):
            with connection:
                connection.sendall(b'{"choices": {}}\n')
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path)
    yield served
    served.end()


def test_answer_comes_after_its_progress(served):
    assert served.ask(layer_1="k3") == (RESULT, [0.25, 0.5])
    assert served.scores.asked == [{"layer_1": "k3"}]


def test_socket_is_for_its_owner_only(served):
    path = read_socket_path(served.address)
    assert path is not None
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(served.address.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(served.address.lock).st_mode) == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n", b"[]\n", b"{}\n", b'{"choices": 1}\n', b'{"choices": NaN}\n', b"\xff\xfe\n",
        b'{"choices": {}, "choices": {}}\n', b"[" * 5000 + b"\n", b"1" * 5000 + b"\n",
        b'{"choices": {"__nni_obj__": "gASV"}, "x":' + b'"' + b"x" * 2**21,
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_request_is_refused_and_the_next_one_answered(served, data):
    try:
        (answer,) = served.say(data)
        assert answer["error"].startswith("SearchError: ")
    except ConnectionError:
        assert len(data) > server_module.MAX_REQUEST_BYTES  # hung up on
    assert served.scores.asked == []
    assert served.ask(layer_1="k3")[0] == RESULT


def test_silent_asker_holds_the_others_up_for_a_bounded_time(served, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    with served.connect(), served.connect() as half:
        half.sendall(b'{"choices": ')
        assert served.ask(layer_1="k3")[0] == RESULT
        assert "no request came" in json.loads(half.makefile("rb").readline())["error"]


def test_error_of_a_candidate_is_told_and_the_evaluator_lives(served):
    with pytest.raises(SearchError, match="ArchitectureError: no such layer"):
        served.ask(bad=1)
    assert served.ask(layer_1="k3")[0] == RESULT


def test_unforeseen_error_is_told_and_ends_the_evaluator(served):
    with pytest.raises(SearchError, match="RuntimeError: out of memory"):
        served.ask(bug=1)
    served.thread.join(20)
    assert isinstance(served.failure, RuntimeError)
    assert read_socket_path(served.address) is None


def test_askers_are_answered_in_their_order(served):
    served.scores.may_go_on.clear()
    connections = []
    for number in range(6):
        connections.append(served.connect())
        connections[-1].sendall(json.dumps({"choices": {"n": number}}).encode() + b"\n")
    served.scores.may_go_on.set()
    for connection in connections:
        with connection:
            assert [json.loads(line) for line in connection.makefile("rb")][-1] == {
                "result": RESULT
            }
    assert served.scores.asked == [{"n": number} for number in range(6)]


def test_candidate_of_a_killed_trial_is_not_evaluated_to_the_end(served):
    served.scores.may_go_on.clear()
    with served.connect() as connection:
        connection.sendall(b'{"choices": {"n": 0}}\n')
        assert json.loads(connection.makefile("rb").readline()) == {"progress": 0.25}
    served.scores.may_go_on.set()
    assert served.ask(n=1) == (RESULT, [0.25, 0.5])


def test_evaluation_that_hangs_ends_the_evaluator_once_nobody_waits(served, monkeypatch):
    has_left = threading.Event()
    monkeypatch.setattr(server_module, "_leave", has_left.set)
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "_WATCH_SECONDS", 0.05)
    served.scores.may_go_on.clear()
    with served.connect() as connection:
        connection.sendall(b'{"choices": {"n": 0}}\n')
        assert json.loads(connection.makefile("rb").readline()) == {"progress": 0.25}
        assert not has_left.wait(0.5), "somebody waits"
    assert has_left.wait(10)
    served.scores.may_go_on.set()
    assert served.ask(n=1) == (RESULT, [0.25, 0.5])


def test_evaluator_of_a_changed_run_says_so_and_ends(served):
    served.scores.current = False
    assert served.say(b'{"choices": {}}\n') == [{"outdated": True}]
    served.thread.join(20)
    assert served.scores.asked == [] and read_socket_path(served.address) is None


def test_evaluator_that_nobody_asks_ends_and_leaves_nothing(tmp_path):
    served = Served(tmp_path, idle_seconds=0.3)
    folder = os.path.dirname(str(read_socket_path(served.address)))
    assert served.ask(n=1)[0] == RESULT
    served.thread.join(20)
    assert not served.thread.is_alive() and served.failure is None
    assert not os.path.exists(folder) and not served.address.record.exists()
    lock = take_lock(served.address)
    assert lock is not None
    os.close(lock)


# --- where it is found ---------------------------------------------------------------------------


def test_deep_run_folders_and_deep_temporary_ones_will_do(tmp_path, monkeypatch):
    deep = tmp_path.joinpath(*["a_folder_of_some_length"] * 8)
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    served = Served(deep)
    try:
        assert served.ask(n=1)[0] == RESULT
        assert len(str(read_socket_path(served.address))) <= MAX_SOCKET_PATH
    finally:
        served.end()


def test_one_lock_one_evaluator(served):
    assert take_lock(served.address) is None
    other = find_address(EvaluationSettings(served.settings.run_dir, device="cpu", threads=1))
    lock = take_lock(other)
    assert lock is not None
    os.close(lock)


def test_copy_of_a_run_has_its_own_evaluator(served, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(served.settings.run_dir / "evaluator", copy / "evaluator")
    address = find_address(EvaluationSettings(copy, device="cpu"))
    assert connect(address) is None
    lock = take_lock(address)
    assert lock is not None
    os.close(lock)


def test_nothing_is_written_where_there_is_no_run(tmp_path):
    settings = EvaluationSettings(tmp_path, device="cpu")
    assert ask_evaluator(settings, {}, idle_seconds=1, progress=print) is None
    assert list(tmp_path.iterdir()) == []


def test_each_gpu_has_its_own_address(tmp_path, monkeypatch):
    keys = set()
    for devices in ("0", "1", "0,1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        keys.add(find_address(EvaluationSettings(tmp_path)).key)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    keys.add(find_address(EvaluationSettings(tmp_path)).key)
    keys.add(find_address(EvaluationSettings(tmp_path, device="cpu")).key)
    assert len(keys) == 5
    same = EvaluationSettings(tmp_path, workers=7)
    assert find_address(same).key == find_address(EvaluationSettings(tmp_path)).key


@pytest.mark.parametrize(
    "record",
    [
        {}, [], {"socket": 1}, {"socket": "/etc/passwd"}, {"socket": "spos-evaluator-x/socket"},
        {"socket": "/tmp/spos-evaluator-nobody/socket"}, {"socket": "a\0b"}, "open",
    ],
    ids=range(8),
)  # fmt: skip
def test_record_is_not_believed_without_a_socket_of_ours(tmp_path, monkeypatch, record):
    address = find_address(EvaluationSettings(tmp_path))
    address.folder.mkdir()
    if record == "open":  # a folder that others may write
        folder = tmp_path / "spos-evaluator-open"
        folder.mkdir(mode=0o755)
        with socket.socket(socket.AF_UNIX) as each:
            os.chdir(folder)
            each.bind("socket")
        record = {"socket": str(folder / "socket")}
    write_json(address.record, record)
    assert read_socket_path(address) is None and connect(address) is None


def test_stale_socket_makes_room(tmp_path):
    address = find_address(EvaluationSettings(tmp_path, device="cpu"))
    address.folder.mkdir()
    open_socket(address).close()  # as a kill leaves it: a socket where nobody listens
    stale = read_socket_path(address)
    assert stale is not None and connect(address) is None
    served = Served(tmp_path)
    try:
        assert served.ask(n=1)[0] == RESULT
        assert not os.path.exists(stale)
    finally:
        served.end()


# --- the trial's side ----------------------------------------------------------------------------

TRIAL = """
import sys
sys.argv = ["tester.py", "--run-dir", sys.argv[1], "--device", "cpu"]
import tester, spos.search.trial
print(tester.score(tester.parse_arguments(), {"n": 1}, print))
print([name for name in ("torch", "nni", "numpy", "psutil", "yaml") if name in sys.modules])
"""


def test_trial_has_its_answer_before_it_imports_anything_heavy(served):
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(served.settings.run_dir)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0.25", "0.5", str(RESULT), "[]"]
