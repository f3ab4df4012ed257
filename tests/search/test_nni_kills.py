"""Real NNI experiments killed at random moments until they finish: pytest -m nni tests/search

The suite kills one searcher thrice. All searchers, eight kills each, take about half an hour:

    SPOS_KILLS=8 python -m pytest tests/search/test_nni_kills.py
"""

import os
import random
import signal
import time

import psutil
import pytest
from lab import LIMIT, Lab, wait_for
from toy_trial import toy_score, toy_spec, toy_table

from spos.search.arguments import METHODS, ExperimentPaths, build_search
from spos.search.local import run_search
from spos.search.results import read_entries

pytestmark = [pytest.mark.nni, pytest.mark.slow]

NUM_KILLS = int(os.environ.get("SPOS_KILLS", "0"))
SEARCHERS = list(METHODS) if NUM_KILLS else ["evolution"]
VICTIMS = ["manager", "trial", "tuner"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lab = Lab(tmp_path)
    yield lab
    lab.end()


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_search_killed_at_random_moments_is_the_undisturbed_one(lab, searcher):
    draw = random.Random(searcher)
    victims = draw.choices(VICTIMS, k=NUM_KILLS) if NUM_KILLS else VICTIMS
    arguments = {"searcher": searcher, "rounds": 2, "population": max(4, NUM_KILLS), "seed": 3}
    channels = "--channels" if searcher == "two_stage" else ""
    lab.configure(trial=f"--seconds 0.4 {channels}", **arguments)
    process = lab.search("start", "--config", "config.yml")
    done = []
    killed: set[str] = set()  # architectures whose trial was killed
    for victim in victims:
        wait_for_result(lab, process)
        time.sleep(draw.uniform(0, 2))
        finished = lab.entries(), lab.evaluated()
        if victim == "trial":
            kill_trial(lab, process, killed)
        if process.poll() is not None:
            break
        done.append(victim)
        if victim != "trial":
            kill_part(lab, victim, process)
            (known,) = lab.experiments
            process = lab.search("resume", known.id)
            check_finished(lab, *finished)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert done == victims or NUM_KILLS  # that many may find the search at its end
    check_finished(lab, *finished)
    assert not lab.processes()
    assert outcome(lab.log) == undisturbed(lab.folder, arguments)


def wait_for_result(lab, process):
    """Wait for a candidate more, or for the end of the command."""
    num_before = len(lab.entries())
    wait_for(
        lambda: len(lab.entries()) > num_before or process.poll() is not None,
        seconds=180,
        what="a result",
    )


def kill_trial(lab, process, killed: set[str]):
    """Kill a trial, unless it is the second of some candidate: that would exclude it."""
    num_before = len(killed)

    def kill_running() -> bool:
        found = lab.running_trial()
        if found and found[0] not in killed:
            found[1].kill()  # which does nothing if it has ended meanwhile
            killed.add(found[0])
        return len(killed) > num_before or process.poll() is not None

    wait_for(kill_running, what="a trial to kill")


def kill_part(lab, victim, process):
    """Kill NNI's manager or the tuner; the command ends by itself or is stopped."""
    (known,) = lab.experiments
    if victim == "manager":
        psutil.Process(known.pid).kill()
    else:
        for each in lab.processes():
            if each.cmdline()[1:3] == ["-m", "nni"]:
                each.kill()
        process.send_signal(signal.SIGTERM)  # NNI itself takes half a minute to notice
    process.communicate(timeout=90)
    assert process.returncode in (2, 143)


def check_finished(lab, entries, counts):
    """What was finished then is as it was, and was not evaluated again."""
    assert lab.entries()[: len(entries)] == entries
    now = lab.evaluated()
    assert {each.id: now[each.id] for each in entries} == {
        each.id: counts[each.id] for each in entries
    }


def undisturbed(folder, arguments) -> list[tuple]:
    has_channels = arguments["searcher"] == "two_stage"
    toy_table(toy_spec(has_channels=has_channels)).save(folder / "cost.json")
    search = build_search(ExperimentPaths(folder), constraints={"macs": [0, LIMIT]}, **arguments)
    run_search(search, toy_score, folder=folder / "undisturbed")
    return outcome(folder / "undisturbed")


def outcome(folder) -> list[tuple]:
    """Candidates, scores and rounds; within a round a candidate tried twice comes later."""
    return sorted((each.round, each.id, each.score) for each in read_entries(folder))
