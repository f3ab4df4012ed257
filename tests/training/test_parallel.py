"""Several processes: one global batch, one path, the weights of a single process."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import PATIENCE, run_ranks
from tiny_space import TINY, TinySpace
from torch import nn

from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.data.folder import scan_folder
from spos.data.loader import build_loader
from spos.data.preprocessing import Preprocessing
from spos.errors import ConfigError
from spos.files import read_journal
from spos.spaces import SPACES, build_space
from spos.supernet import Supernet
from spos.training import parallel
from spos.training.checkpoint import latest_checkpoint, load_checkpoint
from spos.training.loop import Stopped, Training, TrainingError
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings
from spos.training.samplers import build_sampler

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

RECIPE = Recipe(epochs=2, batch_size=6, lr=0.1, weight_decay=1e-2, clip_norm=1.0, seed=4)
PLAIN = {"normalize": False, "dropout": 0.0}  # BatchNorm and dropout differ between ranks


def train(
    root: Path,
    path: Path,
    options: dict,
    name: str = "macs-uniform",
    *,
    stop_rank: int | None = None,
) -> dict:
    """Train in this rank; its weights and the paths that it trained.

    Each rank has a folder of its own where ``path`` has a place for its number.
    """
    path = Path(str(path).format(parallel.rank()))
    SPACES[TINY] = TinySpace
    options = {"image_size": 8, "num_classes": 3, **options}
    images = scan_folder(root)
    table = build_cost_table(TINY, options=options)
    ranges = [Constraint("macs", 8_000, 40_000)] if name == "strolling" else []
    sampler = build_sampler(name, table, seed=4, ranges=ranges)
    paths = []

    class Recorded:
        def sample(self, step: int):
            if step == 4 and parallel.rank() == stop_rank:
                signal.raise_signal(signal.SIGTERM)
            paths.append(list(sampler.sample(step).values()))
            return sampler.sample(step)

    torch.manual_seed(parallel.rank())  # the weights of rank 0 are to win
    is_main = parallel.rank() == 0
    training = Training(
        Supernet(build_space(TINY, options=options, affine=False)),
        RECIPE,
        loader=build_loader(
            images, image_size=8, augmentation="crop-flip", seed=4, shuffle=True,
            batch_size=RECIPE.batch_size // parallel.world_size(),
            rank=parallel.rank(), world_size=parallel.world_size(),
        ),
        preprocessing=Preprocessing("standard"),
        device=torch.device("cpu"),
        run=RunFolder(path, RunSettings("supernet", {}, {}), is_writer=is_main),
        sampler=Recorded(),
        validate=lambda: {"val/rank": float(parallel.rank())},
    )  # fmt: skip
    status = 0
    try:
        training.fit()
    except Stopped as stopped:
        status = int(str(stopped.code))
    training.run.close()
    network = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    return {"network": network, "paths": paths, "step": training.step, "status": status}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=atol, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "name"), [(2, "macs-uniform"), (3, "strolling")])
def test_ranks_train_the_weights_of_a_single_process(tmp_path, images, world_size, name):
    alone = train(images.root, tmp_path / "alone", PLAIN, name)
    ranks = run_ranks(train, images.root, tmp_path / "ranks", PLAIN, name, world_size=world_size)
    for each in ranks:
        assert each["paths"] == alone["paths"] and len(each["paths"]) == 12
        assert_close(each["network"], ranks[0]["network"], atol=0)
        assert_close(each["network"], alone["network"], atol=1e-5)
    moved = [p for n, p in alone["network"].items() if n == "classifier.weight"]
    assert moved[0].std() > 0.05  # it did learn
    assert [each["step"] for each in read_journal(tmp_path / "ranks" / "metrics.jsonl")] == [
        each["step"] for each in read_journal(tmp_path / "alone" / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_ranks_hold_the_same_network_and_stop_together(tmp_path, images):
    ranks = run_ranks(_stop_and_continue, images.root, tmp_path / "ranks", world_size=2)
    first, second = ([each[part] for each in ranks] for part in ("stopped", "whole"))
    # One rank was signalled during step 5 of 12; they agree at the end of an epoch, step 6.
    assert [(each["status"], each["step"]) for each in first] == [(143, 6)] * 2
    assert [(each["status"], each["step"]) for each in second] == [(0, 12)] * 2
    for each in (first, second):
        assert_close(each[0]["network"], each[1]["network"], atol=0)  # running statistics as well
    step, path = latest_checkpoint(tmp_path / "ranks" / "checkpoints")
    assert step == 12
    assert_close(load_checkpoint(path)["network"], second[0]["network"], atol=0)
    straight = run_ranks(train, images.root, tmp_path / "straight", {}, world_size=2)
    assert_close(straight[0]["network"], second[0]["network"], atol=0)


def _stop_and_continue(root: Path, path: Path) -> dict[str, Any]:
    return {
        "stopped": train(root, path, {}, stop_rank=1),
        "whole": train(root, path, {}),
    }


@pytest.mark.slow
def test_ranks_that_see_other_checkpoints_are_refused(tmp_path, images):
    outcomes = run_ranks(_continue_apart, images.root, tmp_path / "rank_{}", world_size=2)
    assert all("do not see the same checkpoints" in each for each in outcomes)
    assert not (tmp_path / "rank_1" / "checkpoints").exists()


def _continue_apart(root: Path, path: Path) -> str:
    train(root, path, {})
    try:
        train(root, path, {})
    except TrainingError as problem:
        return str(problem)
    return "it went on"


# --- reductions --------------------------------------------------------------------------------


def reduce_all() -> dict:
    rank = parallel.rank()
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    parallel.broadcast_module(network)
    network[1].running_mean.fill_(float(rank))
    network[1].num_batches_tracked.fill_(rank)
    network[0].weight.grad = torch.full_like(network[0].weight, float(rank))
    network[2].bias.grad = torch.tensor([1.0, 10.0 * rank])
    parallel.average_gradients(network.parameters())
    parallel.average_buffers(network)
    return {
        "parameters": [each.detach() for each in network.parameters()],
        "grads": [each.grad for each in network.parameters()],
        "mean": network[1].running_mean,
        "batches": network[1].num_batches_tracked,
        "sum": parallel.reduce_sum(torch.tensor([1.0, rank])),
        "any": [parallel.any_rank(rank == 2, torch.device("cpu")),
                parallel.any_rank(False, torch.device("cpu"))],
        "world": [rank, parallel.world_size()],
    }  # fmt: skip


def test_reductions_over_three_ranks():
    ranks = run_ranks(reduce_all, world_size=3)
    for number, each in enumerate(ranks):
        assert each["world"] == [number, 3]
        assert each["any"] == [True, False]
        assert each["sum"].tolist() == [3, 3]
        assert each["mean"].tolist() == [1, 1]
        assert each["batches"] == number  # counts are not averaged
        weight, *idle, bias = each["grads"]
        assert weight.unique().tolist() == [1] and bias.tolist() == [1, 10]
        assert idle == [None] * 4, "the gradient of an idle parameter must stay None"
        for mine, first in zip(each["parameters"], ranks[0]["parameters"], strict=True):
            assert torch.equal(mine, first)


def test_single_process_reduces_nothing():
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    tensor = torch.tensor([1.0, 2.0])
    assert parallel.reduce_sum(tensor) is tensor
    assert parallel.any_rank(True, torch.device("cpu"))
    assert not parallel.any_rank(False, torch.device("cpu"))


def test_batch_that_ranks_cannot_share_is_refused(monkeypatch):
    from spos.training import inputs

    given = inputs.Inputs(
        data=None, kind="small", image_size=8, augmentation="none",
        preprocessing=Preprocessing("standard"), backend="torchvision", workers=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    monkeypatch.setattr(inputs, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match="--batch-size 6: cannot be divided between 4 processes"):
        given.checked(RECIPE)


# --- devices -----------------------------------------------------------------------------------


def test_device_is_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parallel.select_device("auto") == torch.device("cpu")
    assert parallel.select_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(ConfigError, match="offers 0 CUDA devices; use --device cpu"):
            parallel.select_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parallel.select_device("auto") == torch.device("cuda:0")
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
    assert parallel.select_device("cuda") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="--device cuda:2: this machine offers 2"):
        parallel.select_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "cuda:x", ""])
def test_odd_device_is_refused(name):
    with pytest.raises(ConfigError, match=f"--device {name}: expected auto, cpu, cuda"):
        parallel.select_device(name)


LEAVE_GROUP = """
from pathlib import Path
import torch
from spos.training.parallel import process_group

def count_threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)

with process_group(torch.device("cpu")):
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).step()
    import torch.distributed.nn  # if the optimizer has not
    assert count_threads() > 0
assert count_threads() == 0
"""


def test_no_thread_of_a_group_outlives_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVE_GROUP], env={**environment, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [each.wait(PATIENCE) for each in ranks] == [0, 0]
