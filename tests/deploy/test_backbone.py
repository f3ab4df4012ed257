"""A subnet's maps at several strides, and a detector that learns on them."""

import pytest
import torch
from subnets import random_subnet
from tiny_space import TINY
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from spos.deploy.backbone import FeatureBackbone
from spos.errors import ConfigError
from spos.folding import fold_batchnorm

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")


def photo_network(space: str = "shufflenetv2", **options) -> nn.Module:
    return random_subnet(space, 32, image_size=128, **options)


@pytest.mark.parametrize(
    ("space", "options", "channels"),
    [
        ("shufflenetv2", {}, (64, 160, 320, 640)),
        ("shufflenetv2", {"layout": "lliai"}, (64, 160, 320, 640)),
        ("proxyless_gpu", {}, (32, 56, 128, 432)),
    ],
    ids=["canonical", "lliai", "proxyless"],
)
def test_photo_networks_have_strides_4_to_32(space, options, channels):
    backbone = FeatureBackbone(photo_network(space, **options)).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96))
    assert list(maps) == ["4", "8", "16", "32"]
    assert tuple(backbone.channels.values()) == channels
    for (stride, width), found in zip(backbone.channels.items(), maps.values(), strict=True):
        assert found.shape == (2, width, 64 // stride, 96 // stride)


@pytest.mark.parametrize("layout", ["canonical", "classic"])
def test_last_map_is_what_the_head_sees(layout):
    network = photo_network(layout=layout)
    images = torch.randn(2, 3, 32, 32)
    seen = []
    network.conv_last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(images)
        maps = FeatureBackbone(network, (8, 32)).eval()(images)
    assert list(maps) == ["8", "32"]
    assert torch.equal(maps["32"], seen[0])


def test_small_image_networks_name_the_strides_that_they_have():
    network = random_subnet("shufflenetv2", 32)
    with pytest.raises(ConfigError, match="no map of stride 16, 32; it has 1, 2, 4, 8"):
        FeatureBackbone(network)
    assert list(FeatureBackbone(network, (8, 2)).channels) == [2, 8]
    with pytest.raises(ConfigError, match="none was asked for"):
        FeatureBackbone(network, ())


def test_network_of_another_build_is_refused():
    with pytest.raises(ConfigError, match="Sequential has no sequence of layers called `features`"):
        FeatureBackbone(nn.Sequential(nn.Conv2d(3, 4, 1)))
    assert list(FeatureBackbone(random_subnet(TINY, 8), (2,)).channels.values()) == [6]


def test_detector_learns_in_a_step():
    network = photo_network()
    before = network.state_dict()
    backbone = FeatureBackbone(fold_batchnorm(network, torch.zeros(1, 3, 32, 32)).network)
    body = nn.Sequential(
        backbone, FeaturePyramidNetwork([*backbone.channels.values()], 16, LastLevelMaxPool())
    )
    body.out_channels = 16  # type: ignore[assignment]
    pooling = MultiScaleRoIAlign(["4", "8", "16", "32"], output_size=7, sampling_ratio=2)
    detector = FasterRCNN(body, 3, box_roi_pool=pooling, min_size=64, max_size=64).train()
    first = backbone.body[0][0].weight  # type: ignore[index]
    old = first.detach().clone()
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([2])}
    loss = sum(detector([torch.rand(3, 64, 64)], [target]).values())
    loss.backward()
    torch.optim.SGD(detector.parameters(), lr=0.1).step()
    assert torch.isfinite(loss) and not torch.equal(first, old)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
