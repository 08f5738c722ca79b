"""Opening pictures: a path or a data URI becomes an RGB image, or one clear line."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageOps

from vlmpeft.data.conversation import Image
from vlmpeft.errors import UserError


def open_image(image: Image) -> Pillow.Image:
    """The picture in RGB, turned upright by its EXIF orientation.

    Raises:
        UserError: missing, unreadable, truncated or oversized.
    """
    label = image.source if not image.source.startswith("data:") else image.source[:40] + "..."
    try:
        with Pillow.open(_stream(image.source)) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(
            f"image {label} does not exist; paths are relative to data.image_dir"
        ) from error
    except Pillow.DecompressionBombError as error:
        raise UserError(f"image {label} is too large to be opened safely: {error}") from error
    except (OSError, ValueError, SyntaxError, binascii.Error) as error:
        raise UserError(f"image {label} cannot be read: {error}") from error


def _stream(source: str) -> Path | io.BytesIO:
    if not source.startswith("data:"):
        return Path(source)
    header, _, payload = source.partition(",")
    if not header.endswith(";base64"):
        raise ValueError("a data URI must be base64-encoded")
    return io.BytesIO(base64.b64decode(payload, validate=True))
