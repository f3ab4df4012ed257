import pytest
import torch
from torchvision.transforms.v2 import functional

from spos.data.preprocessing import Preprocessing
from spos.errors import ConfigError


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 8, 6, 3), generator=generator, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


def test_standard_is_torchvisions_normalisation(images: torch.Tensor) -> None:
    expected = functional.normalize(
        images.float() / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    assert torch.allclose(Preprocessing("standard").apply(images), expected, atol=1e-6)


def test_spos_is_bgr_from_0_to_255(images: torch.Tensor) -> None:
    result = Preprocessing("spos").apply(images)
    assert result.dtype == torch.float32
    assert torch.equal(result, images[:, [2, 1, 0]].float())
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    assert Preprocessing("spos").apply(red).flatten().tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["standard", "spos"])
def test_mean_colour_is_what_that_colour_becomes(name: str) -> None:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    low, high = (Preprocessing(name).apply(each.to(torch.uint8)) for each in (mean, mean + 1))
    found = Preprocessing(name).mean_colour(torch.device("cpu"))
    assert found.shape == (3, 1, 1) and found.dtype == torch.float32
    assert ((low <= found) & (found < high)).all()


@pytest.mark.parametrize("name", ["standard", "spos"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_has_the_format_asked_for(
    images: torch.Tensor, name: str, channels_last: bool, dtype: torch.dtype
) -> None:
    before = images.clone()
    result = Preprocessing(name).apply(images, channels_last=channels_last, dtype=dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=memory_format)
    assert result.dtype == dtype
    assert torch.equal(images, before)
    assert torch.equal(result, Preprocessing(name).apply(images.contiguous()).to(dtype))


def test_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(ConfigError, match="'rgb' is unknown; choose one of standard, spos"):
        Preprocessing("rgb")
