"""A folder of class subfolders with pictures, as arrays of gray images."""

if __name__ == "__main__":
    raise SystemExit("support/pictures.py is a module, not a script: support/own_data.py uses it")

import os
import sys
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from support.dataset_files import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".avif", ".heic"}
DEFAULT_SIZE = (28, 28)
LARGEST_KEPT = 64  # larger pictures, in pixels, become DEFAULT_SIZE unless a size is asked for
MAX_PIXELS = 2**31  # of all images together; 8 GiB as float32
MAX_NAMED = 5  # unreadable pictures that are named


def printable(text):
    """The text without line ends, control characters and what is not Unicode, all of which a file's name may contain."""
    return "".join(character if character.isprintable() else "?" for character in text)


def visible(folder):
    """The paths in `folder` in alphabetical order, without hidden ones and macOS's __MACOSX."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def is_picture(path):
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pictures_below(folder):
    """Yield the paths of all pictures in `folder` and below it."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return filter(is_picture, paths)


SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}


def split_folders(folder):
    """{"train": folder/train, "test": folder/test, if there} where train has class subfolders; else {"train": folder}.

    The two may also be called training and testing; a line names what else is there. A subfolder `train` that contains
    pictures itself is a class.
    """
    named = {SPLIT_NAMES.get(path.name.lower(), path.name): path for path in visible(folder) if path.is_dir()}
    inside = visible(named["train"]) if "train" in named else []
    if any(map(is_picture, inside)) or not any(path.is_dir() for path in inside):
        return {"train": folder}
    if others := sorted(str(path) for name, path in named.items() if name not in ("train", "test")):
        print(printable(f"not used: {', '.join(others)}; validation images are split off the training images"),
              file=sys.stderr)  # fmt: skip
    return {split: named[split] for split in ("train", "test") if split in named}


def list_classes(folder):
    """{path: class} of all pictures; each subfolder is a class. Raises DataError for a class without pictures."""
    classes, loose = {}, sum(map(is_picture, visible(folder)))
    if loose:
        print(printable(f"not used: {loose:,} picture{'s' * (loose > 1)} in {folder} beside its class subfolders"),
              file=sys.stderr)  # fmt: skip
    for place in (path for path in visible(folder) if path.is_dir()):
        paths = sorted(pictures_below(place))
        if not paths:
            raise DataError(f"{place}: contains no picture, but each subfolder is a class; fill it or move it away")
        classes |= dict.fromkeys(paths, place.name)
    if not classes:
        raise DataError(f"{folder}: has no class subfolders; put the pictures of each class into a subfolder of its own")
    return classes


def read(folder, size=()):
    """{"train": (X (N, height, width) uint8, class of each (N,)), "test": ... where there is a test folder}.

    size: (height, width); by default that of the pictures if all have the same and it is at most LARGEST_KEPT, otherwise
    DEFAULT_SIZE. Unreadable pictures are named on stderr and skipped. Raises DataError.
    """
    splits = {split: list_classes(place) for split, place in split_folders(folder).items()}
    paths, unreadable = [path for classes in splits.values() for path in classes], {}
    bar = tqdm(total=2 * len(paths), desc=f"reading {folder}", disable=None, leave=False, unit="picture")
    with bar, warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", image_module().DecompressionBombWarning)
        sizes = {path: attempt(picture_size, unreadable, bar, path) for path in paths}
        different = set(sizes.values()) - {None}
        if not size:
            same = len(different) == 1 and max(map(max, different)) <= LARGEST_KEPT
            size = min(different) if same else DEFAULT_SIZE
        check_total(folder, len(paths), size)
        images = {path: attempt(gray, unreadable, bar, path, size) for path in paths if sizes[path]}
    report_unreadable(unreadable)
    if different - {size}:
        print(printable(f"{folder}: pictures are scaled to {size[0]} x {size[1]} pixels (--image-size changes that)"))
    return {split: stack(classes, images) for split, classes in splits.items()}


def image_module():
    from PIL import Image  # here, so that importing data stays light

    return Image


def attempt(function, unreadable, bar, path, *arguments):
    """function(path, *arguments), or None where that fails; then unreadable[path] is the reason."""
    bar.update()
    try:
        return function(path, *arguments)
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        unreadable[path] = str(error).partition("\n")[0].replace(f" {str(path)!r}", "") or type(error).__name__
    return None


def picture_size(path):
    """(height, width) of a picture as it is shown, by its header."""
    with image_module().open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # the tag Orientation: by 90 degrees
    return (width, height) if turned else (height, width)


def gray(path, size):
    """A picture as gray levels (height, width) uint8 of that size; turned as its EXIF data say, transparent parts white."""
    from PIL import ImageOps

    height, width = size
    with image_module().open(path) as image:
        image.draft(None, 2 * (2 * max(size),))  # a JPEG much larger than that is decoded at half, a quarter, an eighth
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits
            image = image_module().fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = image_module().alpha_composite(image_module().new("RGBA", image.size, "white"), image)
        return scaled(image.convert("L"), height, width)


def scaled(image, height, width):
    if image.size != (width, height):
        image = image.resize((width, height), image_module().Resampling.BILINEAR)  # Pillow averages when it makes smaller
    return np.asarray(image)


def resize(X, size):
    """Images X (N, ...) uint8 scaled to the size (height, width)."""
    return np.stack([scaled(image_module().fromarray(image), *size) for image in X]) if X.shape[1:] != tuple(size) else X


def check_total(path, count, shape):
    """Raise DataError for more pixels than memory is likely to hold as float32."""
    if count * shape[0] * shape[1] > MAX_PIXELS:
        raise DataError(f"{path}: {count:,} images of {shape[0]:,} x {shape[1]:,} pixels are too many for the memory; use "
                        "fewer or smaller ones")  # fmt: skip


def report_unreadable(unreadable):
    for path, reason in list(unreadable.items())[:MAX_NAMED]:
        print(f"{path}: skipped, since it cannot be read as a picture ({reason})", file=sys.stderr)
    if len(unreadable) > MAX_NAMED:
        print(f"... and {len(unreadable) - MAX_NAMED:,} more pictures skipped", file=sys.stderr)


def stack(classes, images):
    """(X (N, height, width), class of each (N,)) of the readable pictures. Raises DataError for a class without one."""
    readable = {path: name for path, name in classes.items() if images.get(path) is not None}
    if missing := set(classes.values()) - set(readable.values()):
        raise DataError(f"none of the pictures of class {printable(min(missing))} can be read")
    return np.stack([images[path] for path in readable]), np.array(list(readable.values()))
