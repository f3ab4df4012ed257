"""What the README says is so: its files, its commands and their flags, its recipes, its Python."""

import re
import shlex
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from forked import ROOT
from PIL import Image

from spos.__main__ import COMMANDS, main
from spos.cost.counting import build_cost_table
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search
from spos.spaces import build_subnet, space_spec
from spos.subnet import save_subnet
from spos.supernet import Supernet
from spos.training.inputs import LARGEST_SMALL_IMAGE
from spos.training.recipe import CPU_PHOTOGRAPHS, LEAST_BATCH, LEAST_STEPS, PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands():
    for language, text in BLOCKS:
        if language == "bash":
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


@cache
def flags_of_script(path: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return flags_in(done.stdout)


def flags_of_command(words: list[str], capsys) -> set[str]:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return flags_in(capsys.readouterr().out)


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def test_layout_names_files_that_exist():
    (layout,) = (text for language, text in BLOCKS if language == "text" and "spos/" in text)
    for line in layout.splitlines():
        folder = ROOT / "spos" if line.startswith(" ") else ROOT
        names = re.split(r"\s{3,}", line.strip())[0]
        for name in names.split():
            assert (folder / name).exists(), f"the README's layout names {name}"


@pytest.mark.slow
def test_commands_exist_with_their_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    seen = 0
    for words in commands():
        while "=" in words[0]:
            words = words[1:]
        if words[0] == "torchrun":
            words = ["python", *words[words.index(next(w for w in words if w.endswith(".py"))) :]]
        if words[0] != "python":
            assert words[0] in ("make", "nnictl", "pip", "source", "for", "done"), words
            continue
        if words[1:3] == ["-m", "spos"]:
            assert words[3] in COMMANDS, words
            action = [words[4]] if words[3] in ("bench", "data", "search") else []
            known = flags_of_command([words[3], *action], capsys)
        else:
            assert (ROOT / words[1]).exists(), words
            known = flags_of_script(words[1])
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= known, (words, given - known)
        seen += 1
    assert seen > 8


def test_table_of_recipes_is_that_of_the_code():
    rows = []
    for preset in PRESETS.values():
        if preset.image_size:
            assert f"at {preset.image_size} pixels | supernet" in README
        for options in preset.space_options.values():
            assert f"in {sum(options['stage_depths'])} layers at" in README
        for stage in ("supernet", "scratch"):
            recipe = getattr(preset, stage)
            assert (
                f"momentum {recipe.momentum}, weight decay {recipe.weight_decay}, label smoothing "
                f"{recipe.label_smoothing}."
            ) in README
            held_out = str(preset.held_out_per_class) if stage == "supernet" else ""
            rows.append([
                stage, str(recipe.epochs), f"{recipe.batch_size:,}",
                f"{recipe.lr:g} {recipe.schedule}", f"{recipe.warmup_epochs:g}",
                f"{recipe.clip_norm:g}", f"`{preset.augmentation}`", held_out,
            ])  # fmt: skip
    table = [line.split("|") for line in README.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[2:-1]] for line in table]
    assert [line for line in cells if line[0] in ("supernet", "scratch")] == rows
    assert f"up to {LARGEST_SMALL_IMAGE} pixels" in README
    text = README.replace("\n", " ")
    assert f"batches of {CPU_PHOTOGRAPHS}, and few images" in text
    assert f"halved, down to {LEAST_BATCH}, until an epoch has {LEAST_STEPS} steps" in text


def test_python_runs(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    spec = space_spec("shufflenetv2", options={"image_size": 224, "num_classes": 10})
    arch = spec.architecture({label: each[0] for label, each in spec.choices.items()})
    (tmp_path / "runs" / "scratch").mkdir(parents=True)
    network = build_subnet(arch)
    for folder in (tmp_path, tmp_path / "runs" / "scratch"):
        save_subnet(
            folder / "best.safetensors",
            network,
            arch,
            preprocessing="standard",
            classes="abcdefghij",
        )
    Image.new("RGB", (300, 260), "teal").save(tmp_path / "photo.jpg")
    names: dict[str, Any] = {"__name__": "readme"}
    for language, text in BLOCKS:
        if language == "python":
            exec(text, names)
    assert names["image"].shape == (1, 3, 224, 224)
    assert list(names["backbone"].channels) == [4, 8, 16, 32]
    search = Search(FeasibleSpace(build_cost_table("nasbench_macro", options={})), names["Climb"]())
    first = search.ask()
    search.tell(first, 0.5)
    assert sum(first[label] != each for label, each in search.ask().items()) in range(1, 5)
    supernet = Supernet(names["MySpace"]())
    supernet.activate({"layer_1": "k5"})
    assert supernet(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
