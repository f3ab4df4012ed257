"""From a configuration to the search that it describes: pytest tests/search/test_arguments.py"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from nni.tools.package_utils import create_customized_class_instance
from toy_trial import toy_score, toy_spec, toy_table

from spos.architecture import SearchSpec
from spos.commands.search_run import read_arguments
from spos.cost.scores import search_score, search_score_weights
from spos.cost.table import CostTable
from spos.errors import ArchitectureError, ConfigError, ConstraintError, SposError
from spos.search.arguments import (
    METHODS,
    TASK,
    TUNERS,
    ExperimentPaths,
    build_search,
    change_arguments,
    complete_arguments,
)
from spos.search.searcher import Search
from spos.search.tuner import SearchTuner, TwoStageTuner

ROOT = Path(__file__).resolve().parents[2]
SPEC = toy_spec(8, has_channels=True)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    toy_table(SPEC).save(tmp_path / "cost.json")
    choices = {label: each[number % 4] for number, (label, each) in enumerate(SPEC.choices.items())}
    (tmp_path / "arch.json").write_text(SPEC.architecture(choices).to_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    return tmp_path


def make_search(folder, **arguments) -> Search:
    return build_search(ExperimentPaths(folder), **{"rounds": 2, "population": 8, **arguments})


def run(search: Search) -> list[dict]:
    asked = []
    while (choices := search.ask()) is not None:
        asked.append(choices)
        search.tell(choices, toy_score(choices))
    return asked


# --- tuners by name ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TUNERS)
def test_nni_makes_every_tuner_from_its_name(folder, name):
    config = {
        "className": f"spos.search.tuner.{name}",
        "codeDirectory": str(folder),
        "classArgs": {"rounds": 2, "population": 4},
    }
    tuner = create_customized_class_instance(config)
    assert type(tuner) is SearchTuner
    expected = METHODS[TUNERS[name] or "evolution"]
    assert type(tuner._search.method) is expected
    tuner.update_search_space(SPEC.search_space())
    (choices,) = tuner.generate_multiple_parameters([0])
    assert SPEC.check(choices) == choices


def test_tuners_name_keeps_its_searcher():
    assert complete_arguments("RandomTuner", {"seed": 3}) == {"seed": 3, "searcher": "random"}
    assert complete_arguments("SearchTuner", {"searcher": "aging"}) == {"searcher": "aging"}
    same = {"searcher": "two_stage"}
    assert complete_arguments("TwoStageTuner", same) == same
    with pytest.raises(ConfigError, match=r"searcher is 'aging'.*TwoStageTuner.*SearchTuner"):
        complete_arguments("TwoStageTuner", {"searcher": "aging"})


def test_named_tuner_checks_its_arguments(folder):
    paths = ExperimentPaths(folder)
    search = TwoStageTuner.check_arguments({"rounds": 3, "population": 4}, paths=paths)
    assert search.num_planned == 12
    with pytest.raises(ConfigError, match="num_parents is no setting of the two_stage searcher"):
        TwoStageTuner.check_arguments({"num_parents": 3}, paths=paths)
    with pytest.raises(ConfigError, match="searcher"):
        TwoStageTuner(searcher="random")
    toy_table().save(folder / "cost.json")
    with pytest.raises(ConfigError, match=r"needs choices of blocks and of channels.*'toy'"):
        TwoStageTuner.check_arguments({}, paths=paths)


def test_flags_leave_constraints_on_other_metrics():
    old = {"constraints": {"macs": [0, 3], "latency_ms": 9}, "seed": 1}
    changed = change_arguments(old, {"constraints": {"macs": 2}, "rounds": 5})
    assert changed == {"constraints": {"macs": 2, "latency_ms": 9}, "seed": 1, "rounds": 5}
    assert change_arguments({}, {"constraints": {"macs": 2}}) == {"constraints": {"macs": 2}}


def test_other_searcher_takes_the_settings_that_it_has():
    old = {"seed": 1, "num_mutations": 3, "num_parents": 2, "mutation_probability": 0.3, "typo": 1}
    changed = change_arguments({**old, "objective": "top1"}, {"searcher": "predictor"})
    kept = {"seed": 1, "num_parents": 2, "mutation_probability": 0.3, "typo": 1}
    assert changed == {**kept, "objective": "top1", "searcher": "predictor"}
    changed = change_arguments({**changed, "pool_size": 9}, {"searcher": "random"})
    assert changed == {"seed": 1, "typo": 1, "objective": "top1", "searcher": "random"}
    # Of one of the user's own, which a file names, no setting is known.
    own = {"seed": 1, "searcher": "mine:Own", "strength": 3, "search_only": "blocks"}
    changed = change_arguments(own, {"searcher": "random"})
    assert changed == {"seed": 1, "search_only": "blocks", "searcher": "random"}
    assert change_arguments(own, {"rounds": 2}) == {**own, "rounds": 2}


# --- what is searched --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each for each in METHODS if each != "two_stage"])
@pytest.mark.parametrize("search_only", ["channels", "blocks", ["layer_1", "channel_*"]])
def test_only_some_choices_are_searched(folder, name, search_only):
    fixed = json.loads((folder / "arch.json").read_text())["choices"]
    few = {"num_random": 3} if name == "predictor" else {}
    constraints = {"macs": "6K"}
    search = make_search(
        folder,
        searcher=name,
        search_only=search_only,
        fixed_arc="arch.json",
        constraints=constraints,
        **few,
    )
    asked = run(search)
    assert len({json.dumps(each) for each in asked}) == 16
    for label in SPEC.choices:
        is_searched = {
            "channels": label.startswith("channel"),
            "blocks": label.startswith("layer"),
        }.get(str(search_only), label == "layer_1" or label.startswith("channel"))
        assert is_searched or {each[label] for each in asked} == {fixed[label]}
        assert not is_searched or len({each[label] for each in asked}) > 1
    assert max(map(search.space.table.cost, asked)) <= 6000


def test_blocks_of_a_space_without_channels_can_be_given(folder):
    blocks = {label: each[2] for label, each in SPEC.choices.items() if label.startswith("layer")}
    other = SearchSpec("toy", {"image_size": 96}, {label: ("k7",) for label in blocks})
    (folder / "blocks.json").write_text(other.architecture(blocks).to_json())
    asked = run(make_search(folder, search_only="channels", fixed_arc="blocks.json"))
    assert all(blocks.items() <= each.items() for each in asked)
    with pytest.raises(ArchitectureError, match=r"blocks\.json.*missing: .*channel_1"):
        make_search(folder, search_only="blocks", fixed_arc="blocks.json")


def test_two_stages_need_both_kinds_of_choices_to_be_searched(folder):
    given = {"searcher": "two_stage", "fixed_arc": "arch.json"}
    with pytest.raises(ConfigError, match="needs choices of blocks and of channels"):
        make_search(folder, search_only="channels", **given)
    assert len(run(make_search(folder, search_only=["layer_1", "channel_*"], **given))) == 16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"search_only": "channels"}, ConfigError, "belong together"),
        ({"fixed_arc": "arch.json"}, ConfigError, "belong together"),
        ({"search_only": 3, "fixed_arc": "arch.json"}, ConfigError, "search_only is 3"),
        ({"search_only": "widths", "fixed_arc": "arch.json"}, ConfigError, "'widths'.*layer_1"),
        ({"search_only": "blocks", "fixed_arc": 3}, ConfigError, "fixed_arc is 3"),
        ({"search_only": "blocks", "fixed_arc": "no.json"}, ArchitectureError, r"no\.json"),
        ({"search_only": "blocks", "fixed_arc": "cost.json"}, ArchitectureError, r"cost\.json"),
        ({"search_only": "blocks", "fixed_arc": "other.json"}, ArchitectureError, "'other'"),
        ({"search_only": "blocks", "fixed_arc": "odd.json"}, ArchitectureError, "channel_1.*3"),
        (
            {"search_only": "blocks", "fixed_arc": "arch.json", "constraints": {"macs": 2600}},
            ConstraintError,
            "reaches",
        ),
        ({"score_reference": 3, "objective": "search_score"}, ConfigError, "score_reference is 3"),
        (
            {"score_reference": {"macs": 0}, "objective": "search_score"},
            ConfigError,
            "score_reference: macs is 0",
        ),
    ],
)
def test_wrong_tasks_are_named(folder, arguments, error, message):
    value = json.loads((folder / "arch.json").read_text())
    (folder / "other.json").write_text(json.dumps({**value, "space": "other"}))
    odd = {**value["choices"], "channel_1": 3}
    (folder / "odd.json").write_text(json.dumps({**value, "choices": odd}))
    with pytest.raises(error, match=message):
        make_search(folder, **arguments)


def test_score_of_size_is_the_one_of_canyonwind(folder):
    weights = search_score_weights()
    assert weights["macs"] * 328e6 + weights["params"] * 3.4e6 == pytest.approx(1)
    expected = search_score(297e6, 3.7e6)
    assert 297e6 * weights["macs"] + 3.7e6 * weights["params"] == pytest.approx(expected)
    search = make_search(
        folder,
        constraints={"search_score": [0.9, 1]},
        score_reference={"macs": "5.5K", "params": 195},
    )
    for each in run(search):
        costs = search.space.table.costs(each)
        assert 0.9 <= (costs["macs"] / 5500 + costs["params"] / 195) / 2 <= 1
        assert costs["search_score"] <= 1


def test_search_without_the_score_does_not_need_its_metrics(folder):
    table = toy_table(SPEC)
    terms = [type(each)(each.labels, {"latency_ms": each.costs["macs"]}) for each in table.terms]
    CostTable(SPEC, {"latency_ms": 1.0}, terms).save(folder / "cost.json")
    assert len(run(make_search(folder, constraints={"latency_ms": 4000}))) == 16
    with pytest.raises(ConstraintError, match="macs"):
        make_search(folder, constraints={"search_score": 1})


# --- configurations that are shown ---------------------------------------------------------------


def shown_arguments() -> list[dict]:
    """The ``classArgs`` in the README's YAML."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL))
    return [complete_arguments(each["className"].split(".")[-1], each["classArgs"])
            for each in blocks if "classArgs" in each]  # fmt: skip


