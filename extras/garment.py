"""A picture as the networks know pictures: the garment found, cropped, inverted if dark on light, 28 x 28.

The dataset's authors (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2) trimmed photos on a light
background to the garment, scaled the longest edge to 28 pixels, sharpened, extended the shortest edge to 28
pixels with the garment in the center, negated the intensities and converted the result to gray. So a dark
garment on a light background is a bright one on black in the dataset. `find` does the same for other
backgrounds; what is bright on dark stays as it is.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

import data
import run

WORK_SIZE = 512  # longest edge of the picture in which the garment is looked for
DARK = 0.25  # brightness below which a background counts as dark
CLOSENESS = 0.05  # distance, relative to black and white, within which a color is the background's: as theirs
SHARPEN = 0.5  # weight of the sharpening, a difference to a Gaussian of standard deviation 1
SMALLEST_PIECE = 0.1  # a separate piece of the garment has at least this fraction of the largest one's pixels


class Garment(NamedTuple):
    image: np.ndarray  # (28, 28), or the shape asked for, float32 in [0, 1], as the networks know images
    box: tuple  # (left, top, right, bottom) in pixels of `picture`
    inverted: bool  # whether the picture shows it dark on light
    picture: np.ndarray  # (H, W, 3) uint8: the picture, upright, on white, at most WORK_SIZE pixels long


def find(picture, shape=(28, 28)):
    """The Garment in a picture: a path, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4).

    Arrays are of uint8, or of floats in [0, 1]. Raises run.Error for what is no picture, or a single color.
    """
    rgb, alpha = read(picture)
    gray, upright = luminance(rgb), np.round(rgb * 255).astype(np.uint8)
    corners = float(np.median(gray[[0, 0, -1, -1], [0, -1, 0, -1]]))
    flat = rgb.std(axis=(0, 1)).max() < CLOSENESS / 2
    if not flat and alpha is None and gray.shape == tuple(shape) and not 0.02 < corners < 0.98:
        inverted = corners > 0.5  # an image of the dataset, as it is or inverted
        return Garment(1 - gray if inverted else gray, (0, 0, *shape[::-1]), inverted, upright)
    if alpha is not None:
        mask, background = alpha > 0.5, np.ones_like(rgb)
    else:
        background = fit_background(rgb)
        mask = foreground(rgb, background)
    if not mask.any():
        if flat:
            name = picture if isinstance(picture, (str, Path)) else "the picture"
            raise run.Error(f"{name}: shows nothing but one color")
        mask[:] = True  # nothing stands out: all of it
    behind = luminance(background)[mask].mean()
    inverted = bool(behind > DARK or gray[mask].mean() <= behind)  # light on gray is a photo, too
    brightness = np.where(mask, 1 - gray if inverted else gray, 0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = (int(side) for side in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    image = scale_and_center(brightness[top:bottom, left:right], shape)
    return Garment(image, (left, top, right, bottom), inverted, upright)


def whole(picture, shape=(28, 28)):
    """The whole picture in gray as a Garment, neither cropped nor inverted: as data.py reads pictures."""
    picture = as_pil(picture)
    upright = np.round(255 * read(picture)[0]).astype(np.uint8)
    image = data.gray(picture, *shape).astype(np.float32) / 255
    return Garment(image, (0, 0, *upright.shape[1::-1]), False, upright)


# ---- the picture


def read(picture):
    """(colors (H, W, 3) in [0, 1], on white where transparent; opacity (H, W) or None) of a picture."""
    picture = as_pil(picture)
    scale = WORK_SIZE / max(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(scale * side)) for side in picture.size], Image.Resampling.BOX)
    pixels = np.asarray(picture, np.float32) / 255  # (H, W, 3 or 4)
    if pixels.shape[2] == 3 or picture.getextrema()[3][0] > 250:  # opaque everywhere
        return pixels[..., :3], None
    alpha = pixels[..., 3]
    return pixels[..., :3] * alpha[..., None] + (1 - alpha[..., None]), alpha


def as_pil(picture):
    """A path, PIL image or array as a PIL image, RGB or RGBA. Raises run.Error."""
    if isinstance(picture, (str, Path)):
        return data.open_picture(picture)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(as_bytes(picture))
    if not isinstance(picture, Image.Image) or picture.mode[0] in "IF":
        kind = getattr(picture, "mode", type(picture).__name__)
        raise run.Error(f"cannot use a picture of {kind}; give a path, or a PIL image or array of 8 bit")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def as_bytes(array):
    """(H, W), (H, W, 3) or (H, W, 4) of uint8, or of floats in [0, 1] -> uint8. Raises run.Error."""
    is_picture = array.size and array.ndim in (2, 3) and array.shape[2:] in ((), (3,), (4,))
    if is_picture and array.dtype == np.uint8:
        return array
    if is_picture and array.dtype.kind == "f" and array.min() >= -1e-6 and array.max() <= 1 + 1e-6:
        return np.round(255 * np.clip(array, 0, 1)).astype(np.uint8)
    text = "expected (H, W), (H, W, 3) or (H, W, 4) of uint8, or of floats in [0, 1]"
    raise run.Error(f"an array {array.shape} of {array.dtype} is no picture; {text}")


def luminance(rgb):
    """(..., 3) -> (...): brightness as in ITU-R 601, which most programs use to convert to gray."""
    return rgb @ np.array([0.299, 0.587, 0.114], rgb.dtype)


# ---- the garment in it


def near_corners(height, width):
    """Mask (H, W) of a thin frame, without the middle of each side: a garment may touch the border there."""
    thickness = max(1, round(0.02 * min(height, width)))
    rows, columns = np.arange(height), np.arange(width)
    row_edge = np.minimum(rows, height - 1 - rows)[:, None]
    column_edge = np.minimum(columns, width - 1 - columns)
    frame = (row_edge < thickness) | (column_edge < thickness)
    return frame & (row_edge < max(1, 0.2 * height)) & (column_edge < max(1, 0.2 * width))


def fit_background(rgb):
    """The background (H, W, 3) of a picture: each color a plane, so that light may fall from one side.

    Fitted to the pixels near the corners. One corner may show something else: of the fits with and without
    each corner, the one that most of these pixels agree with is taken.
    """
    height, width = rgb.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    design = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)  # (H, W, 3)
    frame = near_corners(height, width)
    A, colors = design[frame], rgb[frame]  # (n, 3), (n, 3)
    corner = 2 * (A[:, 2] > 0) + (A[:, 1] > 0)
    subsets = [corner != left_out for left_out in (-1, 0, 1, 2, 3)]  # -1: none
    fits = [np.linalg.lstsq(A[rows], colors[rows], rcond=None)[0] for rows in subsets if rows.any()]  # (3, 3)
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
    """Mask (H, W) of the largest thing that has another color than the background, both (H, W, 3)."""
    height, width = rgb.shape[:2]
    frame, radius = near_corners(height, width), max(height, width) // 150
    window = 1 + 2 * min(radius, 1)
    far = distance(ndimage.uniform_filter(rgb, (window, window, 1)), background)
    noise = 1.48 * np.median(far[frame])
    mask = far > max(CLOSENESS, min(4 * noise, 0.3))
    joined = ndimage.binary_dilation(mask, iterations=radius) if radius else mask  # pieces of one garment
    labels, count = ndimage.label(joined, np.ones((3, 3)))
    if not count:
        return mask
    sizes = np.bincount(labels[mask], minlength=count + 1)
    sizes[0] = 0
    mask &= (sizes >= SMALLEST_PIECE * sizes.max())[labels]
    holes, count = ndimage.label(~mask)
    small = np.bincount(holes.ravel(), minlength=count + 1) < 0.01 * mask.sum()
    small[0] = False
    return mask | small[holes]  # spots inside of it that happen to have the background's color


def scale_and_center(brightness, shape=(28, 28)):
    """Brightness (H, W) of a garment on 0 as an image of that shape in [0, 1]: sharpened, centered."""
    scale = min(shape[0] / brightness.shape[0], shape[1] / brightness.shape[1])  # 28 / longest edge
    height, width = (max(1, round(scale * length)) for length in brightness.shape)
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(brightness.astype(np.float32)).resize((width, height), how))
    small = small + SHARPEN * (small - ndimage.gaussian_filter(small, 1, mode="constant"))
    white = max(np.quantile(small, 0.995), 1e-3)  # nearly all images of the dataset reach 1
    small = np.clip(small / white, 0, 1)
    image = np.zeros(shape, np.float32)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    image[top : top + height, left : left + width] = small
    return image
