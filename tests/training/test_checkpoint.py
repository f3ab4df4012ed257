"""Checkpoints: whole or not there, whatever kills the writer, fills the disk or flips a bit."""

import logging
import os
import random
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
import torch

from spos.errors import CheckpointError
from spos.files import read_json, write_json
from spos.training import checkpoint
from spos.training.checkpoint import (
    check_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_weights_into,
    save_checkpoint,
)

KILLS = 200
FLIPS = 200
CUTS = 20


def make_state(step: int, size: int = 50) -> dict:
    return {
        "step": step,
        "network": {"weight": torch.full((size,), float(step)), "count": torch.tensor(step)},
        "optimizer": {"param_groups": [{"lr": 0.5, "params": [0]}], "state": {}},
        "config": {"space": "tiny", "classes": ["a", "b"], "path_range": None},
    }


def is_state(state: dict, step: int) -> bool:
    weight = state["network"]["weight"]
    return state["step"] == step and bool((weight == step).all()) and len(weight) > 0


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- saving and loading --------------------------------------------------------------------------


def test_state_comes_back_as_it_was(tmp_path):
    state = make_state(7)
    path = save_checkpoint(tmp_path / "new" / "folder", 7, state)
    assert path.name == "step_00000007.pt"
    assert latest_checkpoint(path.parent) == (7, path)
    loaded = load_checkpoint(path)
    for name, tensor in state.pop("network").items():
        assert torch.equal(loaded["network"][name], tensor)
    del loaded["network"]
    assert loaded == state


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    class Label(str):
        pass

    for odd in (Label("layer_1"), {Label("layer_1"): "k3"}, [Path("x")], {1, 2}):
        with pytest.raises(AssertionError):
            save_checkpoint(tmp_path, 1, {**make_state(1), "odd": odd})
    assert not list(tmp_path.iterdir())


def test_folder_without_checkpoints_has_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000, 9):
        save_checkpoint(tmp_path, step, make_state(step))
    assert latest_checkpoint(tmp_path) == (100_000_000, tmp_path / "step_100000000.pt")


def test_three_newest_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, make_state(step))
    assert file_names(tmp_path) == sorted(
        f"step_{step:08d}.{ending}" for step in (3, 4, 5) for ending in ("json", "pt")
    )


def test_mark_comes_last_and_deletions_after_it(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, make_state(step))
    seen = []

    def write_mark(path: Path, value: dict) -> None:
        seen.extend(file_names(tmp_path))
        write_json(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_mark)
    save_checkpoint(tmp_path, 4, make_state(4))
    assert len(seen) == 7  # three whole checkpoints and the new one without its mark
    assert "step_00000004.pt" in seen and "step_00000004.json" not in seen
    assert read_json(tmp_path / "step_00000004.json")["step"] == 4


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 3, {**make_state(3), "step": "old"})
    save_checkpoint(tmp_path, 3, make_state(3))
    assert is_state(load_checkpoint(tmp_path / "step_00000003.pt"), 3)


# --- killed, or out of space ---------------------------------------------------------------------


def save_for_ever(folder: Path) -> None:
    found = latest_checkpoint(folder)
    step = found[0] if found else 0
    while True:
        step += 1
        save_checkpoint(folder, step, make_state(step, size=200_000))


@pytest.mark.slow
def test_killed_writer_always_leaves_a_whole_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, make_state(1))
    rng = random.Random(0)
    interrupted, steps = 0, [1]
    for _ in range(KILLS):
        writer = forked.start(save_for_ever, tmp_path)
        newest = f"step_{steps[-1]:08d}.pt"
        forked.wait_until(lambda: file_names(tmp_path)[-1] > newest, running=writer)  # noqa: B023
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        marks = {path.stem for path in tmp_path.glob("step_*.json")}
        weights = {path.stem for path in tmp_path.glob("step_*.pt")}
        interrupted += bool(weights - marks or list(tmp_path.glob(".*.tmp")))
        step, path = latest_checkpoint(tmp_path)
        assert is_state(load_checkpoint(path), step)
        assert step >= steps[-1]
        steps.append(step)
    assert not list(tmp_path.glob("*.damaged"))
    assert interrupted > KILLS // 4, "the kills did not hit saves, so they proved nothing"
    save_checkpoint(tmp_path, steps[-1] + 1, make_state(steps[-1] + 1))
    assert len(file_names(tmp_path)) == 6, "what killed writers left behind is cleared away"


