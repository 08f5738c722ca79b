"""Every kind of picture becomes the RGB that arithmetic on its pixels gives; a broken one, a line."""

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from vlmpeft.data.conversation import Image
from vlmpeft.data.images import MAX_PIXELS, open_image, read_bytes
from vlmpeft.runtime.errors import UserError

HEIGHT, WIDTH = 20, 30


def noise(*channels, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, (HEIGHT, WIDTH, *channels)).astype(dtype)


def smooth(height=HEIGHT, width=WIDTH):
    """RGB without edges, so that lossy formats keep it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, 255 - x * 255 / width], -1).astype(np.uint8)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path):
    """Write bytes or a picture to a file; gives its reference."""

    def write(content, kind="PNG", name="picture", blank=False, **options):
        path = tmp_path / name
        path.write_bytes(
            content if isinstance(content, bytes) else encoded(content, kind, **options)
        )
        return Image(str(path), blank=blank)

    return write


def pixels(image, **settings):
    picture = open_image(image, **settings)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def on_white(rgb, alpha):
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


# reading bytes


def test_bytes_are_the_file_the_range_or_the_decoded_uri(store):
    image = store(bytes(range(100)))
    assert read_bytes(image) == bytes(range(100))
    assert read_bytes(Image(image.source, offset=10, size=5)) == bytes(range(10, 15))
    assert read_bytes(Image(image.source, offset=90)) == bytes(range(90, 100))
    assert read_bytes(Image(image.source, offset=0, size=100)) == bytes(range(100))
    text = base64.b64encode(bytes(range(100))).decode()
    assert read_bytes(Image(f"data:image/png;base64,{text}")) == bytes(range(100))
    wrapped = "\n".join(text[i : i + 20] for i in range(0, len(text), 20))
    assert read_bytes(Image(f"data:;BASE64,{wrapped}")) == bytes(range(100))


def test_picture_inside_of_a_larger_file(store):
    first, second = (encoded(Pillow.fromarray(noise(3, seed=seed))) for seed in (0, 1))
    shard = store(b"x" * 512 + first + second)
    inside = Image(shard.source, offset=512 + len(first), size=len(second))
    assert (pixels(inside) == np.asarray(Pillow.open(io.BytesIO(second)))).all()
    cut = Image(shard.source, offset=512, size=60)
    with pytest.raises(UserError, match=r"picture bytes 512-572 cannot be read"):
        open_image(cut)


# modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_rgb_is_kept_bitwise(store, kind):
    rgb = noise(3)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (pixels(store(Pillow.fromarray(rgb), kind, **options)) == rgb).all()


def test_grey_and_one_bit_are_repeated_in_each_channel(store):
    grey = noise()
    assert (pixels(store(Pillow.fromarray(grey))) == grey[..., None]).all()
    bits = grey > 127
    assert (pixels(store(Pillow.fromarray(bits))) == bits[..., None] * 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_composited_on_white(store, kind):
    rgba, grey_alpha = noise(4), noise(2)
    expected = on_white(rgba[..., :3], rgba[..., 3])
    assert np.abs(pixels(store(Pillow.fromarray(rgba), kind)) - expected).max() <= 1
    expected = on_white(grey_alpha[..., :1], grey_alpha[..., 1])
    assert np.abs(pixels(store(Pillow.fromarray(grey_alpha), kind)) - expected).max() <= 1


@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_alpha_is_composited_on_white(store, channels):
    stored = noise(channels)
    stored[..., -1] = 255 - stored[..., -1] // 3
    stored[..., :-1] = np.minimum(stored[..., :-1], stored[..., -1:])
    picture = Pillow.frombytes("LA" if channels == 2 else "RGBA", (WIDTH, HEIGHT), stored.tobytes())
    # ExtraSamples: 1 is alpha that is multiplied into the colours, 2 is alpha that is not
    content = encoded(picture, "TIFF", compression="raw")
    tag = struct.pack("<HHI", 338, 3, 1)
    assert content.count(tag) == 1
    image = store(content.replace(tag + b"\2", tag + b"\1"))
    with Pillow.open(image.source) as opened:
        assert opened.mode == ("La" if channels == 2 else "RGBA")
    expected = stored[..., :-1].astype(int) + 255 - stored[..., -1:]
    assert np.abs(pixels(image) - expected).max() <= 2


def test_palette_and_its_transparency(store):
    index, palette = noise(high=8), noise(3)[0, :8]
    picture = Pillow.fromarray(index)
    picture.putpalette(palette.tobytes())
    assert picture.mode == "P"
    assert (pixels(store(picture)) == palette[index]).all()
    assert (pixels(store(picture, "GIF")) == palette[index]).all()
    expected = np.where(index[..., None] == 3, 255, palette[index])
    assert (pixels(store(picture, "GIF", transparency=3)) == expected).all()
    assert (pixels(store(picture, transparency=3)) == expected).all()
    alpha = np.array([0, 40, 80, 120, 160, 200, 240, 255])
    expected = on_white(palette[index], alpha[index])
    found = pixels(store(picture, transparency=bytes(alpha.tolist())))
    assert np.abs(found - expected).max() <= 1


def test_one_transparent_colour_of_rgb_and_of_grey(store):
    rgb, grey = noise(3, high=2) * 200, noise(high=4)
    expected = np.where((rgb == (200, 0, 200)).all(-1, keepdims=True), 255, rgb)
    assert (expected != rgb).any()
    assert (pixels(store(Pillow.fromarray(rgb), transparency=(200, 0, 200))) == expected).all()
    expected = np.where(grey == 2, 255, grey)[..., None]
    assert (pixels(store(Pillow.fromarray(grey), transparency=2)) == expected).all()


def test_cmyk_as_tiff_and_as_the_inverted_jpeg_of_adobe(store):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cmyk = np.stack([x * 4, y * 5, 120 - x * 4, 60 + y * 2], -1).astype(np.uint8)
    expected = 255 * (1 - cmyk[..., :3] / 255) * (1 - cmyk[..., 3:] / 255)
    picture = Pillow.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    assert np.abs(pixels(store(picture, "TIFF")) - expected).max() <= 2
    jpeg = store(picture, "JPEG", quality=100)
    assert b"Adobe" in read_bytes(jpeg)
    assert np.abs(pixels(jpeg) - expected).max() <= 4


def test_ycbcr_follows_the_equations_of_jfif(store):
    rgb = smooth()
    ycc = Pillow.fromarray(rgb).convert("YCbCr")
    y, cb, cr = np.moveaxis(np.asarray(ycc).astype(float), -1, 0)
    expected = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)]
    expected = np.stack([*expected, y + 1.772 * (cb - 128)], -1).clip(0, 255)
    assert np.abs(pixels(store(ycc, "TIFF")) - expected).max() <= 2
    assert np.abs(pixels(store(ycc, "JPEG", quality=100, subsampling=0)) - expected).max() <= 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(store, kind):
    grey = noise(dtype=np.uint16, high=65536)
    expected = np.rint(grey / 65535 * 255)[..., None]
    assert (pixels(store(Pillow.fromarray(grey), kind)) == expected).all()


def test_other_grey_of_16_and_32_bits(store):
    grey = noise(dtype=np.uint16, high=65536)
    expected = np.rint(grey / 65535 * 255)[..., None]
    big_endian = Pillow.frombytes("I;16B", (WIDTH, HEIGHT), grey.astype(">u2").tobytes())
    assert (pixels(store(big_endian, "TIFF")) == expected).all()
    assert (pixels(store(Pillow.fromarray(grey.astype(np.int32)), "TIFF")) == expected).all()
    head = f"P5 {WIDTH} {HEIGHT} 65535\n".encode()
    assert (pixels(store(head + grey.astype(">u2").tobytes())) == expected).all()
    wide = grey.astype(np.int32) * 1000 - 5_000_000
    expected = np.rint((wide - wide.min()) / (wide.max() - wide.min()) * 255)[..., None]
    assert (pixels(store(Pillow.fromarray(wide), "TIFF")) == expected).all()


def test_floats_are_scaled_from_smallest_to_largest(store):
    values = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert (
        np.abs(pixels(store(Pillow.fromarray(values), "TIFF")) - expected[..., None]).max() < 0.51
    )
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    found = pixels(store(Pillow.fromarray(values), "TIFF"))
    assert found[0, :3, 0].tolist() == [0, 255, 0]
    for constant in (0.5, np.nan):
        plain = np.full((HEIGHT, WIDTH), constant, np.float32)
        assert (pixels(store(Pillow.fromarray(plain), "TIFF")) == 0).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_many_frames(store, kind):
    colours = [(200, 30, 40), (20, 220, 60), (10, 20, 230)]
    frames = [Pillow.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours]
    image = store(frames[0], kind, save_all=True, append_images=frames[1:])
    with Pillow.open(image.source) as picture:
        assert getattr(picture, "n_frames", 1) == 3
    assert np.abs(pixels(image) - colours[0]).max() <= 6


# orientation


def upright(array, orientation):
    """The EXIF table in numpy: which edge of the stored picture is top and which is left."""
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }
    return turns[orientation](array)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(store, kind, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "MPO": {"quality": 100}}
    image = store(Pillow.fromarray(smooth()), kind, exif=exif, **options.get(kind, {}))
    picture = open_image(image)
    tolerance = 16 if kind in ("JPEG", "MPO") else 0
    found = np.asarray(picture).astype(int)
    assert np.abs(found - upright(smooth(), orientation).astype(int)).max() <= tolerance
    assert (np.asarray(ImageOps.exif_transpose(picture)) == found).all()
    assert not picture.info
    small = open_image(image, max_pixels=150)
    assert small.size == ((15, 10) if orientation < 5 else (10, 15))


def test_corrupt_exif_is_passed_over(store):
    jpeg = encoded(
        Pillow.fromarray(smooth()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"x" * 40
    )
    assert open_image(store(jpeg)).size == (WIDTH, HEIGHT)
    bad = encoded(Pillow.fromarray(smooth()), "JPEG", exif=b"Exif\0\0nonsense")
    assert open_image(store(bad)).size == (WIDTH, HEIGHT)


# size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO"])
@pytest.mark.parametrize("limit", [100 * 100, 12_345, 777, 64, 1])
def test_scaled_down_to_at_most_max_pixels_in_shape(store, kind, limit):
    image = store(Pillow.fromarray(smooth(600, 800)), kind)
    picture = open_image(image, max_pixels=limit)
    width, height = picture.size
    assert width * height <= limit
    assert min(width, height) >= 1
    assert (width + 1) * (height + 1) > limit
    assert abs(width - height * 4 / 3) < 4 / 3 + 1
    exact = np.asarray(picture).astype(int)
    centres = smooth(600, 800)[
        np.ix_(((np.arange(height) + 0.5) * 600 / height).astype(int),
               ((np.arange(width) + 0.5) * 800 / width).astype(int))
    ].astype(int)  # fmt: skip
    if limit > 700:
        assert np.abs(exact - centres).mean() < 5


def test_never_scaled_up_and_untouched_at_the_limit(store):
    rgb = noise(3)
    image = store(Pillow.fromarray(rgb))
    for limit in (None, WIDTH * HEIGHT, 10**9):
        assert (pixels(image, max_pixels=limit) == rgb).all()


@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 2000), (200, 1), (1, 200)])
def test_long_pictures_stay_within_the_aspect_ratio_when_scaled(store, width, height):
    for limit in (1, 2, 3, 150, 199, 500, 1999):
        size = open_image(store(Pillow.new("L", (width, height))), max_pixels=limit).size
        assert size[0] * size[1] <= limit
        assert max(size) <= 200 * min(size)


def test_large_jpeg_is_decoded_small(store, monkeypatch):
    image = store(Pillow.fromarray(smooth(800, 800)), "JPEG")
    drafts = []
    kept = Pillow.Image.convert
    monkeypatch.setattr(
        Pillow.Image,
        "convert",
        lambda self, *a, **k: drafts.append(self.size) or kept(self, *a, **k),
    )
    assert open_image(image, max_pixels=100 * 100).size == (100, 100)
    assert drafts[0] == (200, 200)


def test_between_the_warning_of_pillow_and_the_limit_is_read(store):
    side = 9_600
    assert Pillow.MAX_IMAGE_PIXELS < side * side < MAX_PIXELS
    image = store(Pillow.new("1", (side, side), 1))
    assert open_image(image, max_pixels=16).size == (4, 4)


def test_blank_is_grey_of_the_same_final_size(store):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image = store(Pillow.fromarray(smooth()), "JPEG", blank=True, exif=exif)
    assert open_image(image).size == (HEIGHT, WIDTH)
    assert (pixels(image) == 127).all()
    assert open_image(image, max_pixels=150).size == (10, 15)
    with pytest.raises(UserError):
        open_image(store(b"no picture", blank=True))
