"""The whole job as a user runs it: supernet, search through NNI, training from scratch."""

import contextlib
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from forked import ROOT
from tiny_space import TINY, write_data

from spos.cost.table import CostTable
from spos.files import read_journal
from spos.search.results import read_entries

pytestmark = [pytest.mark.nni, pytest.mark.slow]
BIN = os.path.dirname(sys.executable)
BARE_TRIAL_COMMAND = (
    f"exec {sys.executable} {ROOT}/tester.py --workers 0 --device cpu --idle-seconds 20"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with tiny images, a trained supernet and the search's configuration."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_data(folder / "images", train=24, test=8)
    shutil.copy(ROOT / "config_search.yml", folder)
    run(
        folder, sys.executable, ROOT / "supernet.py", "--space", TINY, "--data-dir", "images",
        "--run-dir", "supernet", "--epochs", 3, "--batch-size", 12, "--image-size", 8,
        "--held-out-per-class", 10, "--workers", 0, "--device", "cpu",
    )  # fmt: skip
    return folder


def begin(folder, *command, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *command, status=0, **environment):
    process = begin(folder, *command, **environment)
    out, err = process.communicate(timeout=280)
    assert process.returncode == status, out + err
    return out


def trial_command(folder):
    return f"{BARE_TRIAL_COMMAND} --run-dir {folder}/supernet --space {TINY}"


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


@pytest.fixture(scope="module")
def search(work):
    """The log folder of a finished search with two trials at a time."""
    run(
        work, sys.executable, "-m", "spos", "search", "start", "--rounds", 3, "--population", 6,
        "--concurrency", 2, "--trial-command", BARE_TRIAL_COMMAND, "--run-dir", "supernet",
        "--space", TINY, "--port", free_port(),
    )  # fmt: skip
    (log,) = (work / "nni-experiments").glob("[!_]*/log")
    return log


def test_every_score_belongs_to_its_architecture(work, search):
    entries = read_entries(search)
    assert len(entries) == 18 and len({each.id for each in entries}) == 18
    assert all(each.failure is None for each in entries)
    (log,) = (work / "supernet" / "evaluator").glob("*.log")
    assert log.read_text().count("ready") == 1, "trials did not share one evaluator"
    assert log.read_text().count("top-1") == 18
    chosen = random.Random(0).sample(entries, 10)
    files = [work / f"{each.id}.json" for each in chosen]
    for each, file in zip(chosen, files, strict=True):
        file.write_text(json.dumps(dict(each.choices)))
    lines = run(work, *trial_command(work).split()[1:], "--arch", *files, "--json").splitlines()
    again = [json.loads(line) for line in lines]
    assert [each["arch"] for each in again] == [dict(each.choices) for each in chosen]
    for name in ("top1", "top5", "loss", "macs", "params"):
        assert [each[name] for each in again] == [each.metrics[name] for each in chosen]
    assert [each["top1"] for each in again] == [each.score for each in chosen]


def test_the_winner_trains_from_scratch_and_is_summed_up(work, search):
    best = run(work, sys.executable, "-m", "spos", "search", "best", "--output", "best.json")
    assert "best.json" in best
    text = run(work, sys.executable, "-m", "spos", "search", "best", "--top", 3, "--json")
    listed = json.loads(text)["best"]
    assert [each["score"] for each in listed] == sorted(
        (each.score for each in read_entries(search)), reverse=True
    )[:3]
    run(
        work, sys.executable, ROOT / "scratch.py", "--fixed-arc", "best.json", "--space", TINY,
        "--data-dir", "images", "--run-dir", "scratch", "--epochs", 6, "--batch-size", 12,
        "--workers", 0, "--device", "cpu",
    )  # fmt: skip
    text = run(
        work, sys.executable, "-m", "spos", "summary", "supernet", "scratch", search.parent.name,
        "--json",
    )  # fmt: skip
    summary = json.loads(text)
    entries = read_entries(search)
    best_score = max(each.score for each in entries)
    assert summary["search"]["candidates"] == 18
    assert summary["search"]["top-1 of the best candidate"] == best_score
    assert json.loads((work / "best.json").read_text())["metrics"]["top1"] == best_score
    assert summary["scratch"]["test top-1"] > 0.6  # three colours: chance is a third


def test_plain_nnictl_reaches_done(work):
    run(work, "nnictl", "ss_gen", "-t", trial_command(work))
    space = json.loads((work / "nni_auto_gen_search_space.json").read_text())
    assert space["layer_1"] == {"_type": "choice", "_value": ["k1", "k3", "k5"]}
    config = (work / "config_search.yml").read_text()
    config = config.replace("exec python tester.py --run-dir runs/supernet", trial_command(work))
    config = config.replace("    rounds: 20", "    rounds: 2").replace(
        "population: 50", "population: 3"
    )
    (work / "plain.yml").write_text(config)
    port = free_port()
    command = ["nnictl", "create", "--config", "plain.yml", "--port", str(port), "--foreground"]
    out = run(work, *command)  # in the foreground nnictl returns when the experiment is DONE
    assert "DONE" in out or "finished" in out.lower() or "Stopping experiment" in out
    (log,) = (
        path.parent
        for path in (work / "nni-experiments").glob("[!_]*/log/search.jsonl")
        if len(read_entries(path.parent)) == 6
    )
    assert len({each.id for each in read_entries(log)}) == 6


def test_tuner_of_nni_scores_what_it_may_not_propose_below_any_accuracy(work):
    table = CostTable.load(work / "supernet" / "cost.json")
    low, high = table.bounds("macs")
    limit = (3 * low + high) // 4
    config = yaml.safe_load((ROOT / "config_nni_tuners.yml").read_text())
    command = trial_command(work)
    config["trialCommand"] = f"{command} --constraint macs=0:{limit}"
    config["maxTrialNumber"] = 6
    config["tuner"]["classArgs"]["seed"] = 2
    (work / "tuners.yml").write_text(yaml.safe_dump(config))
    run(
        work, sys.executable, "-m", "spos", "search", "start", "--config", "tuners.yml",
        "--experiments-dir", "tuners", "--port", free_port(),
    )  # fmt: skip
    (database,) = (work / "tuners").glob("[!_]*/db/nni.sqlite")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select data from MetricData where type = 'FINAL'").fetchall()
    finals = [json.loads(json.loads(data)) for (data,) in rows]
    assert len(finals) == 6
    refused = [each for each in finals if "error" in each]
    assert refused and len(refused) < 6
    evaluated = {
        arch_id(table, each["choices"]): each["result"]
        for each in read_journal(work / "supernet" / "evaluations.jsonl")
    }
    for each in finals:
        assert (each["macs"] > limit) == (each in refused)
        if each in refused:
            assert each["default"] == -1 and "top1" not in each
            assert each["error"]["reason"].endswith("not evaluated")
        else:
            assert each["default"] == evaluated[arch_id(table, each["arch"])]["top1"] >= 0


def arch_id(table, choices) -> str:
    return table.spec.architecture(choices).id


def test_two_machines_share_a_search_and_one_may_be_lost(work):
    """NNI's remote service against SSH servers on the loopback, each with a home of its own."""
    pytest.importorskip("asyncssh", reason="no SSH server: pip install asyncssh")
    folder = work / "remote"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "here.txt").touch()  # NNI cannot copy an empty folder
    machines = [SshMachine(folder / name, work=work) for name in ("one", "two")]
    config = yaml.safe_load((ROOT / "config_search.yml").read_text())
    config.update(trialConcurrency=2, trialCodeDirectory=str(folder / "code"))
    config["trialCommand"] = f"{trial_command(work)}"
    config["searchSpaceFile"] = str(folder / "space.json")
    config["trainingService"] = {"platform": "remote", "machineList": [m.entry for m in machines]}
    (work / "remote.yml").write_text(yaml.safe_dump(config))
    try:
        search = begin(
            work, sys.executable, "-m", "spos", "search", "start", "--config", "remote.yml",
            "--rounds", 3, "--population", 4, "--experiments-dir", folder, "--port", free_port(),
        )  # fmt: skip
        wait_until(lambda: all(m.num_trials() >= 2 for m in machines), process=search)
        (log,) = folder.glob("[!_]*/log")
        assert listening_elsewhere(work, *(each.home for each in machines)) == []
        machines[0].kill()
        num_before = machines[1].num_trials()
        out, err = search.communicate(timeout=250)
    finally:
        for each in machines:
            each.kill()
    assert search.returncode == 0, out + err
    entries = read_entries(log)
    assert len(entries) == 12 and all(each.failure is None for each in entries)
    assert machines[1].num_trials() > num_before
    results = {
        arch_id(CostTable.load(work / "supernet" / "cost.json"), each["choices"]): each["result"]
        for each in read_journal(work / "supernet" / "evaluations.jsonl")
    }
    assert [each.score for each in entries] == [results[each.id]["top1"] for each in entries]


