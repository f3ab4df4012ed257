"""The published networks of the reference systems, as data: choices, counts, accuracy, source.

Imports `spos.architecture` and `spos.errors`; never torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spos.architecture import Architecture, Candidate
from spos.errors import ArchitectureError

ZOO_PREFIX = "zoo:"
CHANNEL_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)  # Megvii's end at 1.6
BLOCKS = ("k3", "k5", "k7", "xcep")
ANGLENAS_NAMES = ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6")  # its operators 0 to 5

STAGE_OF_LAYER = (0,) * 4 + (1,) * 4 + (2,) * 8 + (3,) * 4  # of a ShuffleNet
_STAGE_WIDTHS = {"shufflenetv2": (64, 160, 320, 640), "shufflenetv2plus": (48, 128, 256, 512)}


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that one of the reference systems has published.

    Attributes:
        system: who published it.
        space: our search space that holds it.
        blocks: one digit for each layer; in ``proxyless_gpu`` AngleNAS' ids, ``-`` for a skip.
        macs: multiply-adds of its convolutions and linear layers for an image of 224 x 224.
        params: of the network with affine BatchNorm, as its authors build it.
        top1: published top-1 accuracy on ImageNet's validation set; None if there is none.
        source: where that accuracy is from.
        options: options of the space besides image size and classes.
        scales: one digit for each layer, the number of its channel scale; empty without.
        differs: what is different from the other networks, or from what was published.
    """

    system: str
    space: str
    blocks: str
    macs: int
    params: int
    top1: float | None
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scales: str = ""
    differs: str = ""


_RELEASED = "21012020202300003233"
_SERIES = "00311100202110202132"
_SERIES_SCALES = "65352634257546744543"
_S_PLUS = "00010010320122120020"
_S_PLUS_SCALES = "87685734242345663346"

_MEGVII_SCALES = {"channel_scales": list(CHANNEL_SCALES[:8])}
_LLIAI = {"layout": "lliai", "classifier_bias": True, "dropout": 0.0}
_CANYONWIND = {"layout": "canyonwind", "channel_scales": list(CHANNEL_SCALES)}
_PLUS = {
    **_CANYONWIND,
    "activation": "hswish",
    "squeeze_excitation": "canyonwind",
    "head": "mobilenetv3",
    "classifier_bias": True,
    "dropout": 0.2,
}
_LLIAI_README = "lliai README: the supernet's path in the search, not retrained"


def _lliai(
    blocks: str, macs: int, params: int, top1: float, source: str = _LLIAI_README
) -> PublishedNetwork:
    differs = "searched without a constraint; its own count of parameters holds dead weights"
    return PublishedNetwork(
        "lliai", "shufflenetv2", blocks, macs, params, top1, source, _LLIAI, differs=differs
    )


