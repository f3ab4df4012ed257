"""A trial script like tester.py whose score is a formula, so that real experiments take seconds.

With NNI_GEN_SEARCH_SPACE set it writes the search space and cost.json beside it. In a trial it
evaluates the architecture it is given, appends the id to ``trials.log`` when it begins, and keeps
the result in ``results``, both in ``--folder``. Some ways to fail are built in: ``--fail report``
and ``--fail die`` fail the first evaluation of every fourth architecture, with and without a word;
``--fail always`` fails every one until there is a file ``mended``; ``--hang ID`` hangs at one and
will not be interrupted.
"""

import argparse
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from spos.architecture import SearchSpec
from spos.cost.constraints import parse_constraint_flags
from spos.cost.table import CostTable, Term
from spos.files import read_json, write_json
from spos.search.trial import in_trial, start_trial

CANDIDATES = ("k3", "k5", "k7", "xcep")
WIDTHS = (2, 4, 6, 8)
NUM_LAYERS = 8


def toy_spec(num_layers: int = NUM_LAYERS, *, has_channels: bool = False) -> SearchSpec:
    """Choices of a block in each layer; with channels every second choice is a width instead."""
    choices: dict[str, tuple] = {}
    for number in range(1, num_layers + 1):
        is_width = has_channels and number % 2 == 0
        label = f"channel_{number // 2}" if is_width else f"layer_{number}"
        choices[label] = WIDTHS if is_width else CANDIDATES
    return SearchSpec("toy", {"image_size": 32}, choices)


def toy_table(spec: SearchSpec | None = None) -> CostTable:
    spec = spec or toy_spec()
    terms = [
        Term(
            (label,),
            {
                "macs": tuple((1 + number) * (100 + 10 * place) for place in range(len(each))),
                "params": tuple(10 + (number + place) % 5 for place in range(len(each))),
            },
        )
        for number, (label, each) in enumerate(spec.choices.items())
    ]
    return CostTable(spec, {"macs": 1000, "params": 100}, terms)


def toy_score(choices) -> float:
    digits = hashlib.sha256(repr(sorted(choices.items())).encode()).hexdigest()[:4]
    return sum(each == "k5" for each in choices.values()) / 10 + int(digits, 16) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", choices=["never", "report", "die", "always"], default="never")
    parser.add_argument("--channels", action="store_true", help="a space with widths to choose")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--hang", metavar="ID")
    parser.add_argument("--log-gpu", action="store_true", help="write down which GPU it was given")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--trained", action="append", default=[], metavar="METRIC=LOW:HIGH")
    args = parser.parse_args()
    spec = toy_spec(has_channels=args.channels)
    if path := os.environ.get("NNI_GEN_SEARCH_SPACE"):
        write_json(path, spec.search_space())
        table = toy_table(spec)
        table.trained = parse_constraint_flags(args.trained, flag="--trained")
        table.save(Path(path).with_name("cost.json"))
        return 0
    if not in_trial():
        raise SystemExit("not in a trial")
    trial = start_trial()
    arch = spec.architecture(trial.parameters)
    saved = args.folder / "results" / f"{arch.id}.json"
    if saved.exists():  # NNI may run a trial again that had its result
        trial.report_final(read_json(saved))
        return 0
    if args.log_gpu:
        with open(args.folder / "gpus.log", "a") as file:
            print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
    is_first = count_evaluation(args.folder, arch.id) == 1
    while args.hang == arch.id:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(1)
    time.sleep(args.seconds)
    is_broken = args.fail == "always" and not (args.folder / "mended").exists()
    if is_broken or (args.fail in ("report", "die") and is_first and int(arch.id, 16) % 4 == 0):
        if args.fail != "die":
            trial.report_failure("it was meant to fail")
        return 1
    trial.report_intermediate(toy_score(arch.choices) / 2)
    score = toy_score(arch.choices)
    value = {"default": score, "top1": score, "arch": trial.parameters}
    saved.parent.mkdir(exist_ok=True)
    write_json(saved, value)
    trial.report_final(value)
    return 0


def count_evaluation(folder: Path, identifier: str) -> int:
    """Write down that an evaluation begins; how many of this architecture did so far."""
    with open(folder / "trials.log", "a+") as file:
        file.write(f"{identifier}\n")
        file.flush()
        file.seek(0)
        return file.read().count(identifier)


if __name__ == "__main__":
    sys.exit(main())