def wait_until(condition, *, process):
    give_up_at = time.monotonic() + 250
    while not condition():
        assert process.poll() is None and time.monotonic() < give_up_at, process.communicate()
        time.sleep(0.5)


class SshMachine:
    """A machine that may be reached over SSH, and its entry in ``machineList``."""

    def __init__(self, home, *, work):
        import asyncssh

        home.mkdir()
        self.home, key, port = home, home / "key", free_port()
        secret = asyncssh.generate_private_key("ssh-ed25519")
        secret.write_private_key(str(key))
        secret.write_public_key(f"{key}.pub")
        server = ROOT / "tests" / "search" / "ssh_worker.py"
        self.process = begin(work, sys.executable, server, home, f"{key}.pub", port)
        assert self.process.stdout.readline() == "listening\n"
        self.entry = {"host": "127.0.0.1", "port": port, "user": "me", "sshKeyFile": str(key)}

    def num_trials(self) -> int:
        return len(list(self.home.glob("nni-experiments/*/environments/*/trials/*")))

    def kill(self):
        """As if its power failed."""
        self.process.kill()
        for each in processes_of(self.home):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.communicate()


def processes_of(home) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("HOME") == str(home):
                found.append(each)
    return found


def listening_elsewhere(*homes) -> list[str]:
    """Addresses other than the loopback on which processes with these homes listen."""
    every = [each for home in homes for process in processes_of(home)
             for each in process.net_connections()]  # fmt: skip
    ports = [each for each in every if each.status == "LISTEN"]
    assert len(ports) >= 2 * len(homes) - 1  # SSH servers and manager here, one of NNI's there
    return [each.laddr.ip for each in ports if each.laddr.ip != "127.0.0.1"]
