"""Angle-based shrinking: the definition, what is dropped, and that a kill changes nothing."""

import copy
import math
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from run_contents import assert_identical, read_run
from tiny_space import TINY, WIDTHS

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator
from spos.data.loader import build_loader
from spos.data.preprocessing import Preprocessing
from spos.errors import CheckpointError, ConfigError
from spos.spaces import build_space
from spos.supernet import Supernet
from spos.training import shrinking as module
from spos.training.loop import Stopped, Training
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings
from spos.training.samplers import BOXED, SAMPLERS, build_sampler
from spos.training.shrink_flags import plan_shrinking
from spos.training.shrinking import (
    Shrinking,
    ShrinkPlan,
    draw_child,
    score_operators,
    tabulate_angles,
)

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

OPTIONS = {"image_size": 8, "num_classes": 3}
PLAN = ShrinkPlan(target=2, first=1, every=1, drop=2)
EPOCHS = 5


@pytest.fixture(autouse=True)
def few_misses(monkeypatch):
    monkeypatch.setattr(module, "MAX_MISSES", 50)


def make_supernet(space: str = TINY, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(build_space(space, options=OPTIONS, affine=False))


WIDE = Constraint("macs", 0, 10**9)  # for the samplers that need a range


def make_shrinking(
    supernet: Supernet, folder: Path, plan: ShrinkPlan = PLAN, *, sampler="uniform", space=TINY
) -> Shrinking:
    return Shrinking(
        supernet,
        build_cost_table(space, options=OPTIONS),
        plan,
        build_sampler=lambda table: build_sampler(
            sampler, table, seed=3, ranges=[WIDE] if sampler in BOXED else []
        ),
        publish=lambda table: table.save(folder / "cost.json"),
        folder=folder / "base",
        seed=3,
    )


def turn(supernet: Supernet, *names: str, by: float = 1.0) -> None:
    """Move the weights of the candidates whose names contain one of ``names``."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if any(each in name for each in names):
                parameter += by * torch.randn(parameter.shape, generator=generator)


# --- the angle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [TINY, WIDTHS])
def test_angle_is_that_of_the_subnets_weights(space):
    supernet = make_supernet(space)
    before = copy.deepcopy(supernet)
    turn(supernet, "weight", by=0.3)
    spec = SearchSpec(space, OPTIONS, supernet.spec_choices)
    table = tabulate_angles(supernet, spec, before.state_dict())
    for number in range(4):
        choices = {label: each[number % len(each)] for label, each in spec.choices.items()}
        vectors = [
            torch.cat([p.flatten() for p in net.extract(choices).parameters() if p.dim() > 1])
            for net in (before, supernet)
        ]
        expected = torch.arccos(torch.cosine_similarity(*vectors, dim=0))
        found = module._angle(**table.costs(choices))
        assert found == pytest.approx(expected.item(), rel=1e-4) and found > 0.1


def test_score_is_the_mean_over_all_subnets_with_the_operator():
    supernet = make_supernet()
    before = copy.deepcopy(supernet.state_dict())
    turn(supernet, "features", by=0.2)
    costs = build_cost_table(TINY, options=OPTIONS)
    angles = tabulate_angles(supernet, costs.spec, before)
    operators = [(label, each) for label, some in costs.spec.choices.items() for each in some]
    generator = counter_generator(0, 0)
    scores = score_operators(operators, angles, costs, bare={}, generator=generator)
    for label, name in operators:  # 9 subnets have it: drawing finds all of them
        others = [each for each in costs.spec.choices if each != label]
        every = [
            module._angle(**angles.costs({label: name, others[0]: a, others[1]: b}))
            for a in costs.spec.choices[others[0]]
            for b in costs.spec.choices[others[1]]
        ]
        assert scores[label, name] == pytest.approx(sum(every) / 9)
    limit = costs.bounds()[0]
    scores = score_operators(operators, angles, costs, bare={}, generator=generator, max_macs=limit)
    assert {name for (_, name), score in scores.items() if score >= 0} == {"k1"}
    assert {score for (_, name), score in scores.items() if name != "k1"} == {-1.0}


def test_children_have_every_depth_equally_often():
    names = ("skip", "a", "b")
    spec = SearchSpec("toy", {}, {**{f"l{n}": names for n in range(4)}, "end": ("a", "b")})
    bare = {label: frozenset({"skip"}) & set(each) for label, each in spec.choices.items()}
    generator = np.random.default_rng(0)
    for operator, depths in ((("l1", "a"), range(4)), (("l1", "skip"), range(1, 5))):
        counts = dict.fromkeys(depths, 0)
        for _ in range(800):
            child = draw_child(spec, operator, bare=bare, generator=generator)
            assert spec.check(child) and child["l1"] == operator[1]
            counts[list(child.values()).count("skip")] += 1
        assert all(150 < count < 250 for count in counts.values()), counts


# --- what is dropped ---------------------------------------------------------------------------


def test_operators_that_did_not_turn_are_dropped_first(tmp_path):
    supernet = make_supernet()
    shrinking = make_shrinking(supernet, tmp_path)
    shrinking.begin(supernet)
    names = ("features.0.k3", "features.1.k5", "features.2.k1")
    turn(supernet, *names)
    shrinking.after_epoch(supernet, epoch=1, step=10)
    ((first, second),) = [stage["dropped"] for stage in shrinking.stages]
    turned = {("layer_1", "k3"), ("layer_2", "k5"), ("layer_3", "k1")}
    assert not turned & {tuple(first[:2]), tuple(second[:2])}
    assert 0 <= first[2] <= second[2] < math.pi
    for epoch in (2, 3):
        shrinking.after_epoch(supernet, epoch=epoch, step=10 * epoch)
    left = shrinking.table.spec.choices
    assert math.prod(map(len, left.values())) == 2  # the target, in the middle of a stage
    assert set(shrinking.sample(0)) == set(left)
    shrinking.after_epoch(supernet, epoch=4, step=40)
    assert len(shrinking.stages) == 3


def test_something_within_the_limit_always_remains(tmp_path):
    limit = int(build_cost_table(TINY, options=OPTIONS).bounds()[0])
    supernet = make_supernet()
    plan = ShrinkPlan(target=1, first=1, every=1, drop=9, max_macs=limit)
    shrinking = make_shrinking(supernet, tmp_path, plan)
    shrinking.begin(supernet)
    shrinking.after_epoch(supernet, epoch=1, step=10)
    assert set(shrinking.table.spec.choices.values()) == {("k1",)}
    with pytest.raises(ConfigError, match="--shrink-max-macs"):
        plan = ShrinkPlan(target=1, first=1, every=1, drop=9, max_macs=limit - 1)
        make_shrinking(supernet, tmp_path, plan)


def test_widths_are_left_alone(tmp_path):
    supernet = make_supernet(WIDTHS)
    plan = ShrinkPlan(target=1, first=2, every=1, drop=0.5)
    shrinking = make_shrinking(supernet, tmp_path, plan, space=WIDTHS)
    shrinking.begin(supernet)
    shrinking.after_epoch(supernet, epoch=1, step=10)
    assert shrinking.stages == []  # not due
    shrinking.after_epoch(supernet, epoch=2, step=20)
    choices = shrinking.table.spec.choices
    assert choices["width"] == (2, 4, 6) and len(choices["layer_1"]) == 1


def test_angles_are_measured_anew_once_many_are_gone(tmp_path):
    supernet = make_supernet()
    shrinking = make_shrinking(supernet, tmp_path)
    shrinking.begin(supernet)
    for epoch in (1, 2, 3):
        turn(supernet, "features", by=0.1 * epoch)
        shrinking.after_epoch(supernet, epoch=epoch, step=10 * epoch)
    marks = sorted(path.name for path in (tmp_path / "base").glob("*.json"))
    assert marks == ["step_00000000.json", "step_00000020.json"]  # 4 of 9 are more than 50 of 141


@pytest.mark.parametrize("target", [27, 1_000_000])
def test_space_that_is_small_enough_is_refused(tmp_path, target):
    with pytest.raises(ConfigError, match=f"--shrink {target}: .* has only 27 architectures"):
        make_shrinking(make_supernet(), tmp_path, ShrinkPlan(target, 1, 1, 2))


# --- in training -------------------------------------------------------------------------------


def fit(path: Path, images, *, sampler="uniform", before=lambda step: None, save_every=1):
    recipe = Recipe(epochs=EPOCHS, batch_size=12, lr=0.1, seed=4)
    supernet = make_supernet(seed=4)
    run = RunFolder(path, RunSettings("supernet", vars(recipe), {}))
    shrinking = make_shrinking(supernet, path, sampler=sampler)
    inner = shrinking.sample

    def sample(step: int):
        before(step)
        return inner(step)

    shrinking.sample = sample
    loader = build_loader(
        images, image_size=8, augmentation="crop-flip", batch_size=12, seed=4, shuffle=True,
        num_workers=0,
    )  # fmt: skip
    training = Training(
        supernet, recipe, loader=loader, preprocessing=Preprocessing("standard"), run=run,
        device=torch.device("cpu"), shrinking=shrinking, save_every=save_every,
    )  # fmt: skip
    try:
        training.fit()
    finally:
        loader.close()
        run.close()
    return read_run(path).state, (path / "cost.json").read_bytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_in_what_is_left(tmp_path, images, sampler):
    state, _ = fit(tmp_path, images, sampler=sampler)
    left = CostTable.load(tmp_path / "cost.json").spec.choices
    stages = state["sampler"]["stages"]
    assert [(each["epoch"], each["step"]) for each in stages] == [(1, 3), (2, 6), (3, 9)]
    assert math.prod(map(len, left.values())) == 2
    assert sum(map(len, left.values())) == 9 - sum(len(each["dropped"]) for each in stages)


def test_run_stopped_or_killed_anywhere_continues_to_the_bit(tmp_path, images):
    expected = fit(tmp_path / "whole", images)

    for at in (1, 2, 5, 7):  # in an epoch, and in its last step, when a stage follows

        def stop(step: int, at: int = at) -> None:
            if step == at:
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Stopped):
            fit(tmp_path / "stopped", images, before=stop)
    resumed = fit(tmp_path / "stopped", images)
    assert_identical(resumed[0], expected[0])
    assert resumed[1] == expected[1]


@pytest.mark.parametrize("place", ["after_epoch", "publish", "_save_weights"])
def test_kill_around_a_stage_changes_nothing(tmp_path, images, monkeypatch, place):
    expected = fit(tmp_path / "whole", images, save_every=2)
    inner, calls = getattr(Shrinking, place), []

    def fail(*arguments, **named):
        calls.append(1)
        result = inner(*arguments, **named)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Shrinking, place, fail)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "killed", images, save_every=2)
    resumed = fit(tmp_path / "killed", images, save_every=2)
    assert_identical(resumed[0], expected[0])
    assert resumed[1] == expected[1]


def test_damaged_initial_weights_are_refused(tmp_path):
    supernet = make_supernet()
    shrinking = make_shrinking(supernet, tmp_path)
    shrinking.begin(supernet)
    (tmp_path / "base" / "step_00000000.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="step_00000000.pt: is damaged"):
        shrinking.after_epoch(supernet, epoch=1, step=10)


def test_checkpoint_of_another_space_is_refused(tmp_path):
    shrinking = make_shrinking(make_supernet(), tmp_path)
    stage = {"epoch": 1, "step": 3, "dropped": [["layer_9", "k3", 0.1]]}
    with pytest.raises(CheckpointError, match="does not have"):
        shrinking.restore({"stages": [stage]})


def shrink_on_rank(folder: str) -> list:
    """Stages of a rank whose own weights are others than those of rank 0."""
    from tiny_space import TinySpace

    from spos.spaces import SPACES
    from spos.training import parallel

    SPACES[TINY] = TinySpace
    supernet = make_supernet()
    shrinking = make_shrinking(supernet, Path(folder))
    shrinking.begin(supernet)
    turn(supernet, "k1" if parallel.rank() else "k5")
    shrinking.after_epoch(supernet, epoch=1, step=10)
    return shrinking.stages


@pytest.mark.slow
def test_ranks_drop_the_same(tmp_path):
    one, other = forked.run_ranks(shrink_on_rank, str(tmp_path), world_size=2)
    assert one == other and len(one[0]["dropped"]) == 2


# --- flags -------------------------------------------------------------------------------------


def parse(**given):
    flags = dict.fromkeys(("shrink", "shrink_epochs", "shrink_drop", "shrink_max_macs"))
    return lambda epochs: plan_shrinking(SimpleNamespace(**{**flags, **given}), epochs)


def test_plan_follows_the_published_one():
    assert parse()(195) is None
    plan = parse(shrink="1e6")(195)
    assert (plan.target, plan.first, plan.every, plan.drop) == (1_000_000, 100, 5, None)
    due = [epoch for epoch in range(1, 400) if plan.is_due(epoch)]
    assert due[0] == 100 and len(due) == 20
    assert {b - a for a, b in pairwise(due)} == {5}
    plan = parse(shrink="64", shrink_epochs="2:3", shrink_drop="0.1", shrink_max_macs="30M")(8)
    assert plan == ShrinkPlan(64, 2, 3, 0.1, 30_000_000)


@pytest.mark.parametrize(
    ("space", "options", "drop"),
    [
        ("proxyless_gpu", {}, 7),  # AngleNAS: six with weights; a skip has none
        ("nasbench_macro", {}, 4),  # where a stage begins even an identity has weights
        ("shufflenetv2", {}, 5),
        ("shufflenetv2", {"channel_scales": [0.2 * scale for scale in range(1, 11)]}, 5),
    ],
)
def test_stage_drops_one_more_than_a_layer_has_with_weights(tmp_path, space, options, drop):
    options = {"image_size": 32, "num_classes": 10, **options}
    shrinking = Shrinking(
        Supernet(build_space(space, options=options, affine=False)),
        build_cost_table(space, options=options),
        ShrinkPlan(target=2, first=1, every=1),
        build_sampler=lambda table: build_sampler("uniform", table, seed=3),
        publish=lambda table: None,
        folder=tmp_path,
        seed=3,
    )
    assert shrinking.drop == drop


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shrink_drop": "7"}, "--shrink-drop: needs --shrink"),
        ({"shrink": "0"}, "--shrink 0: expected a number of architectures"),
        ({"shrink": "many"}, "--shrink: expected a number"),
        ({"shrink": "9", "shrink_epochs": "5"}, "--shrink-epochs 5: expected two numbers"),
        ({"shrink": "9", "shrink_epochs": "0:1"}, "--shrink-epochs 0:1: expected two numbers"),
        ({"shrink": "9", "shrink_epochs": "20:1"}, "comes after the last of 10 epochs"),
        ({"shrink": "9", "shrink_drop": "0"}, "--shrink-drop 0: expected a number of operators"),
        ({"shrink": "9", "shrink_drop": "1.5"}, "--shrink-drop 1.5: expected a number"),
        ({"shrink": "9", "shrink_max_macs": "x"}, "--shrink-max-macs: expected a number"),
    ],
)
def test_wrong_flags_are_refused_by_name(given, message):
    from spos.errors import SposError

    with pytest.raises(SposError, match=message):
        parse(**given)(10)
