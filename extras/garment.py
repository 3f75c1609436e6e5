"""A picture as the networks know pictures: the garment found, cropped, inverted if dark on light, 28 x 28.

The dataset's authors (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2) trimmed photos on a light
background to the garment, scaled the longest edge to 28 pixels, sharpened, extended the shortest edge to 28
pixels with the garment in the center, negated the intensities and converted the result to gray. So a dark
garment on a light background is a bright one on black in the dataset. `find` does the same for other
backgrounds; what is bright on dark stays as it is.

On a plain background, the garment is what has another color. Elsewhere, and on a person, two mixtures of
normal distributions tell the colors in the middle from the others.
"""

import warnings
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
PLAIN = 0.02  # distance from a plain background within which most pixels near the corners are
BUSY = 2 * PLAIN  # that distance from which on the garment is what has the colors of the middle
SHARPEN = 0.5  # weight of the sharpening, a difference to a Gaussian of standard deviation 1
SMALLEST_PIECE = 0.1  # a separate piece of the garment has at least this fraction of the largest one's pixels
MIXTURE_SIZE = 96  # longest edge of the part of the picture to which the mixtures are fitted
SMOOTH = 2  # standard deviation of the Gaussian that smooths the log odds
COMPONENTS, ROUNDS = 3, 3  # distributions in each mixture; times that both are fitted
ELLIPSE = 0.7  # axes, relative to the box, of the ellipse that is the garment at first


class Garment(NamedTuple):
    image: np.ndarray  # (28, 28), or the shape asked for, float32 in [0, 1], as the networks know images
    box: tuple  # (left, top, right, bottom) in pixels of `picture`
    inverted: bool  # whether the picture shows it dark on light
    picture: np.ndarray  # (H, W, 3) uint8: the picture, upright, at most WORK_SIZE pixels long
    plain: bool = True  # whether it lies on a plain background
    cut_off: bool = False  # on a plain background: whether it reaches the picture's upper or lower edge


def find(picture, shape=(28, 28), worn=False):
    """The Garment in a picture, as `as_pil` takes it. worn: look for it in what reaches the picture's edge.

    Raises run.Error for what is no picture, or a single color.
    """
    rgb, alpha = read(picture)
    gray, upright = luminance(rgb), np.round(rgb * 255).astype(np.uint8)
    corners = float(np.median(gray[[0, 0, -1, -1], [0, -1, 0, -1]]))
    flat = rgb.std(axis=(0, 1)).max() < CLOSENESS / 2
    if not flat and alpha is None and gray.shape == tuple(shape) and not 0.02 < corners < 0.98:
        inverted = corners > 0.5  # an image of the dataset, as it is or inverted
        return Garment(1 - gray if inverted else gray, (0, 0, *shape[::-1]), inverted, upright)
    background, unevenness = fit_background(rgb)
    plain = bool(unevenness <= PLAIN)
    mask = foreground(rgb, background) if alpha is None else alpha > 0.5
    if not mask.any() and flat:
        raise run.Error(f"{picture if isinstance(picture, (str, Path)) else 'picture'}: shows only one color")
    if unevenness > BUSY or not mask.any():
        mask = middle(rgb, np.ones_like(mask))
    cut_off = bool(plain and mask[[0, -1]].any())
    mask = middle(rgb, mask) if worn and cut_off else mask
    behind = luminance(background)[mask].mean()
    inverted = bool(behind > DARK or gray[mask].mean() <= behind)  # light on gray is a photo, too
    brightness = np.where(mask, 1 - gray if inverted else gray, 0)
    left, top, right, bottom = box = bounds(mask)
    image = scale_and_center(brightness[top:bottom, left:right], shape)
    return Garment(image, box, inverted, upright, plain, cut_off)


def whole(picture, shape=(28, 28)):
    """The whole picture in gray as a Garment, neither cropped nor inverted: as data.py reads pictures."""
    picture = as_pil(picture)
    upright = np.round(255 * read(picture)[0]).astype(np.uint8)
    image = data.gray(picture, *shape).astype(np.float32) / 255
    return Garment(image, (0, 0, *upright.shape[1::-1]), False, upright)


# ---- the picture


def read(picture):
    """(colors (H, W, 3) in [0, 1], opacity (H, W) or None) of a picture: on black if light, else on white."""
    picture = as_pil(picture)
    scale = WORK_SIZE / max(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(scale * side)) for side in picture.size], Image.Resampling.BOX)
    pixels = np.asarray(picture, np.float32) / 255  # (H, W, 3 or 4)
    rgb = pixels[..., :3]
    if pixels.shape[2] == 3 or picture.getextrema()[3][0] > 250:  # opaque everywhere
        return rgb, None
    alpha = pixels[..., 3]
    mean = np.average(luminance(rgb), weights=np.maximum(alpha, 1e-6))
    return rgb * alpha[..., None] + (1 - alpha[..., None]) * (mean < 0.5), alpha


def as_pil(picture):
    """A path, file object, PIL image, torch tensor or array as a PIL image, RGB or RGBA. Raises run.Error."""
    if hasattr(picture, "numpy"):  # a torch tensor, perhaps on a GPU
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(as_bytes(picture))
    if isinstance(picture, Image.Image) and picture.mode[0] not in "IF":
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if isinstance(picture, (str, Path)) or hasattr(picture, "read"):
        return data.open_picture(picture)
    kind = getattr(picture, "mode", type(picture).__name__)
    raise run.Error(f"cannot use a picture of {kind}; give a path, or a PIL image or array of 8 bit")


