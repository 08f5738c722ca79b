"""Pictures that cannot be used: each gives one line that says why, whatever is wrong with it."""

import base64
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import PngImagePlugin

from vlmpeft.data.conversation import Image
from vlmpeft.data.images import MAX_PIXELS, NotAPictureError, open_image, read_bytes
from vlmpeft.runtime.errors import UserError

from .test_images import encoded, noise, smooth


@pytest.fixture
def broken(tmp_path):
    """Write bytes to a file; gives its reference."""

    def write(content):
        path = tmp_path / "picture"
        path.write_bytes(content)
        return Image(str(path))

    return write


def png_header(width, height):
    """A PNG of 8-bit grey that says how large it is and holds next to nothing."""
    return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))])


def png(chunks):
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in (*chunks, (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + name + data
        out += struct.pack(">I", zlib.crc32(name + data))
    return out


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 101), (99, 2), (101, None), (100, None), (-1, 5), (5, 0), (5, -2)]
)
def test_range_outside_of_the_file_is_refused(broken, offset, size):
    image = Image(broken(bytes(100)).source, offset=offset, size=size)
    with pytest.raises(UserError, match=rf"picture bytes {offset}-.* the file has 100 bytes"):
        read_bytes(image)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:image/svg+xml,%3Csvg%3E", "must be base64-encoded"),
        ("data:image/png;base64", "must be base64-encoded"),
        ("data:image/png;base64,!!!", "not base64"),
        ("data:image/png;base64,abcde", "not base64"),
        ("data:image/png;base64," + "A" * 400, "no known picture format"),
    ],
)
def test_bad_data_uri_is_named_by_its_beginning(uri, reason):
    with pytest.raises(UserError, match=reason) as caught:
        open_image(Image(uri))
    assert f"image {uri[:40]}... cannot be read" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_bytes, open_image):
        with pytest.raises(UserError, match=r"gone\.png does not exist; paths are relative to"):
            read(Image(str(tmp_path / "gone.png")))
        with pytest.raises(UserError, match="it is a directory, not a file"):
            read(Image(str(tmp_path)))
        with pytest.raises(UserError, match="it is a device or a pipe"):
            read(Image(str(tmp_path / "pipe")))
        with pytest.raises(UserError, match=r"image AAAA.{36}\.\.\. cannot be read") as caught:
            read(Image("A" * 10_000))
        assert len(str(caught.value)) < 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(broken):
    image = broken(b"secret")
    os.chmod(image.source, 0)  # noqa: PTH101
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_bytes(image)


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4001, 20)])
def test_too_long_pictures_are_refused(broken, size):
    with pytest.raises(UserError, match=rf"longer than 200:1: {size[0]} x {size[1]} pixels"):
        open_image(broken(encoded(Pillow.new("L", size))))


@pytest.mark.parametrize(
    ("width", "height"),
    [(10_001, 10_000), (13_000, 13_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)],
)
def test_oversized_pictures_are_refused_before_decoding(broken, monkeypatch, width, height):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert width * height > MAX_PIXELS
    with pytest.raises(UserError, match="is too large"):
        open_image(broken(png_header(width, height)))


def test_the_limit_does_not_hang_on_that_of_pillow(broken, monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UserError, match="too large: 10001 x 10000 pixels; 100,000,000 are allowed"):
        open_image(broken(png_header(10_001, 10_000)))


def test_picture_inside_of_an_icon_is_judged_too(broken):
    for width, height, reason in ((10_001, 10_000, "large"), (9_900, 9_900, "truncated")):
        inner = png_header(width, height)
        entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
        with pytest.raises(UserError, match=reason):
            open_image(broken(struct.pack("<HHH", 0, 1, 1) + entry + inner))


def test_picture_without_pixels_is_refused(broken):
    with pytest.raises(UserError, match="cannot be read"):
        open_image(broken(png_header(0, 5)))
    gif = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0)
    with pytest.raises(UserError, match="cannot be read"):
        open_image(broken(gif + b"," + struct.pack("<HHHHB", 0, 0, 0, 0, 0) + b"\x02\x01\x00\x00;"))


# broken and foreign files


def test_zip_bomb_in_a_text_chunk(broken):
    bomb = zlib.compress(b"\0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1))
    header = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    with pytest.raises(UserError, match="zip bomb"):
        open_image(broken(png([header, (b"zTXt", b"Comment\0\0" + bomb)])))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "seems to be HEIC; convert it to PNG or JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "seems to be SVG; convert"),
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg width='1'></svg>", "seems to be SVG; convert"),
        (b"\xff\x0a" + b"\x12" * 30, "seems to be JPEG XL; convert"),
        (b"%PDF-1.7\n", "seems to be PDF; convert"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS; convert"),
        (b"\x89PNG\r\n\x1a\nrubbish", "seems to be PNG, but its beginning is damaged"),
        (b"\xff\xd8\xff\xe0", "Truncated|seems to be JPEG, but"),
        (b"II*\0\xff\xff\xff\xff", "seems to be TIFF, but its beginning is damaged"),
    ],
)
def test_foreign_and_damaged_formats_are_named(broken, content, reason):
    with pytest.raises(UserError, match=reason) as caught:
        open_image(broken(content))
    assert not isinstance(caught.value, NotAPictureError)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "run `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"[1, 2, 3]", "no known picture format"),
    ],
)
def test_what_is_no_picture_is_told_apart(broken, content, reason):
    with pytest.raises(NotAPictureError, match=reason):
        open_image(broken(content))


def samples():
    rgb, exif = Pillow.fromarray(smooth(24, 32)), Pillow.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(180)]}
    return {
        "png": encoded(rgb, "PNG", exif=exif),
        "palette": encoded(rgb.quantize(8), "PNG", transparency=2),
        "jpg": encoded(rgb, "JPEG", exif=exif),
        "gif": encoded(rgb, "GIF", **frames),
        "webp": encoded(rgb, "WEBP", exif=exif, **frames),
        "tiff": encoded(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        "raw tiff": encoded(Pillow.fromarray(noise(dtype=np.uint16, high=65536)), "TIFF"),
        "bmp": encoded(rgb, "BMP"),
        "ico": encoded(rgb.resize((32, 32)), "ICO"),
    }


def mutate(content, rng):
    """Truncated, with flipped bits or with a range of zeros; half of the time near the beginning."""
    data = bytearray(content)
    start = rng.randrange(min(len(data), 120) if rng.random() < 0.5 else len(data))
    kind = rng.randrange(3)
    if kind == 0:
        return bytes(data[:start])
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            data[(start + rng.randrange(40)) % len(data)] ^= rng.randint(1, 255)
    else:
        data[start : start + 20] = bytes(len(data[start : start + 20]))
    return bytes(data)


@pytest.mark.parametrize(
    "kind", ["png", "palette", "jpg", "gif", "webp", "tiff", "raw tiff", "bmp", "ico"]
)
def test_mutated_files_give_rgb_or_one_line(kind):
    rng, intact, line = random.Random(kind), samples()[kind], ""
    outcomes = {"read": 0, "refused": 0}
    for _ in range(int(os.environ.get("VLMPEFT_FUZZ", "25"))):
        content = mutate(intact, rng)
        image = Image("data:;base64," + base64.b64encode(content).decode())
        with warnings.catch_warnings(record=True) as escaped:
            warnings.simplefilter("always")
            try:
                assert open_image(image, max_pixels=rng.choice([None, 100])).mode == "RGB"
                outcomes["read"] += 1
            except UserError as error:
                line = str(error)
                outcomes["refused"] += 1
        assert not escaped
        assert line.isprintable()
    assert outcomes["refused"]
