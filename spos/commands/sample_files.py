"""What `python -m spos sample` writes: drawn architectures to train, or as networks to measure.

Imports `spos.architecture`, `spos.cost`, `spos.files`; `spos.data`, `spos.deploy`, `spos.folding`,
`spos.spaces` and torch when it runs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

from spos.architecture import Architecture, Choices, save_architecture
from spos.cost.fitting import count_numbers
from spos.cost.table import CostTable
from spos.files import open_atomic, writing


def write_architectures(folder: Path, table: CostTable, paths: Iterable[Choices]) -> None:
    """Write each different path as ``ID.json``, with its costs.

    Args:
        folder: made if missing.
        table: of the paths' space.
        paths: drawn.

    Raises:
        ConfigError: if the folder or a file in it cannot be written.
    """
    archs = _make_folder(folder, table, paths, flag="--output-dir")
    for arch in archs:
        arch = dataclasses.replace(arch, metrics=table.costs(arch.choices))
        path = folder / f"{arch.id}.json"
        with writing(path, advice="; name another --output-dir"):
            save_architecture(path, arch)
    print(f"{folder}: {len(archs)} architectures ID.json", file=sys.stderr)


def write_networks(
    folder: Path, table: CostTable, paths: Iterable[Choices], *, space: str | None
) -> None:
    """Write ``ID.onnx`` and ``ID.json`` of each path; those that are there stay.

    The networks are as they are deployed, BatchNorm folded, with random weights.

    Args:
        folder: made if missing.
        table: of the paths' space.
        paths: drawn; each different one is written once.
        space: module:Class that may be imported.

    Raises:
        ConfigError: if the folder cannot be made, onnx is missing, or the space is not known.
    """
    from spos.deploy.onnx_export import require_onnx
    from spos.spaces import load_space_class

    require_onnx()
    if space:
        load_space_class(space, allow_import=True)
    archs = _make_folder(folder, table, paths, flag="--onnx")
    print(
        f"{folder}: {len(archs)} networks ID.onnx and their architectures ID.json; `cost --fit` "
        f"needs {count_numbers(table)} or more",
        file=sys.stderr,
    )
    for number, arch in enumerate(archs, start=1):
        path = folder / f"{arch.id}.onnx"
        if not path.exists():
            model = _export(arch)
            save_architecture(path.with_suffix(".json"), arch)
            with open_atomic(path) as file:
                file.write(model)
        if sys.stderr.isatty():
            end = "\n" if number == len(archs) else ""
            print(f"\rnetwork {number}/{len(archs)}", end=end, file=sys.stderr)


def _make_folder(
    folder: Path, table: CostTable, paths: Iterable[Choices], *, flag: str
) -> list[Architecture]:
    """Make the folder; the different architectures among the paths."""
    with writing(f"{flag} {folder}", advice="; name another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return list(dict.fromkeys(table.spec.architecture(path) for path in paths))


def _export(arch: Architecture) -> bytes:
    import torch

    from spos.data.preprocessing import Preprocessing
    from spos.deploy.onnx_export import export_onnx
    from spos.folding import fold_batchnorm
    from spos.spaces import build_subnet, default_image_size

    size = default_image_size(arch.space, options=arch.options)
    network = fold_batchnorm(build_subnet(arch), torch.zeros(1, 3, size, size)).network
    return export_onnx(network, arch, image_size=size, preprocessing=Preprocessing("standard"))
