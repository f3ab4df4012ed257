"""A searcher of the user's own, as module:Class: pytest tests/search/test_own_searcher.py"""

import json
import math
import shutil
import sys
import threading
from pathlib import Path

import pytest
from toy_trial import toy_score, toy_table

from spos.__main__ import main
from spos.commands.search_run import read_arguments
from spos.errors import ConfigError, SearchError
from spos.search import arguments
from spos.search.arguments import ExperimentPaths, build_method, build_search, load_method
from spos.search.experiment import Changes, prepare_experiment
from spos.search.results import STATE_FILE, read_entries
from spos.search.tuner import SearchTuner

TOY = Path(__file__).with_name("toy_trial.py")
CLIMB = """
from dataclasses import dataclass, field

import numpy as np

from spos.search import aging
from spos.search.breeding import Batch, mutate
from spos.search.history import ranked
from spos.search.random_search import RandomSearch


@dataclass(frozen=True)
class Climb(RandomSearch):
    probability: float = 0.2

    @property
    def batch_size(self):
        return 1

    def propose(self, space, history, count, generator):
        batch, best = Batch(space, history, count), ranked(history)
        if best:
            batch.add_children(
                count,
                lambda: mutate(
                    best[0][0], space, probability=self.probability, generator=generator
                ),
            )
        batch.fill(generator)
        return batch.genes


@dataclass(frozen=True)
class Stubborn(RandomSearch):
    what: str = "twice"

    def propose(self, space, history, count, generator):
        first = (0,) * len(space.spec.choices)
        return {
            "twice": [first, first],
            "outside": [(len(space.spec.choices["layer_1"]), *first[1:])],
            "below": [(-1, *first[1:])],
            "short": [first[1:]],
            "costly": [tuple(len(each) - 1 for each in space.spec.choices.values())],
            "many": [(gene, *first[1:]) for gene in (0, 1, 2)],
            "nothing": None,
            "choices": [space.choices(first)],
            "halves": np.array([first]) + 0.5,
            "arrays": np.array([first, (1, *first[1:])]),
        }[self.what]


@dataclass(frozen=True)
class AgingEvolution(aging.AgingEvolution):
    pass


@dataclass(frozen=True)
class Wide(RandomSearch):
    widths: object = (1, 2)


@dataclass(frozen=True)
class Strict(RandomSearch):
    start: str = field(kw_only=True)
    part: int = 2

    def __post_init__(self):
        if self.start == "nowhere":
            raise ValueError("start is nowhere")

    @property
    def batch_size(self):
        return self.population // self.part


@dataclass
class Attributes:
    rounds = population = seed = max_failures = batch_size = 1

    def propose(self):
        pass


climb = Climb()


@dataclass(frozen=True)
class Alone:
    batch_size: int
    rounds: int = 1
    population: int = 2
    seed: int = 0
    max_failures: int = 1
    propose = RandomSearch.propose


class Plain:
    def propose(self):
        pass


@dataclass(frozen=True)
class Empty:
    rounds: int
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """`climbing` can be imported, and nothing of it is known yet."""
    (tmp_path / "climbing.py").write_text(CLIMB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(arguments, "METHODS", dict(arguments.METHODS))
    yield
    sys.modules.pop("climbing", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An experiment's folder, which is the working directory."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    toy_table().save(folder / "cost.json")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(folder))
    return folder


def write_config(folder, *, code="."):
    """An experiment's configuration beside its trial; the file."""
    shutil.copy(TOY, folder)
    config = {
        "searchSpaceFile": "space.json",
        "trialCommand": "exec python toy_trial.py",
        "trialConcurrency": 1,
        "maxTrialNumber": 24,
        "tuner": {"className": "spos.search.tuner.SearchTuner", "codeDirectory": code},
        "trainingService": {"platform": "local"},
    }
    path = folder / "config.yml"
    path.write_text(json.dumps(config))
    return path


