import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spos.data.check import check_images, find_gaps, list_images
from spos.data.decode import BadImage, decode_rgb, encoded_size, file_size, load_rgb
from spos.data.folder import ImageSet
from spos.errors import DataError


def encode(image: Image.Image, form: str, **options: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def find_bad(root: Path, num_workers: int | None = None) -> dict[str, str]:
    results = check_images(root, list_images(root), num_workers=num_workers)
    return {result.path: result.reason for result in results if result is not None}


def test_cut_photographs_are_all_found(photographs: ImageSet, tmp_path: Path) -> None:
    for path in photographs.paths[::6]:
        whole = (photographs.root / path).read_bytes()
        stem = Path(path).stem
        (tmp_path / f"{stem}.jpg").write_bytes(whole)
        for percent in (0, 0.2, 10, 50, 95):
            cut = whole[: int(len(whole) * percent / 100)]
            (tmp_path / f"{stem}_cut_{percent}.jpg").write_bytes(cut)
    bad = find_bad(tmp_path)
    assert set(bad) == {each.name for each in tmp_path.glob("*_cut_*")}
    assert len(bad) == 5 * 11
    assert all(reason for reason in bad.values())


def test_whole_photographs_pass(photographs: ImageSet) -> None:
    assert find_bad(photographs.root, num_workers=1) == {}


def test_unusual_but_decodable_images_pass(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    (tmp_path / "png_named.JPEG").write_bytes(encode(rgb, "PNG"))
    (tmp_path / "jpeg_named.png").write_bytes(encode(rgb, "JPEG"))
    (tmp_path / "cmyk.jpg").write_bytes(encode(rgb.convert("CMYK"), "JPEG"))
    (tmp_path / "grey.jpg").write_bytes(encode(rgb.convert("L"), "JPEG"))
    (tmp_path / "palette.png").write_bytes(encode(rgb.convert("P"), "PNG"))
    (tmp_path / "transparent.png").write_bytes(encode(rgb.convert("RGBA"), "PNG"))
    (tmp_path / "progressive.jpg").write_bytes(encode(rgb, "JPEG", progressive=True))
    (tmp_path / "trailing.jpg").write_bytes(encode(rgb, "JPEG") + b"more")
    for form in ("BMP", "TIFF", "WEBP", "PPM"):
        (tmp_path / f"other.{form.lower()}").write_bytes(encode(rgb, form))
    assert find_bad(tmp_path) == {}


def test_what_is_no_image_is_found(tmp_path: Path) -> None:
    small = Image.new("RGB", (8, 8))
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "moving.jpg").write_bytes(encode(small, "GIF"))  # DALI has no decoder for it
    (tmp_path / "script.jpg").write_bytes(encode(small, "EPS"))
    (tmp_path / "empty.bmp").touch()
    large = encode(Image.effect_noise((64, 64), 50), "PNG")
    (tmp_path / "cut.png").write_bytes(large[: len(large) // 2])
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    (tmp_path / "deep.png").write_bytes(encode(deep, "PNG"))
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    bad = find_bad(tmp_path)
    assert set(bad) == {each.name for each in tmp_path.iterdir()}
    assert bad["empty.bmp"] == "the file is empty"
    assert bad["text.jpg"].startswith("not an image")
    assert "8 bits" in bad["deep.png"]
    assert bad["gone.jpg"] == "No such file or directory"


def test_results_keep_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/c.jpg", "d.jpg"):
        (tmp_path / name).touch()
    paths = ["d.jpg", "a.jpg", "b/c.jpg"]
    assert [each.path for each in check_images(tmp_path, paths) if each] == paths


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        list_images(tmp_path / "missing")


def test_cut_files_are_not_taken_for_whole(photographs: ImageSet) -> None:
    """DALI would fill the missing part with grey, so its loader relies on this."""
    for path in photographs.paths[::10]:
        whole = (photographs.root / path).read_bytes()
        image = decode_rgb(whole, path=path)
        assert isinstance(image, Image.Image)
        assert encoded_size(whole, path=path) == image.size
        for percent in (0, 0.2, 10, 50, 95):
            cut = whole[: int(len(whole) * percent / 100)]
            assert isinstance(encoded_size(cut, path=path), BadImage)


def test_both_ends_of_a_file_tell_what_all_of_it_does(photographs: ImageSet, tmp_path) -> None:
    path = tmp_path / "image"
    for name in photographs.paths[::10]:
        whole = (photographs.root / name).read_bytes()
        for encoded in (
            whole, whole[:-1], whole[:-2000], whole[: len(whole) // 2], whole[:3000], whole + b"x",
            encode(Image.open(io.BytesIO(whole)), "PNG"),
            encode(Image.open(io.BytesIO(whole)), "JPEG", progressive=True),
        ):  # fmt: skip
            path.write_bytes(encoded)
            assert file_size(path) == encoded_size(encoded, path=path)
    assert isinstance(file_size(tmp_path / "missing"), BadImage)


def test_thumbnails_do_not_hide_a_cut() -> None:
    """A thumbnail in the metadata has an end marker of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(pixels), "JPEG")
    thumbnail = encode(Image.fromarray(pixels[:8, :8]), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert encoded_size(with_thumbnail, path="x") == (64, 64)
    cut = with_thumbnail[: len(with_thumbnail) // 2]
    assert isinstance(encoded_size(cut, path="x"), BadImage)


def test_quick_check_agrees_with_decoding() -> None:
    whole = encode(Image.new("RGB", (64, 48), "red"), "JPEG")
    for length in range(len(whole) - 40, len(whole) + 1):
        decoded = decode_rgb(whole[:length], path="x")
        size = encoded_size(whole[:length], path="x")
        assert isinstance(size, BadImage) == isinstance(decoded, BadImage)


@pytest.mark.parametrize("read", [load_rgb, file_size])
def test_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    found = read(tmp_path / "pipe.jpg")
    assert found == BadImage(str(tmp_path / "pipe.jpg"), "not a regular file")
    assert find_bad(tmp_path) == {"pipe.jpg": "not a regular file"}


def test_image_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 // 2 - 1)
    found = load_rgb(tmp_path / "large.png")
    assert isinstance(found, BadImage) and "large.png" in found.path
    assert "exceeds limit" in found.reason


@pytest.mark.parametrize(
    ("files", "gaps"),
    [
        (["a/1.jpg", "b/2.jpg", "c/note.txt"], ["c: a class folder without images"]),
        (["1.jpg", "notes/a.txt"], []),
        (["train/a/1.jpg", "train/b/.x", "val/a/1.jpg", "val/b/1.jpg"],
         ["train/b: a class folder without images"]),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg", "test/d/1.jpg"],
         ["train/b: a class that {}/val does not have", "val/c: a class that {}/train does not"]),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"],
         ["train/b: a class that {}/test does not have"]),
    ],
)  # fmt: skip
def test_gaps_of_classes_are_found(tmp_path: Path, files: list[str], gaps: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = find_gaps(tmp_path, list_images(tmp_path))
    assert len(found) == len(gaps)
    for line, expected in zip(found, gaps, strict=True):
        assert line.startswith(f"{tmp_path}/{expected.format(tmp_path)}")
