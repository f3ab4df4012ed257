"""No file can run code: each hostile file would make a marker, and no reader of ours lets it.

A new reader of files is one line in `READERS`; a new kind of attack is one class in `ATTACKS`.
"""

import html
import io
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from spos.architecture import Architecture, SearchSpec, load_architecture
from spos.commands.search_run import read_arguments
from spos.convert.architectures import read_architecture
from spos.convert.weights import read_weights
from spos.cost.table import CostTable
from spos.data.cifar import unpack_cifar
from spos.data.decode import BadImage, load_rgb
from spos.data.index import load_index
from spos.data.split import load_split
from spos.deploy.networks import open_network
from spos.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    ConstraintError,
    DataError,
    SearchError,
    SposError,
)
from spos.evaluation.results import Results
from spos.files import append_journal, digest, read_journal, write_json
from spos.report.report import build_page
from spos.report.sources import collect
from spos.search.benchmark import load_macro_table
from spos.search.experiment import Changes, prepare_experiment
from spos.search.results import read_entries
from spos.spaces import build_subnet, space_spec
from spos.subnet import load_subnet
from spos.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
)
from spos.training.run_folder import RunSettings, read_settings, write_settings

SPEC = SearchSpec("wide", {}, {"layer_1": ("k3", "k5")})
ARCH = Architecture(
    "shufflenetv2", {"image_size": 8}, {f"layer_{number}": "k3" for number in range(1, 21)}
)


# --- attacks -----------------------------------------------------------------------------------


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def saved(save: Callable[[Any, Any], object], value: object) -> bytes:
    file = io.BytesIO()
    save(file, value)
    return file.getvalue()


def torch_zip(marker: Path) -> bytes:
    weights = {"network": {"weight": torch.ones(2)}, "step": Bomb(marker)}
    return saved(lambda file, value: torch.save(value, file), weights)


def torch_legacy(marker: Path) -> bytes:
    return saved(
        lambda file, value: torch.save(value, file, _use_new_zipfile_serialization=False),
        {"weight": torch.ones(2), "bomb": Bomb(marker)},
    )


def numpy_objects(marker: Path) -> bytes:
    return saved(np.savez, np.array([Bomb(marker)], dtype=object))


def yaml_tag(marker: Path) -> bytes:
    return f"tuner: !!python/object/apply:os.mkdir [{json.dumps(str(marker))}]\n".encode()


def nni_json(marker: Path) -> bytes:
    """What `nni.load` would import and call; it is plain JSON, so some readers may return it."""
    call = {"__symbol__": "path:os.mkdir", "__args__": [str(marker)], "__kwargs__": {}}
    return json.dumps(call).encode()


def python_source(marker: Path) -> bytes:
    return f"__import__('os').mkdir({str(marker)!r})\n".encode()


def load_nni_json(path: Path) -> None:
    import nni

    nni.load(path.read_text())


