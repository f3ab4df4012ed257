"""The NNI tuner, driven as NNI's dispatcher drives it: pytest tests/search/test_tuner.py"""

import json
import logging
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nni_double import Nni, final
from toy_trial import toy_score, toy_spec, toy_table

from spos.architecture import load_architecture
from spos.cost.constraints import Constraint
from spos.errors import ConfigError, ConstraintError
from spos.search import tuner as tuner_module
from spos.search.arguments import ExperimentPaths
from spos.search.nni_server import NniTrial
from spos.search.results import read_entries
from spos.search.tuner import PAIRED_VARIABLE, EvolutionTuner, SearchTuner


class Server:
    """NNI's REST server, whose trials are those of a `Nni`."""

    trials_now: list[NniTrial] = []
    ended_after: list[int] = []

    @classmethod
    def of_tuner(cls, _channel):
        return cls()

    def trials(self):
        return list(self.trials_now)

    def end_after(self, number):
        self.ended_after.append(number)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "log").mkdir()
    (tmp_path / "checkpoint").mkdir()
    toy_table().save(tmp_path / "cost.json")
    monkeypatch.chdir(tmp_path / "log")
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))
    monkeypatch.setattr(tuner_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tuner_module, "NniServer", Server)
    monkeypatch.setattr(Server, "trials_now", [NniTrial("RUNNING", None)])
    monkeypatch.setattr(Server, "ended_after", [])
    monkeypatch.setenv(PAIRED_VARIABLE, "0")
    return tmp_path


def make_tuner(folder, *, is_resumed=False, **changes) -> SearchTuner:
    arguments = {"population": 6, "rounds": 3, "seed": 1, **changes}
    tuner = EvolutionTuner(cost_table=str(folder / "cost.json"), **arguments)
    if is_resumed:
        tuner.load_checkpoint()
    tuner.update_search_space(toy_spec().search_space())
    return tuner


def wait_for(condition):
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.mark.parametrize("end_first", [False, True])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_search_ends_with_every_score_beside_its_architecture(folder, concurrency, end_first):
    nni = Nni(make_tuner(folder), concurrency=concurrency, end_first=end_first)
    nni.run()
    entries = read_entries(folder / "log")
    assert len(entries) == len({each.id for each in entries}) == 18
    assert len(nni.evaluated) == 18
    table = toy_table()
    for each in entries:
        assert each.score == toy_score(each.choices)
        assert each.metrics["macs"] == table.cost(each.choices)
    assert not nni.errors
    wait_for(lambda: Server.ended_after == [1])


