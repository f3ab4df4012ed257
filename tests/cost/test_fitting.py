"""Costs fitted to measurements of whole networks: pytest tests/cost/test_fitting.py"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_space import TINY

from spos.__main__ import main
from spos.architecture import Architecture, SearchSpec, load_architecture, save_architecture
from spos.cost import fitting
from spos.cost.constraints import Constraint, parse_constraint_flags
from spos.cost.counting import build_cost_table
from spos.cost.fitting import Measurement, count_numbers, fit_costs, read_measurements
from spos.cost.prediction import Prediction
from spos.cost.table import CostTable, Term
from spos.errors import ArchitectureError, ConfigError
from spos.files import write_json
from spos.search.arguments import ExperimentPaths, build_search
from spos.training.samplers import build_sampler

METRIC = "energy_mj"
SPEC = SearchSpec(
    "toy",
    {"image_size": 32},
    {"layer_1": "abc", "layer_2": "abcd", "width_2": (2, 4, 6), "pool": ("max", "none"),
     "layer_3": "abcd", "layer_4": "abcd"},
)  # fmt: skip
TERMS = [("layer_1",), ("layer_2", "width_2"), ("layer_3",), ("layer_4",)]
NUM_NUMBERS = 1 + 2 + 11 + 1 + 3 + 3


def make_table(spec=SPEC, terms=TERMS) -> CostTable:
    """Counted costs, of no choice of a pooling."""
    sizes = [math.prod(len(spec.choices[label]) for label in labels) for labels in terms]
    rows = [
        Term(labels, {"macs": tuple(100 + place**2 for place in range(size))})
        for labels, size in zip(terms, sizes, strict=True)
    ]
    return CostTable(spec, {"macs": 1000}, rows)


def make_device(table: CostTable) -> CostTable:
    """What a device takes: any number for each combination, and 50."""
    draw = np.random.default_rng(1)
    terms = [
        Term(term.labels, {METRIC: tuple(draw.uniform(0, 9, len(term.costs["macs"])).tolist())})
        for term in table.with_terms(table.spec.choices).terms
    ]
    return CostTable(table.spec, {METRIC: 50}, terms)


def draw_networks(table: CostTable, count: int, *, seed: int = 0) -> list[Architecture]:
    sampler = build_sampler("fair", table, seed=seed)
    return [table.spec.architecture(sampler.sample(step)) for step in range(count)]


def measure(archs, cost, *, noise: float = 0.0) -> list[Measurement]:
    draw = np.random.default_rng(2)
    factors = draw.normal(1, noise, len(archs)).tolist()
    return [
        Measurement(Path(f"{arch.id}.json"), arch, cost(arch.choices) * factor)
        for arch, factor in zip(archs, factors, strict=True)
    ]


def fit(table, measurements) -> tuple[CostTable, Prediction]:
    return fit_costs(table, measurements, metric=METRIC, source="measured.csv")


# --- the fit -----------------------------------------------------------------------------------


def test_ranking_of_an_additive_device_is_recovered():
    table = make_table()
    device = make_device(table)
    archs = draw_networks(table, 120)
    fitted, checked = fit(table, measure(archs, lambda each: device.cost(each, METRIC), noise=0.02))
    others = [each.choices for each in draw_networks(table, 300, seed=1)]
    known = Prediction(
        tuple(fitted.cost(each, METRIC) for each in others),
        tuple(device.cost(each, METRIC) for each in others),
    )
    assert known.spearman > 0.97 and max(known.errors) < 0.08
    assert checked.spearman > 0.9 and len(checked.errors) == 120
    how = fitted.measured[METRIC]
    assert (how["file"], how["networks"], how["numbers"]) == ("measured.csv", 120, NUM_NUMBERS)
    assert how["check"] == checked.summary()
    assert fitted.metrics == ("macs", METRIC)
    assert [fitted.cost(each) for each in others] == [table.cost(each) for each in others]


def test_exact_costs_lie_above_the_cheapest_candidate_of_a_layer(monkeypatch):
    monkeypatch.setattr(fitting, "RIDGE", 1e-9)
    table = make_table()
    device = make_device(table)
    archs = draw_networks(table, 120)
    fitted, checked = fit(table, measure(archs, lambda each: device.cost(each, METRIC)))
    assert max(checked.errors) < 1e-6
    for term, true in zip(fitted.terms, device.terms, strict=True):
        lowest = min(true.costs[METRIC])
        assert min(term.costs[METRIC]) == 0
        assert term.costs[METRIC] == pytest.approx([each - lowest for each in true.costs[METRIC]])
    assert fitted.fixed[METRIC] == pytest.approx(device.bounds(METRIC)[0])


def test_device_that_does_not_add_up_is_told():
    def cost(choices) -> float:  # only whether two layers are alike matters
        return 9.0 if choices["layer_3"] == choices["layer_4"] else 5.0

    table = make_table()
    _, checked = fit(table, measure(draw_networks(table, 120), cost))
    assert checked.spearman < 0.4
    assert max(checked.errors) > 0.3


def test_every_network_is_predicted_by_the_fit_to_all_others():
    table = make_table()
    device = make_device(table)
    archs = draw_networks(table, 60)
    networks = measure(archs, lambda each: device.cost(each, METRIC), noise=0.2)
    _, checked = fit(table, networks)
    for number in (0, 31):
        rest, _ = fit(table, networks[:number] + networks[number + 1 :])
        expected = rest.cost(archs[number].choices, METRIC)
        assert checked.predicted[number] == pytest.approx(expected)
        assert checked.measured[number] == networks[number].number


@pytest.mark.parametrize(
    "terms", [TERMS, [("layer_1", "layer_2", "pool"), ("layer_2", "pool", "width_2"), ("layer_3",)]]
)
def test_numbers_to_be_fitted_are_the_rank_of_all_networks(terms):
    table = make_table(terms=terms).restrict({"layer_4": "a"})
    table = table.with_terms(table.spec.choices)
    archs = draw_networks(table, 2000)
    assert count_numbers(table) == np.linalg.matrix_rank(fitting._design(table, archs, ""))


def test_cost_that_was_fitted_before_is_replaced():
    table = make_table()
    archs = draw_networks(table, 60)
    spread = Term(("layer_1",), {"macs": (1, 1, 1), METRIC: (7, 7, 7)}, {METRIC: (1, 1, 1)})
    known = CostTable(
        SPEC, {"macs": 1000, METRIC: 7}, [spread], measured={METRIC: {"device": "old"}}
    )
    fitted, _ = fit(known, measure(archs, lambda each: table.cost(each)))
    assert fitted.metrics == ("macs", METRIC)
    assert "device" not in fitted.measured[METRIC] and fitted.terms[0].spreads == {}


@pytest.mark.parametrize(
    "metric", ["macs", "top1", "supernet", "search_score", "", "a b", "a=b", "2x", "ms:"]
)
def test_metric_has_a_name_of_its_own(metric):
    networks = measure(draw_networks(make_table(), 60), lambda _: 1.0)
    with pytest.raises(ConfigError, match=f"--metric {metric}: expected a name of its own"):
        fit_costs(make_table(), networks, metric=metric, source="x")


def test_too_few_networks_are_counted():
    networks = measure(draw_networks(make_table(), NUM_NUMBERS - 1), lambda _: 1.0)
    message = "measured.csv: holds 20 networks, but 21 numbers .* measure 21 or more, better 63"
    with pytest.raises(ConfigError, match=message):
        fit(make_table(), networks)
    single = make_table(SearchSpec("toy", {}, {"layer_1": "a"}), [("layer_1",)])
    with pytest.raises(ConfigError, match="holds 1 networks, but 2 numbers are to be fitted"):
        fit(single, measure(draw_networks(single, 1), lambda _: 1.0))


def test_as_many_networks_as_numbers_will_do():
    table = make_table(SearchSpec("toy", {}, {"layer_1": "ab"}), [("layer_1",)])
    networks = measure(draw_networks(table, 2), lambda each: 2.0 + (each["layer_1"] == "b"))
    fitted, checked = fit(table, networks)
    assert fitted.measured[METRIC]["numbers"] == 2 and len(checked.errors) == 2
    low, high = fitted.bounds(METRIC)  # of one network each, and a tenth of one at the mean
    assert (low, high) == pytest.approx((2.5 - 0.5 / 1.1, 2.5 + 0.5 / 1.1))


def test_candidate_that_no_network_has_is_named():
    left = make_table().restrict({"layer_3": "abd"})
    networks = measure(draw_networks(left, 60), lambda _: 1.0)
    with pytest.raises(ConfigError, match="measured.csv: no network has layer_3 c; measure"):
        fit(make_table(), networks)


def test_networks_of_another_space_are_refused():
    table = make_table()
    networks = measure(draw_networks(table, 60), lambda _: 1.0)
    with pytest.raises(ArchitectureError, match=r"\.json: .*space 'toy', expected 'other'"):
        fit(make_table(SearchSpec("other", SPEC.options, SPEC.choices)), networks)
    larger = SearchSpec("toy", {"image_size": 64}, SPEC.choices)
    with pytest.raises(ConfigError, match=r"cost table \(image_size is 32, expected 64\)"):
        fit(make_table(larger), networks)
    with pytest.raises(ArchitectureError, match="layer_1 is 'b', expected one of"):
        fit(table.restrict({"layer_1": "ac"}), networks)


# --- the search goes by it ---------------------------------------------------------------------


def test_fitted_cost_bounds_searches_and_paths(tmp_path):
    table = make_table()
    device = make_device(table)
    archs = draw_networks(table, 120)
    fitted, _ = fit(table, measure(archs, lambda each: device.cost(each, METRIC)))
    fitted.save(tmp_path / "cost.json")
    fitted = CostTable.load(tmp_path / "cost.json")
    (bound,) = parse_constraint_flags([f"{METRIC}=:70"], flag="--constraint")
    low, high = fitted.bounds(METRIC)
    assert low < bound.high < high
    search = build_search(
        ExperimentPaths(tmp_path), rounds=2, population=8, constraints={METRIC: bound.high},
        objective={"top1": 1, METRIC: -0.01},
    )  # fmt: skip
    asked = []
    while (choices := search.ask()) is not None:
        asked.append(choices)
        search.tell(choices, 0.5)
    assert len(asked) == 16 and all(bound.allows(fitted, each) for each in asked)
    sampler = build_sampler("constrained", fitted, seed=0, ranges=[bound])
    assert all(bound.allows(fitted, sampler.sample(step)) for step in range(20))


# --- files of measurements ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with two networks."""
    for name, choice in (("0a", "a"), ("b1", "b")):
        arch = SPEC.architecture({**{k: v[0] for k, v in SPEC.choices.items()}, "layer_1": choice})
        save_architecture(tmp_path / f"{name}.json", arch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "0a,1.5\nb1,2\n"),
        ("x.csv", "\ufeff0a,1.5\nb1,2\n"),
        ("x.csv", "\ufeffnetwork,latency_ms\r\n0a.onnx, 1.5\r\n\r\n/data/b1.int8.tflite,2e0\r\n"),
        ("x.txt", '"C:\\models\\0a.onnx",1.5\n./b1 ,2'),
        ("x.json", '{"0a": 1.5, "models/b1.onnx": 2}'),
    ],
)
def test_networks_are_named_by_their_files(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    found = read_measurements(Path(name))
    assert [(str(each.path), each.number) for each in found] == [("0a.json", 1.5), ("b1.json", 2)]
    assert [each.arch for each in found] == [load_architecture(each.path) for each in found]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "x.csv: holds no measurement; expected lines such as ID,12.5"),
        ("x.csv", "name,ms\n", "x.csv: holds no measurement"),
        ("x.csv", "0a,1\nb2,3\n", "x.csv, line 2: there is no b2.json; name networks by their"),
        ("x.csv", "b2,3\n", "x.csv, line 1: there is no b2.json"),
        ("x.csv", "0a,1\nname,ms\n", "x.csv, line 2: there is no name.json"),
        ("x.csv", f"{'b' * 999},3\n", "x.csv, line 1: there is no bbb"),
        ("x.csv", "0a,fast\n", "x.csv, line 1: 'fast' is not a number above 0; leave out what"),
        ("x.csv", "0a,-1\n", "x.csv, line 1: -1.0 is not a number above 0"),
        ("x.csv", "0a,0\n", "0.0 is not a number above 0"),
        ("x.csv", "0a,nan\n", "nan is not a number above 0"),
        ("x.csv", "0a,inf\n", "inf is not a number above 0"),
        ("x.csv", "0a;1\n", "x.csv, line 1: expected a network and a number, such as ID,12.5"),
        ("x.csv", "0a,1\n0a.onnx,1\n", "x.csv, line 2: 0a.onnx was there before; give one number"),
        ("x.csv", b"\xff\xfe0", "x.csv: is not a CSV file in UTF-8"),
        ("x.json", "[1]", "x.json: expected an object such as {\"ID\": 12.5}"),
        ("x.json", "{", "x.json: not valid JSON"),
        ("x.json", '{"0a": true}', "x.json, 0a: True is not a number above 0"),
        ("x.json", '{"0a": "1"}', "x.json, 0a: '1' is not a number above 0"),
        ("gone.csv", None, "gone.csv: cannot be read (No such file or directory)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(folder, name, text, message):
    if text is not None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_measurements(Path(name))
    assert message in str(caught.value)


# --- the command -------------------------------------------------------------------------------


TRAINED = Constraint("macs", 1_000, 50_000)


@pytest.fixture
def phone(tmp_path, monkeypatch, tiny_spaces, one_thread):
    """The working directory, with measurements of all tiny networks, proportional to their MACs."""
    options = {"image_size": 8, "num_classes": 3}
    table = build_cost_table(TINY, options=options)
    archs = dict.fromkeys(draw_networks(table, 60))
    (tmp_path / "phone").mkdir()
    for arch in archs:
        save_architecture(tmp_path / "phone" / f"{arch.id}.json", arch)
    numbers = {arch.id: table.cost(arch.choices) / 1000 for arch in archs}
    write_json(tmp_path / "phone" / "measured.json", numbers)
    table.trained = (TRAINED,)
    table.save(tmp_path / "cost.json")
    build_cost_table(TINY, options={**options, "image_size": 9}).save(tmp_path / "larger.json")
    monkeypatch.chdir(tmp_path)
    return numbers


def test_command_adds_the_cost_to_the_table(phone, capsys):
    words = ["cost", TINY, "--fit", "phone/measured.json", "--table"]
    assert main([*words, "cost.json"]) == 0
    text = capsys.readouterr().out
    assert "7 numbers fitted to" in text and "phone/measured.json" in text
    assert f"the sum predicts {len(phone)} other subnets: Spearman 0.9" in text
    table = CostTable.load("cost.json")
    assert table.metrics == ("macs", "params", "latency_ms") and table.trained == (TRAINED,)
    assert f"sum {' ' * 20} {table.bounds('latency_ms')[0]:9.4g}" in text
    # A new table has the options of the networks.
    assert main([*words, "new.json", "--metric", METRIC, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    new = CostTable.load("new.json")
    assert new.spec == table.spec and new.metrics == ("macs", "params", METRIC)
    assert value["check"] == new.measured[METRIC]["check"]
    assert value["terms"][0] == {
        "labels": ["layer_1"], METRIC: list(new.terms[0].costs[METRIC]),
    }  # fmt: skip
    Constraint(METRIC, high=value["bounds"][1]).check_reachable(new)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TINY, "--latency"], "--latency measures here, --fit what was measured; give one of"),
        (["zoo:megvii"], "zoo:megvii is not a search space, and --fit is about one"),
        (["nasbench_macro", "--table", "cost.json"], "is the cost table of 'tiny_space:TinySpace'"),
        (["nasbench_macro"], "is an architecture of the search space 'tiny_space:TinySpace'"),
        ([TINY, "--table", "larger.json"], "table (image_size is 8, expected 9); give the network"),
        ([TINY, "--image-size", "9"], "table (image_size is 8, expected 9); give the networks'"),
        ([TINY, "--metric", "params", "--table", "cost.json"], "--metric params: expected a name"),
    ],
)
def test_wrong_use_changes_nothing(phone, tmp_path, words, message):
    before = (tmp_path / "cost.json").read_bytes()
    with pytest.raises((ConfigError, ArchitectureError)) as caught:
        main(["cost", *words, "--fit", "phone/measured.json"])
    assert message in str(caught.value)
    assert (tmp_path / "cost.json").read_bytes() == before
