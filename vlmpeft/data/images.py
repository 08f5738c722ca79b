"""Opening pictures: a file, a part of one or a data URI becomes an RGB image, or one clear line."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, ImageFile, ImageOps, UnidentifiedImageError
from PIL import Image as Pillow

from vlmpeft.data.conversation import Image
from vlmpeft.runtime.errors import UserError

MAX_PIXELS = 100_000_000
DEFAULT_MAX_PIXELS = 401_408  # of a picture that a model is shown
# Qwen-VL's processors raise on pictures that are longer than this
MAX_ASPECT_RATIO = 200
_OVERSIZED = rf"Image size \((?!{MAX_PIXELS} )\d{{{len(str(MAX_PIXELS))},}} pixels"
# libtiff's own limit; ordinary progressive files have 10, and each scan of 64 megapixels takes 0.1 s
MAX_JPEG_SCANS = 100
GREY = (127, 127, 127)
_ORIENTATION = ExifTags.Base.Orientation

# what Pillow raises on broken files: its parsers trust the numbers that they read
_PARSING = (ValueError, SyntaxError, TypeError, LookupError, AttributeError, struct.error)
_DECODING = (OSError, EOFError, ArithmeticError, MemoryError, RuntimeError, zlib.error)
_TOO_LARGE = (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning)
UNREADABLE = (*_TOO_LARGE, *_PARSING, *_DECODING, AssertionError, BufferError, NameError)

_BEGINNINGS = (
    rb"(?P<PNG>\x89PNG)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8)|(?P<WebP>RIFF....WEBP)"
    rb"|(?P<TIFF>II\*\x00|MM\x00\*)|(?P<HEIC>....ftyp(hei|hev|mif1|msf1))|(?P<PDF>%PDF)"
    rb"|(?P<AVIF>....ftypavi[fs])|(?P<SVG>\s*(<[?!].*)?<svg[\s>])"
    rb"|(?P<JPEG_XL>\xff\x0a|\x00\x00\x00\x0cJXL )"
    rb"|(?P<empty>\Z)|(?P<LFS>version https://git-lfs)|(?P<HTML>\s*<(!doctype )?html)"
)
_ADVICE = {
    "empty": "the file is empty",
    "LFS": "it is a Git LFS pointer: run `git lfs pull`",
    "HTML": "it is an HTML page, as a failed download leaves",
}


class NotAPictureError(UserError):
    """The bytes do not begin like a picture in any known format."""


def read_bytes(image: Image) -> bytes:
    """The encoded picture: its file, its byte range of the file, or its decoded data URI.

    Raises:
        UserError: missing, not a file, unreadable, shorter than the range, or not base64.
    """
    if image.source.startswith("data:"):
        return _decode_uri(image)
    try:
        with _open_file(image) as file:
            return _read_range(file, image)
    except OSError as error:
        raise _unreadable(_label(image), _reason(error)) from error


def open_image(image: Image, max_pixels: int | None = None) -> Pillow.Image:
    """The picture in RGB, upright by its EXIF orientation, transparent parts on white.

    Of an animation or of many pages it is the first. Grey of 16 bits is scaled from 0..65535;
    floats, and integers outside of that, are scaled from their own smallest to largest value.

    Args:
        image: the picture; one that is `blank` comes out grey in the same size.
        max_pixels: width x height to scale down to, keeping the shape; never scaled up.

    Raises:
        UserError: missing, broken, of unknown format, or (before it is decoded) of no pixels, of
            more than MAX_PIXELS, or of sides further apart than MAX_ASPECT_RATIO.
    """
    whole_file = image.size is None and not image.offset and not image.source.startswith("data:")
    # Pillow reads of a file what it needs: one that is no picture may be of any size
    stream = _open_file(image) if whole_file else io.BytesIO(read_bytes(image))
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow warns from 89 megapixels on, and of a picture inside of a picture, as in ICO
        warnings.filterwarnings("error", _OVERSIZED, Pillow.DecompressionBombWarning)
        picture = _open_stream(stream, _label(image), max_pixels)
    return Pillow.new("RGB", picture.size, GREY) if image.blank else picture


def _label(image: Image) -> str:
    """How messages call it; a path this long is base64 that lost its `data:`."""
    if image.source.startswith("data:") or len(image.source) > 4096:
        return image.source[:40] + "..."
    if image.size is None and not image.offset:
        return image.source
    end = "end" if image.size is None else image.offset + image.size
    return f"{image.source} bytes {image.offset}-{end}"


def _decode_uri(image: Image) -> bytes:
    header, comma, payload = image.source.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        wanted = "a data URI must be base64-encoded (data:image/png;base64,...)"
        raise _unreadable(_label(image), wanted)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise _unreadable(_label(image), f"not base64: {error}") from error


def _open_file(image: Image) -> BinaryIO:
    path, label = Path(image.source), _label(image)
    try:
        if path.is_file():
            return path.open("rb")
        if path.exists():  # opening a pipe would wait for a writer
            kind = "a directory" if path.is_dir() else "a device or a pipe"
            raise _unreadable(label, f"it is {kind}, not a file")
    except OSError as error:
        raise _unreadable(label, _reason(error)) from error
    raise UserError(f"image {label} does not exist; paths are relative to data.image_dir")


def _read_range(file: BinaryIO, image: Image) -> bytes:
    total = file.seek(0, io.SEEK_END)
    size = total - image.offset if image.size is None else image.size
    inside = image.offset >= 0 and image.offset + size <= total
    if not inside or (size < 1 and total > 0):
        raise _unreadable(_label(image), f"the file has {total} bytes; was it changed since?")
    file.seek(image.offset)
    return file.read(size)


def _open_stream(stream: BinaryIO, label: str, max_pixels: int | None) -> Pillow.Image:
    head = b""
    try:
        head = stream.read(1024)
        with Pillow.open(stream) as picture:
            _check_header(picture, label)
            if picture.format in ("JPEG", "MPO"):
                _check_scans(stream, label)
            return _decode(picture, label, max_pixels)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(head, label) from error
    except _TOO_LARGE as error:
        raise UserError(f"image {label} is too large to be opened safely: {error}") from error
    except UNREADABLE as error:
        raise _unreadable(label, _reason(error)) from error


def _check_header(picture: Pillow.Image, label: str) -> None:
    (width, height), shape = picture.size, f"{picture.width} x {picture.height} pixels"
    if picture.format == "EPS":  # a program, on which Pillow would run Ghostscript
        raise _unreadable(label, "it is EPS; convert it to PNG or JPEG")
    if width * height == 0:
        raise _unreadable(label, f"it has {shape}")
    if width * height > MAX_PIXELS:
        raise UserError(f"image {label} is too large: {shape}; {MAX_PIXELS:,} are allowed")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UserError(f"image {label} is longer than {MAX_ASPECT_RATIO}:1: {shape}; crop it")


def _check_scans(stream: BinaryIO, label: str) -> None:
    """Refuse a JPEG that goes over its pixels again and again: 2 MB may take half an hour."""
    position = stream.tell()
    stream.seek(0)
    # within pixels FF is followed by 00 or by a restart mark
    scans = sum(part.count(b"\xff\xda") for part in iter(lambda: stream.read(2**20), b""))
    stream.seek(position)
    if scans > MAX_JPEG_SCANS:
        raise _unreadable(
            label, f"it has {scans} scans; {MAX_JPEG_SCANS} are allowed; save it again"
        )


def _decode(picture: ImageFile.ImageFile, label: str, max_pixels: int | None) -> Pillow.Image:
    size = _limited_size(picture.size, max_pixels)
    if size != picture.size:
        # a JPEG is decoded at 1/2, 1/4 or 1/8, but no smaller than twice the result
        picture.draft(None, (2 * size[0], 2 * size[1]))
    before = picture.size
    picture.load()
    if picture.size != before:
        _check_header(picture, label)
        size = _limited_size(picture.size, max_pixels)
    return _turn(_to_rgb(picture, size), picture)


def _limited_size(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """(width, height) of at most `max_pixels`, no side below 1, no longer than is allowed."""
    if max_pixels is None or math.prod(size) <= max_pixels:
        return size
    short = max(1, math.isqrt(max_pixels * min(size) // max(size)))
    long = math.isqrt(max_pixels * max(size) // min(size))
    long = max(1, min(long, max_pixels // short, MAX_ASPECT_RATIO * short))
    return (long, short) if size[0] >= size[1] else (short, long)


def _turn(picture: Pillow.Image, original: Pillow.Image) -> Pillow.Image:
    # the file's EXIF is not to be applied a second time, nor its metadata copied to workers
    picture.info = {}
    with contextlib.suppress(*UNREADABLE):
        picture.getexif()[_ORIENTATION] = original.getexif().get(_ORIENTATION, 1)
    return ImageOps.exif_transpose(picture)


def _to_rgb(picture: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        rgb = _scale_grey(picture).convert("RGB")
    elif picture.has_transparency_data:
        rgb = _on_white(picture)
    else:
        rgb = picture.convert("RGB")
    lanczos = Pillow.Resampling.LANCZOS
    return rgb if rgb.size == size else rgb.resize(size, lanczos, reducing_gap=3.0)


def _scale_grey(picture: Pillow.Image) -> Pillow.Image:
    values = np.asarray(picture)  # (H, W)
    lowest, highest = 0.0, 65535.0
    if picture.mode == "F" or values.min() < lowest or values.max() > highest:
        finite = values[np.isfinite(values)].astype(np.float64)
        lowest, highest = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=lowest, posinf=highest, neginf=lowest)
    scale = 255 / (highest - lowest) if highest > lowest else 0.0
    levels = np.rint((values.astype(np.float64) - lowest) * scale)
    return Pillow.fromarray(levels.astype(np.uint8))


def _on_white(picture: Pillow.Image) -> Pillow.Image:
    # La, grey with premultiplied alpha as in TIFF, has no direct way to RGBA
    rgba = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    white = Pillow.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _unidentified(head: bytes, label: str) -> UserError:
    match = re.match(_BEGINNINGS, head, re.DOTALL | re.IGNORECASE)
    found = match.lastgroup if match else None
    if found is None or found in _ADVICE:
        why = _ADVICE.get(found or "", "it is in no known picture format")
        return NotAPictureError(str(_unreadable(label, why)))
    damaged = found in ("PNG", "JPEG", "GIF", "WebP", "TIFF")
    advice = ", but its beginning is damaged" if damaged else "; convert it to PNG or JPEG"
    return _unreadable(label, f"it seems to be {found.replace('_', ' ')}{advice}")


def _unreadable(label: str, why: str) -> UserError:
    return UserError(f"image {label} cannot be read: {why}")


def _reason(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    bomb = "its text or profile unpacks to more than is safe (a zip bomb); save it without"
    return bomb if re.search("MAX_TEXT_CHUNK|text chunks", text) else text or type(error).__name__
