"""Run folders: continued with the same settings only, described by their own files."""

import logging
import math
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from spos.errors import ConfigError
from spos.files import read_journal, read_json
from spos.training import run_folder
from spos.training.run_folder import RunFolder, RunSettings, read_settings, show_log

CONFIG = {"space": "tiny", "options": {"image_size": 8}, "lr": 0.1, "classes": ["a", "b"]}
SETTINGS = RunSettings("supernet", CONFIG, {"device": "cpu", "workers": 2})


def open_and_close(path: Path, settings: RunSettings = SETTINGS, **arguments) -> None:
    RunFolder(path, settings, **arguments).close()


def changed(**config) -> RunSettings:
    return RunSettings("supernet", {**CONFIG, **config}, {})


# --- whose folder it is ------------------------------------------------------------------------


def test_new_folder_says_what_made_it(tmp_path):
    open_and_close(tmp_path / "runs" / "new")
    value = read_json(tmp_path / "runs" / "new" / "args.json")
    assert value["version"] == 1
    assert value["stage"] == "supernet"
    assert value["config"] == CONFIG
    assert value["runtime"] == {"device": "cpu", "workers": 2}
    environment = value["environment"]
    assert {"spos", "torch", "numpy"} <= set(environment["versions"])
    assert environment["command"] and environment["python"] and environment["started"]
    assert read_settings(tmp_path / "runs" / "new", stage="supernet") == SETTINGS


def test_same_settings_continue_and_leave_args_as_they_were(tmp_path):
    open_and_close(tmp_path)
    before = (tmp_path / "args.json").read_bytes()
    open_and_close(tmp_path, RunSettings("supernet", CONFIG, {"device": "cuda", "workers": 9}))
    assert (tmp_path / "args.json").read_bytes() == before


def test_images_that_were_moved_are_found_by_the_next_stage(tmp_path):
    for place in ("/before", "/after"):
        open_and_close(tmp_path, RunSettings("supernet", CONFIG, {"data_dir": place}))
    assert read_settings(tmp_path).runtime == {"data_dir": "/after"}
    assert read_json(tmp_path / "args.json")["environment"]["command"]


def test_commit_is_never_that_of_a_repository_around_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "venv" / "spos" / "a" / "b.py"))
    (tmp_path / "venv" / "spos" / "a").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert run_folder.code_version() is None


def test_other_settings_are_refused_with_every_difference(tmp_path):
    open_and_close(tmp_path)
    other = changed(lr=0.2, options={"image_size": 16}, new=None, extra=3)
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path, other)
    message = str(caught.value)
    assert f"{tmp_path}: holds a run with other settings" in message
    assert "lr was 0.1, now 0.2" in message
    assert "options was {'image_size': 8}, now {'image_size': 16}" in message
    assert "extra was None, now 3" in message
    assert "space" not in message and "classes" not in message and "new was" not in message
    assert "--run-dir" in message


def test_run_of_another_stage_is_refused(tmp_path):
    open_and_close(tmp_path)
    with pytest.raises(ConfigError, match="run of supernet.py; give scratch.py another --run-dir"):
        RunFolder(tmp_path, RunSettings("scratch", CONFIG, {}))
    with pytest.raises(ConfigError, match="is the run of supernet.py, expected one of scratch.py"):
        read_settings(tmp_path, stage="scratch")


def test_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and not a run folder"):
        RunFolder(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_costs_may_be_there_before_their_run(tmp_path):
    (tmp_path / "cost.json").write_text("{}")
    open_and_close(tmp_path)
    assert (tmp_path / "args.json").exists()


def test_kill_before_the_first_file_was_whole_costs_nothing(tmp_path):
    (tmp_path / ".args.json.123-abc.tmp").write_text("{")
    open_and_close(tmp_path)
    assert read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize("name", ["file/run", "file", "x" * 300])
def test_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"--run-dir {tmp_path}/{name}: cannot be written"):
        RunFolder(tmp_path / name, SETTINGS)


def test_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
        RunFolder(tmp_path, SETTINGS)


def test_other_ranks_write_nothing(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS, is_writer=False)
    run.start_metrics(0)
    run.record(1, {"train/loss": 1.0})
    run.close()
    assert not (tmp_path / "run").exists()


def test_other_ranks_notice_other_settings_too(tmp_path):
    open_and_close(tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        RunFolder(tmp_path, changed(lr=3), is_writer=False)


# --- reading -----------------------------------------------------------------------------------


def test_folder_that_is_no_run_gets_the_command_to_make_it(tmp_path):
    hint = r"is not a run folder \(it has no args.json\); run `python supernet.py --run-dir"
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=hint):
            read_settings(path, stage="supernet")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "config": [], "runtime": {}}',
     '{"version": 1, "config": {}}', '{"version": 1, "config": {}, "runtime": {}, "a": NaN}'],
)  # fmt: skip
def test_malformed_settings_are_refused_by_name(tmp_path, text):
    (tmp_path / "args.json").write_text(text)
    with pytest.raises(ConfigError, match="args.json"):
        read_settings(tmp_path)


# --- metrics and log -----------------------------------------------------------------------------


