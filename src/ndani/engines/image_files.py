"""Which image files go to an engine: their format and their size, read from the first bytes, before anything decodes them.

The engine decodes images with a C library, inside the runner's jail. A file of a few kilobytes can stand for gigabytes of pixels,
and a file of another kind would be tried by decoders that nobody asked for (sound, video): both are refused here, in the front,
which reads a few numbers and decodes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ndani.errors import BadRequest

#: Pixels of one image, and of all images of one request. The engine holds 3 bytes for each, and up to 16 while it decodes it.
MAX_PIXELS, MAX_PIXELS_TOGETHER = 50_000_000, 100_000_000
#: Images of one request.
MAX_IMAGES = 64

_FORMATS = "PNG, JPEG, GIF or BMP"
#: The size of a BMP's second header says which one it is; these are the ones that the engine decodes.
_BMP_HEADERS = (12, 40, 56, 108, 124)
#: Segments of a JPEG that may come before its size, and how many of them: real files have fewer than 300.
_JPEG_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_MAX_JPEG_SEGMENTS = 2000


def check_images(images: Sequence[bytes]) -> None:
    """Refuse images that the engine cannot decode or that are too large or too many. Raises BadRequest."""
    if len(images) > MAX_IMAGES:
        raise BadRequest(f"a request may have {MAX_IMAGES} images, and this one has {len(images)}; leave some out")
    together = 0
    for number, image in enumerate(images, 1):
        name = "the image" if len(images) == 1 else f"image {number}"
        width, height = _size(image, name)
        if width * height > MAX_PIXELS:
            raise BadRequest(f"{name} has {width} x {height} pixels, and may have {MAX_PIXELS:,} of them; make it smaller")
        together += width * height
    if together > MAX_PIXELS_TOGETHER:
        raise BadRequest(f"the images have {together:,} pixels together, and may have {MAX_PIXELS_TOGETHER:,}; make them smaller")


def _size(image: bytes, name: str) -> tuple[int, int]:
    """Width and height. Raises BadRequest for other formats and for a header without them."""
    try:
        if image.startswith(b"\x89PNG\r\n\x1a\n"):
            size = struct.unpack_from(">II", image, 16) if image[12:16] == b"IHDR" else (0, 0)
        elif image.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", image, 6)
        elif image.startswith(b"BM"):
            size = _bmp_size(image)
        elif image.startswith(b"\xff\xd8"):
            size = _jpeg_size(image)
        else:
            found = _format_name(image)
            raise BadRequest(f"{name} is {found}; send it as {_FORMATS}" if found else f"{name} is not a {_FORMATS} file; send it as one")
    except (struct.error, IndexError, ValueError):  # the head ends before its numbers
        size = (0, 0)
    if min(size) < 1:
        raise BadRequest(f"{name} cannot be read: its head is damaged or cut off; send the whole file")
    return size[0], size[1]


def _format_name(image: bytes) -> str:
    """The name of a format that people send, and that the engine does not decode."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "WebP"
    if image[4:8] == b"ftyp":
        return "AVIF or HEIC" if image[8:12] in (b"avif", b"heic", b"heix", b"mif1") else "a video"
    return "TIFF" if image[:4] in (b"II*\0", b"MM\0*") else ""


def _bmp_size(image: bytes) -> tuple[int, ...]:
    (header,) = struct.unpack_from("<I", image, 14)
    if header not in _BMP_HEADERS:
        return 0, 0
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", image, 18)
    return width, abs(height)  # a negative height means that the first row is the top one


def _jpeg_size(image: bytes) -> tuple[int, ...]:
    """The size in the first frame header, found as the engine's decoder finds it: from segment to segment."""
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        at = image.index(b"\xff", at) if image[at] != 0xFF else at  # padding between segments
        while image[at] == 0xFF:
            at += 1
        if image[at] in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", image, at + 4)
            return width, height
        if image[at] not in _JPEG_TABLES:
            break
        at += 1 + struct.unpack_from(">H", image, at + 1)[0]
    return 0, 0