ZOO: dict[str, PublishedNetwork] = {
    "megvii": PublishedNetwork(
        "Megvii", "shufflenetv2", _RELEASED, 322_918_720, 3_558_464, 0.744,
        "Megvii SinglePathOneShot README (323M, 3.5M)",
        differs="the released architecture; images are BGR from 0 to 255",
    ),
    "megvii-oneshot-blocks": PublishedNetwork(
        "Megvii", "shufflenetv2", _SERIES, 318_729_024, 3_345_088, 0.743,
        "Guo et al. 2020 (319M, 3.3M); that this is that network is inferred from its counts",
        differs="blocks of megvii-oneshot without its channel scales",
    ),
    "megvii-oneshot": PublishedNetwork(
        "Megvii", "shufflenetv2", _SERIES, 327_857_920, 3_432_579, 0.749,
        "Megvii ShuffleNet-Series README (328M, 3.4M); its authors: 74.4 to 74.9 over several runs",
        _MEGVII_SCALES, _SERIES_SCALES, "blocks and channels",
    ),
    "lliai-1": _lliai("22302021222131132011", 338_366_656, 3_299_112, 0.727,
                      "lliai README: retrained (its path in the search had 62.82 %)"),
    "lliai-2": _lliai("23102231222133132011", 347_185_088, 3_333_544, 0.6278),
    "lliai-3": _lliai("22302011222133102011", 336_359_616, 3_294_632, 0.6274),
    "lliai-4": _lliai("22302111222131132011", 337_864_896, 3_298_472, 0.6274),
    "lliai-5": _lliai("22302011222131132011", 336_861_376, 3_297_192, 0.6272),
    "lliai-6": _lliai("22302311232133132011", 352_415_936, 3_355_432, 0.6270),
    "lliai-7": _lliai("22301012222131102011", 330_075_072, 3_266_216, 0.6269),
    "lliai-8": _lliai("02102012222123132011", 329_686_208, 3_299_752, 0.6266),
    "lliai-9": _lliai("22302011222131102011", 331_279_296, 3_267_752, 0.6265),
    "lliai-10": _lliai("22302012222133132011", 343_446_976, 3_325_992, 0.6265),
    "mmrazor": PublishedNetwork(
        "MMRazor", "shufflenetv2", "20203110010103122013", 316_019_520, 3_353_592, 0.7387,
        "MMRazor SPOS README (0.33G in its own count, 3.35M)",
        {"layout": "classic", "classifier_bias": True, "dropout": 0.0},
        differs="classic ShuffleNetV2 split; SPOS_SUBNET.yaml",
    ),
    "anglenas-spos": PublishedNetwork(
        "AngleNAS", "proxyless_gpu", "22-00--05-44004234443", 470_792_064, 5_936_776, 0.7597,
        "AngleNAS README (472M in its own count)",
        differs="space shrunk by angle; 75.33 % without; images are BGR from 0 to 255",
    ),
    "anglenas-proxylessnas": PublishedNetwork(
        "AngleNAS", "proxyless_gpu", "22--022-5-44004234443", 468_966_912, 5_955_808, 0.7614,
        "AngleNAS README (470M in its own count)",
        differs="space shrunk by angle; 75.56 % without; images are BGR from 0 to 255",
    ),
    "canyonwind-oneshot": PublishedNetwork(
        "CanyonWind", "shufflenetv2", _SERIES, 327_857_920, 3_433_579, 0.7402,
        "CanyonWind README (328M, 3.4M)", {**_CANYONWIND, "classifier_bias": True},
        _SERIES_SCALES, "megvii-oneshot with its own split and a classifier bias",
    ),
    "canyonwind-oneshot-plus": PublishedNetwork(
        "CanyonWind", "shufflenetv2", _SERIES, 296_707_840, 3_742_955, 0.7524,
        "CanyonWind README (297M, 3.7M)", _PLUS, _SERIES_SCALES,
        "squeeze-excitation, h-swish, last convolution after the pooling",
    ),
    "canyonwind-oneshot-s-plus": PublishedNetwork(
        "CanyonWind", "shufflenetv2", _S_PLUS, 291_125_760, 3_541_829, 0.7575,
        "CanyonWind README (291M, 3.5M); no log of it was published", _PLUS, _S_PLUS_SCALES,
        "searched blocks and channels; otherwise as canyonwind-oneshot-plus",
    ),
    "canyonwind-s-plus-v2plus": PublishedNetwork(
        "CanyonWind", "shufflenetv2plus", _S_PLUS, 208_817_058, 3_707_885, None,
        "CanyonWind scripts (no figures but 'fewer than MobileNetV3')",
        {**_CANYONWIND, "last_width": 1024, "squeeze_excitation": "canyonwind",
         "classifier_bias": True},
        _S_PLUS_SCALES, "genes of canyonwind-oneshot-s-plus on ShuffleNetV2+'s widths and head",
    ),
    "canyonwind-tiny": PublishedNetwork(
        "CanyonWind", "shufflenetv2", _SERIES, 297_957_280, 1_915_371, 0.6874,
        "CanyonWind README (1.93M, which counts BatchNorm's statistics)",
        {**_CANYONWIND, "last_width": 100}, _SERIES_SCALES,
        "last convolution of 100 channels by a slip of the pen",
    ),
    **{
        f"shufflenetv2plus-{size}": PublishedNetwork(
            "Megvii", "shufflenetv2plus", _SERIES, macs, params, top1,
            "Megvii ShuffleNet-Series README", {"stage_widths": widths},
            differs="not searched for these widths; no channel scales",
        )
        for size, widths, macs, params, top1 in (
            ("small", [36, 104, 208, 416], 155_845_008, 5_137_116, 0.741),
            ("medium", [48, 128, 256, 512], 222_249_984, 5_679_840, 0.757),
            ("large", [68, 168, 336, 672], 360_050_704, 6_768_220, 0.771),
        )
    },
}  # fmt: skip


def zoo_architecture(name: str) -> Architecture:
    """A published network's architecture, with its counts, accuracy and source.

    Raises:
        ArchitectureError: if there is no network of this name.
    """
    network = ZOO.get(name)
    if network is None:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ArchitectureError(
            f"{ZOO_PREFIX}{shown}: there is no such published network; there are {', '.join(ZOO)}"
        )
    return Architecture(
        network.space,
        {"image_size": 224, "num_classes": 1000, **network.options},
        _choices(network),
        {"macs": network.macs, "params": network.params},
        {
            "name": name,
            "system": network.system,
            "published_top1": network.top1,
            "source": network.source,
        },
    )


def _choices(network: PublishedNetwork) -> dict[str, Candidate]:
    if network.space == "proxyless_gpu":
        return {
            f"layer_{number}": "skip" if digit == "-" else ANGLENAS_NAMES[int(digit)]
            for number, digit in enumerate(network.blocks, start=1)
        }
    choices: dict[str, Candidate] = {}
    widths = network.options.get("stage_widths", _STAGE_WIDTHS[network.space])
    for layer, digit in enumerate(network.blocks):
        choices[f"layer_{layer + 1}"] = BLOCKS[int(digit)]
        if network.scales:
            half = widths[STAGE_OF_LAYER[layer]] // 2
            choices[f"channel_{layer + 1}"] = int(half * CHANNEL_SCALES[int(network.scales[layer])])
    return choices