def test_one_trial_at_a_time_gives_the_generations_of_the_searcher(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run()
    rounds = [each.round for each in read_entries(folder / "log")]
    assert rounds == [1] * 6 + [2] * 6 + [3] * 6


def test_best_architectures_of_every_round_are_written(folder):
    Nni(make_tuner(folder), concurrency=1).run()
    entries = read_entries(folder / "log")
    for number in (1, 2, 3):
        known = sorted(
            (each for each in entries if each.round <= number), key=lambda each: -each.score
        )
        files = sorted((folder / "log" / "checkpoints" / f"round_{number:03d}").iterdir())
        assert [file.name for file in files] == [
            f"{rank:02d}_{each.id}.json" for rank, each in enumerate(known[:10], start=1)
        ]
        arch = load_architecture(files[0], toy_spec())
        assert arch.id == known[0].id and arch.metrics["macs"] == known[0].metrics["macs"]
    best = load_architecture(folder / "log" / "checkpoints" / "best.json", toy_spec())
    assert best.id == max(entries, key=lambda each: each.score).id


def fails_first(report):
    """Every third architecture fails when it is evaluated first."""
    seen = set()

    def evaluate(choices):
        arch = toy_spec().architecture(choices)
        if int(arch.id, 16) % 3 == 0 and arch.id not in seen:
            seen.add(arch.id)
            return {**final(choices, 0.0), "error": {"reason": "bad luck"}} if report else None
        return final(choices)

    evaluate.seen = seen
    return evaluate


@pytest.mark.parametrize("end_first", [False, True])
@pytest.mark.parametrize(("report", "is_paired"), [(True, False), (True, True), (False, True)])
def test_failed_trials_are_tried_once_more(folder, monkeypatch, report, is_paired, end_first):
    monkeypatch.setenv(PAIRED_VARIABLE, str(int(is_paired)))
    evaluate = fails_first(report)
    nni = Nni(make_tuner(folder), concurrency=3, end_first=end_first, evaluate=evaluate)
    nni.run()
    # The last trials may die without NNI asking again; they are found when nothing runs.
    give_up_at = time.monotonic() + 10
    while len(read_entries(folder / "log")) < 18:
        assert time.monotonic() < give_up_at
        Server.trials_now = [NniTrial("FAILED", number) for number in range(nni.next_number)]
        while nni.running:
            nni.step()
        time.sleep(0.02)
    assert len(evaluate.seen) > 0
    assert len(nni.evaluated) == 18 + len(evaluate.seen)
    assert all(each.score == toy_score(each.choices) for each in read_entries(folder / "log"))


def test_silent_deaths_without_pairing_are_tried_again_at_the_end(folder, monkeypatch):
    # On a busy machine the second tries below must begin before they are taken for lost as well.
    monkeypatch.setattr("spos.search.tuner.QUIET_POLLS", 50)
    evaluate = fails_first(report=False)
    nni = Nni(make_tuner(folder), concurrency=3, evaluate=evaluate)
    nni.run()
    assert len(nni.evaluated) == 18  # nobody was blamed for another's death
    Server.trials_now = [NniTrial("FAILED", number) for number in range(nni.next_number)]
    wait_for(lambda: len(nni.running) == min(len(evaluate.seen), 3))
    while nni.running:
        nni.step()
    assert {each.id for each in read_entries(folder / "log")} >= evaluate.seen
    assert len(read_entries(folder / "log")) == 18
    wait_for(lambda: Server.ended_after)


def test_trials_that_wait_for_a_gpu_are_not_taken_for_lost(folder):
    nni = Nni(make_tuner(folder, rounds=1), concurrency=6)
    nni.request()
    nni.num_owed = 1
    nni.request()  # nothing left to give: the tuner watches
    Server.trials_now = [NniTrial("SUCCEEDED", number) for number in range(5)]  # one not started
    time.sleep(0.2)
    assert len(nni.running) == 6
    Server.trials_now.append(NniTrial("FAILED", 5))
    wait_for(lambda: len(nni.running) == 7)


def test_candidate_that_fails_twice_is_kept_with_its_reason(folder):
    bad = set()

    def first_fails(choices):
        arch = toy_spec().architecture(choices).id
        if not bad or arch in bad:
            bad.add(arch)
            return {"default": 0.0, "arch": choices, "error": {"reason": "out of memory"}}
        return final(choices)

    nni = Nni(make_tuner(folder), concurrency=1, evaluate=first_fails)
    nni.run()
    failed = [each for each in read_entries(folder / "log") if each.score is None]
    assert [each.id for each in failed] == list(bad)
    assert failed[0].failure == "out of memory"
    ranked = [file.name for file in (folder / "log" / "checkpoints").rglob("*.json")]
    assert not any(failed[0].id in name for name in ranked)


@pytest.mark.parametrize(
    "value", [{"default": float("nan")}, {"default": None}, {}, None, "0.9", {"default": "high"}]
)
def test_results_without_a_finite_score_are_failures(folder, value):
    tuner = make_tuner(folder, rounds=1, population=2)
    (choices, _) = tuner.generate_multiple_parameters([0, 1], st_callback=None)
    if isinstance(value, dict):
        value = {**value, "arch": choices}
    tuner.receive_trial_result(0, choices, value)
    assert tuner.generate_multiple_parameters([2]) == [choices]
    tuner.receive_trial_result(2, choices, value)
    (entry,) = read_entries(folder / "log")
    assert entry.score is None and "score" in entry.failure


def test_failure_told_twice_leaves_the_second_trial_its_chance(folder):
    tuner = make_tuner(folder, rounds=1, population=2)
    first, _ = tuner.generate_multiple_parameters([0, 1])
    failure = {"default": None, "arch": first}
    tuner.receive_trial_result(0, "", failure)
    assert tuner.generate_multiple_parameters([2]) == [first]
    tuner.receive_trial_result(0, "", failure)
    assert read_entries(folder / "log") == []
    tuner.receive_trial_result(2, "", final(first))
    (entry,) = read_entries(folder / "log")
    assert entry.score == toy_score(first)


def test_plain_number_is_a_score_for_what_the_id_stands_for(folder):
    tuner = make_tuner(folder)
    first, second = tuner.generate_multiple_parameters([7, 8])
    tuner.receive_trial_result(8, "", 0.25)
    (entry,) = read_entries(folder / "log")
    assert entry.choices == second and entry.score == 0.25


def test_arch_in_the_result_wins_over_the_id(folder):
    tuner = make_tuner(folder)
    first, second = tuner.generate_multiple_parameters([0, 1])
    tuner.receive_trial_result(0, first, final(second))
    (entry,) = read_entries(folder / "log")
    assert entry.choices == second and entry.score == toy_score(second)


def test_results_twice_and_unknown_ids_are_harmless(folder):
    tuner = make_tuner(folder)
    (choices,) = tuner.generate_multiple_parameters([0])
    for parameter_id in (0, 0, 99, None):
        tuner.receive_trial_result(parameter_id, "", final(choices))
    tuner.receive_trial_result(50, "", 0.5)
    tuner.trial_end(None, False)
    tuner.trial_end(1234, False)
    assert len(read_entries(folder / "log")) == 1


@pytest.mark.parametrize("is_paired", [False, True])
@pytest.mark.parametrize("report", [False, True])
def test_ten_failures_in_a_row_end_the_experiment(folder, monkeypatch, report, is_paired):
    monkeypatch.setenv(PAIRED_VARIABLE, str(int(is_paired)))

    def evaluate(choices):
        return {**final(choices, 0.0), "error": {"reason": "no GPU"}} if report else None

    nni = Nni(make_tuner(folder), concurrency=2, evaluate=evaluate)
    nni.run(max_steps=12)
    (error,) = nni.errors
    assert "10 evaluations failed in a row" in error and "resume" in error
    assert ("no GPU" if report else "the trial ended without a result") in error
    assert len(nni.evaluated) <= 12
    state = json.loads((folder / "checkpoint" / "search.json").read_text())
    assert "failed in a row" in state["problem"]


def test_stale_search_space_ends_the_experiment(folder):
    tuner = make_tuner(folder)
    tuner.update_search_space(toy_spec(5).search_space())
    state = json.loads((folder / "checkpoint" / "search.json").read_text())  # NNI may end it now
    error = refusal(tuner)
    assert state["problem"] in error
    assert "stale" in error and "ss_gen" in error


def test_another_supernet_than_that_of_the_costs_ends_the_experiment(folder, monkeypatch):
    """`nnictl ss_gen` was not repeated after the supernet was trained with other options."""
    monkeypatch.setenv(PAIRED_VARIABLE, "1")
    size = 64
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.evaluate = lambda choices: {
        **final(choices), "supernet": {"space": "toy", "options": {"image_size": size}}
    }  # fmt: skip
    nni.run()
    (error,) = nni.errors
    assert "image_size is 64, expected 32" in error
    assert "nnictl ss_gen" in error and "search start" in error
    assert len(nni.evaluated) == 1 and read_entries(folder / "log") == []
    state = json.loads((folder / "checkpoint" / "search.json").read_text())
    assert state["problem"] in error
    nni.evaluated.clear()
    size = 32  # that supernet is brought back
    crash_and_resume(folder, nni, rerun=[])
    nni.run()
    check_evaluated_once(folder, nni)


def test_supernet_of_another_space_ends_the_experiment(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    supernet = {"space": "other", "options": {"image_size": 32}}
    nni.evaluate = lambda choices: {**final(choices), "supernet": supernet}
    nni.run()
    assert "space is 'other', expected 'toy'" in nni.errors[0] and len(nni.evaluated) == 1


def test_other_things_that_trials_say_of_a_supernet_are_not_looked_at(folder):
    nni = Nni(make_tuner(folder, rounds=1), concurrency=1)
    told = iter(["big", 3, None, {}, {"options": 1}, {"top1": 0.5}])
    nni.evaluate = lambda choices: {**final(choices), "supernet": next(told)}
    nni.run()
    assert len(read_entries(folder / "log")) == 6 and not nni.errors


def test_full_disk_ends_the_experiment_without_raising(folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    nni = Nni(make_tuner(folder), concurrency=1)
    nni.request()
    monkeypatch.setattr("spos.search.record.write_text", refuse)
    nni.step()
    (error,) = nni.errors
    assert "No space left on device" in error
    assert not nni.running


def refusal(tuner) -> str:
    """The error that the experiment ends with before its first trial."""
    nni = Nni(tuner, concurrency=1)
    nni.request()
    assert not nni.trials
    (error,) = nni.errors
    return error


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["default", "arch", "error", "layer_1"]), inner)
    ),
    max_leaves=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(JUNK, max_size=4))