def test_shown_configurations_are_searches(folder):
    shown = shown_arguments()
    assert len(shown) >= 3
    costs = {"macs": 300_000_000, "params": 3_000_000}  # as a network of the README's spaces
    CostTable(SPEC, costs, toy_table(SPEC).terms).save(folder / "cost.json")
    shutil.copy(folder / "arch.json", folder / "best.json")
    for arguments in shown:
        search = build_search(ExperimentPaths(folder), **arguments)
        assert search.ask() is not None


def test_shown_settings_of_canyonwind_are_those_of_its_genetic_search(folder):
    (arguments,) = (each for each in shown_arguments() if "mutates_crossed" in each)
    search = build_search(ExperimentPaths(folder), **arguments)
    settings = search.state()["settings"]
    assert (settings["rounds"], settings["population"], settings["num_parents"]) == (20, 50, 10)
    assert settings["lucky_probability"] == settings["mutation_probability"] == 0.1
    assert (settings["num_mutations"], settings["num_crossovers"]) == (0, 50)
    assert settings["mutates_crossed"] and settings["num_spread"] == 0
    (limit,) = search.space.constraints
    assert (limit.metric, limit.high) == ("search_score", 1)
    weights = search.space.table.sums["search_score"]
    assert weights == pytest.approx({"macs": 0.5 / 328e6, "params": 0.5 / 3.4e6})
    assert search.objective.weights == {"top1": 1, "search_score": -1}  # its balanced target


