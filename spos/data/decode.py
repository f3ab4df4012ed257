"""Image files as RGB pixels, with one error that names the file; Pillow decides what is decodable.

Imports only `spos.errors`.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from spos.errors import DataError

# What both loaders decode. A file's own format counts, not its name. Naming them also keeps
# Pillow's other plug-ins away from files of strangers (one of them runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
# Read of a JPEG to see its size, and that it has its end; smaller files are read whole.
_HEAD, _TAIL = 4096, 1024
# Decoded below the part that is used: colours are stored coarser, and interpolated between rows.
_ROWS_BELOW = 32


@dataclass(frozen=True)
class BadImage:
    """A file that is not a whole image; a value, so that worker processes can hand it over."""

    path: str
    reason: str

    def error(self) -> DataError:
        """The exception that ends training or evaluation."""
        return DataError(
            f"{self.path}: cannot be decoded ({self.reason}); remove or replace the file. "
            "`python -m spos data check DIR` lists all such files"
        )


def read_encoded(path: Path | str) -> bytes | BadImage:
    """The bytes of an image file."""
    try:
        with _open_file(path) as file:
            return file.read()
    except OSError as problem:
        return BadImage(str(path), problem.strerror or str(problem))


def _open_file(path: Path | str) -> IO[bytes]:
    """A file to read; a pipe, which may wait for ever, and a device are none."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return open(path, "rb")


