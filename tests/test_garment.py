"""A picture becomes the image that the networks know: the garment found, inverted, scaled, centered."""

import numpy as np
import pytest
from PIL import Image

import data
import run
from extras import garment


def shirt(height=28, width=20):
    """A bright shape on black (28, 28) as in the dataset: full height, centered, a maximum of 1."""
    image, left = np.zeros((28, 28), np.float32), (28 - width) // 2
    image[:, left : left + width] = np.linspace(0.4, 1, height)[:, None]
    image[:6, left + 5 : left + 9] = 0.7
    return image


def enlarged(x, factor=10):
    return np.kron(x, np.ones((factor, factor), np.float32))


def on_canvas(gray, height, width, top, left, color=1.0):
    """The brightness `gray` of a garment (0 where there is none), dark on a color (3,) or number."""
    canvas = np.broadcast_to(np.asarray(color, np.float32), (height, width, 3)).copy()
    covered = canvas[top : top + gray.shape[0], left : left + gray.shape[1]]
    covered[gray > 0] = (1 - gray[gray > 0])[:, None]
    return canvas


def assert_seen(picture, expected, tolerance=0.1, inverted=True):
    seen = garment.find(picture)
    assert (seen.image.shape, seen.image.dtype) == (expected.shape, np.float32)
    assert (seen.image.min(), seen.image.max()) == (0, 1)
    assert np.abs(seen.image - expected).mean() < tolerance
    assert seen.inverted == inverted
    return seen


# ---- the garment in a picture


def test_an_image_of_the_dataset_stays_as_it_is():
    assert_seen(enlarged(shirt()), shirt(), inverted=False)
    for picture, inverted in ((shirt(), False), (1 - shirt(), True)):
        seen = garment.find(picture)
        assert np.abs(seen.image - shirt()).max() < 0.003  # of 256 gray levels
        assert seen.inverted == inverted


@pytest.mark.parametrize("color", [1.0, 0.8, (0.9, 0.5, 0.3), (0.3, 0.9, 0.5)])
def test_dark_on_light_is_inverted_and_the_background_becomes_black(color):
    seen = assert_seen(on_canvas(enlarged(shirt()), 400, 500, 60, 150, color), shirt(), tolerance=0.09)
    assert seen.box == pytest.approx((150 + 40, 60, 150 + 240, 60 + 280), abs=2)
    assert seen.image[:, [0, -1]].max() == 0


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 320), (220, 0), (220, 320), (220, 100)])
def test_a_garment_in_a_corner_or_at_an_edge_is_found(top, left):
    small = enlarged(shirt(), 5)  # 140 x 140, of which 100 are the shirt
    assert_seen(on_canvas(small, 360, 460, top, left), shirt())


def test_a_speck_is_not_the_garment_but_a_separate_piece_is():
    canvas = on_canvas(enlarged(shirt()), 400, 500, 60, 110)
    canvas[10:14, 480:484] = 0
    light = np.linspace(0.6, 1, 500, dtype=np.float32)[:, None]  # from one side
    assert_seen(canvas * light, shirt(), tolerance=0.12)
    pieces = np.ones((300, 300, 3), np.float32)
    pieces[100:200, 50:120], pieces[100:200, 180:250] = 0.2, 0.2
    assert garment.find(pieces).box == pytest.approx((50, 100, 250, 200), abs=2)


def test_wide_things_have_the_full_width_and_are_centered():
    canvas = np.ones((200, 400, 3), np.float32)
    canvas[100:150, 100:300] = 0.3  # 4 : 1
    rows = np.flatnonzero(garment.find(canvas).image.any(axis=1))
    assert (rows[0], rows[-1] + 1) == (10, 17)  # 7 of 28 rows
    assert garment.find(canvas, (14, 42)).image.shape == (14, 42)
    assert garment.find(canvas, (14, 42)).image.any(axis=0).all()


# ---- formats and modes


def in_mode(mode):
    """The shirt, dark on white with 20 pixels around it, as a PIL image of a mode."""
    dark = on_canvas(enlarged(shirt()), 320, 320, 20, 20)
    image = Image.fromarray(np.round(255 * dark).astype(np.uint8))
    if mode in ("RGBA", "LA"):  # nothing below the shirt but transparent black
        opaque = np.zeros((320, 320), np.uint8)
        opaque[20:300, 20:300] = 255 * (enlarged(shirt()) > 0)
        image = Image.fromarray(np.where(opaque[..., None] > 0, np.asarray(image), 0).astype(np.uint8))
        image.putalpha(Image.fromarray(opaque))
    return image.convert(mode)


MODES = ["L PNG", "RGB PNG", "P PNG", "RGBA PNG", "LA PNG", "1 PNG", "L JPEG", "CMYK JPEG", "RGBA WEBP"]


@pytest.mark.parametrize("mode", [*MODES, "RGB BMP", "P GIF", "RGB TIFF"])
def test_every_format_and_mode(mode, tmp_path):
    mode, form = mode.split()
    in_mode(mode).save(tmp_path / "picture", form)  # without a suffix: the content counts
    assert_seen(tmp_path / "picture", shirt(), tolerance=0.2 if mode == "1" else 0.1)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_rotation(orientation, tmp_path):
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    in_mode("RGB").transpose(turn).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert_seen(tmp_path / "turned.jpg", shirt())


