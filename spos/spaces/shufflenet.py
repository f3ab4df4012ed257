"""The search spaces of Single Path One-Shot: ShuffleNetV2 and V2+ with four blocks per layer.

Imports `spos.errors` and the modules of `spos.spaces`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nni
from torch import Tensor, nn

from spos.errors import ConfigError
from spos.spaces.blocks import (
    ACTIVATIONS,
    ATTENTIONS,
    LAYOUTS,
    BlockStyle,
    SqueezeExcitation,
    Stages,
    Width,
    round_up,
    shuffle_block,
    xception_block,
)
from spos.spaces.nni_pieces import LayerChoice, ModelSpace
from spos.spaces.options import (
    MAX_WIDTH,
    OUTPUT_STRIDES,
    check_choice,
    check_flag,
    check_fraction,
    check_images,
    check_integer,
    check_list,
    strides,
)

STAGE_DEPTHS = (4, 4, 8, 4)
MAX_DEPTH = 100
HEADS = ("plain", "mobilenetv3", "plus")


class ShuffleNetV2Space(ModelSpace):
    """20 layers of ``k3``, ``k5``, ``k7`` or ``xcep`` (Guo et al. 2020, sec. 4 and tab. 1).

    By default the canonical network of Megvii's release, with the state-dict keys of NNI 3.0's hub
    space ``ShuffleNetSpace`` and the same function: stem 16, stages of 64/160/320/640 channels with
    4/4/8/4 blocks, a 1 x 1 convolution to 1024, average pooling, dropout 0.1, classifier without
    bias. The choices are ``layer_1`` to ``layer_20``, or to the sum of ``stage_depths``. With
    ``channel_scales`` every ``layer_N`` is followed by ``channel_N``, the width in the middle of
    its block, an integer that the four candidates share; a supernet slices the leading channels.

    The stem and the first block of each stage halve the map: 224 to 7, 128 to 4; of a small image
    some keep it (`spos.spaces.options.strides`), unless ``output_stride`` says otherwise. Such a
    first block of a stage keeps its two branches, at stride 1.

    Args:
        image_size: side of the square input images, from 8 to 4096.
        num_classes: width of the classifier.
        affine: whether BatchNorm, the stem's included, has weight and bias (off in the paper's
            supernet, on in the network trained from scratch).
        channel_scales: middle widths as multiples of half of the block's output, such as 0.2 to 2.0
            in steps of 0.2: ``int(C_out // 2 * scale)``. None: that half itself, not searched.
        layout: how blocks take channels apart and join them (`spos.spaces.blocks.LAYOUTS`):
            ``canonical``, or ``canyonwind``, ``lliai``, ``classic`` (MMRazor) for their weights.
        stem_width: channels of the first convolution.
        stage_widths: channels of the four stages, each wider than the one before.
        stage_depths: blocks of the four stages, of which each is searched.
        last_width: channels before the classifier.
        activation: ``relu``, or ``hswish`` everywhere but in the first stage.
        stem_activation: of the stem and of the last convolution, if not ``activation``: ``relu6``
            is ShunLu91's network, which is the canonical one otherwise.
        squeeze_excitation: at the end of the main branches of stages 3 and 4, as ``canyonwind`` or
            ``megvii`` do it (`spos.spaces.blocks.SqueezeExcitation`); None leaves it out.
        head: ``plain``; ``mobilenetv3``, which pools before its last convolution (with a bias and
            without BatchNorm); or ``plus``, ShuffleNetV2+'s with squeeze-excitation and one more
            linear layer, in the manner of ``squeeze_excitation``.
        classifier_bias: whether the classifier has a bias.
        dropout: before the classifier.
        output_stride: how many times smaller than the image the last map is: 2, 4, 8, 16 or 32, of
            which the earliest layers lose theirs first. None: as suits the image size.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(
        self,
        image_size: int = 224,
        num_classes: int = 1000,
        affine: bool = True,
        channel_scales: Sequence[float] | None = None,
        layout: str = "canonical",
        stem_width: int = 16,
        stage_widths: Sequence[int] = (64, 160, 320, 640),
        stage_depths: Sequence[int] = STAGE_DEPTHS,
        last_width: int = 1024,
        activation: str = "relu",
        stem_activation: str | None = None,
        squeeze_excitation: str | None = None,
        head: str = "plain",
        classifier_bias: bool = False,
        dropout: float = 0.1,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        _add_layers(
            self,
            _Design(
                space="shufflenetv2",
                image_size=image_size,
                num_classes=num_classes,
                affine=affine,
                channel_scales=channel_scales,
                layout=layout,
                stem_width=stem_width,
                stage_widths=stage_widths,
                stage_depths=stage_depths,
                last_width=last_width,
                activation=activation,
                stem_activation=activation if stem_activation is None else stem_activation,
                squeeze_excitation=squeeze_excitation,
                head=head,
                classifier_bias=classifier_bias,
                dropout=dropout,
                output_stride=output_stride,
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, image_size, image_size) to logits (N, num_classes)."""
        return _apply_in_order(self, x)


class ShuffleNetV2PlusSpace(ModelSpace):
    """ShuffleNetV2+: squeeze-excitation and h-swish around the same 20 choices.

    By default the Medium network of Megvii's ShuffleNet-Series, with its state-dict keys; Small has
    the ``stage_widths`` 36, 104, 208, 416 and Large 68, 168, 336, 672. CanyonWind's network on this
    layout is ``last_width=1024, squeeze_excitation="canyonwind", classifier_bias=True,
    layout="canyonwind"``. Megvii's Xception block cannot begin a stage (it repeats the stride at
    each depthwise convolution); ours can.

    Args:
        image_size: as those below, see `ShuffleNetV2Space`.
        num_classes: width of the classifier.
        affine: whether BatchNorm has weight and bias.
        channel_scales: searched middle widths.
        layout: how blocks take channels apart and join them.
        stem_width: channels of the first convolution.
        stage_widths: channels of the four stages.
        stage_depths: blocks of the four stages.
        last_width: channels before the classifier.
        squeeze_excitation: ``megvii`` or ``canyonwind``, or None with another head than ``plus``.
        head: ``plus``, ``mobilenetv3`` or ``plain``.
        classifier_bias: whether the classifier has a bias.
        dropout: before the classifier.
        output_stride: how many times smaller than the image the last map is.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(
        self,
        image_size: int = 224,
        num_classes: int = 1000,
        affine: bool = True,
        channel_scales: Sequence[float] | None = None,
        layout: str = "canonical",
        stem_width: int = 16,
        stage_widths: Sequence[int] = (48, 128, 256, 512),
        stage_depths: Sequence[int] = STAGE_DEPTHS,
        last_width: int = 1280,
        squeeze_excitation: str | None = "megvii",
        head: str = "plus",
        classifier_bias: bool = False,
        dropout: float = 0.2,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        _add_layers(
            self,
            _Design(
                space="shufflenetv2plus",
                image_size=image_size,
                num_classes=num_classes,
                affine=affine,
                channel_scales=channel_scales,
                layout=layout,
                stem_width=stem_width,
                stage_widths=stage_widths,
                stage_depths=stage_depths,
                last_width=last_width,
                activation="hswish",
                stem_activation="hswish",
                squeeze_excitation=squeeze_excitation,
                head=head,
                classifier_bias=classifier_bias,
                dropout=dropout,
                output_stride=output_stride,
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, image_size, image_size) to logits (N, num_classes)."""
        return _apply_in_order(self, x)


@dataclass(frozen=True)
class _Design:
    """The options of either space; see there."""

    space: str
    image_size: int
    num_classes: int
    affine: bool
    channel_scales: Sequence[float] | None
    layout: str
    stem_width: int
    stage_widths: Sequence[int]
    stage_depths: Sequence[int]
    last_width: int
    activation: str
    stem_activation: str
    squeeze_excitation: str | None
    head: str
    classifier_bias: bool
    dropout: float
    output_stride: int | None

    def __post_init__(self) -> None:
        space = self.space
        check_images(space, self.image_size, self.num_classes)
        check_choice(space, "output_stride", self.output_stride, (None, *OUTPUT_STRIDES))
        check_choice(space, "layout", self.layout, LAYOUTS)
        check_choice(space, "activation", self.activation, ("relu", "hswish"))
        check_choice(space, "stem_activation", self.stem_activation, ACTIVATIONS)
        check_choice(space, "squeeze_excitation", self.squeeze_excitation, (None, *ATTENTIONS))
        check_choice(space, "head", self.head, HEADS)
        check_flag(space, "classifier_bias", self.classifier_bias)
        check_fraction(space, "dropout", self.dropout)
        check_integer(space, "stem_width", self.stem_width, 1, MAX_WIDTH)
        check_integer(space, "last_width", self.last_width, 1, MAX_WIDTH)
        check_list(space, "stage_depths", self.stage_depths, length=len(STAGE_DEPTHS))
        for depth in self.stage_depths:
            check_integer(space, "stage_depths", depth, 1, MAX_DEPTH)
        check_list(space, "stage_widths", self.stage_widths, length=len(STAGE_DEPTHS))
        before = self.stem_width
        for width in self.stage_widths:
            check_integer(space, "stage_widths", width, 8, MAX_WIDTH)
            if width % 4 or width <= before:
                raise ConfigError(
                    f"{space}: stage_widths are {list(self.stage_widths)} after a stem of "
                    f"{self.stem_width}, expected multiples of 4, each more than the one before"
                )
            before = width
        if self.head == "plus" and self.squeeze_excitation is None:
            raise ConfigError(
                f"{space}: the head 'plus' holds a squeeze-excitation; set squeeze_excitation to "
                f"one of {', '.join(ATTENTIONS)}"
            )
        if self.channel_scales is not None:
            check_list(space, "channel_scales", self.channel_scales)
            for width in self.stage_widths:
                mid_widths(space, width, self.channel_scales)


def mid_widths(space: str, stage_width: int, scales: Sequence[float]) -> list[int]:
    """The searched widths in the middle of a stage's blocks: ``int(stage_width // 2 * scale)``.

    The product of floating point, truncated, is the rule of Megvii, NNI and CanyonWind's counts.

    Raises:
        ConfigError: if a scale is no positive number, or two give the same width.
    """
    for scale in scales:
        if type(scale) not in (int, float) or not 0 < scale <= 16:
            raise ConfigError(
                f"{space}: channel_scales holds {scale!r}, expected numbers from above 0 to 16"
            )
    widths = [int(stage_width // 2 * scale) for scale in scales]
    if len(set(widths)) < len(widths) or min(widths) < 1:
        raise ConfigError(
            f"{space}: channel_scales {list(scales)} give the widths {widths} in the stage of "
            f"{stage_width} channels, expected different ones of at least 1"
        )
    return widths


def initialize(network: nn.Module) -> None:
    """Initialise weights as Megvii's releases do.

    Convolutions are normal with deviation 1 / (input channels per group), so 1.0 for depthwise
    ones; those of the stem, of squeeze-excitation and after the pooling have 0.01. BatchNorm biases
    are 1e-4. Linear layers are normal with 0.01, their biases and those of convolutions 0.
    A network on the meta device is left alone: it has nothing to initialise, and the first random
    number there makes torch import its compiler, a second and more.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            is_small = "first" in name or "SE" in name or module.bias is not None
            nn.init.normal_(module.weight, 0, 0.01 if is_small else 1.0 / module.weight.shape[1])
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 1e-4)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _add_layers(space: nn.Module, design: _Design) -> None:
    """Give a space its children, in the order in which they are applied."""
    stem_stride, *stage_strides = strides(design.image_size, output_stride=design.output_stride)
    space.first_conv = nn.Sequential(
        nn.Conv2d(3, design.stem_width, 3, stem_stride, 1, bias=False),
        nn.BatchNorm2d(design.stem_width, affine=design.affine),
        ACTIVATIONS[design.stem_activation](),
    )
    space.features = Stages(*_features(design, stage_strides))
    for name, module in _head(design):
        space.add_module(name, module)
    initialize(space)


def _apply_in_order(space: nn.Module, x: Tensor) -> Tensor:
    for module in space.children():
        x = module(x)
    return x


def _features(design: _Design, stage_strides: Sequence[int]) -> Iterator[nn.Module]:
    in_channels, layer = design.stem_width, 0
    for stage, width in enumerate(design.stage_widths):
        style = BlockStyle(
            layout=design.layout,
            activation="relu" if stage == 0 else design.activation,
            attention=design.squeeze_excitation if stage >= 2 else None,
            affine=design.affine,
        )
        for block in range(design.stage_depths[stage]):
            layer += 1
            mid_channels: Width = width // 2
            if design.channel_scales is not None:
                candidates = mid_widths(design.space, width, design.channel_scales)
                mid_channels = nni.choice(f"channel_{layer}", candidates)
            yield _layer(
                f"layer_{layer}",
                (in_channels, width, mid_channels),
                stride=stage_strides[stage] if block == 0 else 1,
                projects=block == 0,
                style=style,
            )
            in_channels = width


def _layer(
    label: str,
    widths: tuple[int, int, Width],
    *,
    stride: int,
    projects: bool,
    style: BlockStyle,
) -> nn.Module:
    candidates: dict[str, nn.Module] = {
        f"k{size}": shuffle_block(
            *widths, kernel_size=size, stride=stride, projects=projects, style=style
        )
        for size in (3, 5, 7)
    }
    candidates["xcep"] = xception_block(*widths, stride=stride, projects=projects, style=style)
    return LayerChoice(candidates, label=label)


def _head(design: _Design) -> Iterator[tuple[str, nn.Module]]:
    """The layers after the stages, by name, in the order in which they are applied."""
    in_channels, width = design.stage_widths[-1], design.last_width
    activation = ACTIVATIONS[design.stem_activation]
    attention = design.squeeze_excitation if design.head == "plus" else None
    is_biased = attention == "canyonwind"
    if design.head == "mobilenetv3":
        yield "globalpool", nn.AdaptiveAvgPool2d(1)
        yield "conv_last", nn.Sequential(nn.Conv2d(in_channels, width, 1), activation())
    else:
        # CanyonWind's "plus" head has three quarters of the width before its last two layers.
        pooled = round_up(int(0.75 * width)) if is_biased else width
        conv = nn.Conv2d(in_channels, pooled, 1, bias=False)
        norm = nn.BatchNorm2d(pooled, affine=design.affine)
        yield "conv_last", nn.Sequential(conv, norm, activation())
        yield "globalpool", nn.AdaptiveAvgPool2d(1)
        if attention is not None:
            yield "LastSE", SqueezeExcitation(pooled, attention, affine=design.affine)
    yield "flatten", nn.Flatten()
    if attention is not None:
        linear = nn.Linear(pooled, width, bias=is_biased)
        yield "fc", nn.Sequential(linear, activation())
    yield "dropout", nn.Dropout(design.dropout)
    classifier = nn.Linear(width, design.num_classes, bias=design.classifier_bias)
    yield "classifier", nn.Sequential(classifier)