def decode_rgb(encoded: bytes, *, path: Path | str) -> Image.Image | BadImage:
    """Decode to the last pixel (Pillow's `open` alone reads only the header) and convert to RGB.

    Grey, palette, CMYK and transparent images become RGB as Pillow converts them; the orientation
    in a photograph's metadata is not applied, as in torchvision's ImageFolder. Grey images of more
    than 8 bits are refused: Pillow would cut their values off at 255.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return _load_rgb_pixels(image)
    except Exception as problem:  # plug-ins raise OSError, SyntaxError, struct.error and more
        return BadImage(str(path), _reason(encoded, problem))


def load_rgb(path: Path | str) -> Image.Image | BadImage:
    """Read and decode a file; see `decode_rgb`."""
    encoded = read_encoded(path)
    return encoded if isinstance(encoded, BadImage) else decode_rgb(encoded, path=path)


def open_rgb(image: Image.Image) -> Image.Image | BadImage:
    """The pixels of an image that Pillow has opened; see `decode_rgb`."""
    try:
        return _load_rgb_pixels(image)
    except Exception as problem:  # as above
        name = str(getattr(image, "filename", "")) or "the given image"
        return BadImage(name, str(problem) or type(problem).__name__)


Box = tuple[float, float, float, float]


def decode_part(
    encoded: bytes,
    box: tuple[int, int, int, int],
    resized: tuple[int, int],
    *,
    path: Path | str,
) -> tuple[Image.Image, Box] | BadImage:
    """Decode what a view of a photograph needs: of a JPEG not the rows below it, nor finer pixels.

    A JPEG is decoded in a half, a quarter or an eighth of its size (its cosine transform without
    the fine terms) while the part has at least as many pixels as it is resized to.

    Args:
        encoded: bytes of an image file.
        box: left, top, width and height of the part, in pixels of the whole image.
        resized: width and height to which it will be resized.
        path: of the file.

    Returns:
        The image, perhaps smaller and without its last rows, and the part's place in it: left, top,
        right, bottom.
    """
    left, top, width, height = box
    head = _baseline_head(encoded) if _has_end(encoded) else None
    if head is None:
        image = decode_rgb(encoded, path=path)
        whole = (left, top, left + width, top + height)
        return image if isinstance(image, BadImage) else (image, whole)
    place, (image_width, image_height) = head
    rows = min(image_height, top + height + _ROWS_BELOW)
    # The decoder stops where the header says: a lower image is all that it takes.
    lower = encoded[:place] + rows.to_bytes(2, "big") + encoded[place + 2 :]
    most = min(width / resized[0], height / resized[1])
    scale = next(each for each in (8, 4, 2, 1) if each <= max(most, 1))
    try:
        with Image.open(io.BytesIO(lower), formats=("JPEG",)) as image:
            if scale > 1:
                image.draft(None, (image_width // scale, rows // scale))
            pixels = _load_rgb_pixels(image)
    except Exception as problem:  # as above
        return BadImage(str(path), _reason(encoded, problem))
    scale = round(image_width / pixels.width)  # which draft() chose
    right = min((left + width) / scale, pixels.width)
    bottom = min((top + height) / scale, pixels.height)
    return pixels, (left / scale, top / scale, right, bottom)


def encoded_size(encoded: bytes, *, path: Path | str) -> tuple[int, int] | BadImage:
    """Width and height from the header, after making sure that the file has not been cut.

    Other decoders fill the missing part of a cut JPEG with grey and say nothing. A JPEG or PNG that
    has its end is taken to be whole, which costs microseconds; any other file is decoded by Pillow.
    """
    if not _has_end(encoded):
        image = decode_rgb(encoded, path=path)
        return image if isinstance(image, BadImage) else image.size
    if (head := _baseline_head(encoded)) is not None:
        return head[1]
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _refuse_deep_grey(image)
            return image.size
    except Exception as problem:  # as above
        return BadImage(str(path), _reason(encoded, problem))


def file_size(path: Path | str) -> tuple[int, int] | BadImage:
    """`encoded_size` of a file, of which only both ends are read if they are those of a JPEG."""
    try:
        with _open_file(path) as file:
            head = file.read(_HEAD)
            if file.seek(0, os.SEEK_END) >= _HEAD + _TAIL:
                file.seek(-_TAIL, os.SEEK_END)
                found = _baseline_head(head)
                if head.startswith(b"\xff\xd8") and found and b"\xff\xd9" in file.read():
                    return found[1]
    except OSError as problem:
        return BadImage(str(path), problem.strerror or str(problem))
    encoded = read_encoded(path)
    return encoded if isinstance(encoded, BadImage) else encoded_size(encoded, path=path)


def _load_rgb_pixels(image: Image.Image) -> Image.Image:
    _refuse_deep_grey(image)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image  # a conversion would copy it


def _refuse_deep_grey(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"grey levels of more than 8 bits, mode {image.mode}; convert it to 8 bits"
        )


def _has_end(encoded: bytes) -> bool:
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return encoded.endswith(b"IEND\xaeB`\x82")
    return encoded.startswith(b"\xff\xd8") and encoded.rfind(b"\xff\xd9") > _scan_start(encoded)


def _scan_start(encoded: bytes) -> int:
    """Where a JPEG's pixel data begin; thumbnails, with ends of their own, lie before that."""
    position = 2
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:  # start of scan
            return position
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return len(encoded)


def _baseline_head(encoded: bytes) -> tuple[int, tuple[int, int]] | None:
    """Where a JPEG states its height, and its width and height; None if it is not of one scan.

    A progressive JPEG is not, nor is one that stores its colours one after the other: their later
    scans lie where a lower image's would not.
    """
    position, found = 2, None
    while position + 10 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker in (0xC0, 0xC1):  # baseline and extended sequential, in Huffman codes
            height = int.from_bytes(encoded[position + 5 : position + 7], "big")
            width = int.from_bytes(encoded[position + 7 : position + 9], "big")
            found = position, encoded[position + 9], (width, height)
        elif marker == 0xDA and found is not None:  # start of scan
            place, components, size = found
            is_whole = encoded[position + 4] == components and min(size) > 0
            return (place + 5, size) if is_whole else None
        elif marker in (0xFF, 0xDA) or 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xCC):
            return None
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return None


def _reason(encoded: bytes, problem: Exception) -> str:
    if not encoded:
        return "the file is empty"
    if isinstance(problem, Image.UnidentifiedImageError):
        return f"not an image of the formats {', '.join(_FORMATS)}"
    return str(problem) or type(problem).__name__
