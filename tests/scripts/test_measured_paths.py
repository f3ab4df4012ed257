"""supernet.py --path-range on a measured cost, which is in the run folder before the training."""

import pytest
import torch
from run_contents import assert_identical, read_run
from tiny_space import TINY

from spos.__main__ import main
from spos.cost.table import CostTable, Term
from spos.training.checkpoint import load_checkpoint

# As measured, `k5` takes a hundred times as long as the others, so that no path of 50 ms has any.
MILLISECONDS = (1.0, 1.5, 100.0)
FAST = ("--sampler", "constrained", "--path-range", "latency_ms=:50")
SHRINK = ("--epochs", 6, "--shrink", 4, "--shrink-epochs", "2:1", "--shrink-drop", 2)


def write_latency(workspace, milliseconds=MILLISECONDS) -> None:
    """What `python -m spos cost --latency` would write, with these numbers for each layer."""
    table = CostTable.load(workspace.folder / "supernet" / "cost.json")
    terms = [Term(term.labels, {**term.costs, "latency_ms": milliseconds}) for term in table.terms]
    how = {"latency_ms": {"device": "none"}}
    table = CostTable(table.spec, {**table.fixed, "latency_ms": 2.0}, terms, measured=how)
    table.save(workspace.folder / "fast" / "cost.json")


@pytest.fixture(scope="module")
def fast(trained):
    """A workspace with a run whose paths were kept to a latency."""
    write_latency(trained)
    finished = trained.supernet(*FAST, run="fast")
    assert finished.status == 0, finished.stderr
    return trained


def test_only_paths_within_the_latency_are_trained(fast):
    run = fast.folder / "fast"
    assert CostTable.load(run / "cost.json").metrics == ("macs", "params", "latency_ms")
    first, last = (
        load_checkpoint(run / "checkpoints" / f"step_000000{step:02}.pt")["network"]
        for step in (6, 18)
    )
    weights = [name for name in first if name.startswith("features") and "0.weight" in name]
    changed = {name.split(".")[2] for name in weights if not torch.equal(first[name], last[name])}
    assert len(weights) == 9 and changed == {"k1", "k3"}


def test_costs_measured_again_do_not_change_the_paths_of_a_run(fast):
    run = fast.folder / "fast"
    before = read_run(run)
    write_latency(fast, (1.0, 100.0, 1.5))
    finished = fast.supernet(*FAST, run="fast")
    assert finished.status == 2
    assert "holds a run with other settings (measured_costs was {'latency_ms': " in finished.stderr
    write_latency(fast)
    finished = fast.supernet(*FAST, run="fast")
    assert finished.status == 0 and "after step 18 of 18" in finished.stderr, finished.stderr
    assert_identical(read_run(run).state, before.state)


def test_range_of_a_cost_that_was_not_measured_says_where_it_belongs(trained):
    finished = trained.supernet(*FAST, run="unmeasured")
    assert finished.status == 2
    assert "--path-range latency_ms: is no cost of 'tiny_space:TinySpace'" in finished.stderr
    assert "--latency --table RUN_DIR/cost.json" in finished.stderr
    assert not (trained.folder / "unmeasured").exists()


def test_shrunk_run_keeps_to_the_latency_and_continues(workspace):
    run = workspace.folder / "fast-shrunk"
    words = ("cost", TINY, "--latency", "--rounds", "1", "--image-size", "8", "--num-classes", "3")
    assert main([*words, "--table", str(run / "cost.json")]) == 0
    high = CostTable.load(run / "cost.json").bounds("latency_ms")[1]
    flags = (*SHRINK, "--sampler", "constrained", "--path-range", f"latency_ms=:{high}")
    finished = workspace.supernet(*flags, run="fast-shrunk")
    assert finished.status == 0, finished.stderr
    left = CostTable.load(run / "cost.json")
    assert left.spec.num_architectures <= 4 and "latency_ms" in left.measured
    before = (run / "cost.json").read_bytes()
    finished = workspace.supernet(*flags, run="fast-shrunk")
    assert finished.status == 0 and "after step 36 of 36" in finished.stderr, finished.stderr
    assert (run / "cost.json").read_bytes() == before
