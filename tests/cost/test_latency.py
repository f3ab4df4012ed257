"""Latency tables: every candidate gets its own time, and the sum is that of the whole network."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_space import TINY, WIDTHS
from torch import nn

from spos.cost import latency
from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.cost.latency import METRIC, measure_latency
from spos.cost.prediction import Prediction
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.search.feasible import FeasibleSpace
from spos.spaces import SPACES
from spos.spaces.nni_pieces import LayerChoice, ModelSpace

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

CPU = torch.device("cpu")
OPTIONS = {"image_size": 8, "num_classes": 3}
SPACES_AND_OPTIONS = {
    TINY: OPTIONS,
    WIDTHS: OPTIONS,
    "nasbench_macro": {"image_size": 8, "num_classes": 3},
}
POOLS = "tests:PoolSpace"


class PoolSpace(ModelSpace):
    """A layer without weights in any candidate, and one with them in only one."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = LayerChoice({"max": nn.MaxPool2d(3, 1, 1), "none": nn.Identity()}, label="pool")
        self.block = LayerChoice({"k3": nn.Conv2d(4, 4, 3, padding=1), "none": nn.Identity()},
                                 label="block")  # fmt: skip
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.classifier(self.block(self.pool(self.stem(x))).mean((2, 3)))


class WorkClock:
    """Time stands still but for convolutions, linear layers and poolings: one ms for each MAC."""

    spent = 0.0

    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def now(self) -> float:
        return WorkClock.spent

    def wait(self) -> None:
        pass

    def milliseconds(self, begin: float, end: float) -> float:
        return end - begin


def measure_little(monkeypatch) -> None:
    for name, number in {"NUM_CALIBRATION": 2, "NUM_CHECKS": 4, "WARM_UP": 0, "REPEATS": 1}.items():
        monkeypatch.setattr(latency, name, number)