def test_tuner_hands_out_what_it_proposes_and_resumes_it(folder):
    settings = {"rounds": 2, "population": 6, "probability": 0.4, "constraints": {"macs": 5000}}
    tuner = SearchTuner(searcher="climbing:Climb", **settings)
    asked = []
    for number in range(11):  # the last would end the search, which NNI is told
        if number == 7:  # killed and resumed
            tuner = SearchTuner(searcher="climbing:Climb", **settings)
            tuner.load_checkpoint()
        (choices,) = tuner.generate_multiple_parameters([number])
        asked.append(choices)
        value = {"default": toy_score(choices), "arch": choices}
        tuner.receive_trial_result(number, choices, value)
    entries = read_entries(folder)
    assert [each.choices for each in entries] == asked
    assert len({each.id for each in entries}) == 11
    assert all(toy_table().cost(each) <= 5000 for each in asked)
    state = json.loads((folder / STATE_FILE).read_text())["search"]
    assert (state["method"], state["settings"]["probability"]) == ("climbing:Climb", 0.4)
    # It is the search that its own `propose` makes: most candidates are near the best before.
    best, near = asked[0], 0
    for choices in asked[1:]:
        near += sum(choices[label] != best[label] for label in best) <= len(best) // 2
        best = max(best, choices, key=toy_score)
    assert near >= 6


def test_benchmark_compares_it_with_ours(shared_data, capsys):
    table = str(shared_data / "nas-bench-macro_cifar10.json")
    words = ["--table", table, "--seeds", "5", "--queries", "60", "--mode", "mean", "--json"]
    names = ["climbing:Climb", "random"]
    assert main(["bench", "nasbench-macro", *words, "--searcher", *names]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [each["searcher"] for each in results] == names
    climb, at_random = (each["accuracy_quartiles"]["50"][1] for each in results)
    assert climb > at_random > 90


def test_experiment_is_refused_if_its_tuner_would_not_find_it(folder, tmp_path, monkeypatch):
    """This process does, through its path; the tuner has the configuration's folder only."""
    path = write_config(folder)
    load_method("climbing:Climb")
    changes = Changes({"searcher": "climbing:Climb", "rounds": 2, "population": 6})
    missing = f"No module named 'climbing'.*codeDirectory, {folder}"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ConfigError, match=missing):
        prepare_experiment(path, changes)
    (folder / "parts").mkdir()
    shutil.copy(tmp_path / "climbing.py", folder / "parts")
    monkeypatch.setenv("PYTHONPATH", "parts")  # the tuner runs in another folder
    with pytest.raises(ConfigError, match=missing):
        prepare_experiment(path, changes)
    (folder / "climbing.py").write_text("# without Climb")
    with pytest.raises(ConfigError, match="tuner does not find .*has no attribute 'Climb'"):
        prepare_experiment(path, changes)
    shutil.copy(tmp_path / "climbing.py", folder)
    assert prepare_experiment(path, changes).num_planned == 12


def test_it_is_found_where_the_file_says_that_code_lies(folder):
    path = write_config(folder, code="code")
    (folder / "code").mkdir()
    (folder / "code" / "climbing_there.py").write_text(CLIMB)
    changes = {"searcher": "climbing_there:Climb", "rounds": 2, "population": 6}
    assert read_arguments(path, changes)["searcher"] == "climbing_there:Climb"
    arguments.METHODS.pop("climbing_there:Climb")
    sys.modules.pop("climbing_there")
    assert prepare_experiment(path, Changes(changes)).num_planned == 12
    sys.modules.pop("climbing_there")


def test_it_is_found_beside_the_configuration(tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "climbing_there.py").write_text(CLIMB)
    before = list(sys.path)
    with pytest.raises(ConfigError, match="a module in this folder, installed, or on PYTHONPATH"):
        load_method("climbing_there:Climb")
    load_method("climbing_there:Climb", folder=other)
    assert build_method("climbing_there:Climb", {"probability": 0.5}).population == 50
    assert sys.path == before
    sys.modules.pop("climbing_there")