def test_tuner_never_raises_whatever_trials_report(folder, values):
    tuner = make_tuner(folder)
    tuner.generate_multiple_parameters([0, 1, 2, 3])
    for number, value in enumerate(values):
        tuner.receive_trial_result(number, value, value, trial_job_id="x")
        tuner.import_data([{"parameter": value, "value": value}])
        tuner.import_data([{"parameter": value, "value": value, "trialJobId": "x"}])
        tuner.trial_end(number, False)
    tuner.generate_multiple_parameters([4])
    assert tuner._problem is None


def crash_and_resume(folder, nni, *, rerun):
    """kill -9 of everything, then `nnictl resume`; NNI runs again the trials in ``rerun``."""
    nni.resume(make_tuner(folder, is_resumed=True), rerun=rerun)


def check_evaluated_once(folder, nni):
    """Every planned candidate was evaluated, and none again."""
    identifiers = {toy_spec().architecture(each).id for each in nni.evaluated}
    assert len(nni.evaluated) == len(identifiers) == 18
    assert len((folder / "log" / "search.jsonl").read_text().splitlines()) == 18


@pytest.mark.parametrize("num_steps", [0, 3, 8, 17])
def test_resumed_search_evaluates_nothing_twice(folder, num_steps):
    nni = Nni(make_tuner(folder), concurrency=3)
    nni.run(max_steps=num_steps)
    crash_and_resume(folder, nni, rerun=nni.running)
    nni.run()
    check_evaluated_once(folder, nni)


