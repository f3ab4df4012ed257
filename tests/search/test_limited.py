"""Candidates that hang, die or fail: pytest tests/search/test_limited.py"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from toy_trial import toy_score, toy_table

from spos.errors import SearchError
from spos.search.arguments import ExperimentPaths, build_search
from spos.search.limited import LimitedEvaluation
from spos.search.local import run_search
from spos.search.results import read_entries

FOLDER = Path(__file__).parent

EVALUATE = """
import os, sys, time
from pathlib import Path
from toy_trial import toy_score, toy_spec
from spos.search.limited import serve

def evaluate(choices):
    name = toy_spec().architecture(choices).id
    with open("begun.log", "a") as file:
        print(name, file=file)
    print("this is no answer")
    if name in Path("hang.txt").read_text().split():
        time.sleep(1000)
    if name in Path("die.txt").read_text().split():
        os._exit(7)
    return {"default": toy_score(choices)}

def build():
    if Path("broken").exists():
        raise ValueError("no images")
    return evaluate

serve(build)
"""


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    )
    for name in ("hang.txt", "die.txt"):
        Path(name).touch()
    toy_table().save("cost.json")
    with LimitedEvaluation([sys.executable, "-c", EVALUATE], seconds=8) as evaluation:
        yield evaluation


def make_search():
    return build_search(ExperimentPaths(Path.cwd()), rounds=2, population=4, seed=1)


def test_hanging_and_dying_candidates_are_tried_twice_then_excluded(evaluation):
    run_search(make_search(), toy_score, folder=Path("undisturbed"))
    first, second, third, *_ = read_entries(Path("undisturbed"))
    Path("hang.txt").write_text(second.id)
    Path("die.txt").write_text(third.id)
    run_search(make_search(), evaluation, folder=Path("limited"))
    entries = {each.id: each for each in read_entries(Path("limited"))}
    assert len(entries) == 8
    assert "took longer than 8 s" in entries[second.id].failure
    assert "exit status 7" in entries[third.id].failure
    assert entries[first.id].score == first.score
    assert [each.failure for each in entries.values()].count(None) == 6
    begun = Path("begun.log").read_text().split()
    assert begun.count(second.id) == begun.count(third.id) == 2 and len(begun) == 10


def test_what_cannot_load_says_why_and_no_candidate_fails(evaluation):
    Path("broken").touch()
    with pytest.raises(SearchError, match="^ValueError: no images$"):
        evaluation.start()


def test_failure_leaves_the_process_to_the_next_candidate(evaluation):
    with pytest.raises(SearchError, match="layer_1"):
        evaluation({"layer_1": "k9"})
    before = psutil.Process().children()
    choices = make_search().ask()
    assert evaluation(choices) == {"default": toy_score(choices)}
    assert psutil.Process().children() == before


def test_unforeseen_failure_ends_the_process_before_the_next_candidate(evaluation):
    choices = make_search().ask()
    assert evaluation(choices) == {"default": toy_score(choices)}
    before = set(psutil.Process().children())
    Path("hang.txt").unlink()
    with pytest.raises(SearchError, match="FileNotFoundError"):
        evaluation(choices)
    assert len(before - set(psutil.Process().children())) == 1
    Path("hang.txt").touch()
    assert evaluation(choices) == {"default": toy_score(choices)}


SEARCH = """
import sys
from spos.search.limited import LimitedEvaluation
with LimitedEvaluation([sys.executable, "-c", sys.argv[1]], seconds=100) as evaluation:
    evaluation.start()
    print("begun", flush=True)
    evaluation({f"layer_{n}": "k3" for n in range(1, 9)})
"""


def test_evaluation_ends_with_a_killed_search(evaluation):
    hung = "import time\ntoy_spec = None\n" + EVALUATE.replace(
        "if name in", "if True or name in", 1
    )
    search = subprocess.Popen([sys.executable, "-c", SEARCH, hung], stdout=subprocess.PIPE)
    assert search.stdout.readline() == b"begun\n"
    (child,) = psutil.Process(search.pid).children()
    search.send_signal(signal.SIGKILL)
    search.communicate()
    give_up_at = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
