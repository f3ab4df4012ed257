"""An experiment's configuration: read, changed by flags, and checked before NNI sees it.

Imports NNI (inside functions: it takes a second), `spos.errors`, `spos.files` and the rest of the
search; never torch.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spos.errors import ConfigError, SposError
from spos.files import read_bytes
from spos.search.arguments import (
    DEFAULT_SEARCHER,
    ExperimentPaths,
    change_arguments,
    load_method,
)
from spos.search.generate import generate_search_space
from spos.search.searcher import Search
from spos.search.trained import describe_limits

MAX_CONFIG_BYTES = 2**20
_INTERPRETER = re.compile(r"^(\s*(?:exec\s+)?)python3?(?=\s)")


@dataclass(frozen=True)
class Changes:
    """What flags change of the file.

    Attributes:
        class_args: arguments of the tuner.
        concurrency: ``trialConcurrency``.
        trial_command: ``trialCommand``.
        trial_flags: added to ``trialCommand``; of a flag given twice the later one counts.
        experiments_dir: ``experimentWorkingDirectory``.
    """

    class_args: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int | None = None
    trial_command: str | None = None
    trial_flags: tuple[str, ...] = ()
    experiments_dir: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """A checked experiment.

    Attributes:
        config: the configuration in NNI's canonical form, all paths absolute.
        num_planned: candidates that the search evaluates; None for a tuner that does not say.
        remark: what `describe_limits` says of it.
    """

    config: Mapping[str, Any]
    num_planned: int | None
    remark: str


def prepare_experiment(path: Path, changes: Changes) -> Experiment:
    """Read and check a configuration, and write the search space that it names.

    Raises:
        ConfigError: naming the file, the key and what is expected.
        ConstraintError: if a constraint cannot be met, leaves nothing that the supernet was trained
            on, or the cost table is not usable.
    """
    config = _load(path)
    folder = path.parent.resolve()
    _apply(config, changes, folder)
    _check_basics(config, folder, path)
    tuner = _resolve_tuner(config, folder, path)
    if tuner is None and changes.class_args:
        raise ConfigError(
            f"{path}: its tuner is NNI's own {config.tuner.name}, which takes none of these flags: "
            f"{', '.join(changes.class_args)}; write its settings into tuner.classArgs, and limits "
            "into trialCommand (tester.py --constraint)"
        )
    _generate(config, folder)
    canonical = _canonical(config, path)
    search, remark = _check_tuner(tuner, canonical, path) if tuner else (None, "")
    if search:
        _check_searcher(canonical["tuner"], path)
    num_planned = search.num_planned if search else None
    _check_budget(canonical, num_planned, bool(changes.class_args), path)
    _check_gpus(canonical, path)
    return Experiment(canonical, num_planned, remark)


def check_port(port: int) -> None:
    """Refuse a port that is none, is in use or that no user may open.

    Raises:
        ConfigError: naming the port.
    """
    if not 1 <= port <= 65_535:
        raise ConfigError(f"--port {port}: expected a number between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as problem:
            raise ConfigError(
                f"--port {port}: cannot be used ({problem.strerror}); stop what uses it "
                "(`nnictl experiment list` shows NNI's) or choose another port"
            ) from None


def _load(path: Path) -> Any:
    """NNI's own configuration object, not yet validated."""
    from nni.experiment.config import ExperimentConfig, utils

    text = read_bytes(path, error=ConfigError, max_bytes=MAX_CONFIG_BYTES)
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: is not YAML ({_one_line(problem)})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    utils.set_base_path(path.parent.resolve())
    try:
        return ExperimentConfig(**data)
    except Exception as problem:  # NNI raises whatever comes: AttributeError, TypeError, ...
        raise ConfigError(f"{path}: NNI refuses it ({_one_line(problem)})") from None
    finally:
        utils.unset_base_path()


def _apply(config: Any, changes: Changes, folder: Path) -> None:
    if changes.concurrency is not None:
        config.trial_concurrency = changes.concurrency
    if changes.trial_command is not None:
        config.trial_command = changes.trial_command
    if changes.trial_flags and config.trial_command:
        config.trial_command = f"{config.trial_command} {shlex.join(changes.trial_flags)}"
    if changes.experiments_dir is not None:
        config.experiment_working_directory = str(changes.experiments_dir.resolve())
    if changes.class_args and config.tuner is not None:
        code = _resolve(folder, getattr(config.tuner, "code_directory", None) or ".")
        load_method(changes.class_args.get("searcher", DEFAULT_SEARCHER), folder=code)
        arguments = config.tuner.class_args or {}
        config.tuner.class_args = change_arguments(arguments, changes.class_args)