def test_a_file_alone_starts_no_code(folder):
    with pytest.raises(ConfigError, match="file alone may not start.*--searcher climbing:Climb"):
        build_search(ExperimentPaths(folder), searcher="climbing:Climb")
    assert "climbing" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Climb", "cannot be imported .*nowhere"),
        ("climbing:Nobody", "cannot be imported .*Nobody"),
        (":Climb", "cannot be imported"),
        ("climbing:Plain", "climbing:Plain' is not a dataclass"),
        ("climbing:climb", "climbing:climb' is not a dataclass"),
        ("climbing:dataclass", "climbing:dataclass' is not a dataclass"),
        (
            "climbing:Attributes",
            "has no rounds, population, seed, max_failures; expected the fields",
        ),
        ("climbing:Empty", "has no population, seed, max_failures, batch_size, propose"),
    ],
)
def test_what_is_no_searcher_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        load_method(name)
    assert name not in arguments.METHODS


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("twice", "proposed .* was proposed before"),
        ("outside", r"proposed .* is not of the space, which has \[.* candidates$"),
        ("below", r"proposed \[-1, .* is not of the space"),
        ("short", "proposed .* is not of the space"),
        ("costly", "proposed .* does not meet the constraints"),
        ("many", "proposed 3 candidates, expected 2 at most"),
        ("nothing", "proposed None, expected a list of genes"),
        ("choices", "proposed .*'layer_1': .*, expected a list of genes"),
        ("halves", r"proposed array\(.*0.5.*, expected a list of genes"),
    ],
)
def test_proposals_that_break_a_promise_end_the_search(folder, what, message):
    name = "climbing:Stubborn"
    load_method(name)
    limits = {"macs": 5000} if what == "costly" else None
    settings = {"rounds": 1, "population": 2, "what": what, "constraints": limits}
    search = build_search(ExperimentPaths(folder), searcher=name, **settings)
    with pytest.raises(SearchError, match=f"Stubborn {message}"):
        search.ask()
    assert not search.history


def test_candidate_of_a_batch_before_is_not_taken_again(folder):
    load_method("climbing:Stubborn")
    settings = {"rounds": 2, "population": 2, "what": "arrays"}
    search = build_search(ExperimentPaths(folder), searcher="climbing:Stubborn", **settings)
    search.tell(search.ask(), 0.5)
    search.ask()
    with pytest.raises(SearchError, match="Stubborn proposed .* was proposed before; see .*Batch"):
        search.ask()
    assert len(search.history) == 2 and len(search.running) == 1


def test_proposals_may_be_arrays(folder):
    load_method("climbing:Stubborn")
    settings = {"rounds": 1, "population": 2, "what": "arrays"}
    search = build_search(ExperimentPaths(folder), searcher="climbing:Stubborn", **settings)
    assert search.ask() and search.ask() and search.ask() is None
    json.dumps(search.state())


def test_settings_may_be_tuples_but_nothing_that_json_does_not_hold(folder):
    load_method("climbing:Wide")

    def begin(**settings):
        return build_search(ExperimentPaths(folder), searcher="climbing:Wide", **settings)

    state = json.loads(json.dumps(begin().state()))
    begin().load_state(state)
    with pytest.raises(SearchError, match=r"widths \[1, 2\], this one \[1, 3\]"):
        begin(widths=(1, 3)).load_state(state)
    for wrong in ({1, 2}, math.inf, threading.Lock()):
        with pytest.raises(ConfigError, match="the settings of Wide cannot be kept for a resume"):
            begin(widths=wrong)


def test_search_goes_on_with_its_own_searcher_only(folder):
    """Also where one of ours has its name and settings."""
    name = "climbing:AgingEvolution"
    load_method(name)
    state = build_search(ExperimentPaths(folder), searcher=name).state()
    build_search(ExperimentPaths(folder), searcher=name).load_state(state)
    with pytest.raises(SearchError, match=f"has method '{name}', this one 'AgingEvolution'"):
        build_search(ExperimentPaths(folder), searcher="aging").load_state(state)


def test_settings_of_it_are_checked(folder):
    load_method("climbing:Climb")
    with pytest.raises(ConfigError, match="chance is no setting of the climbing:Climb searcher"):
        build_method("climbing:Climb", {"chance": 1})
    with pytest.raises(ConfigError, match="^population is 0"):
        build_method("climbing:Climb", {"population": 0})
    load_method("climbing:Alone")
    assert build_method("climbing:Alone", {"batch_size": 2}).batch_size == 2
    name = "climbing:Strict"
    load_method(name)
    for settings, message in (
        ({}, f"the {name} searcher refuses its settings .*'start'"),
        ({"start": "nowhere"}, f"the {name} searcher refuses its settings .*start is nowhere"),
        ({"start": "here", "population": 0}, "population is 0"),  # its own checks are not ours
        ({"start": "here", "population": 1}, "batch_size is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_method(name, settings)
    assert build_method(name, {"start": "here", "population": 2}).batch_size == 1
