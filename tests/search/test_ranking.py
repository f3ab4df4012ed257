"""Agreement of scores with true accuracies: pytest tests/search/test_ranking.py"""

import json
import random

import pytest
from toy_trial import toy_spec

from spos.errors import ArchitectureError, ConfigError
from spos.search.benchmark import load_macro_table
from spos.search.ranking import draw_architectures, measure_agreement, read_truth

NAME = "nas-bench-macro_cifar10.json"


def write_truth(path, entries):
    path.write_text(json.dumps(entries))
    return path


def pairwise_tau(first, second) -> float:
    """Kendall's tau without ties, from its definition."""
    signs = [
        (first[i] - first[j]) * (second[i] - second[j]) for i in range(len(first)) for j in range(i)
    ]
    return sum(1 if sign > 0 else -1 for sign in signs) / len(signs)


def test_tau_is_the_share_of_agreeing_pairs_less_that_of_the_others():
    rng = random.Random(0)
    scores = [rng.random() for _ in range(60)]
    accuracies = [score + 0.3 * rng.random() for score in scores]
    agreement = measure_agreement(scores, accuracies)
    assert agreement.kendall_tau == pytest.approx(pairwise_tau(scores, accuracies))
    low, high = agreement.kendall_interval
    assert low < agreement.kendall_tau < high
    assert 0.5 < agreement.spearman < 1
    assert agreement == measure_agreement(scores, accuracies)


def test_the_same_order_is_1_and_the_opposite_minus_1():
    values = [0.1, 0.4, 0.2, 0.9]
    same = measure_agreement(values, [10 * each for each in values])
    assert (same.kendall_tau, same.spearman) == (pytest.approx(1), pytest.approx(1))
    assert (same.best_found, same.best) == (9, 9)
    opposite = measure_agreement(values, [-each for each in values])
    assert (opposite.kendall_tau, opposite.spearman) == (pytest.approx(-1), pytest.approx(-1))
    assert (opposite.best_found, opposite.best) == (-0.9, -0.1)


@pytest.mark.parametrize(
    ("scores", "truth", "words"),
    [
        ([1, 2], [1, 2], "of 2 architectures"),
        ([1, 1, 1], [1, 2, 3], "all 3 scores are 1"),
        ([1, 2, 3], [0, 0, 0], "all 3 true accuracies are 0"),
    ],
)
def test_no_ranking_is_an_error(scores, truth, words):
    with pytest.raises(ConfigError, match=words):
        measure_agreement(scores, truth)


def test_the_benchmark_gives_every_architecture_its_mean(shared_data):
    table = load_macro_table(shared_data / NAME)
    truth = read_truth(shared_data / NAME, table.costs.spec)
    assert len(truth) == 6561
    best = max(truth, key=truth.__getitem__)
    digits = {"identity": "0", "mb3_k3": "1", "mb6_k5": "2"}
    assert "".join(digits[each] for each in best.choices.values()) in ("22212220", "22212202")
    assert truth[best] == pytest.approx(0.93127, abs=5e-6)


def test_the_benchmark_does_not_fit_another_space(shared_data):
    with pytest.raises(ConfigError, match="--space nasbench_macro"):
        read_truth(shared_data / NAME, toy_spec())


def test_own_results_are_read(tmp_path):
    spec = toy_spec()
    first = {label: candidates[0] for label, candidates in spec.choices.items()}
    last = {label: candidates[-1] for label, candidates in spec.choices.items()}
    entries = [{"choices": first, "top1": 0.5}, {"choices": last, "top1": 0.75, "note": "x"}]
    truth = read_truth(write_truth(tmp_path / "own.json", entries), spec)
    assert truth == {spec.architecture(first): 0.5, spec.architecture(last): 0.75}


def test_bad_results_are_named(tmp_path):
    spec = toy_spec()
    good = {label: candidates[0] for label, candidates in spec.choices.items()}
    path = tmp_path / "own.json"
    for entries, error, words in (
        ([{"choices": good}], ConfigError, "entry 0: expected"),
        ([{"choices": good, "top1": True}], ConfigError, "entry 0: expected"),
        ([{"top1": 0.5}], ArchitectureError, "entry 0: expected label"),
        ([{"choices": good, "top1": 1}] * 2, ConfigError, "entry 1: this architecture came before"),
        ({"a": 1}, ConfigError, "is not the table"),
    ):
        with pytest.raises(error, match=words):
            read_truth(write_truth(path, entries), spec)
    with pytest.raises(ConfigError, match="is not there.*github.com/xiusu/NAS-Bench-Macro"):
        read_truth(tmp_path / NAME, spec)


def test_draw_is_a_function_of_the_seed(shared_data):
    table = load_macro_table(shared_data / NAME)
    truth = read_truth(shared_data / NAME, table.costs.spec)
    archs = draw_architectures(truth, count=200, seed=3)
    assert len(set(archs)) == 200
    assert archs == draw_architectures(truth, count=200, seed=3)
    assert archs != draw_architectures(truth, count=200, seed=4)
    assert len(draw_architectures(truth, count=10**6, seed=0)) == 6561
