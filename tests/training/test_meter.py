"""Figures of an epoch: right sums, no loss that was not finite forgotten, no GPU waited for."""

import math
import re
import time

import pytest
import torch

from spos.training.meter import Meter, Readout

CPU = torch.device("cpu")


def test_epoch_figures_are_those_of_its_steps():
    meter = Meter(CPU)
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    meter.add(torch.tensor(0.5), logits, torch.tensor([0, 0, 0]))
    meter.add(torch.tensor(2.0), logits[:1], torch.tensor([0]))
    meter.count(4, 0.0)
    assert meter.loss_sum() == 3.5
    values = meter.finish_epoch()
    assert (values["train/loss"], values["train/top1"]) == (3.5 / 4, 3 / 4)
    meter.begin_epoch()
    assert meter.loss_sum(wait=True) == 0.0


def test_rate_leaves_out_what_comes_between_epochs(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Meter(CPU)
    now = 100.0  # validation, say
    meter.begin_epoch()
    now = 102.0
    meter.count(64, 0.5)
    values = meter.finish_epoch()
    assert (values["train/images_per_second"], values["train/data_wait"]) == (32.0, 0.25)


def test_status_says_how_it_goes():
    meter = Meter(CPU)
    meter.add(torch.tensor(0.5), torch.eye(2), torch.tensor([0, 0]))
    meter.count(2, 0.0)
    meter.refresh(lr=0.03125)
    assert re.fullmatch(
        r"loss 0\.500  top-1 0\.500  \d+ images/s  data wait 0%  lr 0\.0312  memory \d+\.\d GiB",
        meter.text,
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_was_not_finite_stays_in_the_sum(loss):
    meter = Meter(CPU)
    for value in (1.0, loss, 1.0):
        meter.add(torch.tensor(value), torch.eye(2), torch.tensor([0, 1]))
    assert not math.isfinite(meter.loss_sum())


def test_readout_is_a_copy():
    readout, sums = Readout(CPU), torch.zeros(2)
    assert readout.values() is None
    readout.send(sums)
    sums += 1
    assert readout.values() == [0, 0]
    readout.send(sums)
    assert readout.values(wait=True) == readout.values() == [1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_is_not_waited_for():
    device = torch.device("cuda")
    ones = torch.ones(2, device=device)
    first = Readout(device)  # loading the kernels and pinning the memory make the host wait
    first.send(ones)
    assert first.values(wait=True) == [1, 1]
    readout = Readout(device)
    torch.cuda._sleep(10**9)
    readout.send(ones)
    assert readout.values() is None
    assert readout.values(wait=True) == [1, 1]
