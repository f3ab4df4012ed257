"""The configuration is checked before NNI sees it: pytest tests/search/test_experiment.py"""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from toy_trial import toy_spec, toy_table

from spos.errors import ConfigError, ConstraintError, SposError
from spos.search import experiment as experiment_module
from spos.search.experiment import Changes, check_port, prepare_experiment

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy_trial.py")


def toy_config() -> dict:
    return {
        "experimentName": "toy",
        "searchSpaceFile": "space.json",
        "trialCommand": "exec python toy_trial.py",
        "trialCodeDirectory": ".",
        "trialConcurrency": 1,
        "maxTrialNumber": 24,
        "tuner": {
            "className": "spos.search.tuner.EvolutionTuner",
            "codeDirectory": ".",
            "classArgs": {"rounds": 3, "population": 4, "constraints": {"macs": [0, "5.2K"]}},
        },
        "trainingService": {"platform": "local"},
    }


@pytest.fixture
def folder(tmp_path):
    shutil.copy(TOY, tmp_path)
    return tmp_path


def write(folder, config) -> Path:
    path = folder / "config.yml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path


def change(config, keys, value):
    *path, last = keys.split(".")
    for key in path:
        config = config[key]
    if value is None:
        del config[last]
    else:
        config[last] = value


def test_good_configuration_is_made_absolute_and_complete(folder):
    prepared = prepare_experiment(write(folder, toy_config()), Changes())
    config = prepared.config
    assert prepared.num_planned == 12 and config["maxTrialNumber"] == 24
    assert config["trialCommand"] == f"exec {sys.executable} toy_trial.py"
    assert config["searchSpace"] == toy_spec().search_space()
    for path in (config["searchSpaceFile"], config["tuner"]["codeDirectory"]):
        assert Path(path).is_absolute()
    json.dumps(config)


def test_flags_change_the_file(folder):
    changes = Changes(
        {"rounds": 5, "population": 10, "constraints": {"macs": "5K"}},
        concurrency=3,
        experiments_dir=folder / "runs",
    )
    prepared = prepare_experiment(write(folder, toy_config()), changes)
    assert prepared.num_planned == 50
    assert prepared.config["maxTrialNumber"] == 100  # every candidate may fail once
    assert prepared.config["trialConcurrency"] == 3
    assert prepared.config["experimentWorkingDirectory"] == str(folder / "runs")
    assert prepared.config["tuner"]["classArgs"]["constraints"] == {"macs": "5K"}


def test_flags_of_trials_follow_the_command_of_the_file_or_the_flag(folder):
    for command in (None, "exec python toy_trial.py --fail never"):
        changes = Changes(trial_command=command, trial_flags=("--folder=a b", "--fail=never"))
        prepared = prepare_experiment(write(folder, toy_config()), changes)
        said = (command or "exec python toy_trial.py").replace("python", sys.executable)
        assert prepared.config["trialCommand"] == f"{said} '--folder=a b' --fail=never"


def test_limits_are_compared_with_what_was_trained(folder):
    path, trained = write(folder, toy_config()), ("--trained=macs=5.3K:5.6K",)
    with pytest.raises(ConstraintError) as caught:
        prepare_experiment(path, Changes(trial_flags=trained))
    assert str(caught.value).startswith(
        f"{path}: tuner.classArgs: the search is limited to macs=4.6K:5.2K, but the supernet was "
        "trained on paths of macs=5.3K:5.6K"
    )
    limits = {"constraints": {"macs": "5.4K"}}
    prepared = prepare_experiment(path, Changes(limits, trial_flags=trained))
    assert "--constraint macs=5.3K:5.4K leaves out the rest" in prepared.remark
    limits = {"constraints": {"macs": ["5.3K", "5.4K"]}}
    assert prepare_experiment(path, Changes(limits, trial_flags=trained)).remark == ""


def test_flags_of_our_searchers_are_not_for_others(folder):
    config = toy_config()
    with pytest.raises(ConfigError, match="searcher is 'random', but EvolutionTuner is"):
        prepare_experiment(write(folder, config), Changes({"searcher": "random"}))
    config["tuner"] = {"name": "TPE"}
    changes = Changes({"rounds": 3, "constraints": {"macs": 5000}})
    with pytest.raises(ConfigError, match=r"TPE.*rounds, constraints;.*tester\.py --constraint"):
        prepare_experiment(write(folder, config), changes)