def test_trials_that_nni_forgot_are_evaluated_after_resume(folder):
    nni = Nni(make_tuner(folder), concurrency=3)
    nni.run(max_steps=4)
    lost = [each.choices for each in nni.running]
    crash_and_resume(folder, nni, rerun=[])
    nni.run()
    Server.trials_now = [NniTrial("SUCCEEDED", number) for number in range(nni.next_number)]
    wait_for(lambda: len(nni.running) == 3)
    assert [each.choices for each in nni.running] == lost


def test_result_saved_by_nni_but_not_by_us_is_not_lost(folder):
    """The tuner was killed after NNI took a result and before it was written."""
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run(max_steps=4)
    (last,) = nni.running
    last.value = nni.evaluate(last.choices)
    nni.evaluated.append(last.choices)
    crash_and_resume(folder, nni, rerun=[])
    nni.run()
    check_evaluated_once(folder, nni)


def test_crash_between_journal_and_state_is_mended(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run(max_steps=4)
    before = (folder / "checkpoint" / "search.json").read_bytes()
    nni.step()
    (folder / "checkpoint" / "search.json").write_bytes(before)
    crash_and_resume(folder, nni, rerun=nni.running)
    nni.run()
    check_evaluated_once(folder, nni)


def test_lost_state_does_not_evaluate_finished_candidates_again(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run(max_steps=8)
    (folder / "checkpoint" / "search.json").unlink()
    crash_and_resume(folder, nni, rerun=[])
    nni.run()
    assert len(nni.evaluated) == len({toy_spec().architecture(each).id for each in nni.evaluated})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 2}'])
def test_damaged_state_ends_the_experiment_with_its_name(folder, content):
    make_tuner(folder).generate_multiple_parameters([0])
    path = folder / "checkpoint" / "search.json"
    path.write_bytes(content)
    assert "search.json" in refusal(make_tuner(folder, is_resumed=True))
    assert path.read_bytes() == content


def test_another_search_begun_in_the_same_folder_does_not_disturb_a_resume(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run(max_steps=8)
    toy_table(toy_spec(5)).save(folder / "cost.json")  # which `search start` writes anew
    crash_and_resume(folder, nni, rerun=nni.running)
    nni.run()
    check_evaluated_once(folder, nni)


def test_a_search_that_cannot_continue_writes_nothing(folder):
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.run(max_steps=8)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tuner = EvolutionTuner(cost_table=str(folder / "cost.json"), population=7, rounds=3, seed=1)
    tuner.load_checkpoint()
    ended = [{"trialJobId": "a", "value": final(each)} for each in nni.evaluated]
    tuner.import_data(ended)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", ["5K", "5.4K"])
def test_limits_that_allow_what_was_not_trained_are_logged(folder, caplog, limit):
    table = toy_table()
    table.trained = (Constraint("macs", 5300, 5600),)
    table.save(folder / "cost.json")
    logger = logging.getLogger("nni.spos.tuner")
    logger.addHandler(caplog.handler)
    try:
        make_tuner(folder, constraints={"macs": limit})
    finally:
        logger.removeHandler(caplog.handler)
    assert "the supernet was trained on" in caplog.text


def test_state_of_other_settings_is_refused_and_kept(folder):
    make_tuner(folder).generate_multiple_parameters([0])
    path = folder / "checkpoint" / "search.json"
    before = path.read_bytes()
    assert "population" in refusal(make_tuner(folder, is_resumed=True, population=7))
    assert path.read_bytes() == before


def test_wrong_arguments_are_refused_by_name(folder):
    paths = ExperimentPaths(folder)
    search = EvolutionTuner.check_arguments({"rounds": 3, "population": 4}, paths=paths)
    assert search.num_planned == 12
    with pytest.raises(ConfigError, match="population"):
        EvolutionTuner.check_arguments({"population": 0}, paths=paths)
    with pytest.raises(ConfigError, match="cost_table"):
        EvolutionTuner.check_arguments({"cost_table": 3}, paths=paths)
    with pytest.raises(ConstraintError, match="other.json"):
        EvolutionTuner.check_arguments({"cost_table": "other.json"}, paths=paths)
    with pytest.raises(ConstraintError, match="reaches"):
        EvolutionTuner.check_arguments({"constraints": {"macs": [0, 1]}}, paths=paths)
    with pytest.raises(ConstraintError, match="constraints"):
        EvolutionTuner.check_arguments({"constraints": [330]}, paths=paths)


def test_relative_paths_start_at_the_code_directory(tmp_path):
    import base64

    config = {"tuner": {"codeDirectory": "/code"}, "searchSpaceFile": "/spaces/space.json"}
    encoded = base64.b64encode(json.dumps(config).encode()).decode()
    paths = ExperimentPaths.of_dispatcher(["nni", "--exp_params", encoded])
    assert str(paths.cost_table("tables/a.json")) == "/code/tables/a.json"
    assert str(paths.cost_table("/b.json")) == "/b.json"
    assert str(paths.cost_table(None)) == "/spaces/cost.json"
    assert ExperimentPaths(tmp_path).cost_table(None) == tmp_path / "cost.json"


@pytest.mark.parametrize("is_started", [True, False])
def test_candidate_that_nni_never_started_is_the_next_one_again(folder, monkeypatch, is_started):
    """The manager was killed between our answer and its own note of the trial."""
    monkeypatch.setenv(PAIRED_VARIABLE, "1")
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.request()
    (first,) = nni.running
    crash_and_resume(folder, nni, rerun=[first] if is_started else [])
    nni.request()
    (again,) = nni.running
    assert again.choices == first.choices and again.is_rerun == is_started


def test_resumed_search_does_not_run_ahead_of_its_scores(folder):
    """NNI asks for a candidate although a trial that it runs again takes the only slot."""
    nni = Nni(make_tuner(folder), concurrency=1)
    nni.request()
    crash_and_resume(folder, nni, rerun=nni.running)
    nni.request()
    while nni.running:
        assert len(nni.running) == 1
        nni.step()
    check_evaluated_once(folder, nni)
