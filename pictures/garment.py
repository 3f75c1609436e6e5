"""A picture as the networks know pictures: the garment found, cropped, inverted if it is dark on light, 28 x 28 pixels.

The dataset's authors (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2) trimmed photos on a light background to
the garment, scaled the longest edge to 28 pixels by subsampling, sharpened, extended the shortest edge to 28 pixels with
the garment in the center, negated the intensities and converted the result to gray. So a dark garment on a light background
is a bright one on black in the dataset. `find` does the same for other backgrounds; what is bright on dark stays as it is.
"""

if __name__ == "__main__":
    raise SystemExit("pictures/garment.py is a module, not a script: predict.py uses it")

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.files import FileError

FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow reads more, which nobody has asked for
MAX_PIXELS = 50_000_000  # of a decoded picture: 200 MB; JPEG files are decoded at a lower resolution
WORK_SIZE = 512  # longest edge of the picture in which the garment is looked for
DARK = 0.25  # brightness below which a background counts as dark
CLOSENESS = 0.05  # a color is the background's within this distance, as a fraction of the highest: the authors' 5 %
SHARPEN = 0.5  # weight of the sharpening, a difference to a Gaussian of standard deviation 1
SMALLEST_PART = 0.1  # a separate part of the garment has at least this fraction of the largest part's pixels


class Garment(NamedTuple):
    image: np.ndarray  # (28, 28), or what was asked for, float32 in [0, 1], as the networks know images
    box: tuple  # (left, top, right, bottom) in the picture, in pixels of `picture`
    inverted: bool  # whether the picture shows it dark on light
    picture: np.ndarray  # (height, width, 3) uint8: the picture, upright, on white, at most WORK_SIZE pixels long


def read(path):
    """The picture of a PNG, JPEG or WebP file as a Pillow image, upright, at most WORK_SIZE pixels long.

    Its mode is RGB, or RGBA where something is transparent. Raises FileError for a file that is no such picture.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():  # nor a device or pipe, which may never end
        raise FileError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are checked here, and about metadata
            with Image.open(path, formats=FORMATS) as picture:
                picture.draft(None, (2 * WORK_SIZE, 2 * WORK_SIZE))  # JPEG only: decoded at 1/2, 1/4 or 1/8
                if picture.width * picture.height > MAX_PIXELS:
                    raise FileError(f"{path}: {picture.width:,} x {picture.height:,} pixels; make it smaller than "
                                    f"{MAX_PIXELS // 1_000_000} million pixels")  # fmt: skip
                return prepare(picture)
    except Image.UnidentifiedImageError:
        raise FileError(f"{path}: not a PNG, JPEG or WebP picture") from None
    except Image.DecompressionBombError:
        limit = MAX_PIXELS // 1_000_000
        raise FileError(f"{path}: far more than {limit} million pixels; make it smaller") from None
    except MemoryError:
        raise FileError(f"{path}: not enough memory for a picture of this size") from None
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, OverflowError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or ["unknown error"])[0]  # of a decoder, at any place in a damaged file
        raise FileError(f"{path}: damaged, or not a picture ({reason})") from None


def prepare(picture):
    """A Pillow image of any mode as `read` returns it."""
    from PIL import Image, ImageOps

    orientation = 1
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data is no reason to refuse the picture
        picture.info.pop("exif", None)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bit gray: Pillow would clip it
        values = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray(np.clip(values * (255 / max(65535, values.max())), 0, 255).astype(np.uint8))
    transparent = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    scale = min(1, WORK_SIZE / max(picture.size))
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    picture = picture.convert("RGBA" if transparent else "RGB")
    picture = picture.resize(size, Image.Resampling.BOX) if scale < 1 else picture
    if orientation in range(2, 9):
        picture.getexif()[0x0112] = orientation
        picture = ImageOps.exif_transpose(picture)
    if transparent and np.asarray(picture)[..., 3].min() > 250:
        picture = picture.convert("RGB")
    return picture


def find(picture, shape=(28, 28)):
    """The Garment in a picture: a path, a Pillow image, or an array (height, width), (..., 3) or (..., 4).

    Raises FileError for an unreadable file and for a picture of one color.
    """
    name = picture if isinstance(picture, (str, Path)) else "the picture"
    rgb, alpha = pixels_of(picture)
    gray, upright = luminance(rgb), np.round(rgb * 255).astype(np.uint8)
    corners, flat = float(np.median(gray[[0, 0, -1, -1], [0, -1, 0, -1]])), rgb.std(axis=(0, 1)).max() < CLOSENESS / 2
    of_dataset = gray.shape == tuple(shape) and alpha is None and not 0.02 < corners < 0.98  # as it is, or inverted
    if of_dataset and not flat:
        return Garment(1 - gray if corners > 0.5 else gray, (0, 0, *shape[::-1]), corners > 0.5, upright)
    background = None if alpha is not None else fit_background(rgb)
    mask = alpha > 0.5 if alpha is not None else foreground(rgb, background)
    if not mask.any():
        if flat:
            raise FileError(f"{name}: shows nothing but one color")
        mask[:] = True  # nothing stands out: all of it
    behind = 1.0 if alpha is not None else float(luminance(background)[mask].mean())
    inverted = bool(behind > DARK or gray[mask].mean() <= behind)  # a light garment on a gray background is a photo, too
    values = np.where(mask, 1 - gray if inverted else gray, 0)
    (top, bottom), (left, right) = (span(mask.any(axis=axis)) for axis in (1, 0))
    image = scale_and_center(values[top:bottom, left:right], shape)
    return Garment(image, (left, top, right, bottom), inverted, upright)


def whole(picture, shape=(28, 28)):
    """The whole picture in gray as a Garment, for networks that were trained on pictures of any kind; as for `find`."""
    from PIL import Image

    rgb, _ = pixels_of(picture)
    upright = np.round(rgb * 255).astype(np.uint8)
    gray = Image.fromarray(upright).convert("L").resize(tuple(shape)[::-1], Image.Resampling.BILINEAR)
    return Garment(np.asarray(gray, np.float32) / 255, (0, 0, *rgb.shape[1::-1]), False, upright)


def pixels_of(picture):
    """(colors (height, width, 3) in [0, 1], on white where they are transparent; opacity (height, width) or None)."""
    picture = read(picture) if isinstance(picture, (str, Path)) else prepare(as_pillow(picture))
    pixels = np.asarray(picture, dtype=np.float32) / 255  # (height, width, 3 or 4)
    if pixels.shape[2] == 3:
        return pixels, None
    alpha = pixels[..., 3]
    return pixels[..., :3] * alpha[..., None] + (1 - alpha[..., None]), alpha


def as_pillow(picture):
    """A NumPy array, in [0, 1] if it is of floats, as a Pillow image; a Pillow image as it is. Raises FileError."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        right_type = picture.dtype.kind == "f" or picture.dtype == np.uint8
        if not right_type or not picture.size or picture.ndim < 2 or picture.shape[2:] not in ((), (3,), (4,)):
            raise FileError(f"an array {picture.shape} of {picture.dtype} is no picture; expected (height, width), (height, "
                            "width, 3) or (height, width, 4), of uint8 or of floats in [0, 1]")  # fmt: skip
        if picture.dtype.kind == "f":
            picture = np.round(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8)
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise FileError(f"a {type(picture).__name__} is no picture; expected a path, a Pillow image or a NumPy array")
    return picture