def _check_basics(config: Any, folder: Path, path: Path) -> None:
    """What the rest relies on; NNI's own validation comes later and says less."""
    platform = getattr(config.training_service, "platform", None)
    if platform not in ("local", "remote"):
        raise ConfigError(
            f"{path}: trainingService.platform is {platform!r}; this command protects an NNI "
            "server on this machine and those that it reaches over SSH, so it starts `local` and "
            "`remote` experiments only (for others use `nnictl create` on a network that you trust)"
        )
    if platform == "remote":
        _check_machines(config.training_service.machine_list, path)
    if getattr(config.training_service, "reuse_mode", False):
        raise ConfigError(f"{path}: trainingService.reuseMode does not work in NNI 3.0; remove it")
    if not config.trial_command:
        raise ConfigError(f"{path}: trialCommand is missing, expected `exec python tester.py ...`")
    if not config.search_space_file:
        raise ConfigError(f"{path}: searchSpaceFile is missing: the file that trialCommand writes")
    code = _resolve(folder, config.trial_code_directory)
    if not code.is_dir():
        raise ConfigError(f"{path}: trialCodeDirectory {code} is not a folder")
    if platform == "remote":
        config.nni_manager_ip = "127.0.0.1"  # the machines' end of the tunnel back to this one
        return  # the trials' `python` is the machines' own, as their pythonPath says
    # NNI runs `python` as found in PATH, which may be another environment's.
    interpreter = shlex.quote(sys.executable).replace("\\", "\\\\")
    config.trial_command = _INTERPRETER.sub(rf"\1{interpreter}", config.trial_command)


def _check_machines(machines: Any, path: Path) -> None:
    if not isinstance(machines, list) or not machines:
        raise ConfigError(
            f"{path}: trainingService.machineList is missing, expected a list with host, user and "
            "sshKeyFile of each machine"
        )
    if any(each.password for each in machines):
        raise ConfigError(
            f"{path}: trainingService.machineList has a password, which NNI shows in its WebUI and "
            "keeps in its database; give sshKeyFile instead"
        )


def _resolve_tuner(config: Any, folder: Path, path: Path) -> Any:
    """The tuner's class; None for one of NNI's own."""
    tuner = config.tuner
    name = getattr(tuner, "class_name", None)
    if not name:
        _check_name(getattr(tuner, "name", None), path)
        return None
    code = _resolve(folder, tuner.code_directory or ".")
    if not code.is_dir():
        raise ConfigError(f"{path}: tuner.codeDirectory {code} is not a folder")
    module_name, _, class_name = name.rpartition(".")
    before = list(sys.path)
    sys.path.append(str(code))  # where NNI puts it too
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError, AttributeError) as problem:
        raise ConfigError(
            f"{path}: tuner.className {name!r} cannot be imported ({problem}); expected "
            "spos.search.tuner.EvolutionTuner or a class in a module in tuner.codeDirectory"
        ) from None
    finally:
        sys.path[:] = before


def _check_name(name: str | None, path: Path) -> None:
    """The name of one of NNI's own tuners."""
    from nni.tools.package_utils.config_manager import get_all_algo_meta

    if not name:
        raise ConfigError(f"{path}: tuner.className is missing")
    known = sorted(str(each.name) for each in get_all_algo_meta() if each.algo_type == "tuner")
    if name.lower() not in map(str.lower, known):
        raise ConfigError(f"{path}: tuner.name {name!r} is none of NNI's: {', '.join(known)}")


def _generate(config: Any, folder: Path) -> None:
    target = _resolve(folder, config.search_space_file)
    if not target.parent.is_dir():
        raise ConfigError(f"searchSpaceFile: {target.parent} is not a folder")
    paths = ExperimentPaths(_resolve(folder, config.tuner.code_directory or "."), target)
    generate_search_space(
        config.trial_command,
        folder=_resolve(folder, config.trial_code_directory),
        target=target,
        table=paths.cost_table(None),
        is_local=config.training_service.platform == "local",
    )


