"""The journal of results: none is measured twice, none is taken for another's."""

import pytest

from spos.architecture import Architecture
from spos.errors import CheckpointError
from spos.evaluation.results import FILE_NAME, Results
from spos.training.checkpoint import save_checkpoint

RESULT = {"top1": 0.5, "top5": 1.0, "loss": 0.25, "macs": 1234}


def make_arch(candidate: str = "k3", size: int = 8) -> Architecture:
    return Architecture("tiny", {"image_size": size}, {"layer_1": candidate})


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "checkpoints", 1, {"step": 1})


def test_result_comes_back_as_it_was(tmp_path, checkpoint):
    assert Results(tmp_path, checkpoint).find(make_arch()) is None
    Results(tmp_path, checkpoint).save(make_arch(), RESULT)
    assert Results(tmp_path, checkpoint).find(make_arch()) == RESULT


def test_result_belongs_to_its_weights_and_architecture(tmp_path, checkpoint):
    Results(tmp_path, checkpoint).save(make_arch(), RESULT)
    other = save_checkpoint(tmp_path / "checkpoints", 2, {"step": 2})
    assert Results(tmp_path, other).find(make_arch()) is None
    assert Results(tmp_path, checkpoint).find(make_arch("k5")) is None
    assert Results(tmp_path, checkpoint).find(make_arch(size=16)) is None
    same = save_checkpoint(tmp_path / "copy", 1, {"step": 1})
    assert Results(tmp_path, same).find(make_arch()) == RESULT  # the same weights elsewhere


def test_last_result_counts(tmp_path, checkpoint):
    Results(tmp_path, checkpoint).save(make_arch(), {"top1": 0.1})
    Results(tmp_path, checkpoint).save(make_arch("k5"), {"top1": 0.2})
    Results(tmp_path, checkpoint).save(make_arch(), {"top1": 0.3})
    assert Results(tmp_path, checkpoint).find(make_arch()) == {"top1": 0.3}


def test_line_cut_by_a_crash_is_passed_over(tmp_path, checkpoint):
    Results(tmp_path, checkpoint).save(make_arch(), RESULT)
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"key": "cut')
    assert Results(tmp_path, checkpoint).find(make_arch()) == RESULT
    Results(tmp_path, checkpoint).save(make_arch("k5"), {"top1": 0.2})
    assert Results(tmp_path, checkpoint).find(make_arch("k5")) == {"top1": 0.2}
    assert Results(tmp_path, checkpoint).find(make_arch()) == RESULT


@pytest.mark.parametrize("line", ["[]", "{}", '{"key": 1}', "nonsense"])
def test_malformed_journal_is_named(tmp_path, checkpoint, line):
    (tmp_path / FILE_NAME).write_text(line + "\n")
    with pytest.raises(CheckpointError, match=FILE_NAME):
        Results(tmp_path, checkpoint).find(make_arch())


def test_results_of_other_processes_are_seen(tmp_path, checkpoint):
    ours, theirs = Results(tmp_path, checkpoint), Results(tmp_path, checkpoint)
    for number in range(3):
        assert ours.find(make_arch(f"k{number}")) is None
        theirs.save(make_arch(f"k{number}"), {"top1": number / 10})
        assert ours.find(make_arch(f"k{number}")) == {"top1": number / 10}
    assert ours.find(make_arch("k0")) == {"top1": 0.0}


def test_journal_that_was_emptied_or_removed_is_read_anew(tmp_path, checkpoint):
    results = Results(tmp_path, checkpoint)
    for remove in ((tmp_path / FILE_NAME).unlink, lambda: (tmp_path / FILE_NAME).write_text("")):
        results.save(make_arch(), RESULT)
        assert results.find(make_arch()) == RESULT
        remove()
        assert results.find(make_arch()) is None


def test_malformed_line_is_named_by_its_number(tmp_path, checkpoint):
    results = Results(tmp_path, checkpoint)
    results.save(make_arch(), RESULT)
    results.find(make_arch())
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write("nonsense\n")
    with pytest.raises(CheckpointError, match="line 2"):
        results.find(make_arch())
