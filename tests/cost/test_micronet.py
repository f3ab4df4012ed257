"""The MicroNet Challenge's counts and scores as CanyonWind published them, and its other scores."""

import pytest
from published_networks import (
    ONESHOT,
    ONESHOT_CHANNELS,
    PLAIN,
    PLUS,
    S_PLUS,
    S_PLUS_CHANNELS,
    operations_of,
    shuffle_architecture,
)
from torch import nn

from spos.cost.micronet import MicroCost, count_micronet
from spos.cost.operations import list_operations
from spos.cost.scores import readme_score, search_score
from spos.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def s_plus():
    return operations_of(shuffle_architecture(S_PLUS, S_PLUS_CHANNELS, **PLUS))


def test_profile_of_s_plus_is_the_published_one(s_plus):
    counted = count_micronet(s_plus)
    assert counted.quantized == MicroCost(3_520_225, 292_819_840, 286_217_920)
    assert counted.rest == MicroCost(132_000, 8_563_712, 2_104_640)
    assert counted.total == MicroCost(3_652_225, 301_383_552, 288_322_560)
    assert counted.total.operations == 589_706_112


def test_scores_of_s_plus_are_the_published_ones(s_plus):
    counted = count_micronet(s_plus)
    assert [round(counted.score(bits), 4) for bits in (32, 16, 8)] == [1.0333, 0.6399, 0.2795]
    assert counted.at(8)[0] == pytest.approx(1.012e6, rel=1e-3)
    assert counted.at(8)[1] == pytest.approx(155.4e6, rel=1e-3)
    with pytest.raises(ConfigError, match="32, 16 or 8 bit, not of 4"):
        counted.score(4)


def test_cheaper_clip_gives_the_other_published_total(s_plus):
    assert round(count_micronet(s_plus, clip_mults=1).total.operations / 1e6, 3) == 587.943


def test_oneshot_is_counted_as_published():
    operations = operations_of(shuffle_architecture(ONESHOT, ONESHOT_CHANNELS, **PLAIN))
    total = count_micronet(operations).total
    assert (total.operations, total.params) == (655_863_232, 3_540_035)


def test_oneshot_plus_is_counted_as_in_the_older_log():
    """Without shuffles, and before the convolution after the pooling had a bias."""
    operations = operations_of(shuffle_architecture(ONESHOT, ONESHOT_CHANNELS, **PLUS))
    operations = [each for each in operations if each.kind != "shuffle"]
    total = count_micronet(operations, clip_mults=1).total
    assert total.mults == 303_296_064
    assert total.adds - 1024 == 294_188_992
    assert (total.params - 1024) * 2 == pytest.approx(7.43687e6)


def test_shuffle_is_a_sparse_convolution():
    operations = operations_of(shuffle_architecture(ONESHOT, ONESHOT_CHANNELS, **PLAIN))
    rows = count_micronet(operations).rows
    shuffles = [(each, cost) for each, cost, _ in rows if each.kind == "shuffle"]
    assert shuffles[0][1] == MicroCost(64 + 64 * 64 / 16, 64 * 56 * 56, 0)
    assert sum(cost.params for _, cost in shuffles) == 132_000


def test_layers_without_a_rule_are_refused():
    with pytest.raises(ConfigError, match=r"'micronet' has no rule for the layer 0 \(other\)"):
        count_micronet(list_operations(nn.Sequential(nn.GroupNorm(1, 3)), 8))


@pytest.mark.parametrize(
    ("flops", "params", "score"),
    [
        (291_475_944, 3_541_829, 1.9304),
        (297_058_024, 3_742_955, 2.0065),
        (327_909_096, 3_433_579, 2.0096),
        (291e6, 3.5e6, 1.9166),
        (297e6, 3.7e6, 1.9937),
    ],
)
def test_table_score_is_the_published_one(flops, params, score):
    assert readme_score(flops, params) == pytest.approx(score, abs=5e-5)
    assert search_score(flops, params) == readme_score(flops, params) / 2


def test_search_score_takes_another_reference():
    score = search_score(217e6, 2.7e6, reference_flops=217e6, reference_params=5.4e6)
    assert score == 0.75
