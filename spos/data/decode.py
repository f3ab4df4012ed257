"""Image files as RGB pixels, with one error that names the file; Pillow decides what is decodable.

Imports only `spos.errors`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from spos.errors import DataError

# What both loaders decode. A file's own format counts, not its name. Naming them also keeps
# Pillow's other plug-ins away from files of strangers (one of them runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


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
        with open(path, "rb") as file:
            return file.read()
    except OSError as problem:
        return BadImage(str(path), problem.strerror or str(problem))


def decode_rgb(encoded: bytes, *, path: Path | str) -> Image.Image | BadImage:
    """Decode to the last pixel (Pillow's `open` alone reads only the header) and convert to RGB.

    Grey, palette, CMYK and transparent images become RGB as Pillow converts them; the orientation
    in a photograph's metadata is not applied, as in torchvision's ImageFolder. Grey images of more
    than 8 bits are refused: Pillow would cut their values off at 255.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _refuse_deep_grey(image)
            return image.convert("RGB")
    except Exception as problem:  # plug-ins raise OSError, SyntaxError, struct.error and more
        return BadImage(str(path), _reason(encoded, problem))


def load_rgb(path: Path | str) -> Image.Image | BadImage:
    """Read and decode a file; see `decode_rgb`."""
    encoded = read_encoded(path)
    return encoded if isinstance(encoded, BadImage) else decode_rgb(encoded, path=path)


def encoded_size(encoded: bytes, *, path: Path | str) -> tuple[int, int] | BadImage:
    """Width and height from the header, after making sure that the file has not been cut.

    Other decoders fill the missing part of a cut JPEG with grey and say nothing. A JPEG or PNG that
    has its end is taken to be whole, which costs microseconds; any other file is decoded by Pillow.
    """
    if not _has_end(encoded):
        image = decode_rgb(encoded, path=path)
        return image if isinstance(image, BadImage) else image.size
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _refuse_deep_grey(image)
            return image.size
    except Exception as problem:  # as above
        return BadImage(str(path), _reason(encoded, problem))


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


def _reason(encoded: bytes, problem: Exception) -> str:
    if not encoded:
        return "the file is empty"
    if isinstance(problem, Image.UnidentifiedImageError):
        return f"not an image of the formats {', '.join(_FORMATS)}"
    return str(problem) or type(problem).__name__
