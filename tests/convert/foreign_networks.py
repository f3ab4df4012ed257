"""The reference systems' networks, written from their description alone: names, shapes, function.

A network is one function that runs it. Weights are made, at random and in double precision, when it
first asks for them, so that the function says what they are called and of which shape they are.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (64, 160, 320, 640)
DEPTHS = (4, 4, 8, 4)
TORCH = ("weight", "bias")
MXNET = ("gamma", "beta")


class Weights(dict):
    """Named tensors that come into being when they are first used."""

    def __init__(self, seed: int = 0, *, affine: bool = True, bn: tuple[str, str] = TORCH) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.affine, self.bn = affine, bn
        self.is_whole = False  # then candidates that do not count need not be run for their weights

    def take(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        if name not in self:
            values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            self[name] = shift + scale * values
        assert self[name].shape == shape
        return self[name]

    def conv(
        self, name: str, x: Tensor, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
        bias: bool = False,
    ) -> Tensor:  # fmt: skip
        fan_in = x.shape[1] // groups
        shape = (out, fan_in, kernel, kernel)
        weight = self.take(f"{name}weight", *shape, scale=(2 / (fan_in * kernel**2)) ** 0.5)
        offset = self.take(f"{name}bias", out, scale=0.3) if bias else None
        return F.conv2d(x, weight, offset, stride, kernel // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        width, (scale, shift) = x.shape[1], self.bn
        mean = self.take(f"{name}running_mean", width, scale=0.2)
        variance = self.take(f"{name}running_var", width, scale=0.1, shift=1.0).abs_()
        if self.bn == TORCH and f"{name}num_batches_tracked" not in self:
            self[f"{name}num_batches_tracked"] = torch.tensor(7)
        if not self.affine:
            return F.batch_norm(x, mean, variance)
        weight = self.take(f"{name}{scale}", width, scale=0.2, shift=1.0)
        return F.batch_norm(
            x, mean, variance, weight, self.take(f"{name}{shift}", width, scale=0.2)
        )

    def linear(self, name: str, x: Tensor, out: int, *, bias: bool) -> Tensor:
        weight = self.take(f"{name}weight", out, x.shape[1], scale=x.shape[1] ** -0.5)
        return F.linear(x, weight, self.take(f"{name}bias", out) if bias else None)


Names = Callable[[int], tuple[str, str]]  # number of a layer in a branch -> convolution, BatchNorm
Activation = Callable[[Tensor], Tensor]


def main_branch(
    w: Weights, x: Tensor, block: int, mid: int, out: int, stride: int, names: Names,
    act: Activation = F.relu,
) -> Tensor:  # fmt: skip
    """Blocks 0 to 2 of kernels 3, 5, 7; block 3, Xception."""

    def depthwise(number: int, x: Tensor, kernel: int, stride: int) -> Tensor:
        conv, bn = names(number)
        x = w.conv(conv, x, x.shape[1], kernel, stride=stride, groups=x.shape[1])
        return w.norm(bn, x)

    def pointwise(number: int, x: Tensor, out: int) -> Tensor:
        conv, bn = names(number)
        return act(w.norm(bn, w.conv(conv, x, out)))

    if block < 3:
        x = depthwise(1, pointwise(0, x, mid), 3 + 2 * block, stride)
        return pointwise(2, x, out)
    x = pointwise(1, depthwise(0, x, 3, stride), mid)
    x = pointwise(3, depthwise(2, x, 3, 1), mid)
    return pointwise(5, depthwise(4, x, 3, 1), out)


def projection(
    w: Weights, x: Tensor, block: int, out: int, names: Names, act: Activation = F.relu,
    stride: int = 2,
) -> Tensor:  # fmt: skip
    kernel = 3 if block == 3 else 3 + 2 * block
    (conv, bn), (conv_2, bn_2) = names(0), names(1)
    x = w.norm(bn, w.conv(conv, x, x.shape[1], kernel, stride=stride, groups=x.shape[1]))
    return act(w.norm(bn_2, w.conv(conv_2, x, out)))


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


def layers(widths: Sequence[int] = WIDTHS):
    """Layer, stage, place in the stage, width, stride."""
    layer = 0
    for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
        for place in range(depth):
            yield layer, stage, place, width, 2 if place == 0 else 1
            layer += 1


def megvii_places(prefix: str, block: int, branch: str = "main") -> Names:
    places = (0, 2) if branch == "proj" else (0, 2, 5, 7, 10, 12) if block == 3 else (0, 3, 5)
    return lambda number: (f"{prefix}.{places[number]}.", f"{prefix}.{places[number] + 1}.")


def every_candidate(w: Weights, supernet: bool, block: int) -> list[tuple[int, str]]:
    """Candidates and the part of a name that says so; the active one, which counts, comes last."""
    if not supernet:
        return [(block, "")]
    others = [] if w.is_whole else [each for each in (0, 1, 2, 3) if each != block]
    return [(each, f".{each}") for each in (*others, block)]


def megvii(
    w: Weights, x: Tensor, blocks: Sequence[int], *, supernet: bool = False,
    names: Sequence[str] = ("0", "1", "2", "3"), middles: Sequence[int] | None = None,
    dead: bool = False,
) -> Tensor:  # fmt: skip
    """Megvii's, NNI's: even channels pass; ``dead`` as NNI 2.5, with projections not applied."""
    x = F.relu(w.norm("first_conv.1.", w.conv("first_conv.0.", x, 16, 3, stride=2)))
    for layer, _, _, width, stride in layers():
        before = x
        for block, middle in every_candidate(w, supernet, blocks[layer]):
            middle = f".{names[block]}" if middle else ""
            prefix = f"features.{layer}{middle}"
            main = megvii_places(f"{prefix}.branch_main", block)
            proj = megvii_places(f"{prefix}.branch_proj", block, "proj")
            mid = middles[layer] if middles else width // 2
            if stride == 2:
                passed, worked = projection(w, before, block, before.shape[1], proj), before
            else:
                passed, worked = before[:, 0::2], before[:, 1::2]
                if dead:
                    projection(w, worked, block, worked.shape[1], proj, stride=1)
            out = width - worked.shape[1]
            x = torch.cat([passed, main_branch(w, worked, block, mid, out, stride, main)], 1)
    x = F.relu(w.norm("conv_last.1.", w.conv("conv_last.0.", x, 1024)))
    return w.linear("classifier.0.", x.mean((2, 3)), 10, bias=False)


def shunlu(w: Weights, x: Tensor, blocks: Sequence[int], *, supernet: bool = False) -> Tensor:
    """ShunLu91: even channels are worked on, and come first; ReLU6 at both ends."""
    x = F.relu6(w.norm("stem.1.", w.conv("stem.0.", x, 16, 3, stride=2)))
    for layer, _, _, width, stride in layers():
        before = x
        for block, middle in every_candidate(w, supernet, blocks[layer]):
            prefix = f"choice_block.{layer}{middle}"
            main = megvii_places(f"{prefix}.cb_main", block)
            proj = megvii_places(f"{prefix}.cb_proj", block, "proj")
            if stride == 2:
                passed, worked = projection(w, before, block, before.shape[1], proj), before
            else:
                passed, worked = before[:, 1::2], before[:, 0::2]
            out = width - worked.shape[1]
            x = torch.cat([main_branch(w, worked, block, width // 2, out, stride, main), passed], 1)
    x = F.relu6(w.norm("last_conv.1.", w.conv("last_conv.0.", x, 1024)))
    return w.linear("classifier.", x.mean((2, 3)), 10, bias=False)


def lliai(w: Weights, x: Tensor, blocks: Sequence[int], *, supernet: bool = False) -> Tensor:
    """lliai: the first half is worked on and comes first, then a shuffle; dead branches."""
    x = F.relu(w.norm("conv1.bn.", w.conv("conv1.conv.", x, 16, 3, stride=2)))
    for layer, _, _, width, stride in layers():
        before = x
        for block, middle in every_candidate(w, supernet, blocks[layer]):
            prefix = f"choice_blocks.{layer}{middle}"
            main = units(f"{prefix}.branch1")
            proj = units(f"{prefix}.branch2")
            if stride == 2:
                passed, worked = projection(w, before, block, before.shape[1], proj), before
            else:
                worked, passed = before.chunk(2, dim=1)
                projection(w, worked, block, worked.shape[1], proj, stride=1)
            out = width - worked.shape[1]
            main_out = main_branch(w, worked, block, width // 2, out, stride, main)
            x = shuffle(torch.cat([main_out, passed], 1))
    x = F.relu(w.norm("conv2.bn.", w.conv("conv2.conv.", x, 1024)))
    return w.linear("fc.", x.mean((2, 3)), 10, bias=True)


def units(prefix: str) -> Names:
    return lambda number: (f"{prefix}.{number}.conv.", f"{prefix}.{number}.bn.")


RAZOR_NAMES = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "shuffle_xception")


def razor(w: Weights, x: Tensor, blocks: Sequence[int], *, supernet: bool = False) -> Tensor:
    """MMRazor: classic ShuffleNetV2, both branches of a first block yield half of the width."""

    def separable(prefix: str) -> Names:
        halves = ("depthwise_conv", "pointwise_conv")
        return lambda number: tuple(  # type: ignore[return-value]
            f"{prefix}.{number // 2}.{halves[number % 2]}.{part}." for part in ("conv", "bn")
        )

    x = F.relu(w.norm("backbone.conv1.bn.", w.conv("backbone.conv1.conv.", x, 16, 3, stride=2)))
    for layer, stage, place, width, stride in layers():
        before, half = x, width // 2
        for block, _ in every_candidate(w, supernet, blocks[layer]):
            prefix = f"backbone.layers.{stage}.{place}._candidates.{RAZOR_NAMES[block]}"
            name = f"{prefix}.branch2"
            main = separable(name) if block == 3 else units(name)
            if stride == 2:
                passed = projection(w, before, block, half, units(f"{prefix}.branch1"))
                worked = before
            else:
                passed, worked = before.chunk(2, dim=1)
            worked = main_branch(w, worked, block, half, half, stride, main)
            x = shuffle(torch.cat([passed, worked], 1))
    x = w.conv("backbone.layers.4.conv.", x, 1024)
    x = F.relu(w.norm("backbone.layers.4.bn.", x))
    return w.linear("head.fc.", x.mean((2, 3)), 10, bias=True)


# --- MobileNets ----------------------------------------------------------------------------------

MOBILE = ((32, 4, 2), (56, 4, 2), (112, 4, 2), (128, 4, 1), (256, 4, 2), (432, 1, 1))
OPS = ((3, 3), (3, 6), (5, 3), (5, 6), (7, 3), (7, 6))  # AngleNAS: kernel, expansion


def mobile_layers():
    layer = 0
    for stage, (width, depth, stride) in enumerate(MOBILE):
        for place in range(depth):
            yield layer, stage, place, width, stride if place == 0 else 1
            layer += 1


def inverted_residual(
    w: Weights, x: Tensor, op: tuple[int, int], out: int, stride: int, names: Sequence[str]
) -> Tensor:
    """``names``: convolution and BatchNorm of expansion, depthwise and projection."""
    kernel, expansion = op
    y, hidden = x, expansion * x.shape[1]
    if expansion > 1:
        y = F.relu6(w.norm(names[1], w.conv(names[0], y, hidden)))
    y = w.conv(names[2], y, hidden, kernel, stride=stride, groups=hidden)
    y = w.norm(names[5], w.conv(names[4], F.relu6(w.norm(names[3], y)), out))
    return x + y if x.shape == y.shape else y


def anglenas(w: Weights, x: Tensor, ids: Sequence[int], *, supernet: bool = False) -> Tensor:
    """AngleNAS: skipped layers are gone, and those after them take their numbers."""
    x = F.relu6(w.norm("conv_bn.1.", w.conv("conv_bn.0.", x, 40, 3, stride=2)))
    first = [f"MBConv_ratio_1.conv.{place}." for place in (0, 0, 0, 1, 3, 4)]
    x = inverted_residual(w, x, (3, 1), 24, 1, first)
    number = 0
    for layer, _, _, width, stride in mobile_layers():
        before = x
        for op in (*(set(range(6)) - {ids[layer]} if supernet else ()), ids[layer]):
            middle = f"features.{layer}._ops.{op}" if supernet else f"features.{number}"
            if op == -1:
                x = before
                continue
            names = [f"{middle}.conv.{place}." for place in (0, 1, 3, 4, 6, 7)]
            x = inverted_residual(w, before, OPS[op], width, stride, names)
        number += ids[layer] != -1
    x = F.relu6(w.norm("conv_1x1_bn.1.", w.conv("conv_1x1_bn.0.", x, 1728)))
    classifier = "classifier.0." if supernet else "classifier.1."
    return w.linear(classifier, x.mean((2, 3)), 10, bias=True)


def razor_mobile(w: Weights, x: Tensor, names: Sequence[str], *, supernet: bool = False) -> Tensor:
    """MMRazor: an identity that changes the shape is a strided convolution."""
    parts = ("expand_conv.conv", "expand_conv.bn", "depthwise_conv.conv", "depthwise_conv.bn",
             "linear_conv.conv", "linear_conv.bn")  # fmt: skip
    ops = {f"mb_k{kernel}e{expansion}": (kernel, expansion) for kernel, expansion in OPS}
    x = F.relu6(w.norm("backbone.conv1.bn.", w.conv("backbone.conv1.conv.", x, 40, 3, stride=2)))
    first = [f"backbone.layer1.0._candidates.mb_k3e1.{part}." for part in parts]
    x = inverted_residual(w, x, (3, 1), 24, 1, first)
    for layer, stage, place, width, stride in mobile_layers():
        before = x
        others = [name for name in (*ops, "identity") if name != names[layer]] if supernet else []
        for name in (*others, names[layer]):
            prefix = f"backbone.layer{stage + 2}.{place}._candidates.{name}"
            if name != "identity":
                op_names = [f"{prefix}.{part}." for part in parts]
                x = inverted_residual(w, before, ops[name], width, stride, op_names)
            elif before.shape[1] != width or stride == 2:
                x = w.conv(f"{prefix}.downsample.conv.", before, width, stride=stride)
                x = w.norm(f"{prefix}.downsample.bn.", x)
            else:
                x = before
    x = F.relu6(w.norm("backbone.conv2.bn.", w.conv("backbone.conv2.conv.", x, 1728)))
    return w.linear("head.fc.", x.mean((2, 3)), 10, bias=True)


# --- CanyonWind ----------------------------------------------------------------------------------


def hswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def canyonwind(
    w: Weights, x: Tensor, blocks: Sequence[int], middles: Sequence[int] | None = None, *,
    se: bool = False, pool_first: bool = False, widths: Sequence[int] = WIDTHS,
    exported: bool = False, supernet: bool = False,
) -> Tensor:  # fmt: skip
    """CanyonWind: the last half after a shuffle is worked on; names of either kind of file."""
    graph = "shufflenasoneshotfix0_hybridsequential0_"

    def layer_name(tree: str, exported_name: str) -> str:
        return f"{graph}{exported_name}_" if exported else f"{tree}."

    def attention(x: Tensor, tree: str, exported_name: str) -> Tensor:
        squeeze = layer_name(f"{tree}.channel_attention.1", f"{exported_name}_conv_squeeze")
        excite = layer_name(f"{tree}.channel_attention.3", f"{exported_name}_conv_excitation")
        y = x.mean((2, 3), keepdim=True)
        y = F.relu(w.conv(squeeze, y, -(-(x.shape[1] // 4) // 8) * 8, bias=True))
        y = w.conv(excite, y, x.shape[1], bias=True)
        return x * (y + 3).clamp(0, 6) / 6

    outer = hswish if se else F.relu
    x = w.conv(layer_name("features.0", "first_conv"), x, 16, 3, stride=2)
    x = outer(w.norm(layer_name("features.1", "batchnorm0"), x))
    for layer, stage, _, width, stride in layers(widths):
        before, act = x, hswish if se and stage else F.relu
        for block, middle in every_candidate(w, supernet, blocks[layer]):
            middle = f".block_s{'nnnx'[block]}_{'3573'[block]}x{'3573'[block]}" if middle else ""
            tree, graph_block = f"features.{layer + 3}{middle}", f"shufflenetblock{layer}"
            # In the tree layers are numbered with activations, and in the supernet with selectors.
            places = (0, 2, 5, 7, 10, 12) if block == 3 else (0, 3, 5)
            if supernet:
                places = (0, 2, 6, 8, 12, 14) if block == 3 else (0, 4, 6)
            shift = ((2, 8) if block == 3 else (0,)) if supernet else ()

            def main(number: int, places=places, tree=tree, block_name=graph_block, shift=shift):
                place = places[number]
                return (
                    layer_name(f"{tree}.main_branch.{place}", f"{block_name}_conv{number}"),
                    layer_name(
                        f"{tree}.main_branch.{place + 1 + (place in shift)}",
                        f"{block_name}_batchnorm{number}",
                    ),
                )

            def proj(number: int, places=places, tree=tree, block_name=graph_block):
                after = len(places)
                return (
                    layer_name(
                        f"{tree}.proj_branch.{2 * number}", f"{block_name}_conv{after + number}"
                    ),
                    layer_name(
                        f"{tree}.proj_branch.{2 * number + 1}",
                        f"{block_name}_batchnorm{after + number}",
                    ),
                )

            if stride == 2:
                passed, worked = projection(w, before, block, before.shape[1], proj, act), before
            else:
                passed, worked = shuffle(before).chunk(2, dim=1)
            mid = middles[layer] if middles else width
            out = width - worked.shape[1]
            y = main_branch(w, worked, block, mid, out, stride, main, act)
            if se and stage >= 2:
                place = (15 if block == 3 else 8) + (len(shift) if supernet else 0)
                y = attention(y, f"{tree}.main_branch.{place}", f"{graph_block}_se0")
            x = torch.cat([passed, y], 1)
    if pool_first:
        x = x.mean((2, 3), keepdim=True)
        x = outer(w.conv(layer_name("features.24", "conv_fc"), x, 1024, bias=True))
    else:
        x = w.conv(layer_name("features.23", "last_conv"), x, 768 if se else 1024)
        x = outer(w.norm(layer_name("features.24", "batchnorm1"), x)).mean((2, 3), keepdim=True)
        if se:
            x = attention(x, "features.27", "se0")
            x = outer(w.conv(layer_name("features.28", "conv_fc"), x, 1024, bias=True))
    output = "shufflenasoneshotfix0_output_conv0_" if exported else "output.0."
    return w.conv(output, x, 10, bias=True).flatten(1)


# --- files ----------------------------------------------------------------------------------------


def images(size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


def saved(path, tensors, *, container: str | None = "state_dict", prefix: str = ""):
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({container: tensors, "epoch": 3} if container else tensors, path)
    return path