def as_bytes(array):
    """uint8, or floats in [0, 1], (H, W), (1, H, W) or (H, W, 1, 3 or 4) -> uint8. Raises run.Error."""
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise run.Error(f"an array {array.shape} is no picture; expected (H, W), (H, W, 3) or (1, H, W)")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f" and array.min() >= -1e-6 and array.max() <= 1 + 1e-6:
        return np.round(255 * np.clip(array, 0, 1)).astype(np.uint8)
    text = f"{array.dtype} from {array.min():g} to {array.max():g}"
    raise run.Error(f"an array of {text} is no picture; expected uint8, or floats from 0 to 1")


def luminance(rgb):
    """(..., 3) -> (...): brightness as in ITU-R 601, which most programs use to convert to gray."""
    return rgb @ np.array([0.299, 0.587, 0.114], rgb.dtype)


# ---- the garment in it


def near_corners(height, width):
    """Mask (H, W) of a thin frame, without the middle of each side: a garment may touch the border there."""
    thickness = max(1, round(0.02 * min(height, width)))
    row_edge = np.minimum(np.arange(height), np.arange(height)[::-1])[:, None]
    column_edge = np.minimum(np.arange(width), np.arange(width)[::-1])
    frame = np.minimum(row_edge, column_edge) < thickness
    return frame & (row_edge < max(1, 0.2 * height)) & (column_edge < max(1, 0.2 * width))


def fit_background(rgb):
    """(background (H, W, 3), its unevenness): a plane for each color, fitted near the corners.

    One corner may show something else: of the fits with and without each one, the closest is taken.
    """
    height, width = rgb.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    design = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)  # (H, W, 3)
    frame = near_corners(height, width)
    A, colors = design[frame], rgb[frame]  # (n, 3), (n, 3)
    corner = 2 * (A[:, 2] > 0) + (A[:, 1] > 0)
    subsets = [corner != left_out for left_out in (-1, 0, 1, 2, 3)]  # -1: none
    fits = [np.outer((1, 0, 0), np.median(colors[rows], axis=0)) for rows in subsets if rows.any()]  # (3, 3)
    errors = [np.median(distance(A @ fit, colors)) for fit in fits]
    best = fits[int(np.argmin(errors))]  # one color, at first
    for _ in range(3):  # without what does not fit
        far = distance(A @ best, colors)
        inside = far <= max(CLOSENESS, 2.5 * np.median(far))
        best = np.linalg.lstsq(A[inside], colors[inside], rcond=None)[0]
    return np.clip(design @ best, 0, 1), np.quantile(distance(A @ best, colors), 0.65)


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
    return largest(far > max(CLOSENESS, min(4 * noise, 0.3)), radius)


def largest(mask, radius=0):
    """The largest pieces of a mask (H, W), without small holes; what is 2 * radius apart is one piece."""
    joined = ndimage.binary_dilation(mask, iterations=radius) if radius else mask
    labels, count = ndimage.label(joined, np.ones((3, 3)))
    sizes = np.bincount(labels[mask], minlength=count + 1)
    sizes[0] = 0
    mask = mask & (sizes >= max(1, SMALLEST_PIECE * sizes.max()))[labels]
    return without_holes(mask, 0.01 * mask.sum())  # spots that happen to have the background's color


def without_holes(mask, size):
    """The mask (H, W) with those of its holes filled that have fewer pixels than `size`."""
    holes, _ = ndimage.label(~mask)
    small = np.bincount(holes.ravel()) < size
    small[0] = False
    return mask | small[holes]


def middle(rgb, inside):
    """The part (H, W) of the mask `inside` that has the colors in its middle, and not those around it.

    As in GrabCut (Rother, Kolmogorov and Blake 2004), the garment is an ellipse at first; then each pixel
    goes to the likelier of two mixtures of colors, in turn. Here, the log odds are smoothed, no graph is cut.
    """
    box = bounds(inside)
    size = box[2] - box[0], box[3] - box[1]
    small = [max(1, round(MIXTURE_SIZE * side / max(size))) for side in size]
    picture = Image.fromarray(np.round(255 * rgb).astype(np.uint8))
    colors = np.asarray(picture.resize(small, Image.Resampling.BOX, box)) / 255
    within = np.asarray(Image.fromarray(inside).resize(small, box=box))
    y, x = np.linspace(-1, 1, small[1])[:, None], np.linspace(-1, 1, small[0])
    mask = within & (x**2 + y**2 < ELLIPSE**2)
    for _ in range(ROUNDS):
        if min(mask.sum(), (within & ~mask).sum()) < 100:  # too few to fit
            break
        odds = np.where(within, log_likelihood(colors, mask) - log_likelihood(colors, within & ~mask), 0)
        mask = within & (ndimage.gaussian_filter(np.clip(odds, -10, 10), SMOOTH) > 0)
    result = np.zeros_like(inside)
    result[box[1] : box[3], box[0] : box[2]] = Image.fromarray(largest(mask)).resize(size)
    result &= inside
    return result if result.any() else inside


def log_likelihood(colors, mask):
    """(H, W): log-likelihood of colors (H, W, 3) in a mixture of normal distributions, fitted to a mask."""
    from sklearn.mixture import GaussianMixture  # heavy

    sample = colors[mask][:: 1 + mask.sum() // 1000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer colors than components
        fit = GaussianMixture(COMPONENTS, reg_covar=1e-3, tol=0.01, random_state=0).fit(sample)
    return fit.score_samples(colors.reshape(-1, 3)).reshape(mask.shape)


def bounds(mask):
    """(left, top, right, bottom) of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scale_and_center(brightness, shape):
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
