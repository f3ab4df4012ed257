"""What a run folder holds in the end, and whether two hold the same to the bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spos.files import read_journal
from spos.training.checkpoint import latest_checkpoint, load_checkpoint


@dataclass(frozen=True)
class RunContents:
    """The newest checkpoint of a run and the lines of its ``metrics.jsonl``."""

    state: dict[str, Any]
    metrics: list[dict[str, Any]]

    def steps(self) -> list[tuple[int, str]]:
        """Step and kind (``train``, ``val``, ``test``) of every recorded line."""
        return [(each["step"], kind_of(each)) for each in self.metrics]

    def measured(self) -> list[dict[str, Any]]:
        """The lines of validations and tests, without the time."""
        return [
            {name: value for name, value in each.items() if name != "time"}
            for each in self.metrics
            if kind_of(each) != "train"
        ]


def kind_of(line: dict[str, Any]) -> str:
    return min(set(line) - {"step", "time"}).partition("/")[0]


def read_run(path: Path) -> RunContents:
    found = latest_checkpoint(path / "checkpoints")
    assert found, f"{path} has no checkpoint"
    return RunContents(load_checkpoint(found[1]), read_journal(path / "metrics.jsonl"))


def assert_identical(one: Any, other: Any) -> None:
    """Equal to the bit, down to every tensor."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other