def _canonical(config: Any, path: Path) -> dict[str, Any]:
    """The configuration as NNI's manager takes it, validated by NNI."""
    try:
        return config.json()
    except Exception as problem:
        # A bare AssertionError says nothing; the line that raised it names the key.
        reason = _one_line(problem) or traceback.extract_tb(problem.__traceback__)[-1].line
        raise ConfigError(f"{path}: NNI refuses it ({reason})") from None


def _check_tuner(tuner: Any, config: Mapping[str, Any], path: Path) -> tuple[Search | None, str]:
    """Check ``classArgs``; the search that they describe, if it is ours, and `describe_limits`."""
    arguments = config["tuner"].get("classArgs") or {}
    try:
        inspect.signature(tuner).bind(**arguments)
    except TypeError as problem:
        known = ", ".join(inspect.signature(tuner).parameters)
        raise ConfigError(f"{path}: tuner.classArgs: {problem}; expected some of {known}") from None
    check = getattr(tuner, "check_arguments", None)
    if check is None:
        return None, ""
    paths = ExperimentPaths(Path(config["tuner"]["codeDirectory"]), Path(config["searchSpaceFile"]))
    try:
        search: Search = check(arguments, paths=paths)
        return search, describe_limits(search.space, search.space.table.trained)
    except SposError as problem:
        raise type(problem)(f"{path}: tuner.classArgs: {problem}") from None


def _check_searcher(tuner: Mapping[str, Any], path: Path) -> None:
    """The tuner must find a searcher of the user's own; it does not run in this folder."""
    name, code = str((tuner.get("classArgs") or {}).get("searcher")), tuner["codeDirectory"]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        return
    program = (
        "import importlib, sys; module, name, code = sys.argv[1:]; sys.path.append(code); "
        "getattr(importlib.import_module(module), name)"
    )
    command = [sys.executable, "-c", program, module_name, class_name, code]
    # The root as its folder: what is found by a path relative to this one, the tuner does not find.
    done = subprocess.run(command, cwd=os.sep, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        *_, reason = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ConfigError(
            f"{path}: NNI's tuner does not find the searcher {name!r} ({reason}); put its module "
            f"into tuner.codeDirectory, {code}, install it, or set PYTHONPATH"
        )


def _check_budget(
    config: dict[str, Any], num_planned: int | None, is_changed: bool, path: Path
) -> None:
    """`maxTrialNumber` must not end the search early; it follows flags that change the search."""
    if num_planned is None:
        return
    if is_changed:
        config["maxTrialNumber"] = 2 * num_planned  # every candidate may fail once
    if config.get("maxTrialNumber", num_planned) < num_planned:
        raise ConfigError(
            f"{path}: maxTrialNumber is {config['maxTrialNumber']}, but the search has "
            f"{num_planned} candidates (rounds x population), and those that fail are tried "
            f"again; set it to {2 * num_planned}, the search ends by itself when it has finished"
        )


def _check_gpus(config: Mapping[str, Any], path: Path) -> None:
    service = config["trainingService"]
    per_trial = service.get("trialGpuNumber") or 0
    if not per_trial or service["platform"] != "local":
        return
    indices = service.get("gpuIndices")
    if indices is None and (indices := _visible_gpus()) is not None:
        service["gpuIndices"] = indices  # by itself NNI gives out all that the driver shows
    num_gpus = count_gpus() if indices is None else len(indices)
    if per_trial > num_gpus:
        raise ConfigError(
            f"{path}: trialGpuNumber is {per_trial}, but this machine has {num_gpus} GPUs; "
            "leave it out to run trials on the CPU, or on the one GPU that there is"
        )
    room = num_gpus * service.get("maxTrialNumberPerGpu", 1) // per_trial
    if config["trialConcurrency"] > room:
        raise ConfigError(
            f"{path}: trialConcurrency is {config['trialConcurrency']}, but {num_gpus} GPUs with "
            f"{per_trial} for a trial have room for {room}; lower it or raise maxTrialNumberPerGpu"
        )


def _visible_gpus() -> list[int] | None:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves; None if it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    numbers = [each.strip() for each in text.split(",") if each.strip()]
    if not all(each.isdecimal() for each in numbers):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={text}: NNI knows GPUs by their numbers; set it to these"
        )
    return [int(each) for each in numbers]


def count_gpus() -> int:
    """How many NVIDIA GPUs the driver shows, as NNI counts them."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlDeviceGetCount()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver
        return 0


def _resolve(folder: Path, given: Any) -> Path:
    return (folder / Path(given).expanduser()).resolve()


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
