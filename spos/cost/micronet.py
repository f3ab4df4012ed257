"""The MicroNet Challenge's way of counting, and its score.

Imports `spos.cost.operations` and `spos.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spos.cost.operations import Operation
from spos.errors import ConfigError

BITS = (32, 16, 8)

# MobileNetV2 1.4, the challenge's baseline: parameters and operations (twice the multiply-adds).
MICRONET_PARAMS = 6.9e6
MICRONET_OPERATIONS = 1170e6


@dataclass(frozen=True)
class MicroCost:
    """Multiplications, additions and stored parameters, of a layer or of a network.

    Attributes:
        params: words of 32 bit.
        mults: multiplications, and what is as dear (divisions, clips).
        adds: additions.
    """

    params: float = 0
    mults: int = 0
    adds: int = 0

    def __add__(self, other: MicroCost) -> MicroCost:
        return MicroCost(
            self.params + other.params, self.mults + other.mults, self.adds + other.adds
        )

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return self.mults + self.adds


@dataclass(frozen=True)
class MicroCount:
    """A network's costs by the challenge's rules.

    Attributes:
        rows: the operations that cost anything, each with its cost and whether it is quantised.
        quantized: the sum over the layers whose numbers may be of 8 bit.
        rest: the sum over the others.
    """

    rows: tuple[tuple[Operation, MicroCost, bool], ...]
    quantized: MicroCost
    rest: MicroCost

    @property
    def total(self) -> MicroCost:
        """Both parts."""
        return self.quantized + self.rest

    def at(self, bits: int) -> tuple[float, float]:
        """Parameters and operations with numbers of 32, 16 or 8 bit, in units of 32 bit.

        At 16 bit parameters and multiplications count half and sums are still of 32 bit; at 8 bit
        everything of a quantised layer counts a quarter and the rest in full.

        Raises:
            ConfigError: for another number of bits.
        """
        total = self.total
        if bits == 32:
            return total.params, total.operations
        if bits == 16:
            return total.params / 2, total.mults / 2 + total.adds
        if bits == 8:
            return (
                self.quantized.params / 4 + self.rest.params,
                self.quantized.operations / 4 + self.rest.operations,
            )
        raise ConfigError(f"the MicroNet score has numbers of 32, 16 or 8 bit, not of {bits!r}")

    def score(self, bits: int = 32) -> float:
        """The challenge's score, 2 for MobileNetV2 1.4; less is better."""
        params, operations = self.at(bits)
        return params / MICRONET_PARAMS + operations / MICRONET_OPERATIONS


def count_micronet(operations: Sequence[Operation], *, clip_mults: int = 2) -> MicroCount:
    """Count a network by the MicroNet Challenge's rules, as CanyonWind applies them.

    BatchNorm is taken to vanish in the convolution before it and counts nothing, not even as that
    layer's bias. A channel shuffle is a 1 x 1 convolution with a single 1 in each row: it
    multiplies, and its weights and their mask are stored. Not counted: squeeze-excitation's
    product, joining branches, additions around a block.

    Args:
        operations: see `spos.cost.operations.list_operations`.
        clip_mults: cost of a clip at both ends: 2 in CanyonWind's published profile, 1 in its last
            revision.

    Raises:
        ConfigError: if there is no rule for a layer.
    """
    rows = []
    for each in operations:
        cost = _cost(each, clip_mults)
        if cost != MicroCost():
            rows.append((each, cost, each.kind in ("conv", "linear", "relu")))
    quantized = sum((cost for _, cost, is_quantized in rows if is_quantized), MicroCost())
    rest = sum((cost for _, cost, is_quantized in rows if not is_quantized), MicroCost())
    return MicroCount(tuple(rows), quantized, rest)


def _cost(each: Operation, clip_mults: int) -> MicroCost:
    channels, kind = each.output_shape[0], each.kind
    if kind in ("conv", "linear"):
        # a dot product of n numbers has n - 1 sums, and one more with a bias
        return MicroCost(each.params, each.macs, each.macs - (not each.has_bias) * each.outputs)
    if kind == "batchnorm":
        return MicroCost()
    if kind == "relu":
        return MicroCost(0, each.outputs, 0)
    if kind == "relu6":
        return MicroCost(0, clip_mults * each.outputs, 0)
    if kind == "hswish":  # x * clip(x + 3) / 6
        return MicroCost(0, (clip_mults + 2) * each.outputs, each.outputs)
    if kind == "hsigmoid":  # clip(x + 3) / 6
        return MicroCost(0, (clip_mults + 1) * each.outputs, each.outputs)
    if kind in ("pool", "adaptive pool"):
        window = each.kernel**2
        return MicroCost(0, each.outputs, (window - 1) * each.outputs)
    if kind == "shuffle":
        # C weights of 16 bit would be C / 2 words; CanyonWind counts C, and C * C / 16 for the mask
        return MicroCost(channels + channels**2 / 16, each.outputs, 0)
    raise ConfigError(
        f"the convention 'micronet' has no rule for the layer {each.name} ({kind}); count with "
        "'macs'"
    )
