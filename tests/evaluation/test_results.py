"""The journal of results: none is measured twice, none is taken for another's."""

import pytest

from spos.architecture import Architecture
from spos.errors import CheckpointError
from spos.evaluation.results import FILE_NAME, load_result, save_result
from spos.training.checkpoint import save_checkpoint

RESULT = {"top1": 0.5, "top5": 1.0, "loss": 0.25, "macs": 1234}


def make_arch(candidate: str = "k3", size: int = 8) -> Architecture:
    return Architecture("tiny", {"image_size": size}, {"layer_1": candidate})


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "checkpoints", 1, {"step": 1})


def test_result_comes_back_as_it_was(tmp_path, checkpoint):
    assert load_result(tmp_path, checkpoint, make_arch()) is None
    save_result(tmp_path, checkpoint, make_arch(), RESULT)
    assert load_result(tmp_path, checkpoint, make_arch()) == RESULT


def test_result_belongs_to_its_weights_and_architecture(tmp_path, checkpoint):
    save_result(tmp_path, checkpoint, make_arch(), RESULT)
    other = save_checkpoint(tmp_path / "checkpoints", 2, {"step": 2})
    assert load_result(tmp_path, other, make_arch()) is None
    assert load_result(tmp_path, checkpoint, make_arch("k5")) is None
    assert load_result(tmp_path, checkpoint, make_arch(size=16)) is None
    same = save_checkpoint(tmp_path / "copy", 1, {"step": 1})
    assert load_result(tmp_path, same, make_arch()) == RESULT  # the same weights elsewhere


def test_last_result_counts(tmp_path, checkpoint):
    save_result(tmp_path, checkpoint, make_arch(), {"top1": 0.1})
    save_result(tmp_path, checkpoint, make_arch("k5"), {"top1": 0.2})
    save_result(tmp_path, checkpoint, make_arch(), {"top1": 0.3})
    assert load_result(tmp_path, checkpoint, make_arch()) == {"top1": 0.3}


def test_line_cut_by_a_crash_is_passed_over(tmp_path, checkpoint):
    save_result(tmp_path, checkpoint, make_arch(), RESULT)
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"key": "cut')
    assert load_result(tmp_path, checkpoint, make_arch()) == RESULT
    save_result(tmp_path, checkpoint, make_arch("k5"), {"top1": 0.2})
    assert load_result(tmp_path, checkpoint, make_arch("k5")) == {"top1": 0.2}
    assert load_result(tmp_path, checkpoint, make_arch()) == RESULT


@pytest.mark.parametrize("line", ["[]", "{}", '{"key": 1}', "nonsense"])
def test_malformed_journal_is_named(tmp_path, checkpoint, line):
    (tmp_path / FILE_NAME).write_text(line + "\n")
    with pytest.raises(CheckpointError, match=FILE_NAME):
        load_result(tmp_path, checkpoint, make_arch())