def test_stale_files_are_replaced(folder):
    (folder / "space.json").write_text("{}")
    (folder / "cost.json").write_text("{}")
    prepare_experiment(write(folder, toy_config()), Changes())
    assert json.loads((folder / "space.json").read_text()) == toy_spec().search_space()
    assert (folder / "cost.json").read_bytes() != b"{}"


def test_failing_trial_command_costs_no_file(folder):
    config = toy_config()
    prepare_experiment(write(folder, config), Changes())
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    config["trialCommand"] = "python toy_trial.py --no-such-flag"
    with pytest.raises(ConfigError, match=r"exit status 2.*--no-such-flag"):
        prepare_experiment(write(folder, config), Changes())
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {**before, "config.yml": None} == {**after, "config.yml": None}


def test_trial_command_finds_the_cost_table_that_it_is_to_write(folder):
    config = toy_config()
    prepare_experiment(write(folder, config), Changes())
    config["trialCommand"] += " $(test -e cost.json || echo --no-such-flag)"
    prepare_experiment(write(folder, config), Changes())
    assert not list(folder.glob(".ss_gen-*"))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("trialComand", "python x.py", "trialcomand"),
        ("trialCommand", None, "trialCommand"),
        ("trialCommand", "true", "did not write the search space"),
        ("searchSpaceFile", None, "searchSpaceFile"),
        ("searchSpaceFile", "no/where/space.json", "no/where"),
        ("trialCodeDirectory", "nowhere", "trialCodeDirectory.*nowhere"),
        ("trialConcurrency", 0, "trial_concurrency > 0"),
        ("trialConcurrency", "two", "refuses"),
        ("maxTrialNumber", 5, "maxTrialNumber is 5.*12"),
        ("maxTrialDuration", "soon", "refuses"),
        ("tuner", None, "tuner"),
        ("tuner.className", None, "className"),
        ("tuner", {"name": "Randm"}, "Randm.*Random"),
        ("tuner.className", "spos.search.tuner.Evolution_Tuner", "Evolution_Tuner"),
        ("tuner.className", "spos.serch.EvolutionTuner", "spos.serch"),
        ("tuner.className", "EvolutionTuner", "EvolutionTuner"),
        ("tuner.codeDirectory", "nowhere", "codeDirectory.*nowhere"),
        ("tuner.classArgs", {"poplation": 5}, "poplation.*population"),
        ("tuner.classArgs", {"population": "many"}, "population"),
        ("tuner.classArgs", {"num_mutations": 99, "population": 5}, "num_mutations"),
        ("tuner.classArgs", {"constraints": {"macs": [0, 10]}}, "reaches"),
        ("tuner.classArgs", {"constraints": {"macs": [9, 3]}}, "exceeds"),
        ("tuner.classArgs", {"constraints": {"watts": 10}}, "watts"),
        ("tuner.classArgs", {"cost_table": "other.json"}, "other.json"),
        ("trainingService", None, "platform"),
        ("trainingService.platform", "kubeflow", "kubeflow"),
        ("trainingService.platform", "remote", "machineList|machine_list"),
        (
            "trainingService",
            {
                "platform": "remote",
                "machineList": [{"host": "localhost", "user": "me", "password": "secret"}],
            },
            "sshKeyFile",
        ),
        ("trainingService.reuseMode", True, "reuseMode"),
        ("trainingService.trialGpuNumber", 1, "refuses|GPU"),
    ],
)
def test_mistakes_are_named(folder, keys, value, message):
    config = toy_config()
    change(config, keys, value)
    with pytest.raises(SposError, match=message) as caught:
        prepare_experiment(write(folder, config), Changes())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "{", "a: !!python/object/apply:os.abort []\n"])
def test_files_that_are_no_configuration_are_refused(folder, text):
    with pytest.raises(ConfigError, match=r"config\.yml"):
        prepare_experiment(write(folder, text), Changes())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yml"):
        prepare_experiment(tmp_path / "nothing.yml", Changes())