def test_pil_images_arrays_and_file_objects_are_pictures_too(tmp_path):
    dark = np.asarray(in_mode("RGB"))
    arrays = [dark, dark / 255, dark[..., 0], dark[..., :1], dark[None, ..., 0], np.asarray(in_mode("RGBA"))]
    for picture in (in_mode("RGB"), *arrays):
        assert_seen(picture, shirt())
    in_mode("RGB").save(tmp_path / "shirt.png")
    with open(tmp_path / "shirt.png", "rb") as file:
        assert_seen(file, shirt())


@pytest.mark.parametrize(("light", "inverted"), [(True, False), (False, True)])
def test_a_cut_out_goes_on_the_background_that_contrasts(light, inverted):
    gray = enlarged(shirt())
    color = gray if light else 1 - gray
    pixels = np.dstack([color, color, color, gray > 0]).astype(np.float32)
    assert_seen(pixels, shirt(), inverted=inverted)


def test_a_large_picture_is_made_smaller_first(tmp_path):
    dark = on_canvas(enlarged(shirt(), 40), 1600, 1400, 240, 120)
    Image.fromarray(np.round(255 * dark).astype(np.uint8)).save(tmp_path / "large.jpg")
    seen = assert_seen(tmp_path / "large.jpg", shirt())
    assert max(seen.picture.shape) == garment.WORK_SIZE


# ---- backgrounds that are not plain


def test_on_tiles_the_garment_is_what_has_the_colors_in_the_middle():
    y, x = np.indices((400, 400)) // 40
    tiles = np.where(((x + y) % 2)[..., None], (0.8, 0.7, 0.5), (0.5, 0.6, 0.4)).astype(np.float32)
    canvas, gray = tiles.copy(), enlarged(shirt(), 11)
    covered = canvas[46 : 46 + 308, 46 : 46 + 308]
    covered[gray > 0] = (1 - gray[gray > 0])[:, None] * np.array([0.3, 0.3, 1])
    seen = garment.find(canvas)
    assert (seen.plain, seen.cut_off) == (False, False)
    assert seen.box == pytest.approx((90, 46, 310, 354), abs=12)
    assert np.abs(seen.image - shirt()).mean() < 0.15
    assert garment.find(on_canvas(gray, 400, 400, 46, 46)).plain


@pytest.mark.parametrize(("top", "cut_off"), [(0, True), (30, False), (60, True)])
def test_what_reaches_the_upper_or_lower_edge_is_cut_off(top, cut_off):
    assert garment.find(on_canvas(enlarged(shirt(), 5), 200, 300, top, 60)).cut_off == cut_off


# ---- what is no picture


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_picture_are_named(content, tmp_path):
    (tmp_path / "picture.png").write_bytes(content)
    for path in (tmp_path / "picture.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(run.Error, match=f"^{path}: "):
            garment.find(path)


SINGLE_COLORS = [np.zeros((28, 28)), np.ones((28, 28)), np.zeros((1, 1)), np.full((50, 40, 3), 0.7)]


@pytest.mark.parametrize("picture", SINGLE_COLORS)
def test_one_color_is_no_garment_at_any_size(picture):
    with pytest.raises(run.Error, match="one color"):
        garment.find(picture)
    assert garment.find(np.eye(2)).image.shape == (28, 28)
    assert garment.find(np.random.default_rng(0).random((60, 60, 3))).image.std() > 0.05  # noise is a picture


NO_ARRAYS = [np.zeros(shape) for shape in ((3, 28, 28), (2, 28, 28, 1), (0, 28), (28,))]
OUT_OF_RANGE = [np.full((28, 28), np.nan), 255 * shirt(), shirt() - 0.5, np.zeros((28, 28), np.uint16)]
NO_PICTURES = [None, b"picture", [[0.0]], Image.new("I;16", (9, 9)), Image.new("F", (9, 9))]


@pytest.mark.parametrize("picture", [*NO_ARRAYS, *OUT_OF_RANGE, *NO_PICTURES])
def test_what_is_no_picture_in_python_is_refused(picture):
    for look in (garment.find, garment.whole):
        with pytest.raises(run.Error):
            look(picture)


@pytest.mark.parametrize(("values", "span"), [((0, 255.0), "0 to 255"), ((-0.5, 1.0), "-0.5 to 1")])
def test_what_is_out_of_range_is_refused_with_its_range(values, span):
    with pytest.raises(run.Error, match=span):
        garment.find(np.array([values, values]))


# ---- networks of own data


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_the_whole_picture_is_gray_as_in_the_training(mode, tmp_path):
    in_mode(mode).resize((640, 320)).save(tmp_path / "picture.png")
    seen = garment.whole(tmp_path / "picture.png", (32, 16))
    assert (seen.image.shape, seen.image.dtype, seen.inverted) == ((32, 16), np.float32, False)
    assert (seen.box, seen.picture.shape) == ((0, 0, 512, 256), (256, 512, 3))
    assert seen.image[0, 0] == 1
    trained_on = data.gray(data.open_picture(tmp_path / "picture.png"), 32, 16)
    assert np.array_equal(np.round(255 * seen.image), trained_on)