def luminance(rgb):
    """(..., 3) -> (...): brightness as in ITU-R 601, which most programs use to convert to gray."""
    return rgb @ np.array([0.299, 0.587, 0.114], rgb.dtype)


def span(used):
    """First and last + 1 of the True places."""
    places = np.flatnonzero(used)
    return int(places[0]), int(places[-1]) + 1


def near_corners(height, width):
    """Mask (height, width) of a thin frame, without the middle of each side: a garment may touch the border there."""
    thickness = max(1, round(0.02 * min(height, width)))
    rows, columns = np.arange(height), np.arange(width)
    row_edge, column_edge = np.minimum(rows, height - 1 - rows)[:, None], np.minimum(columns, width - 1 - columns)
    frame = (row_edge < thickness) | (column_edge < thickness)
    return frame & (row_edge < max(1, 0.2 * height)) & (column_edge < max(1, 0.2 * width))


def fit_background(rgb):
    """The background (height, width, 3) of a picture: each color a plane, so that light may fall from one side.

    Fitted to the pixels near the corners. One corner may show something else: of the fits with and without each corner,
    the one that most of these pixels agree with is taken.
    """
    height, width = rgb.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    design = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)  # (height, width, 3)
    frame = near_corners(height, width)
    A, colors = design[frame], rgb[frame]
    corner = 2 * (A[:, 2] > 0) + (A[:, 1] > 0)
    fits = []
    for left_out in (-1, 0, 1, 2, 3):
        chosen = corner != left_out
        if chosen.any():
            fits.append(np.linalg.lstsq(A[chosen], colors[chosen], rcond=None)[0])  # (3, 3)
    errors = [np.median(distance(A @ fit, colors)) for fit in fits]
    best = fits[int(np.argmin(errors))]
    inside = distance(A @ best, colors) <= max(CLOSENESS, 2.5 * min(errors))
    if inside.sum() >= 3:
        best = np.linalg.lstsq(A[inside], colors[inside], rcond=None)[0]
    return np.clip(design @ best, 0, 1)


def distance(a, b):
    """Distance of colors (..., 3), relative to that of black and white."""
    return np.sqrt(((a - b) ** 2).mean(axis=-1))


def foreground(rgb, background):
    """Mask (height, width) of the largest thing that has another color than the background."""
    from scipy import ndimage

    height, width = rgb.shape[:2]
    frame, radius = near_corners(height, width), max(height, width) // 150
    far = distance(ndimage.uniform_filter(rgb, (1 + 2 * min(radius, 1),) * 2 + (1,)), background)
    noise = 1.48 * np.median(far[frame])
    mask = far > max(CLOSENESS, min(4 * noise, 0.3))
    joined = ndimage.binary_dilation(mask, iterations=radius) if radius else mask  # parts of one garment
    labels, count = ndimage.label(joined, np.ones((3, 3)))
    if not count:
        return mask
    sizes = np.bincount(labels[mask], minlength=count + 1)
    sizes[0] = 0
    mask &= (sizes >= SMALLEST_PART * sizes.max())[labels]
    holes, count = ndimage.label(~mask)
    small = np.bincount(holes.ravel(), minlength=count + 1) < 0.01 * mask.sum()
    small[0] = False
    return mask | small[holes]  # spots inside of it that happen to have the background's color


def scale_and_center(values, shape=(28, 28)):
    """Brightness (height, width) of a garment on 0 as an image of that shape in [0, 1]: scaled, sharpened, centered."""
    from PIL import Image
    from scipy import ndimage

    scale = min(side / length for side, length in zip(shape, values.shape, strict=True))  # 28 / longest edge
    height, width = (max(1, round(scale * length)) for length in values.shape)
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), how))
    small = small + SHARPEN * (small - ndimage.gaussian_filter(small, 1, mode="constant"))
    small = np.clip(small / max(np.quantile(small, 0.995), 1e-3), 0, 1)  # nearly all images of the dataset reach white
    image = np.zeros(shape, np.float32)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    image[top : top + height, left : left + width] = small
    return image