# what the attack is -> (its file for a marker, the careless reader that falls for it)
ATTACKS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "pickle": (lambda marker: pickle.dumps(Bomb(marker)), lambda p: pickle.loads(p.read_bytes())),
    "text pickle": (
        lambda marker: pickle.dumps(Bomb(marker), protocol=0),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "torch": (torch_zip, lambda path: torch.load(path, weights_only=False)),
    "old torch": (torch_legacy, lambda path: torch.load(path, weights_only=False)),
    "numpy": (numpy_objects, lambda path: np.load(path, allow_pickle=True)["arr_0"]),
    "YAML": (yaml_tag, lambda path: yaml.unsafe_load(path.read_text())),
    "NNI's JSON": (nni_json, load_nni_json),
    "Python": (python_source, lambda path: exec(path.read_text())),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_works_on_a_careless_reader(tmp_path, name):
    write, careless_read = ATTACKS[name]
    marker, path = tmp_path / "marker", tmp_path / "file"
    path.write_bytes(write(marker))
    careless_read(path)
    assert marker.exists()


# --- readers -----------------------------------------------------------------------------------


def read_image(path: Path) -> object:
    image = load_rgb(path)
    if isinstance(image, BadImage):
        raise image.error()
    return image


def write_mark(path: Path) -> None:
    """What an attacker who can write the checkpoint can write as well."""
    mark = {"version": 1, "step": 1, "size": path.stat().st_size, "sha256": digest(path)}
    write_json(path.with_suffix(".json"), mark)


def read_marked_checkpoint(path: Path) -> object:
    write_mark(path)
    assert latest_checkpoint(path.parent) == (1, path)
    return load_checkpoint(path)


def read_results(path: Path) -> object:
    results = Results(path.parent, save_checkpoint(path.parent / "checkpoints", 1, {"step": 1}))
    return results.find(ARCH)


@dataclass(frozen=True)
class Reader:
    """One of our readers, the name that its file has to have, and the error that it raises."""

    file_name: str
    read: Callable[[Path], object]
    error: type[SposError]
    returns: tuple[str, ...] = ()  # attacks that to this reader are harmless values


READERS = {
    "architecture": Reader("arch.json", load_architecture, ArchitectureError),
    "foreign architecture": Reader(
        "arch.json", lambda path: load_architecture(path, SPEC), ArchitectureError
    ),
    "architecture of any system": Reader("arch.yaml", read_architecture, ArchitectureError),
    "cost table": Reader("cost.json", CostTable.load, ConstraintError),
    "journal": Reader(
        "log.jsonl", lambda path: read_journal(path, error=SearchError), SearchError,
        returns=("NNI's JSON",),
    ),
    "results of candidates": Reader("evaluations.jsonl", read_results, CheckpointError),
    "search record": Reader("search.jsonl", lambda path: read_entries(path.parent), SearchError),
    "experiment": Reader(
        "config.yml", lambda path: prepare_experiment(path, Changes()), ConfigError
    ),
    "experiment without NNI": Reader(
        "config.yml", lambda path: read_arguments(path, {}), ConfigError
    ),
    "NAS-Bench-Macro": Reader("nas-bench-macro.json", load_macro_table, ConfigError),
    "run settings": Reader("args.json", lambda path: read_settings(path.parent), ConfigError),
    "index of images": Reader(".spos-train.json", load_index, DataError),
    "CIFAR archive": Reader(
        "cifar.tar.gz", lambda path: unpack_cifar(path, path.parent / "images"), DataError
    ),
    "split": Reader("split.json", load_split, DataError),
    "image": Reader("image.jpg", read_image, DataError),
    "checkpoint": Reader("step_00000001.pt", read_marked_checkpoint, CheckpointError),
    "weights of others": Reader("weights.pth.tar", load_tensors, CheckpointError),
    "weights of any system": Reader("best.pth.tar", read_weights, CheckpointError),
    "weights of MXNet": Reader("best.params", read_weights, CheckpointError),
    "subnet": Reader("best.safetensors", load_subnet, CheckpointError),
    "exported folder": Reader(
        "config.json", lambda path: load_subnet(path.parent), CheckpointError
    ),
    "ONNX model": Reader("net.onnx", open_network, CheckpointError),
    "subnet's weights": Reader(
        "weights.pth", lambda path: load_subnet(ARCH, path), CheckpointError
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", READERS)
def test_attack_is_refused_by_name(tmp_path, name, attack):
    reader = READERS[name]
    marker, path = tmp_path / "marker", tmp_path / reader.file_name
    path.write_bytes(ATTACKS[attack][0](marker) + b"\n")  # a whole line where lines are read
    if attack in reader.returns:
        reader.read(path)
    else:
        with pytest.raises(reader.error, match=reader.file_name) as caught:
            reader.read(path)
        assert type(caught.value) is reader.error
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["checkpoint", "weights of others", "weights of any system", "subnet's weights"]
)
def test_refused_weights_say_what_they_wanted_to_run(tmp_path, name):
    path = tmp_path / READERS[name].file_name
    path.write_bytes(torch_zip(tmp_path / "marker"))
    with pytest.raises(CheckpointError, match=r"blocked: .*mkdir\); save its state_dict alone"):
        READERS[name].read(path)
    assert not (tmp_path / "marker").exists()


REPORTED = (
    "supernet/args.json",
    "supernet/metrics.jsonl",
    "supernet/cost.json",
    "search/log/search.jsonl",
    "search/checkpoint/search.json",
)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", REPORTED)
def test_report_names_the_file_and_runs_nothing(tmp_path, name, attack):
    marker, runs = tmp_path / "marker", tmp_path / "runs"
    for each in REPORTED:
        (runs / each).parent.mkdir(parents=True, exist_ok=True)
    config = {"sampler": "uniform", "seed": 0, "path_range": None}
    write_settings(runs / "supernet", RunSettings("supernet", config, {}))
    append_journal(runs / "supernet" / "metrics.jsonl", {"step": 1, "train/loss": 1.0})
    (runs / name).write_bytes(ATTACKS[attack][0](marker) + b"\n")
    page, _ = build_page(collect([str(runs)]))
    assert str(runs / name) in html.unescape(page)
    assert not marker.exists()


# --- damaged weights -------------------------------------------------------------------------

WEIGHTS = {"network": {"weight": torch.arange(6.0)}, "step": 3, "classes": ["a", None, 0.5]}
FORMATS = {
    "torch": saved(lambda file, value: torch.save(value, file), WEIGHTS),
    "old torch": saved(
        lambda file, value: torch.save(value, file, _use_new_zipfile_serialization=False), WEIGHTS
    ),
    "pickle": pickle.dumps({"step": [3, None]}, protocol=2),
}


@pytest.mark.parametrize("original", FORMATS.values(), ids=FORMATS.keys())
def test_damaged_weights_are_refused_by_name(tmp_path, original):
    # Where torch's restricted reader gets lost it raises IndexError, AssertionError and others.
    path, draw = tmp_path / "weights.pt", random.Random(0)
    num_refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(draw.choice([1, 2, 8])):
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        path.write_bytes(data[: draw.choice([None, None, draw.randrange(len(data))])])
        try:
            load_tensors(path)
        except CheckpointError as error:
            num_refused += 1
            assert str(path) in str(error)
    assert num_refused > 100


# --- files that name code ----------------------------------------------------------------------


@pytest.mark.parametrize("space", ["spos_attack:Space", "os:mkdir", "spos_attack", "../x:y"])
@pytest.mark.parametrize(
    "use",
    [lambda arch: build_subnet(arch), lambda arch: space_spec(arch.space, options=arch.options)],
    ids=["build_subnet", "space_spec"],
)
def test_architecture_cannot_name_a_module_to_import(tmp_path, monkeypatch, space, use):
    marker, path = tmp_path / "marker", tmp_path / "arch.json"
    (tmp_path / "spos_attack.py").write_bytes(python_source(marker))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    value = {"version": 1, "space": space, "options": {"path": str(marker)}, "choices": {"a": 1}}
    path.write_text(json.dumps(value))
    with pytest.raises(SposError):
        use(load_architecture(path))
    assert not marker.exists()
    assert "spos_attack" not in sys.modules


def test_module_that_should_not_be_imported_would_have_done_it(tmp_path):
    (tmp_path / "spos_attack.py").write_bytes(python_source(tmp_path / "marker"))
    subprocess.run([sys.executable, "-c", "import spos_attack"], cwd=tmp_path, check=True)
    assert (tmp_path / "marker").exists()
