"""Recipes: learning rates at every step, refused fields, what decays, what flags change."""

import argparse
import math

import pytest
from torch import nn

from spos.errors import ConfigError
from spos.flag_values import parse_options
from spos.training.flags import add_recipe_flags
from spos.training.inputs import fit_recipe
from spos.training.recipe import PRESETS, Recipe, decay_groups

RECIPE = Recipe(epochs=10, batch_size=4, lr=0.8)


# --- schedules -------------------------------------------------------------------------------


def test_linear_rate_falls_to_zero_in_equal_steps():
    rates = [RECIPE.lr_at(step, 5) for step in range(50)]
    assert rates[0] == 0.8
    falls = [before - after for before, after in zip(rates, rates[1:], strict=False)]
    assert falls == pytest.approx([0.8 / 50] * 49)
    assert RECIPE.lr_at(50, 5) == 0


def test_cosine_rate_is_half_at_half_time():
    recipe = RECIPE.replace({"schedule": "cosine"})
    assert recipe.lr_at(0, 6) == 0.8
    assert recipe.lr_at(30, 6) == pytest.approx(0.4)
    assert recipe.lr_at(15, 6) == pytest.approx(0.4 * (1 + math.sqrt(0.5)))
    assert recipe.lr_at(60, 6) == pytest.approx(0)
    rates = [recipe.lr_at(step, 6) for step in range(60)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warmup_rises_from_above_zero_to_the_rate(schedule):
    recipe = RECIPE.replace({"schedule": schedule, "warmup_epochs": 1.5})
    rates = [recipe.lr_at(step, 4) for step in range(41)]
    assert rates[:6] == pytest.approx([0.8 * (step + 1) / 6 for step in range(6)])
    assert rates[6] == 0.8
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[40] == pytest.approx(0)


def test_recipe_of_warmup_alone_has_a_rate_at_every_step():
    recipe = Recipe(epochs=1, batch_size=4, lr=1.0, warmup_epochs=1.0)
    assert [recipe.lr_at(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_last_epochs_mix_nothing():
    recipe = RECIPE.replace({"mixup": 0.2, "mixup_off_epochs": 3})
    assert [recipe.mixup_at(step, 4) for step in range(41)] == [0.2] * 28 + [0.0] * 13
    assert [RECIPE.mixup_at(step, 4) for step in (0, 39)] == [0, 0]


# --- refused fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_number_that_torch_cannot_multiply_by_is_refused(name):
    RECIPE.replace({name: 3e38})
    with pytest.raises(ConfigError, match="1e.300: expected a number between 0 and 3.4"):
        RECIPE.replace({name: 1e300})


# --- few images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "number", "batch_size"),
    [
        ("imagenet", 1_231_167, 1024), ("imagenet", 40_960, 1024), ("imagenet", 40_959, 512),
        ("imagenet", 5_000, 64), ("imagenet", 800, 16), ("imagenet", 20, 16),
        ("small", 45_000, 128), ("small", 1_500, 32), ("digits", 1_247, 16),
    ],
)  # fmt: skip
def test_few_images_come_in_small_batches(kind, number, batch_size):
    usual = PRESETS[kind].supernet
    fitted = usual.for_images(number)
    assert fitted.batch_size == batch_size
    assert fitted.lr == pytest.approx(usual.lr * batch_size / usual.batch_size)
    assert fitted.replace({"batch_size": usual.batch_size, "lr": usual.lr}) == usual


# --- fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("batch_size", -8),
        ("lr", -0.1),
        ("lr", math.nan),
        ("warmup_epochs", -1),
        ("warmup_epochs", 11),
        ("momentum", 1.5),
        ("weight_decay", -1e-5),
        ("weight_decay", math.nan),
        ("label_smoothing", 1.1),
        ("mixup", -0.1),
        ("mixup", math.inf),
        ("mixup_off_epochs", 11),
        ("mixup_off_epochs", 1),  # of epochs that mix nothing
        ("cutout", -1),
        ("clip_norm", -1),
        ("schedule", "step"),
        ("amp", "fp8"),
    ],
)
def test_field_out_of_range_is_refused_as_its_flag(field, value):
    with pytest.raises(ConfigError, match=rf"^--{field.replace('_', '-')} .*expected"):
        RECIPE.replace({field: value})


