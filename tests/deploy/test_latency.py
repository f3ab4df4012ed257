"""Latencies are measured in turns and reported for each file, batch size and number of threads."""

import json

import pytest
import torch
from torch import nn

from spos.__main__ import main
from spos.deploy.latency import WARMUP, measure_latency
from spos.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


class Named(nn.Module):
    """Notes when it is called."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        return x


def test_networks_take_turns():
    log: list[str] = []
    found = measure_latency({"a": Named("a", log), "b": Named("b", log)}, torch.zeros(1), repeats=3)
    assert log == ["a", "b"] * (WARMUP + 3)
    assert list(found) == ["a", "b"]
    assert all(each.repeats == 3 and 0 < each.median_ms <= each.p95_ms for each in found.values())


def test_median_and_percentile_are_of_the_times(monkeypatch):
    ticks = [0.0] * WARMUP  # which is not timed
    ticks += [tick for n in range(1, 101) for tick in (0.0, n / 1000)]
    clock = iter(ticks)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = measure_latency({"a": nn.Identity()}, torch.zeros(1), repeats=100)["a"]
    assert found.median_ms == pytest.approx(50.5) and found.p95_ms == pytest.approx(95)


@pytest.mark.slow
def test_command_measures_each_file_batch_and_thread(exported, capsys):
    files = [str(exported.weights), str(exported.onnx), str(exported.int8)]
    words = ["--batch-size", "1", "2", "--threads", "1", "2", "--repeats", "3"]
    assert main(["bench", "model", *files, *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    seen = [(row["threads"], row["batch_size"], row["file"]) for row in rows]
    assert seen == [(t, b, file) for t in (1, 2) for b in (1, 2) for file in files]
    assert [row["runtime"] for row in rows[:3]] == ["pytorch", "onnxruntime", "onnxruntime"]
    assert all(0 < row["median_ms"] <= row["p95_ms"] for row in rows)
    assert torch.get_num_threads() == 1
    assert main(["bench", "model", files[1], "--repeats", "2"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["file", "runtime"] and row.startswith(files[1])


@pytest.mark.slow
def test_networks_of_different_images_are_not_compared(exported, tiny_onnx, tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(tiny_onnx)
    with pytest.raises(ConfigError, match="take other sizes: .*net.onnx 16, .*tiny.onnx 8"):
        main(["bench", "model", str(exported.onnx), str(tmp_path / "tiny.onnx")])
