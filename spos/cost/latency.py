"""Measured latency of every candidate of a space, as a further metric of its cost table.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.folding`, `spos.placement`,
`spos.spaces`, `spos.supernet` and torch.

Candidates are timed where they will run: in whole subnets as they are deployed (extracted,
BatchNorm folded, channels-last, evaluation mode), between the moment at which the first layer of a
choice starts and that at which the first layer of another one does. So the intervals of a pass add
up to the pass, caches are as full as they will be, and each pass times a candidate of every choice
at once. The subnets are drawn in groups in which each candidate is equally often, and visited in
rounds, so that a busy minute of the machine falls on all candidates alike.
"""

from __future__ import annotations

import datetime
import itertools
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spos.architecture import Candidate, Choices, SearchSpec
from spos.cost.additive import Key, conditional_layers
from spos.cost.prediction import Prediction
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError, is_out_of_memory
from spos.folding import fold_batchnorm
from spos.placement import cpu_threads
from spos.spaces import build_space, default_image_size
from spos.spaces.sharing import Choice
from spos.spaces.sliced import own_tensors
from spos.supernet import Supernet

METRIC = "latency_ms"
MAX_KEYS = 512  # combinations of candidates that one layer may depend on
NUM_CALIBRATION, NUM_CHECKS = 10, 20  # whole subnets
WARM_UP, REPEATS = 2, 7  # passes of a subnet at each visit
ROUNDS = 8

_FIXED = -1  # in place of a term's number: layers that every subnet has