@pytest.mark.parametrize("name", METHODS)
def test_settings_in_the_shipped_configurations_comments_exist(name):
    text = (ROOT / "config_search.yml").read_text(encoding="utf-8")
    assert name in text
    assert all(each in text for each in TASK)


# --- without NNI ---------------------------------------------------------------------------------


def write_config(folder, **tuner) -> Path:
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({"tuner": tuner}))
    return path


def test_arguments_of_a_named_tuner_are_read(folder):
    name = "spos.search.tuner.TwoStageTuner"
    path = write_config(folder, className=name, classArgs={"seed": 2})
    assert read_arguments(path, {}) == {"seed": 2, "searcher": "two_stage"}
    with pytest.raises(ConfigError, match=r"searcher is 'aging', but TwoStageTuner is"):
        read_arguments(path, {"searcher": "aging"})
    path = write_config(folder, className=name, classArgs={"searcher": "random"})
    with pytest.raises(ConfigError, match=r"config\.yml: tuner\.classArgs: searcher is 'random'"):
        read_arguments(path, {})


def test_fixed_architecture_is_found_from_the_code_directory(folder, monkeypatch):
    (folder / "code").mkdir()
    arguments = {"fixed_arc": "../arch.json", "search_only": "channels"}
    path = write_config(
        folder,
        className="spos.search.tuner.SearchTuner",
        codeDirectory="code",
        classArgs=arguments,
    )
    monkeypatch.chdir("/")
    assert read_arguments(path, {})["fixed_arc"] == str(folder / "arch.json")


@pytest.mark.parametrize("arguments", [{1: 2}, [1]])
def test_arguments_that_are_no_settings_are_refused(folder, arguments):
    path = write_config(folder, className="spos.search.tuner.RandomTuner", classArgs=arguments)
    with pytest.raises(SposError, match="object of classArgs"):
        read_arguments(path, {})