@pytest.fixture
def work_clock(monkeypatch):
    """Latencies are numbers of multiply-adds; a max pooling counts one for each output."""

    def work(layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            WorkClock.spent += output.numel() // output.shape[1] * layer.weight.numel()
        elif isinstance(layer, nn.MaxPool2d):
            WorkClock.spent += output.numel()

    hook = nn.modules.module.register_module_forward_hook(work)
    monkeypatch.setattr(latency, "_Clock", WorkClock)
    measure_little(monkeypatch)
    yield
    hook.remove()


@pytest.mark.parametrize("space", SPACES_AND_OPTIONS)
def test_work_is_put_down_to_the_candidate_that_does_it(space, work_clock):
    counted = build_cost_table(space, options=SPACES_AND_OPTIONS[space])
    table, prediction = measure_latency(counted, device=CPU, rounds=1)
    assert prediction.errors == [0.0] * len(prediction.errors)
    for term in table.terms:
        assert term.costs[METRIC] == term.costs["macs"], term.labels
        assert set(term.spreads[METRIC]) == {0.0}
    assert table.fixed[METRIC] == table.fixed["macs"]
    assert set(table.metrics) == {"macs", "params", METRIC}


def test_candidates_without_weights_have_their_own_time(work_clock, monkeypatch):
    monkeypatch.setitem(SPACES, POOLS, PoolSpace)
    counted = build_cost_table(POOLS, options=OPTIONS)
    table, _ = measure_latency(counted, device=CPU, rounds=1)
    rows = {term.labels: term.costs[METRIC] for term in table.terms}
    assert rows == {("pool",): (4.0 * 64, 0.0), ("block",): (144.0 * 64, 0.0)}
    choices = {"pool": "max", "block": "none"}
    assert table.cost(choices) == counted.cost(choices)
    assert counted.with_measured(table).costs(choices) == table.costs(choices)


def test_batch_and_part_of_a_space_are_measured_as_asked(work_clock):
    part = build_cost_table(TINY, options=OPTIONS).restrict({"layer_1": ["k5", "k1"]})
    table, _ = measure_latency(part, device=CPU, batch_size=2, threads=2, rounds=1)
    assert table.spec.choices["layer_1"] == ("k1", "k5")
    assert table.terms[0].costs[METRIC] == tuple(2 * each for each in part.terms[0].costs["macs"])
    how = table.measured[METRIC]
    assert (how["batch_size"], how["threads"], how["rounds"]) == (2, 2, 1)
    assert how["torch"] == torch.__version__ and how["device"] and how["date"][:2] == "20"
    assert how["check"]["subnets"] == 4
    assert how["check"]["spearman"] == 1.0
    assert torch.get_num_threads() == 1


def test_real_clock_tells_the_large_kernels_from_the_small():
    options = {"image_size": 64, "num_classes": 3}
    table, prediction = measure_latency(
        build_cost_table(TINY, options=options), device=CPU, batch_size=4, rounds=3
    )
    for term in table.terms:
        k1, _, k5 = term.costs[METRIC]
        assert 0 < k1 < k5
    low, high = table.bounds(METRIC)
    assert low - 1e-9 < min(prediction.predicted) < max(prediction.predicted) < high + 1e-9
    # What candidates must fit into is a constraint like any other.
    space = FeasibleSpace(table, [Constraint(METRIC, high=(low + high) / 2)])
    assert space.draw(np.random.default_rng(0), ()) is not None


def test_one_architecture_is_measured_though_nothing_is_left_to_check(work_clock):
    one = {label: ["k3"] for label in ("layer_1", "layer_2", "layer_3")}
    part = build_cost_table(TINY, options=OPTIONS).restrict(one)
    table, prediction = measure_latency(part, device=CPU, rounds=1)
    assert table.bounds(METRIC) == table.bounds("macs")
    assert prediction.errors == [] and prediction.spearman is None


def test_layer_of_too_many_combinations_is_refused(monkeypatch):
    monkeypatch.setattr(latency, "MAX_KEYS", 5)
    with pytest.raises(ConfigError, match="depends on 6 combinations of width, layer_1"):
        measure_latency(build_cost_table(WIDTHS, options=OPTIONS), device=CPU)


def test_full_memory_is_said(monkeypatch):
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 TiB")

    monkeypatch.setattr(latency, "_visit_all", fill)
    with pytest.raises(ConfigError, match="--batch-size 512: does not fit into the memory of cpu"):
        table = build_cost_table(TINY, options=OPTIONS)
        measure_latency(table, device=CPU, batch_size=512)


def test_prediction_is_judged_by_rank_and_error():
    prediction = Prediction((1.0, 2.0, 2.0, 3.0), (1.0, 2.5, 4.0, 3.0))
    assert prediction.spearman == pytest.approx(0.6324555)
    assert prediction.errors == pytest.approx([0, 0.2, 0.5, 0])
    assert Prediction((1.0, 1.0), (1.0, 2.0)).spearman is None


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `python -m spos cost` and returns what it printed."""
    from spos.__main__ import main

    measure_little(monkeypatch)

    def run(*words: object) -> str:
        assert main(["cost", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "cost.json"
    build_cost_table(TINY, options=OPTIONS).save(path)
    return path


def test_table_that_is_there_gets_the_metric(run, path):
    counted = CostTable.load(path)
    text = run(TINY, "--latency", "--table", path, "--rounds", 1)
    table = CostTable.load(path)
    assert table.spec == counted.spec  # its options are taken from it
    assert table.metrics == ("macs", "params", METRIC)
    for before, after in zip(counted.terms, table.terms, strict=True):
        assert {**before.costs, METRIC: after.costs[METRIC]} == after.costs
    assert text.splitlines()[3].split()[0] == "layer_1"
    assert "the sum predicts 4 other subnets: Spearman" in text
    value = json.loads(run(TINY, "--latency", "--table", path, "--rounds", 1, "--json"))
    again = CostTable.load(path)
    assert value["bounds"] == list(again.bounds(METRIC))
    assert value["check"] == again.measured[METRIC]["check"]
    assert value["terms"][0]["latency_ms"] == list(again.terms[0].costs[METRIC])


@pytest.mark.gpu
def test_graphics_card_is_measured_where_it_is_asked_for(run, path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    words = (TINY, "--latency", "--device", "cuda", "--batch-size", 64, "--rounds", 2)
    value = json.loads(run(*words, "--table", path, "--json"))
    assert value["device"] == torch.cuda.get_device_name()
    assert value["batch_size"] == 64 and value["check"]["subnets"] == 4
    table = CostTable.load(path)
    assert all(each > 0 for term in table.terms for each in term.costs[METRIC])
    low, high = table.bounds(METRIC)
    assert 0 < low <= high < 1e3  # milliseconds


def test_new_table_is_made_with_the_metric(run, tmp_path):
    words = (TINY, "--latency", "--rounds", 1, "--image-size", 8, "--num-classes", 3)
    run(*words, "--table", tmp_path / "new.json")
    assert METRIC in CostTable.load(tmp_path / "new.json").metrics
    assert json.loads(run(*words, "--json"))["options"] == OPTIONS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nasbench_macro", "--table", "cost.json"], "is the cost table of 'tiny_space:TinySpace'"),
        ([TINY, "--table", "cost.json", "--image-size", "9"], "has the image_size 8, not 9"),
        ([TINY, "--table", "cost.json", "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        ([TINY, "--table", "cost.json", "--threads", "-1"], "--threads -1: expected 1 or more"),
        ([TINY, "--table", "/dev/null/cost.json", "--rounds", "1"], "cannot be written"),
        ([TINY, "--device", "cuda:99"], r"this machine offers \d+ CUDA devices; use --device cpu"),
        (["zoo:megvii-oneshot"], "is not a search space, and --latency measures one"),
    ],
)
def test_wrong_use_is_refused(run, path, monkeypatch, words, message):
    monkeypatch.chdir(path.parent)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(*words, "--latency")
    assert path.read_bytes() == before


def test_table_that_was_shrunk_meanwhile_gets_what_is_left(run, path, monkeypatch):
    def shrink(*_: object) -> None:
        CostTable.load(path).restrict({"layer_2": ["k1"]}).save(path)

    monkeypatch.setattr("spos.commands.cost_latency._show_progress", shrink)
    run(TINY, "--latency", "--table", path, "--rounds", 1)
    table = CostTable.load(path)
    assert table.spec.choices["layer_2"] == ("k1",)
    assert [len(term.costs[METRIC]) for term in table.terms] == [3, 1, 3]