@contextmanager
def largest_file(num_bytes: int):
    """Writing beyond this size fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_the_earlier_checkpoints(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, make_state(step))
    before = file_names(tmp_path)
    for size in (30_000, 200_000):  # torch fails in another way where more is to follow
        with (
            largest_file(100_000),
            pytest.raises(
                CheckpointError, match=r"step_00000004.pt: cannot be saved \(File too large\).*kept"
            ),
        ):
            save_checkpoint(tmp_path, 4, make_state(4, size=size))
    assert file_names(tmp_path) == before
    step, path = latest_checkpoint(tmp_path)
    assert is_state(load_checkpoint(path), 3) and step == 3
    save_checkpoint(tmp_path, 4, make_state(4, size=200_000))
    assert latest_checkpoint(tmp_path)[0] == 4


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("write")])
@pytest.mark.parametrize("part", ["weights", "mark"])
def test_failed_write_keeps_the_earlier_checkpoints(tmp_path, monkeypatch, part, problem):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, make_state(step))

    def fail(*_: object) -> None:
        raise problem

    with monkeypatch.context() as patch:
        if part == "weights":
            patch.setattr(checkpoint.torch, "save", fail)
        else:
            patch.setattr(checkpoint, "write_json", fail)
        with pytest.raises(CheckpointError, match="step_00000004.pt: cannot be saved"):
            save_checkpoint(tmp_path, 4, make_state(4))
    assert [path.stem[-1] for path in sorted(tmp_path.glob("*.json"))] == ["1", "2", "3"]
    step, path = latest_checkpoint(tmp_path)
    assert step == 3 and is_state(load_checkpoint(path), 3)
    save_checkpoint(tmp_path, 5, make_state(5))
    assert len(file_names(tmp_path)) == 6


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/checkpoints/step_00000001.pt: cannot be saved"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, make_state(1))


# --- damaged -----------------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_state(1))
    original = path.read_bytes()
    rng = random.Random(1)
    for _ in range(FLIPS):
        place = rng.randrange(len(original))
        damaged = bytearray(original)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"step_00000001.pt: is damaged \(its SHA-256"):
            load_checkpoint(path)
    path.write_bytes(original)
    assert is_state(load_checkpoint(path), 1)


def test_flipped_byte_in_the_mark_never_loads_other_numbers(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_state(1))
    mark = path.with_suffix(".json")
    original = mark.read_bytes()
    rng = random.Random(2)
    refused = 0
    for _ in range(FLIPS):
        place = rng.randrange(len(original))
        damaged = bytearray(original)
        damaged[place] ^= 1 << rng.randrange(8)
        mark.write_bytes(damaged)
        try:
            assert is_state(load_checkpoint(path), 1)
        except CheckpointError as error:
            refused += 1
            assert "step_00000001" in str(error)
    assert refused > FLIPS // 2


def test_every_cut_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_state(1))
    original = path.read_bytes()
    rng = random.Random(3)
    for length in [0, 1, len(original) - 1] + [rng.randrange(len(original)) for _ in range(CUTS)]:
        path.write_bytes(original[:length])
        with pytest.raises(CheckpointError, match=rf"is damaged \({length} bytes, expected"):
            load_checkpoint(path)
    path.write_bytes(original + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_weights_of_another_step_are_noticed(tmp_path):
    first, second = (save_checkpoint(tmp_path, step, make_state(step)) for step in (1, 2))
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="does not match its commit mark"):
        check_checkpoint(second)


@pytest.mark.parametrize("mark", ["[]", "{}", '{"version": 2}', '{"version": 1}', "", "{"])
def test_odd_mark_is_refused_by_name(tmp_path, mark):
    path = save_checkpoint(tmp_path, 1, make_state(1))
    path.with_suffix(".json").write_text(mark)
    with pytest.raises(CheckpointError, match="step_00000001"):
        load_checkpoint(path)


def test_weights_without_a_mark_do_not_count(tmp_path):
    save_checkpoint(tmp_path, 1, make_state(1))
    path = save_checkpoint(tmp_path, 2, make_state(2))
    path.with_suffix(".json").unlink()
    assert latest_checkpoint(tmp_path)[0] == 1
    with pytest.raises(CheckpointError, match="step_00000002.json: cannot be read"):
        load_checkpoint(path)


def test_damaged_newest_checkpoint_costs_one_interval(tmp_path, caplog):
    paths = [save_checkpoint(tmp_path, step, make_state(step)) for step in (1, 2, 3)]
    os.truncate(paths[2], 100)
    with caplog.at_level(logging.WARNING, logger="spos"):
        assert latest_checkpoint(tmp_path) == (2, paths[1])
    assert len(caplog.records) == 1
    assert "step_00000003.pt: is damaged" in caplog.text
    assert {"step_00000003.pt.damaged", "step_00000003.json.damaged"} <= set(file_names(tmp_path))
    caplog.clear()
    assert latest_checkpoint(tmp_path) == (2, paths[1])
    assert not caplog.records


def test_damaged_checkpoints_need_not_be_renamed_by_who_finds_them(tmp_path, monkeypatch):
    paths = [save_checkpoint(tmp_path, step, make_state(step)) for step in (1, 2, 3)]
    os.truncate(paths[2], 100)

    def another_was_first(source, target):
        os.unlink(source)
        raise FileNotFoundError(source)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", another_was_first)
        assert latest_checkpoint(tmp_path) == (2, paths[1])

    def may_not(source, target):
        raise PermissionError(source)

    monkeypatch.setattr(checkpoint.os, "replace", may_not)
    for path in paths[:2]:
        os.truncate(path, 100)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged .*1, step_00000002"):
        latest_checkpoint(tmp_path)


def test_checkpoint_that_may_not_be_read_is_not_damaged(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, make_state(step))
    before = file_names(tmp_path)
    mark = tmp_path / "step_00000002.json"
    monkeypatch.setattr(checkpoint.os, "access", lambda path, mode: path != mark)
    with pytest.raises(CheckpointError, match="step_00000002.json: may not be read"):
        latest_checkpoint(tmp_path)
    assert file_names(tmp_path) == before


def test_missing_weights_cost_one_interval(tmp_path):
    paths = [save_checkpoint(tmp_path, step, make_state(step)) for step in (1, 2)]
    paths[1].unlink()
    assert latest_checkpoint(tmp_path) == (1, paths[0])


def test_run_with_damaged_checkpoints_alone_never_starts_anew(tmp_path):
    for step in (1, 2, 3):
        path = save_checkpoint(tmp_path, step, make_state(step))
        path.unlink() if step == 2 else os.truncate(path, 10)
    for _ in range(2):  # the second time the files have been renamed
        with pytest.raises(CheckpointError, match="every checkpoint is damaged") as caught:
            latest_checkpoint(tmp_path)
        assert all(f"step_0000000{step}" in str(caught.value) for step in (1, 2, 3))


def test_checkpoint_of_something_else_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_state(1))
    torch.save([1, 2], path)
    mark = read_json(path.with_suffix(".json"))
    mark["size"], mark["sha256"] = path.stat().st_size, checkpoint.digest(path)
    write_json(path.with_suffix(".json"), mark)
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        load_checkpoint(path)


# --- weights that do not fit -------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2))
    good = network.state_dict()
    bad = {
        "missing": {"0.weight": good["0.weight"]},
        "unexpected": {**good, "extra.bias": torch.ones(1)},
        "misshapen": {**good, "0.weight": torch.ones(2, 4)},
    }
    names = {"missing": "0.bias", "unexpected": "extra.bias", "misshapen": "0.weight"}
    before = {name: tensor.clone() for name, tensor in good.items()}
    for what, weights in bad.items():
        with pytest.raises(CheckpointError, match=f"best.pt: .*do not fit.*{names[what]}"):
            load_weights_into(network, weights, source="best.pt")
    for value in ([1], {"0.weight": 3}, {1: torch.ones(1)}, None):
        with pytest.raises(CheckpointError, match="best.pt: does not hold weights"):
            load_weights_into(network, value, source="best.pt")
    load_weights_into(network, before, source="best.pt")
