"""A further metric of a cost table, fitted to measurements of whole networks.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.files` and numpy; never torch.

For devices that Python does not run on. What was measured of enough networks is explained as the
table explains every cost, by a constant and a number for each combination of candidates that a term
has: least squares, with a ridge that counts as `RIDGE` further networks with each combination, at
the mean of its layer. A sum leaves open what belongs to the constant and what to a layer; here the
lowest combination of every term has 0, so that no number is negative and the constant is what the
cheapest network costs. (The constant is below 0 only if measurements are far from such a sum.)
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spos.architecture import Architecture, describe_differences, load_architecture
from spos.cost.prediction import Prediction
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError
from spos.files import parse_json, read_bytes

RIDGE = 0.1
MAX_BYTES = 2**24  # of a file of measurements
# What a trial reports, and the sum of costs that a search adds to its table.
_TAKEN = ("top1", "top5", "loss", "default", "arch", "error", "supernet", "search_score")


@dataclass(frozen=True)
class Measurement:
    """What was measured of one network.

    Attributes:
        path: its architecture file.
        arch: its architecture.
        number: above 0.
    """

    path: Path
    arch: Architecture
    number: float


def read_measurements(path: Path) -> list[Measurement]:
    """Read a CSV of network and number, or a JSON object of network -> number.

    A network is named by any path of its file, or by that file's name up to the first dot; beside
    the measurements is its architecture, of that name and ``.json``.

    Raises:
        ConfigError: naming the place, if the file is something else, a number is not above 0, or a
            network is unknown or there twice.
        ArchitectureError: if an architecture file is malformed.
    """
    text = read_bytes(path, error=ConfigError, max_bytes=MAX_BYTES)
    rows = _read_object(text, path) if path.suffix == ".json" else _read_rows(text, path)
    found: dict[Path, Measurement] = {}
    for where, name, value in rows:
        file = _find(path, name)
        if not os.path.isfile(file):  # unlike pathlib's, also for a name that is too long
            raise ConfigError(
                f"{where}: there is no {file}; name networks by their files in that folder, as "
                "`python -m spos sample SPACE --onnx DIR` wrote them"
            )
        if file in found:
            raise ConfigError(f"{where}: {name} was there before; give one number for a network")
        found[file] = Measurement(file, load_architecture(file), _number(where, value))
    if not found:
        raise ConfigError(f"{path}: holds no measurement; expected lines such as ID,12.5")
    return list(found.values())


def fit_costs(
    table: CostTable, measurements: Sequence[Measurement], *, metric: str, source: str
) -> tuple[CostTable, Prediction]:
    """Add a metric to a table.

    Args:
        table: costs of a space, or of a part of it.
        measurements: of as many different networks as there are numbers to be fitted
            (`count_numbers`), at least 2, with every combination of a term's candidates in some.
        metric: its name, with its unit.
        source: where the measurements are from.

    Returns:
        The table with the metric, in place of one measured before that it may have had; and how
        well sums predict each network when fitted to all others.

    Raises:
        ConfigError: if the metric cannot have this name, or the measurements are of other options
            or too few.
        ArchitectureError: if one is of another space.
    """
    _check_metric(metric, table)
    _check_networks(table, measurements)
    table = table.with_terms(table.spec.choices)
    needed = max(2, count_numbers(table))
    if len(measurements) < needed:
        raise ConfigError(
            f"{source}: holds {len(measurements)} networks, but {needed} numbers are to be fitted; "
            f"measure {needed} or more, better {3 * needed}"
        )
    design = _design(table, [each.arch for each in measurements], source)
    measured = np.array([each.number for each in measurements])
    solved = np.linalg.solve(  # (columns, networks): from measurements to numbers
        design.T @ design + RIDGE * np.diag([0.0, *[1.0] * (design.shape[1] - 1)]), design.T
    )
    numbers = solved @ measured
    # What the fit to all other networks says of each, without fitting anew (Allen 1974, PRESS).
    influence = np.einsum("nc,cn->n", design, solved)
    predicted = measured - (measured - design @ numbers) / (1 - influence)
    prediction = Prediction(tuple(predicted.tolist()), tuple(measured.tolist()))
    how = {
        "file": source,
        "networks": len(measurements),
        "numbers": needed,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "check": prediction.summary(),
    }
    return _fill(table, metric, numbers, how), prediction


def count_numbers(table: CostTable) -> int:
    """How many numbers determine all sums over the table: its freedom, as statistics has it.

    One for the constant, and n - 1 for a layer of n candidates; of terms that share choices, what
    depends on the same ones counts once.
    """
    groups = [*((label,) for label in table.spec.choices), *(term.labels for term in table.terms)]
    parts = {
        labels
        for group in groups
        for size in range(len(group) + 1)
        for labels in itertools.combinations(sorted(group), size)
    }
    sizes = {label: len(candidates) for label, candidates in table.spec.choices.items()}
    return sum(math.prod(sizes[label] - 1 for label in labels) for labels in parts)


def _check_metric(metric: str, table: CostTable) -> None:
    counted = [name for name in table.metrics if name not in table.measured]
    if not re.fullmatch(r"[A-Za-z]\w*", metric, re.ASCII) or metric in (*counted, *_TAKEN):
        raise ConfigError(
            f"--metric {metric}: expected a name of its own, of letters, digits and _, such as "
            f"latency_ms or energy_mj; not one of {', '.join((*counted, *_TAKEN))}"
        )


def _check_networks(table: CostTable, measurements: Iterable[Measurement]) -> None:
    for each in measurements:
        table.spec.check_architecture(each.arch, source=str(each.path))
        if differences := describe_differences(each.arch.options, table.spec.options):
            raise ConfigError(
                f"{each.path}: is another network than those of the cost table ({differences}); "
                "give the networks' own --table and options"
            )


def _design(table: CostTable, archs: Sequence[Architecture], source: str) -> np.ndarray:
    """(networks, 1 + combinations of all terms): 1 for the constant and for what a network has."""
    columns = [np.ones((len(archs), 1))]
    for term in table.terms:
        keys = list(table.spec.combinations(term.labels))
        places = {key: place for place, key in enumerate(keys)}
        rows = [places[tuple(arch.choices[label] for label in term.labels)] for arch in archs]
        columns.append(np.eye(len(keys))[rows])
        for key, count in zip(keys, columns[-1].sum(axis=0), strict=True):
            if not count:
                missing = ", ".join(f"{k} {v}" for k, v in zip(term.labels, key, strict=True))
                raise ConfigError(
                    f"{source}: no network has {missing}; measure more networks, or those that "
                    "are missing"
                )
    return np.concatenate(columns, axis=1)


def _fill(table: CostTable, metric: str, numbers: np.ndarray, how: dict[str, Any]) -> CostTable:
    """The table with these numbers, of each term above its lowest one."""
    fixed, terms, begin = float(numbers[0]), [], 1
    for term in table.terms:
        column = numbers[begin : begin + len(next(iter(term.costs.values())))]
        begin += len(column)
        fixed += float(column.min())
        costs = {**term.costs, metric: tuple((column - column.min()).tolist())}
        spreads = {name: each for name, each in term.spreads.items() if name != metric}
        terms.append(Term(term.labels, costs, spreads))
    measured = {**table.measured, metric: how}
    return CostTable(table.spec, {**table.fixed, metric: fixed}, terms, measured=measured)


def _read_object(text: bytes, path: Path) -> list[tuple[str, str, Any]]:
    value = parse_json(text, source=str(path), error=ConfigError)
    if not isinstance(value, dict):
        raise ConfigError(f'{path}: expected an object such as {{"ID": 12.5}}')
    return [(f"{path}, {name}", name, number) for name, number in value.items()]


def _read_rows(text: bytes, path: Path) -> list[tuple[str, str, Any]]:
    try:
        lines = list(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ConfigError(f"{path}: is not a CSV file in UTF-8 ({problem})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not any(line):
            continue
        where = f"{path}, line {number}"
        if len(line) != 2:
            raise ConfigError(f"{where}: expected a network and a number, such as ID,12.5")
        name, cell = line
        value = _parse(cell)
        if number > 1 or value is not None or os.path.isfile(_find(path, name)):
            rows.append((where, name, cell if value is None else value))  # else it is a heading
    return rows


def _find(path: Path, name: str) -> Path:
    """The architecture file of a network, beside the measurements."""
    return path.parent / (re.split(r"[/\\]", name.strip())[-1].partition(".")[0] + ".json")


def _parse(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _number(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ConfigError(
            f"{where}: {value!r} is not a number above 0; leave out what could not be measured"
        )
    return float(value)