def test_preset_recipes_of_imagenet_are_the_papers():
    preset = PRESETS["imagenet"]
    for recipe, epochs in ((preset.supernet, 120), (preset.scratch, 240)):
        assert (recipe.epochs, recipe.batch_size, recipe.lr) == (epochs, 1024, 0.5)
        assert (recipe.schedule, recipe.warmup_epochs) == ("linear", 0)
        assert (recipe.momentum, recipe.weight_decay) == (0.9, 4e-5)
        assert (recipe.label_smoothing, recipe.clip_norm) == (0.1, 0)
    assert preset.image_size == 224


# --- weight decay ----------------------------------------------------------------------------


def test_only_kernels_and_matrices_decay():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 2)
    )
    decayed, plain = decay_groups(network.parameters(), 0.3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(each)] for each in decayed["params"]] == ["0.weight", "2.weight", "3.weight"]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


# --- flags -----------------------------------------------------------------------------------


def fit(recipe: Recipe, *flags: str) -> Recipe:
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    return fit_recipe(recipe, parser.parse_args(flags))


def test_no_flags_leave_the_recipe_as_it_is():
    for preset in PRESETS.values():
        for recipe in (preset.supernet, preset.scratch):
            fitted = fit(recipe)
            assert fitted.replace({"warmup_epochs": recipe.warmup_epochs}) == recipe
            assert fitted.warmup_epochs <= recipe.warmup_epochs


def test_every_field_has_a_flag_that_sets_it():
    flags = {
        "epochs": 7, "batch_size": 3, "accumulate": 2, "lr": 0.25, "schedule": "cosine",
        "warmup_epochs": 2.5, "momentum": 0.5, "weight_decay": 0.125, "label_smoothing": 0.0,
        "mixup": 0.2, "mixup_off_epochs": 3, "cutout": 5, "clip_norm": 4.0, "amp": "bf16",
        "seed": 9,
    }  # fmt: skip
    assert set(flags) == set(vars(RECIPE))
    words = [word for k, v in flags.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    assert vars(fit(RECIPE, *words)) == flags


@pytest.mark.parametrize("used", [{"accumulate": 2}, {"mixup": 0.2}, {"cutout": 4},
                                  {"mixup": 0.2, "mixup_off_epochs": 3}])  # fmt: skip
def test_settings_name_what_is_new_only_where_it_is_used(used):
    """Or runs of earlier versions, which know nothing of it, could not be continued."""
    newer = {"accumulate", "mixup", "mixup_off_epochs", "cutout"}
    assert set(RECIPE.config()) == set(vars(RECIPE)) - newer
    assert RECIPE.replace(used).config() == RECIPE.config() | used


def test_rate_follows_the_batch_unless_given():
    assert fit(RECIPE, "--batch-size", "16").lr == pytest.approx(3.2)
    assert fit(RECIPE, "--batch-size", "1").lr == pytest.approx(0.2)
    assert fit(RECIPE, "--batch-size", "16", "--lr", "0.8").lr == 0.8


@pytest.mark.parametrize("epochs", [1, 2, 4, 30])
def test_short_run_warms_up_for_a_tenth_at_most(epochs):
    recipe = RECIPE.replace({"warmup_epochs": 5.0})
    fitted = fit(recipe, "--epochs", str(epochs))
    assert fitted.warmup_epochs == pytest.approx(min(5, epochs / 10))
    assert fit(recipe, "--epochs", str(epochs), "--warmup-epochs", "0.5").warmup_epochs == 0.5


@pytest.mark.parametrize("flag, value", [("--epochs", "-1"), ("--batch-size", "0")])
def test_flag_out_of_range_is_refused(flag, value):
    with pytest.raises(ConfigError, match=f"{flag} {value}: expected"):
        fit(RECIPE, flag, value)


def test_no_epochs_train_nothing():
    assert fit(RECIPE.replace({"warmup_epochs": 5.0}), "--epochs", "0").warmup_epochs == 0


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed {seed}: expected"):
        fit(RECIPE, "--seed", seed)


def test_options_are_a_json_object():
    assert parse_options(None) == {}
    assert parse_options('{"image_size": 32, "flag": true}') == {"image_size": 32, "flag": True}
    for text in ("[1]", "image_size=32", '{"a": 1, "a": 2}', "3"):
        with pytest.raises(ConfigError, match="--space-options"):
            parse_options(text)
