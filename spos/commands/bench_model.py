"""`python -m spos bench model`: latency of deployed networks, per batch size and threads.

Imports `spos.errors`, `spos.flag_values`; `spos.deploy`, `spos.placement`, `spos.spaces` and torch
when it runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.flag_values import positive, to_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "files", type=to_path, nargs="+", metavar="FILE",
        help=".safetensors or folder (PyTorch), .onnx (ONNX Runtime; float32 or int8)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=positive, nargs="+", default=[1], metavar="N", help="(1)"
    )
    parser.add_argument("--threads", type=positive, nargs="+", default=[1], metavar="N", help="(1)")
    parser.add_argument("--repeats", type=positive, default=50, help="of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--space", help="module:Class of your own, if a file is of it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure all files in turns, for every number of threads and batch size."""
    from spos.deploy.networks import OnnxNetwork
    from spos.spaces import load_space_class

    if args.space:
        load_space_class(args.space, allow_import=True)
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        networks = _open(args.files, threads)
        runtimes = {
            name: "onnxruntime" if isinstance(network, OnnxNetwork) else "pytorch"
            for name, network in networks.items()
        }
        for batch_size in args.batch_size:
            measured = _measure(networks, batch_size, threads, args.repeats)
            for name, latency in measured.items():
                row = {"file": name, "runtime": runtimes[name], "threads": threads}
                rows.append({**row, "batch_size": batch_size, **vars(latency)})
    if args.json:
        print(json.dumps({"results": rows}))
        return 0
    width = max(len(row["file"]) for row in rows)
    print(f"{'file':{width}s}  runtime      threads  batch  median ms     p95 ms")
    for row in rows:
        print(
            f"{row['file']:{width}s}  {row['runtime']:11s}  {row['threads']:7d}  "
            f"{row['batch_size']:5d}  {row['median_ms']:9.3f}  {row['p95_ms']:9.3f}"
        )
    return 0


def _open(files: list[Path], threads: int) -> dict[str, Any]:
    from spos.deploy.networks import open_network

    networks = {str(path): open_network(path, threads=threads) for path in files}
    sizes = {name: network.image_size for name, network in networks.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(
            "networks are measured in turns on the same images, but these take other sizes: "
            + ", ".join(f"{name} {size}" for name, size in sizes.items())
        )
    return networks


def _measure(networks: dict[str, Any], batch_size: int, threads: int, repeats: int) -> Any:
    import torch

    from spos.deploy.latency import measure_latency
    from spos.placement import cpu_threads

    size = next(iter(networks.values())).image_size
    images = torch.zeros(batch_size, 3, size, size)
    with cpu_threads(threads):
        return measure_latency(networks, images, repeats=repeats)