def measure_latency(
    table: CostTable,
    *,
    device: torch.device,
    batch_size: int = 1,
    threads: int = 1,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[CostTable, Prediction]:
    """Measure every candidate that a cost table has a number for.

    Args:
        table: costs of a space, or of a part of it; its options say how large the images are.
        device: what to measure on, a CPU or a GPU.
        batch_size: images at once.
        threads: of a CPU.
        rounds: how often each candidate is visited.
        progress: called with the number of subnets visited and to visit.

    Returns:
        The table with ``latency_ms``, of a batch, in place of one that it may have had; and how
        well sums over it predict whole subnets.

    Raises:
        ConfigError: if the space cannot run, the device has too little memory, or a layer depends
            on more combinations of candidates than can be measured.
    """
    image_size = default_image_size(table.spec.space, options=table.spec.options)
    with cpu_threads(threads), torch.inference_mode():
        try:
            images = torch.randn(batch_size, 3, image_size, image_size, device=device)
            images = images.contiguous(memory_format=torch.channels_last)
            workbench = _Workbench(table, images)
            samples = _visit_all(workbench, rounds, progress)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            raise ConfigError(
                f"--batch-size {batch_size}: does not fit into the memory of {device}; lower it"
            ) from None
    how = {
        "device": _device_name(device),
        "batch_size": batch_size,
        "threads": threads,
        "torch": torch.__version__,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "rounds": rounds,
    }
    return _fill(workbench.table, samples, how)


@dataclass(frozen=True)
class _Samples:
    """What was measured, in milliseconds.

    Attributes:
        parts: number of a term -> combination of its candidates -> measurements.
        whole: pairs of an architecture and measurements of it as a whole.
    """

    parts: list[dict[Key, list[float]]]
    whole: list[tuple[Choices, list[float]]]


class _Workbench:
    """Builds subnets of a space as they are deployed, and times them."""

    def __init__(self, table: CostTable, images: Tensor) -> None:
        spec = table.spec
        space = build_space(spec.space, options=spec.options, affine=True)
        self._supernet = Supernet(space).eval()
        self._images = images
        self._clock = _Clock(images.device)
        self._begun = self._ended = self._clock.now()  # of the last pass
        choices = [each for each in self._supernet.modules() if isinstance(each, Choice)]
        self.table = _with_terms(table, {each.label for each in choices})
        labels = [set(term.labels) for term in self.table.terms]
        self._term_of = {
            id(layer.module): _find_term(labels, layer.labels())
            for layer in conditional_layers(self._supernet)
        }
        names = {id(module): name for name, module in self._supernet.named_modules()}
        # Candidates without weights, such as a pooling or a skip, are known by their place.
        self._bare = [
            (names[id(choice)], choice, _find_term(labels, {choice.label}))
            for choice in choices
            if any(not _has_tensors(choice.candidate(each)) for each in choice.candidates)
        ]

    def time_whole(self, choices: Choices) -> float:
        """Median milliseconds of a subnet's pass."""
        network, _ = self._build(choices)
        return statistics.median(self._passes(network, lambda: None))

    def time_parts(self, choices: Choices) -> dict[int, float]:
        """Median milliseconds of the layers of each term in a subnet's pass."""
        network, terms = self._build(choices)
        marks: list[tuple[int, Any]] = []
        modules = {name: network.get_submodule(name) for name in terms}
        with ExitStack() as hooks:
            order: list[str] = []
            for name, module in modules.items():
                hook = module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
                hooks.callback(hook.remove)
            network(self._images)
        entries = [_FIXED, *(terms[name] for name in order)]
        first = {
            name
            for name, (before, term) in zip(order, itertools.pairwise(entries), strict=True)
            if before != term
        }
        sums: dict[int, list[float]] = {}
        with ExitStack() as hooks:
            for name in first:
                hook = modules[name].register_forward_pre_hook(
                    lambda *_, term=terms[name]: marks.append((term, self._clock.now()))
                )
                hooks.callback(hook.remove)
            for _ in self._passes(network, marks.clear):
                for term, spent in self._split(marks).items():
                    sums.setdefault(term, []).append(spent)
        return {term: statistics.median(spent) for term, spent in sums.items()}

    def _build(self, choices: Choices) -> tuple[nn.Module, dict[str, int]]:
        """The deployed subnet, and the terms that its layers belong to, by their names."""
        self._supernet.activate(choices)
        subnet = self._supernet.extract(choices, affine=True)
        subnet.to(self._images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sources = [each for each in self._supernet.active_modules() if own_tensors(each)]
        modules = dict(subnet.named_modules())
        targets = [name for name, each in modules.items() if own_tensors(each)]
        pairs = zip(targets, sources, strict=True)  # in the same order, as `extract` has them
        terms = {name: self._term_of[id(source)] for name, source in pairs}
        for name, choice, term in self._bare:
            candidate = choice.candidate(choice.active)
            if not _has_tensors(candidate) and type(modules.get(name)) is type(candidate):
                terms[name] = term
        return fold_batchnorm(subnet, self._images[:1]).network, terms

    def _passes(self, network: nn.Module, begin: Callable[[], object]) -> Iterator[float]:
        """Milliseconds of each of several passes, after some to warm up."""
        for number in range(WARM_UP + REPEATS):
            self._clock.wait()
            begin()
            self._begun = self._clock.now()
            network(self._images)
            self._ended = self._clock.now()
            self._clock.wait()
            if number >= WARM_UP:
                yield self._clock.milliseconds(self._begun, self._ended)

    def _split(self, marks: Sequence[tuple[int, Any]]) -> dict[int, float]:
        """Milliseconds of each term in the last pass."""
        spent: dict[int, float] = {}
        ends = [*(moment for _, moment in marks[1:]), self._ended]
        for (term, moment), end in zip(marks, ends, strict=True):
            spent[term] = spent.get(term, 0.0) + self._clock.milliseconds(moment, end)
        return spent


class _Clock:
    """Moments on a device.

    Of a GPU those at which it gets there, not those of the launch. Of a CPU with one thread those
    of that thread's own time, in which other programs take nothing: on a busy machine a pass of
    many milliseconds is interrupted always, the short ones of its parts hardly ever, and a sum of
    these would be far from it. With several threads, of which some wait for others, the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def now(self) -> Any:
        """This moment."""
        if self._device.type != "cuda":
            return self._read()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Between two moments that have passed."""
        return (end - begin) * 1e3 if self._device.type != "cuda" else begin.elapsed_time(end)


def _visit_all(
    workbench: _Workbench, rounds: int, progress: Callable[[int, int], object]
) -> _Samples:
    table, draw = workbench.table, random.Random(0)
    keys = [list(table.spec.combinations(term.labels)) for term in table.terms]
    samples = _Samples(
        [{key: [] for key in each} for each in keys],
        [(choices, []) for choices in _draw_distinct(table.spec, NUM_CALIBRATION + NUM_CHECKS)],
    )
    size = max(map(len, keys), default=1)
    total, done = rounds * (size + len(samples.whole)), 0
    for _ in range(rounds):
        visits: list[Any] = [*_draw_group(table, keys, size, draw), *samples.whole]
        draw.shuffle(visits)
        for visit in visits:
            if isinstance(visit, dict):
                spent = workbench.time_parts(visit)
                for number, (term, parts) in enumerate(
                    zip(table.terms, samples.parts, strict=True)
                ):
                    key = tuple(visit[label] for label in term.labels)
                    parts[key].append(spent.get(number, 0.0))
            else:
                visit[1].append(workbench.time_whole(visit[0]))
            done += 1
            progress(done, total)
    return samples


def _draw_group(
    table: CostTable, keys: Sequence[Sequence[Key]], size: int, draw: random.Random
) -> list[dict[str, Candidate]]:
    """Architectures in which each combination of a term's candidates is about equally often."""
    group: list[dict[str, Candidate]] = [
        {label: draw.choice(each) for label, each in table.spec.choices.items()}
        for _ in range(size)
    ]
    for term, each in zip(table.terms, keys, strict=True):
        order = [key for _ in range(-(-size // len(each))) for key in draw.sample(each, len(each))]
        for choices, key in zip(group, order, strict=False):
            choices.update(zip(term.labels, key, strict=True))
    return group


def _draw_distinct(spec: SearchSpec, count: int) -> list[dict[str, Candidate]]:
    """Random architectures, all different."""
    draw, found = random.Random(1), {}
    while len(found) < min(count, spec.num_architectures):
        choices = {label: draw.choice(each) for label, each in spec.choices.items()}
        found[tuple(choices.values())] = choices
    return list(found.values())


def _fill(table: CostTable, samples: _Samples, how: dict[str, Any]) -> tuple[CostTable, Prediction]:
    """The table with medians and spreads, and its sums compared with the whole subnets."""
    terms = []
    for term, parts in zip(table.terms, samples.parts, strict=True):
        medians = tuple(round(statistics.median(each), 6) for each in parts.values())
        spreads = tuple(round(_spread(each), 6) for each in parts.values())
        terms.append(
            Term(term.labels, {**term.costs, METRIC: medians}, {**term.spreads, METRIC: spreads})
        )
    whole = [(choices, statistics.median(each)) for choices, each in samples.whole]
    num_calibration = max(1, len(whole) * NUM_CALIBRATION // (NUM_CALIBRATION + NUM_CHECKS))
    sums = CostTable(table.spec, {**table.fixed, METRIC: 0.0}, terms)
    rest = [spent - sums.cost(choices, METRIC) for choices, spent in whole[:num_calibration]]
    fixed = {**table.fixed, METRIC: round(statistics.median(rest), 6)}
    filled = CostTable(table.spec, fixed, terms)
    checks = whole[num_calibration:]
    prediction = Prediction(
        tuple(filled.cost(choices, METRIC) for choices, _ in checks),
        tuple(spent for _, spent in checks),
    )
    if checks:
        how["check"] = prediction.summary()
    measured = {**table.measured, METRIC: how}
    return CostTable(table.spec, fixed, terms, measured=measured), prediction


def _with_terms(table: CostTable, labels: set[str]) -> CostTable:
    """The table with a term for each layer of which no candidate has weights."""
    table = table.with_terms(labels)
    for term in table.terms:
        if (count := len(list(table.spec.combinations(term.labels)))) > MAX_KEYS:
            raise ConfigError(
                f"{table.spec.space}: a layer depends on {count} combinations of "
                f"{', '.join(term.labels)}, more than the {MAX_KEYS} that can be measured one by "
                "one; let it depend on fewer choices, or on fewer candidates"
            )
    return table


def _find_term(terms: Sequence[set[str]], labels: set[str]) -> int:
    """The number of the term that a layer with these labels belongs to."""
    if not labels:
        return _FIXED
    return next(number for number, each in enumerate(terms) if labels <= each)


def _has_tensors(module: nn.Module) -> bool:
    return any(own_tensors(each) for each in module.modules())


def _spread(samples: Sequence[float]) -> float:
    """Distance of the quartiles."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