@pytest.mark.parametrize(
    ("num_gpus", "per_trial", "concurrency", "per_gpu", "message"),
    [
        (0, 1, 1, 1, "has 0 GPUs"),
        (1, 2, 1, 1, "has 1 GPUs"),
        (2, 1, 3, 1, "room for 2"),
        (1, 1, 1, 1, None),
        (2, 1, 4, 2, None),
    ],
)
def test_gpus_asked_for_must_be_there(
    folder, monkeypatch, num_gpus, per_trial, concurrency, per_gpu, message
):
    monkeypatch.setattr(experiment_module, "count_gpus", lambda: num_gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = toy_config()
    config["trialConcurrency"] = concurrency
    config["trainingService"] |= {
        "trialGpuNumber": per_trial,
        "useActiveGpu": True,
        "maxTrialNumberPerGpu": per_gpu,
    }
    path = write(folder, config)
    if message is None:
        prepare_experiment(path, Changes())
        return
    with pytest.raises(ConfigError, match=message):
        prepare_experiment(path, Changes())


@pytest.mark.parametrize(
    ("visible", "given", "found"), [("2,3", None, [2, 3]), ("2,3", "0, 1", [0, 1])]
)
def test_nni_is_told_of_the_visible_gpus(folder, monkeypatch, visible, given, found):
    monkeypatch.setattr(experiment_module, "count_gpus", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = toy_config()
    config["trainingService"] |= {"trialGpuNumber": 1, "useActiveGpu": True, "gpuIndices": given}
    config["trialConcurrency"] = 2
    prepared = prepare_experiment(write(folder, config), Changes())
    assert prepared.config["trainingService"]["gpuIndices"] == found
    config["trialConcurrency"] = 3
    with pytest.raises(ConfigError, match="2 GPUs with 1 for a trial have room for 2"):
        prepare_experiment(write(folder, config), Changes())


def test_visible_gpus_must_be_numbers(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c")
    config = toy_config()
    config["trainingService"] |= {"trialGpuNumber": 1, "useActiveGpu": True}
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=GPU-8f2c: NNI knows GPUs by"):
        prepare_experiment(write(folder, config), Changes())


def test_tuners_of_nni_can_be_used(folder):
    config = toy_config()
    config["tuner"] = {"name": "Random"}
    config["maxTrialNumber"] = 5
    assert prepare_experiment(write(folder, config), Changes()).num_planned is None


def test_tuner_of_the_user_is_found_in_its_folder(folder):
    (folder / "my_own_tuner.py").write_text(
        "class Mine:\n    def __init__(self, speed=1):\n        self.speed = speed\n"
    )
    config = toy_config()
    config["tuner"] = {"className": "my_own_tuner.Mine", "codeDirectory": "."}
    config["tuner"]["classArgs"] = {"speed": 2}
    assert prepare_experiment(write(folder, config), Changes()).num_planned is None
    config["tuner"]["classArgs"] = {"sped": 2}
    with pytest.raises(ConfigError, match=r"sped.*speed"):
        prepare_experiment(write(folder, config), Changes())


def test_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}"):
            check_port(port)
    check_port(port)
    for port in (0, -1, 99999):
        with pytest.raises(ConfigError, match=f"--port {port}: expected .* between 1 and 65535"):
            check_port(port)


def test_shipped_configuration_is_what_it_says(folder):
    """`config_search.yml` as it is, with the toy in place of tester.py."""
    shutil.copy(ROOT / "config_search.yml", folder)
    changes = Changes(trial_command="exec python toy_trial.py")
    prepared = prepare_experiment(folder / "config_search.yml", changes)
    assert prepared.num_planned == 1000
    shipped = yaml.safe_load((ROOT / "config_search.yml").read_text())
    assert shipped["trialCommand"] == "exec python tester.py --run-dir runs/supernet"
    assert shipped["trialConcurrency"] == 1 and "trialGpuNumber" not in shipped
    assert toy_table().spec.search_space() == prepared.config["searchSpace"]


def test_command_fails_in_one_line_before_nni_is_started(folder):
    config = toy_config()
    config["tuner"]["classArgs"]["constraints"] = {"macs": [0, 10]}
    write(folder, config)
    begun = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "spos", "search", "start", "--config", "config.yml"]
        + ["--port", str(free_port())],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.monotonic() - begun < 15
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert "reaches" in process.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
