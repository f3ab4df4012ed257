"""One process per device under torchrun: who we are, and the few exact reductions we need.

Imports `spos.errors` and torch.

No `DistributedDataParallel`: all ranks train the same path (a function of seed and step), so the
gradients to reduce are those of the active path, known to every rank, in one flat buffer; nothing
has to be searched for, and idle parameters keep no gradient.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from spos.errors import ConfigError


def rank() -> int:
    """This process's number, 0 when there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def select_device(name: str) -> torch.device:
    """The device that ``name`` means: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Under torchrun ``auto`` and ``cuda`` are the GPU with the process's local rank.

    Raises:
        ConfigError: if the name is malformed or there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: this machine offers {count} CUDA devices; use --device cpu, or "
            "check the driver and CUDA_VISIBLE_DEVICES"
        )
    return device


def _join_group(backend: str) -> None:
    """Join the group of ``torchrun``'s processes, also in those that it starts again."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not attempt or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    # On one machine torchrun (2.14) keeps the store of the processes before, whose addresses the
    # new ones would take for each other's and wait for ever.
    store, number, count = next(rendezvous("env://"))
    store = dist.PrefixStore(f"attempt_{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=number, world_size=count)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group that torchrun describes; a single process has none.

    A GPU becomes the one that torch uses where no device is named.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # Its functions have the group of the moment as a default argument, so whoever imports it later
    # (torch's optimizers do) keeps the group, and threads that abort the process as it exits.
    importlib.import_module("torch.distributed.nn")
    _join_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except Exception:
        # NCCL would wait for the others first, which wait for this process: its end tells them.
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    except BaseException:  # such as `Stopped`, on which all agree
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradients of ``parameters`` by their mean over the ranks; None stays None."""
    if world_size() == 1:
        return
    _average([parameter.grad for parameter in parameters if parameter.grad is not None])


def average_buffers(module: torch.nn.Module) -> None:
    """Replace running statistics by their mean over the ranks."""
    if world_size() > 1:
        _average([buffer for buffer in module.buffers() if buffer.is_floating_point()])


def broadcast_module(module: torch.nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's ``tensor``, in place of the others'."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` summed over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on any rank; a collective call."""
    if world_size() == 1:
        return flag
    return bool(reduce_sum(torch.tensor(float(flag), device=device)).item())


def _average(tensors: list[torch.Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