def record(path: Path, start: int, entries: list[tuple[int, dict]]) -> list[dict]:
    run = RunFolder(path, SETTINGS)
    run.start_metrics(start)
    for step, metrics in entries:
        run.record(step, metrics)
    run.close()
    lines = read_journal(path / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_metrics_are_appended(tmp_path):
    lines = record(tmp_path, 0, [(3, {"train/loss": 1.5}), (3, {"val/top1": 0.5})])
    assert lines == [{"step": 3, "train/loss": 1.5}, {"step": 3, "val/top1": 0.5}]
    lines = record(tmp_path, 3, [(6, {"train/loss": 1.0})])
    assert [line["step"] for line in lines] == [3, 3, 6]


def test_metrics_beyond_the_step_that_is_continued_are_dropped(tmp_path):
    record(tmp_path, 0, [(step, {"train/loss": step}) for step in (3, 6, 9)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "tra')  # cut by the kill
    lines = record(tmp_path, 6, [(9, {"train/loss": 90})])
    assert lines == [
        {"step": 3, "train/loss": 3}, {"step": 6, "train/loss": 6}, {"step": 9, "train/loss": 90}
    ]  # fmt: skip


def test_metrics_measured_again_are_recorded_once(tmp_path):
    record(tmp_path, 0, [(3, {"val/top1": 0.5})])
    lines = record(tmp_path, 3, [(3, {"val/top1": 0.5}), (3, {"test/top1": 0.25})])
    assert lines == [{"step": 3, "val/top1": 0.5}, {"step": 3, "test/top1": 0.25}]


def test_metric_that_is_not_finite_becomes_null(tmp_path):
    assert record(tmp_path, 0, [(1, {"a": math.nan, "b": math.inf, "c": 1.0})]) == [
        {"step": 1, "a": None, "b": None, "c": 1.0}
    ]


def test_full_disk_is_named(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = RunFolder(tmp_path, SETTINGS)
    monkeypatch.setattr(run_folder, "append_journal", fail)
    with pytest.raises(ConfigError, match=r"metrics.jsonl: cannot be written \(No space left"):
        run.record(1, {"train/loss": 1.0})
    run.close()


def test_disk_that_is_full_for_tensorboard_is_named_once(tmp_path, capsys):
    run = RunFolder(tmp_path, SETTINGS)
    run.start_metrics(0)
    run.record(1, {"a": 1.0})
    (board,) = (tmp_path / "tb").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    hook = threading.excepthook
    assert board.stat().st_size > 2 * (tmp_path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (board.stat().st_size, hard))
    try:
        with pytest.raises(ConfigError, match=r"tb: cannot be written \(File too large\); make"):
            run.record(2, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(OSError):
        run.close()
    assert threading.excepthook is not hook
    open_and_close(tmp_path)  # it was unlocked


def test_tensorboard_is_up_to_date_after_every_record(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.start_metrics(0)
    sizes = []
    for step in range(3):
        run.record(step, {"train/loss": 1.0})
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "tb").iterdir()))
    assert sizes == sorted(set(sizes)), "a kill would lose what is only in memory"
    run.close()


def test_log_is_kept_in_the_folder(tmp_path):
    show_log()
    run = RunFolder(tmp_path, SETTINGS)
    logging.getLogger("spos.test").info("hello %d", 3)
    run.close()
    logging.getLogger("spos.test").info("later")
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(" INFO hello 3\n") and text.count("\n") == 1


def test_log_is_shown_once(capsys):
    logger = logging.getLogger("spos")
    before = list(logger.handlers)
    try:
        logger.handlers = []
        show_log()
        show_log()
        assert len(logger.handlers) == 1
    finally:
        logger.handlers = before


# --- one command at a time ----------------------------------------------------------------------


def test_second_command_in_the_same_folder_is_refused(tmp_path):
    first = RunFolder(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="another command writes this run now") as caught:
        RunFolder(tmp_path, SETTINGS)
    assert str(tmp_path) in str(caught.value) and "--run-dir" in str(caught.value)
    RunFolder(tmp_path, SETTINGS, is_writer=False).close()  # a rank that writes nothing
    first.close()
    open_and_close(tmp_path)


def test_foreign_folder_gets_no_lock(tmp_path):
    (tmp_path / "mine.txt").write_text("important")
    with pytest.raises(ConfigError):
        RunFolder(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def on_images(**config) -> RunSettings:
    images = {"data": "mine", "split": "s", "train_names": "a", "test_names": "b"}
    return RunSettings("supernet", {**CONFIG, **images, **config}, {"data_dir": "/mine"})


def test_images_in_a_renamed_folder_are_the_same(tmp_path):
    open_and_close(tmp_path, on_images())
    run = RunFolder(tmp_path, on_images(data="other"))
    run.close()
    assert run.settings.config["data"] == "mine", "a checkpoint must say what args.json does"
    assert read_settings(tmp_path).config["data"] == "mine"


@pytest.mark.parametrize(
    ("config", "which"),
    [({"train_names": "c", "split": "t"}, "training images"), ({"test_names": "c"}, "test images")],
)
def test_renamed_images_are_refused(tmp_path, config, which):
    open_and_close(tmp_path, on_images())
    with pytest.raises(ConfigError, match=f"on other files: as many {which}, but files in /mine"):
        RunFolder(tmp_path, on_images(**config))
    with pytest.raises(ConfigError, match="other settings .*lr was 0.1, now 3; train_names was"):
        RunFolder(tmp_path, on_images(train_names="c", lr=3))


def test_run_of_before_names_were_kept_is_continued_as_it_was(tmp_path):
    old = RunSettings("supernet", {**CONFIG, "data": "mine"}, {})
    open_and_close(tmp_path, old)
    run = RunFolder(tmp_path, RunSettings("supernet", {**old.config, "train_names": "a",
                                                       "test_names": "b"}, {}))  # fmt: skip
    run.close()
    assert run.settings.config == old.config == read_settings(tmp_path).config
    with pytest.raises(ConfigError, match="data was 'mine', now 'other'"):
        RunFolder(tmp_path, on_images(data="other"))
