"""The status line: a bar on a terminal, a line in the log every thirty seconds elsewhere."""

import io
import logging
import sys

import pytest

from spos.training import status
from spos.training.status import StatusLine


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    return now


def test_log_gets_a_line_every_thirty_seconds(clock, caplog, capsys):
    caplog.set_level(logging.INFO, logger="spos")
    line = StatusLine(1_000, start=100, is_shown=True)
    for step in range(101, 221):
        clock[0] += 1
        line.update(step, "loss 2.5")
    line.close()
    assert [record.message for record in caplog.records] == [
        f"step {step}/1000  loss 2.5  ETA 0:{minutes}:{seconds:02d}"
        for step, minutes, seconds in ((130, 14, 30), (160, 14, 0), (190, 13, 30), (220, 13, 0))
    ]
    assert capsys.readouterr().out == ""


def test_other_ranks_say_nothing(clock, caplog):
    caplog.set_level(logging.INFO, logger="spos")
    line = StatusLine(10, start=0, is_shown=False)
    for step in range(1, 11):
        clock[0] += 100
        line.update(step, "loss 2.5")
    line.close()
    assert not caplog.records


def test_terminal_gets_a_bar(monkeypatch, caplog):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    line = StatusLine(8, start=2, is_shown=True)
    for step in range(3, 9):
        line.update(step, f"loss {step}.5")
    line.close()
    assert "8/8" in terminal.getvalue() and "loss" in terminal.getvalue()
    assert not caplog.records
