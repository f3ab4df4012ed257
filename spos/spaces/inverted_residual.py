"""The building block of the MobileNet spaces, what stands for it where it is left out, their ends.

Imports torch.
"""

from __future__ import annotations

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise k x k, project (Sandler et al. 2018, fig. 3).

    Its layers are ``conv.{0,1}`` (expand), ``conv.{3,4}`` (depthwise), ``conv.{6,7}`` (project) in
    the state dict, as AngleNAS has them; with ``expansion`` 1 nothing is expanded and these are
    ``conv.{0,1}`` and ``conv.{3,4}``. The input is added where the shape stays.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: of the depthwise convolution.
        expansion: hidden width as a multiple of ``in_channels``, which is not rounded to 8.
        stride: of the depthwise convolution.
        affine: whether BatchNorm has weight and bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        expansion: int,
        stride: int = 1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        padding = kernel_size // 2
        self.adds = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *(pointwise(in_channels, hidden, affine=affine) if expansion > 1 else ()),
            nn.Conv2d(hidden, hidden, kernel_size, stride, padding, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, affine=affine),
            nn.ReLU6(),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return x + self.conv(x) if self.adds else self.conv(x)


def pointwise(in_channels: int, out_channels: int, *, affine: bool) -> tuple[nn.Module, ...]:
    """A 1 x 1 convolution with BatchNorm and ReLU6."""
    return (
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
        nn.ReLU6(),
    )


def skip(in_channels: int, out_channels: int, *, stride: int, affine: bool) -> nn.Module:
    """The input itself where the shape stays, else a strided 1 x 1 convolution with BatchNorm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
    )


def stem(width: int, *, stride: int, affine: bool) -> nn.Sequential:
    """A 3 x 3 convolution of the image with BatchNorm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width, affine=affine),
        nn.ReLU6(),
    )


def initialize(network: nn.Module) -> None:
    """Initialise weights as MobileNetV2 does: normal, scaled by each convolution's outputs.

    A network on the meta device is left alone (see `spos.spaces.shufflenet.initialize`).
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
