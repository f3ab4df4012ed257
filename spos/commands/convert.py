"""`python -m spos convert`: architectures and weights from and to the other systems' files.

Imports `spos.errors`, `spos.files`, `spos.flag_values`; when it runs `spos.convert`, `spos.spaces`,
and torch only with a file of weights or a search space.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spos.errors import ConfigError
from spos.files import write_text, writing
from spos.flag_values import parse_options, to_path

if TYPE_CHECKING:
    from spos.architecture import Architecture
    from spos.convert.weights import ConvertedWeights

WEIGHT_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pth": "megvii",
    ".pt": "megvii",
    ".tar": "megvii",
}
ASSUMED_SIZE = 224  # of the images of weights that do not say
ARCHITECTURE_SUFFIXES = {".yaml": "mmrazor", ".yml": "mmrazor"}
_WEIGHT_STARTS = (b"PK", b"\x80", b"\x12\x01\0\0\0\0\0\0")  # torch's archive, a pickle, MXNet
_FORMATS = (
    "architectures: spos, nni3, nni2 (one-hot), nni2-index, ids, tuple, canyonwind, anglenas, "
    "macro, mmrazor (1.x), mmrazor-prefix, mmrazor-0.x; weights: safetensors, megvii, nni3"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("input", metavar="IN", help="file of any system, or zoo:NAME")
    parser.add_argument("output", metavar="OUT", type=to_path, help="file to write")
    parser.add_argument(
        "--to", metavar="FORMAT", help=f"{_FORMATS} (by default what OUT's name says)"
    )
    parser.add_argument(
        "--space", metavar="NAME", help="search space of IN, if it does not say; or module:Class"
    )
    parser.add_argument("--space-options", metavar="JSON", help='such as {"image_size": 32}')
    parser.add_argument(
        "--fixed-arc",
        type=to_path,
        metavar="FILE",
        help="of a subnet's weights: its architecture, to check",
    )
    parser.add_argument(
        "--preprocessing", choices=["standard", "spos"],
        help="what the weights expect: RGB with ImageNet's mean, or BGR from 0 to 255 (Megvii, "
        "AngleNAS); written into .safetensors",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert what IN is found to be."""
    if args.space:
        from spos.spaces import load_space_class

        load_space_class(args.space, allow_import=True)

    options = parse_options(args.space_options)
    if is_weight_file(args.input):
        _convert_weights(args, options)
    else:
        _convert_architecture(args, options)
    return 0


def is_weight_file(path: str) -> bool:
    """Whether a file holds weights; one that is not there does not."""
    if path.endswith((".safetensors", ".params")):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(_WEIGHT_STARTS)
    except OSError:
        return False


def _convert_architecture(args: argparse.Namespace, options: dict[str, Any]) -> None:
    from spos.convert.architectures import default_spec, recognize

    if args.fixed_arc or args.preprocessing:
        raise ConfigError("--fixed-arc and --preprocessing are for files of weights")
    format = args.to or ARCHITECTURE_SUFFIXES.get(args.output.suffix, "spos")
    spec = default_spec(args.space, **options) if args.space else None
    reading = recognize(args.input, spec)
    arch = reading.arch
    if options and spec is None:
        spec = default_spec(arch.space, **{**arch.options, **options})
        arch = spec.architecture(arch.choices, metrics=arch.metrics, source=args.input)
    _write_architecture(args.output, arch, format)
    print(f"{args.input}: {reading.format}, {_describe(arch)}\n{args.output}: {format}")


def _convert_weights(args: argparse.Namespace, options: dict[str, Any]) -> None:
    from spos.convert.architecture_writers import ARCHITECTURE_FORMATS
    from spos.convert.architectures import read_architecture
    from spos.convert.weight_writers import WEIGHT_FORMATS, write_weights
    from spos.convert.weights import read_weights

    format = args.to or WEIGHT_SUFFIXES.get(args.output.suffix, "spos")
    arch = read_architecture(args.fixed_arc) if args.fixed_arc else None
    found = read_weights(args.input, space=args.space, options=options, arch=arch)
    kind = _describe(found.arch) if found.arch else f"a supernet of {found.space}"
    if format in WEIGHT_FORMATS:
        with writing(args.output):
            write_weights(args.output, found, format, preprocessing=args.preprocessing)
    elif found.arch is None or format not in ARCHITECTURE_FORMATS:
        raise ConfigError(
            f"{args.output}: {kind} can be written as {', '.join(WEIGHT_FORMATS)}, not as "
            f"{format}; say --to"
        )
    else:
        _write_architecture(args.output, found.arch, format)
    print(f"{args.input}: weights of {found.system}, {kind}\n{args.output}: {format}")
    if format in WEIGHT_FORMATS and (unsaid := _describe_unsaid(found, format, args, options)):
        print(unsaid)


def _describe_unsaid(
    found: ConvertedWeights, format: str, args: argparse.Namespace, options: dict[str, Any]
) -> str:
    """What the file written does not say of a network's images; "" if it says all."""
    size, classes = found.options["image_size"], found.said.get("classes")
    prepared = args.preprocessing or found.said.get("preprocessing")
    if format == "safetensors":
        known = {**found.own_options, **options}
        unknown = {
            f"the size of its images, taken to be {size} (--space-options)": "image_size" in known,
            "their preprocessing (--preprocessing)": prepared is not None,
            "the names of its classes": classes is not None,
        }
        unsaid = [what for what, is_known in unknown.items() if not is_known]
        return f"{args.input} does not say {', '.join(unsaid)}" if unsaid else ""
    lost = [f"the size of its images, {size}"] if size != ASSUMED_SIZE else []
    if prepared:
        lost.append(f"their {prepared} preprocessing")
    if classes:
        lost.append(f"the names of its {len(classes)} classes")
    if not lost:
        return ""
    return (
        f"{args.output} cannot hold {', '.join(lost)}: say them again where it is read "
        f"(--space-options, --preprocessing), or keep {args.input}"
    )


def _write_architecture(path: Path, arch: Architecture, format: str) -> None:
    from spos.convert.architecture_writers import ARCHITECTURE_FORMATS, write_architecture

    if format not in ARCHITECTURE_FORMATS:
        raise ConfigError(
            f"--to {format}: an architecture can be written as {', '.join(ARCHITECTURE_FORMATS)}"
        )
    text = write_architecture(arch, format)
    with writing(path):
        write_text(path, text)


def _describe(arch: Architecture) -> str:
    return f"architecture {arch.id} of {arch.space}"
