"""A picture becomes the image that the networks know: any format and mode, the garment found, inverted, scaled, centered."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pictures import garment
from support.files import FileError


def shirt(height=28, width=20):
    """A bright shape on black (28, 28) as in the dataset: full height, centered, with a pattern and a maximum of 1."""
    image, left = np.zeros((28, 28), np.float32), (28 - width) // 2
    image[:, left : left + width] = np.linspace(0.4, 1, height)[:, None]
    image[:6, left + 5 : left + 9] = 0.7
    return image


def enlarged(x, factor=10):
    return np.kron(x, np.ones((factor, factor), np.float32))


def on_canvas(gray, height, width, top, left, color=1.0):
    """The brightness `gray` of a garment (0 where there is none) as dark on a background of that color (3,) or number."""
    canvas = np.broadcast_to(np.asarray(color, np.float32), (height, width, 3)).copy()
    part = canvas[top : top + gray.shape[0], left : left + gray.shape[1]]
    part[gray > 0] = (1 - gray[gray > 0])[:, None]
    return canvas


def assert_seen(picture, expected, tolerance=0.1, inverted=True):
    found = garment.find(picture)
    assert found.image.shape == expected.shape
    assert found.image.dtype == np.float32
    assert (found.image.min(), found.image.max()) == (0, 1)
    assert np.abs(found.image - expected).mean() < tolerance
    assert found.inverted == inverted
    return found


def test_an_image_of_the_dataset_stays_as_it_is():
    for picture, inverted in ((shirt(), False), (1 - shirt(), True)):
        found = garment.find(picture)
        assert np.abs(found.image - shirt()).max() < 0.003  # of 256 gray levels
        assert found.inverted == inverted


def test_bright_on_black_is_not_inverted():
    assert_seen(enlarged(shirt()), shirt(), inverted=False)


@pytest.mark.parametrize("color", [1.0, 0.8, (0.9, 0.5, 0.3), (0.3, 0.9, 0.5)])
def test_dark_on_light_is_inverted_and_the_background_becomes_black(color):
    found = assert_seen(on_canvas(enlarged(shirt()), 400, 500, 60, 150, color), shirt(), tolerance=0.09)
    assert found.box == pytest.approx((150 + 40, 60, 150 + 240, 60 + 280), abs=2)
    assert found.image[:, [0, -1]].max() == 0


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 320), (220, 0), (220, 320), (220, 100)])
def test_a_garment_in_a_corner_or_at_an_edge_is_found(top, left):
    small = enlarged(shirt(), 5)  # 140 x 140, of which 100 are the shirt
    assert_seen(on_canvas(small, 360, 460, top, left), shirt())


def test_a_background_with_light_from_one_side():
    canvas = on_canvas(enlarged(shirt()), 400, 500, 60, 110)
    light = np.linspace(0.6, 1, 500, dtype=np.float32)[:, None]
    assert_seen(canvas * light, shirt(), tolerance=0.12)


def test_a_speck_is_not_the_garment_but_a_separate_part_is():
    canvas = on_canvas(enlarged(shirt()), 400, 500, 60, 110)
    canvas[10:14, 480:484] = 0
    assert_seen(canvas, shirt())
    parts = np.ones((300, 300, 3), np.float32)
    parts[100:200, 50:120], parts[100:200, 180:250] = 0.2, 0.2
    assert garment.find(parts).box == pytest.approx((50, 100, 250, 200), abs=2)


def test_wide_things_have_the_full_width_and_are_centered():
    canvas = np.ones((200, 400, 3), np.float32)
    canvas[100:150, 100:300] = 0.3  # 4 : 1
    rows = np.flatnonzero(garment.find(canvas).image.any(axis=1))
    assert (rows[0], rows[-1] + 1) == (10, 17)  # 7 of 28 rows
    assert garment.find(canvas, (14, 42)).image.shape == (14, 42)
    assert garment.find(canvas, (14, 42)).image.any(axis=0).all()


# ---- formats and modes


def in_mode(mode):
    """The shirt, dark on white with 20 pixels around it, as a Pillow image of a mode."""
    dark = on_canvas(enlarged(shirt()), 320, 320, 20, 20)
    image = Image.fromarray(np.round(255 * dark).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.round(65535 * dark[..., 0]).astype(np.uint16))
    if mode in ("RGBA", "LA"):  # nothing below the shirt but transparent black
        opaque = np.zeros((320, 320), np.uint8)
        opaque[20:300, 20:300] = 255 * (enlarged(shirt()) > 0)
        image = Image.fromarray(np.where(opaque[..., None] > 0, np.asarray(image), 0).astype(np.uint8))
        image.putalpha(Image.fromarray(opaque))
        return image.convert(mode)
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "form"), [
    ("L", "PNG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("1", "PNG"), ("L", "JPEG"),
    ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGBA", "WEBP"),
])  # fmt: skip
def test_every_format_and_mode(mode, form, tmp_path):
    path = tmp_path / "picture"  # without a suffix: the content counts
    in_mode(mode).save(path, form)
    assert_seen(path, shirt(), tolerance=0.2 if mode == "1" else 0.1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
             8: "ROTATE_270"}  # fmt: skip
    image, exif = in_mode("RGB"), Image.Exif()
    if orientation > 1:
        image = image.transpose(getattr(Image.Transpose, turns[orientation]))
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert_seen(tmp_path / "turned.jpg", shirt())


def test_damaged_exif_data_do_not_matter(tmp_path):
    in_mode("RGB").save(tmp_path / "picture.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert_seen(tmp_path / "picture.jpg", shirt())


def test_a_pillow_image_and_arrays_are_pictures_too():
    dark = np.asarray(in_mode("RGB"))
    for picture in (in_mode("RGB"), dark, dark / 255, dark[..., 0]):
        assert_seen(picture, shirt())


def test_a_large_picture_is_made_smaller_first(tmp_path):
    dark = on_canvas(enlarged(shirt(), 100), 4000, 3500, 600, 300)
    Image.fromarray(np.round(255 * dark).astype(np.uint8)).save(tmp_path / "large.jpg")
    assert max(garment.read(tmp_path / "large.jpg").size) == garment.WORK_SIZE
    assert_seen(tmp_path / "large.jpg", shirt())


# ---- what is no picture


def png_of(width, height):
    """The bytes of a PNG file that declares this size and contains next to nothing."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def gif():
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a PNG, JPEG or WebP picture"),
    (b"hello", "not a PNG, JPEG or WebP picture"),
    (gif(), "not a PNG, JPEG or WebP picture"),
    (png_of(50, 50), "damaged, or not a picture"),
    (png_of(9_000, 9_000), "9,000 x 9,000 pixels; make it smaller than 50 million pixels"),
    (png_of(100_000, 100_000), "far more than 50 million pixels; make it smaller"),
    (png_of(2**31 - 1, 2**31 - 1), "pixels; make it smaller"),
])  # fmt: skip
def test_what_is_no_picture_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileError) as error:
            garment.find(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_bent_files_are_an_error_or_a_picture(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "picture"
    for form in ("PNG", "JPEG", "WEBP"):
        in_mode("RGB").resize((60, 60)).save(path, form)
        whole = path.read_bytes()
        for trial in range(40):
            content = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
            for place in rng.integers(len(content) or 1, size=3) if content else ():
                content[place] = rng.integers(256)
            path.write_bytes(content)
            try:
                found = garment.find(path)
            except FileError:
                continue
            assert np.isfinite(found.image).all()


def test_missing_files_folders_and_one_color(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        garment.find(tmp_path / "none.png")
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(FileError, match="is not a file"):
            garment.find(path)
    with pytest.raises(FileError, match="nothing but one color"):
        garment.find(np.full((50, 40, 3), 0.7))
    assert garment.find(np.random.default_rng(0).random((60, 60, 3))).image.std() > 0.05  # noise is a picture, of which
    assert garment.find(np.eye(2)).image.shape == (28, 28)  # predict.py warns
    with pytest.raises(FileError, match="nothing but one color"):
        garment.find(np.zeros((1, 1)))


def test_the_whole_picture_in_gray():
    dark = np.asarray(in_mode("RGB"))
    found = garment.whole(dark, (32, 16))
    assert (found.image.shape, found.inverted, found.box) == ((32, 16), False, (0, 0, 320, 320))
    assert found.image[0, 0] == 1
    assert found.image.mean() == pytest.approx(dark.mean() / 255, abs=0.02)


@pytest.mark.parametrize("picture", [np.zeros((28, 28)), np.ones((28, 28)), np.full((28, 28), np.nan), np.zeros((29, 28))])
def test_one_color_is_no_garment_at_any_size(picture):
    with pytest.raises(FileError, match="the picture: shows nothing but one color"):
        garment.find(picture)


@pytest.mark.parametrize("picture", [np.zeros((28, 28), np.int64), np.zeros((3, 28, 28)), np.zeros((1, 28, 28)),
                                     np.zeros((0, 28)), np.zeros(28), None, b"picture", [[0.0]]])  # fmt: skip
def test_what_is_no_picture_in_python_is_said_in_one_line(picture):
    for function in (garment.find, garment.whole):
        with pytest.raises(FileError, match=r"^an? .* is no picture; expected .*$"):
            function(picture)
