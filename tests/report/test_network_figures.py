"""A network block by block, and the paths that a supernet was trained on."""

from pathlib import Path

import pytest
from small_runs import SPEC, cost_table, write_supernet

from spos.architecture import Architecture, load_architecture
from spos.cost.constraints import Constraint
from spos.errors import ConfigError, ConstraintError
from spos.report.network import list_blocks
from spos.report.network_figures import draw_network, draw_paths, sample_paths
from spos.report.sources import read_run
from spos.report.style import BLUE, ORANGE
from spos.spaces.options import strides
from spos.training.samplers import CostUniformSampler, UniformSampler, build_sampler

ROOT = Path(__file__).resolve().parents[2]


def test_blocks_of_the_released_network_add_up_to_it():
    blocks = list_blocks(load_architecture(ROOT / "architecture_final.json"))
    assert sum(each.macs for each in blocks) == 322_918_720
    assert sum(each.params for each in blocks) == 3_558_464
    chosen = [each for each in blocks if each.label]
    assert [each.label for each in chosen] == [f"layer_{n}" for n in range(1, 21)]
    assert [each.candidate for each in chosen][:4] == ["k7", "k5", "k3", "k5"]
    assert [each.kernel for each in chosen][:4] == [7, 5, 3, 5]
    assert [each.channels for each in chosen] == [64] * 4 + [160] * 4 + [320] * 8 + [640] * 4
    assert [each.name for each in blocks if not each.label][0] == "first_conv"
    assert blocks[0].size * strides(224)[0] == 224 and blocks[-1].size == 1


def test_searched_width_is_the_widest_inside():
    options = {"image_size": 32, "num_classes": 10, "channel_scales": [0.4, 1.6]}
    choices = {f"layer_{n}": "k3" for n in range(1, 21)}
    scaled = [int(out // 2 * 1.6) for out in [64] * 4 + [160] * 4 + [320] * 8 + [640] * 4]
    choices |= {f"channel_{n}": width for n, width in enumerate(scaled, start=1)}
    blocks = list_blocks(Architecture("shufflenetv2", options, choices))
    assert [each.widest for each in blocks if each.label] == scaled


def test_skipped_layer_is_a_block_that_costs_nothing():
    choices = dict.fromkeys(SPEC.choices, "mb3_k3") | {"layer_2": "identity"}
    blocks = {each.label: each for each in list_blocks(SPEC.architecture(choices)) if each.label}
    assert list(blocks) == list(SPEC.choices)
    assert (blocks["layer_2"].macs, blocks["layer_2"].kernel) == (0, 0)
    total = sum(each.macs for each in list_blocks(SPEC.architecture(choices)))
    assert total == cost_table().cost(choices, "macs")


def test_space_of_somebody_else_is_not_imported():
    with pytest.raises(ConfigError, match="--space"):
        list_blocks(Architecture("module:Space", {}, {"a": "b"}))


def test_network_figure_names_kernels_and_widths():
    blocks = list_blocks(SPEC.architecture(dict.fromkeys(SPEC.choices, "mb6_k5")))
    svg = draw_network(blocks, {"mb6_k5": BLUE, "identity": ORANGE}).svg.decode()
    for text in ("5×5", "mb6_k5", "MACs", "32×32", str(blocks[-1].channels), "layer_8"):
        assert text in svg


@pytest.mark.parametrize(("sampler", "steps"), [("uniform", 40), ("macs-uniform", 20)])
def test_paths_are_those_of_the_training(tmp_path, sampler, steps):
    run = read_run(write_supernet(tmp_path / "run", steps=steps, sampler=sampler, seed=7))
    paths = sample_paths(run)
    table = cost_table()
    expected = (
        UniformSampler(table.spec, seed=7)
        if sampler == "uniform"
        else CostUniformSampler(table, seed=7)
    )
    macs = [table.cost(expected.sample(step)) for step in range(steps)]
    assert paths and paths.macs.tolist() == macs
    svg = draw_paths(paths, {"macs": macs[0], "params": 1e6}).svg
    assert b"MACs" in svg and b"parameters" in svg and b"best candidate" in svg


def test_last_epoch_of_a_stroll_is_walked_again(tmp_path):
    strolling = {"sampler": "strolling", "path_range": ["macs=20M:60M", "params=:2M"]}
    run = read_run(write_supernet(tmp_path / "run", steps=20, **strolling))
    paths, table = sample_paths(run), cost_table()
    box = [Constraint("macs", 20e6, 60e6), Constraint("params", high=2e6)]
    expected = build_sampler("strolling", table, seed=0, ranges=box, steps_per_epoch=10)
    assert paths and paths.macs.tolist() == [
        table.cost(expected.sample(step)) for step in range(10, 20)
    ]


def test_no_step_is_no_path(tmp_path):
    assert sample_paths(read_run(write_supernet(tmp_path / "run", steps=0))) is None


@pytest.mark.parametrize(
    "config",
    [{"sampler": "magic"}, {"sampler": None}, {"seed": "0"}, {"path_range": "x"},
     {"path_range": [1, [2]]}, {"channel_warmup": 3}, {"batch_size": 0}, {"measured_costs": ["x"]}],
)  # fmt: skip
def test_settings_that_do_not_say_how_paths_were_drawn_are_named(tmp_path, config):
    run = read_run(write_supernet(tmp_path / "run", **config))
    with pytest.raises(ConfigError, match="does not say how paths were sampled"):
        sample_paths(run)


def test_paths_of_a_space_that_was_shrunk_are_not_drawn_again(tmp_path):
    run = read_run(write_supernet(tmp_path / "run", shrink={"target": 10}))
    with pytest.raises(ConfigError, match="the space was shrunk in training"):
        sample_paths(run)


def test_paths_by_costs_that_were_measured_again_are_not_drawn_again(tmp_path):
    run = read_run(write_supernet(tmp_path / "run", measured_costs={"macs": "another"}))
    with pytest.raises(ConfigError, match="macs was measured again since the training"):
        sample_paths(run)


def test_missing_cost_table_is_named(tmp_path):
    folder = write_supernet(tmp_path / "run")
    (folder / "cost.json").unlink()
    with pytest.raises(ConstraintError, match="cost.json"):
        sample_paths(read_run(folder))
