"""Blocks first, then channels on the best blocks: pytest tests/search/test_two_stage.py"""

import pytest
from toy_trial import WIDTHS, toy_score, toy_spec, toy_table

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError, ConstraintError
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search
from spos.search.two_stage import TwoStage

BLOCKS = ("k3", "k5", "k7", "xcep")


def make_search(
    *, num_layers=8, constraints=(), fixed=None, rounds=4, population=10, **settings
) -> Search:
    """Costs grow with the place in the list of a label, by 1 to 4 times 10 in each layer."""
    spec = toy_spec(num_layers, has_channels=True)
    terms = [
        Term((label,), {"macs": tuple(10 * place for place in range(1, 1 + len(each)))})
        for label, each in spec.choices.items()
    ]
    space = FeasibleSpace(CostTable(spec, {"macs": 0}, terms), constraints, fixed)
    return Search(space, TwoStage(rounds=rounds, population=population, **settings))


def run(search: Search, score=toy_score) -> list[dict]:
    asked = []
    while (choices := search.ask()) is not None:
        asked.append(choices)
        search.tell(choices, score(choices))
    return asked


def blocks_of(choices) -> tuple:
    return tuple(each for label, each in choices.items() if label.startswith("layer"))


def widths_of(choices) -> tuple:
    return tuple(each for label, each in choices.items() if label.startswith("channel"))


def test_blocks_are_searched_first_and_then_their_channels():
    search = make_search()
    asked = run(search)
    first, second = asked[:20], asked[20:]
    assert {widths_of(each) for each in first} == {(8, 8, 8, 8)}
    best = max(first, key=toy_score)
    assert {blocks_of(each) for each in second} == {blocks_of(best)}
    assert len({widths_of(each) for each in asked}) == 21
    assert [search.round_of(each) for each in asked] == sorted([1, 2, 3, 4] * 10)


def test_widths_of_the_first_stage_are_the_widest_that_leave_most_blocks():
    # 4 blocks cost 40 to 160, the widths 40, 80, 120 or 160.
    for high, width in ((1000, 8), (310, 6), (250, 4), (220, 2)):
        search = make_search(constraints=[Constraint("macs", high=high)])
        asked = run(search)
        assert {widths_of(each) for each in asked[:20]} == {(width,) * 4}
    narrow = make_search(constraints=[Constraint("macs", low=300)])
    assert widths_of(narrow.ask()) == (8, 8, 8, 8)
    given = make_search(width=1)
    assert widths_of(given.ask()) == (WIDTHS[1],) * 4


def test_lists_of_several_lengths_share_a_place():
    spec = SearchSpec(
        "toy", {}, {"layer_1": BLOCKS, "channel_1": (1, 2), "channel_2": (1, 2, 3, 4)}
    )
    search = Search(FeasibleSpace(toy_table(spec)), TwoStage(width=2, population=4, rounds=2))
    assert {widths_of(each) for each in run(search)[:4]} == {(2, 3)}


def test_best_blocks_take_turns():
    search = make_search(rounds=8, num_best=3, block_rounds=2)
    asked = run(search)
    best = sorted(asked[:20], key=toy_score, reverse=True)[:3]
    for number in range(3, 9):
        (blocks,) = {blocks_of(each) for each in asked if search.round_of(each) == number}
        assert blocks == blocks_of(best[(number - 3) % 3])


def test_stage_that_is_used_up_leaves_its_candidates_to_the_other():
    search = make_search(num_layers=4, rounds=8, population=16)  # 16 blocks, 16 widths
    asked = run(search)
    assert len({tuple(each.items()) for each in asked}) == 128
    assert {widths_of(each) for each in asked[:16]} == {(8, 8)}
    best = max(asked[:16], key=toy_score)
    assert {blocks_of(each) for each in asked[16:31]} == {blocks_of(best)}


def test_stage_without_scores_goes_on_with_blocks():
    search = make_search()
    asked = [search.ask() for _ in range(40)]
    assert len({blocks_of(each) for each in asked}) == 40
    assert {widths_of(each) for each in asked} == {(8, 8, 8, 8)}


def test_both_stages_reach_what_random_search_does_not():
    def score(choices) -> float:
        return sum(each in ("k5", 4) for each in choices.values())

    search = make_search(num_layers=20, rounds=12, population=20)
    assert max(map(score, run(search, score))) >= 17  # of 20; random: about 11 of 240 draws


def test_fixed_choices_stay_fixed():
    asked = run(make_search(fixed={"layer_1": "k7", "channel_2": 4}))
    assert {(each["layer_1"], each["channel_2"]) for each in asked} == {("k7", 4)}
    assert len({widths_of(each) for each in asked}) > 10


@pytest.mark.parametrize(
    "choices",
    [
        {"layer_1": BLOCKS, "layer_2": BLOCKS},
        {"channel_1": WIDTHS, "channel_2": WIDTHS},
        {"layer_1": BLOCKS, "width": WIDTHS},
    ],
)
def test_space_without_blocks_or_channels_is_refused(choices):
    space = FeasibleSpace(toy_table(SearchSpec("plain", {}, choices)))
    method = TwoStage()
    for ask in (lambda: method.check_space(space), Search(space, method).ask):
        with pytest.raises(ConfigError, match=r"channel_\*.*'plain'.*channel_scales"):
            ask()


def test_widths_of_other_names_can_be_given():
    spec = SearchSpec("own", {}, {"layer_1": BLOCKS, "width": WIDTHS})
    method = TwoStage(channels=["wid*"], population=4, rounds=2)
    asked = run(Search(FeasibleSpace(toy_table(spec)), method))
    assert [each["width"] for each in asked[:4]] == [8] * 4 and len(asked) == 8


def test_bounds_that_no_common_width_meets_are_refused():
    search = make_search(num_layers=2, constraints=[Constraint("macs", 50, 50)], width=3)
    assert blocks_of(search.ask()) == ("k3",)
    impossible = make_search(num_layers=2, constraints=[Constraint("macs", 20, 40)], width=3)
    with pytest.raises(ConstraintError, match="two_stage: no blocks"):
        impossible.ask()
    with pytest.raises(ConfigError, match=r"width is 4.*places 0 to 3"):
        make_search(width=4).ask()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("block_rounds", 0, "block_rounds"),
        ("num_best", 1.5, "num_best"),
        ("width", -1, "width"),
        ("width", "wide", "width"),
        ("channels", [], "channels"),
        ("channels", [3], "channels"),
        ("evolution", [], "evolution"),
        ("evolution", {"popluation": 3}, "popluation"),
        ("evolution", {"num_parents": 0}, "num_parents"),
        ("rounds", 1, "rounds is 1, expected .* at least 2"),
        ("block_rounds", 20, "block_rounds is 20 of 20"),
    ],
)
def test_wrong_settings_are_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        TwoStage(**{name: value})


def test_settings_of_the_evolution_hold_in_both_stages():
    search = make_search(population=12, evolution={"num_crossovers": 12, "num_mutations": 0})
    asked = run(search)
    assert search.state()["settings"]["evolution"]["population"] == 12
    fourth = [each for each in asked if search.round_of(each) == 4]
    third = {widths_of(each) for each in asked if search.round_of(each) <= 3}
    for place, width in enumerate(zip(*map(widths_of, fourth), strict=True)):
        assert set(width) <= {each[place] for each in third}
