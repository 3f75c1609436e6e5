"""Fashion-MNIST, or your own images, as verified NumPy arrays: found or downloaded, checked and split.

    python data.py           prints sizes, mean, fingerprint and class counts; --dataset FOLDER: of your own

From Python: images = data.load(dataset="digits"); images.train.X is (N, height, width), images.train.y (N,).
"""

import csv
import gzip
import hashlib
import math
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from tqdm import tqdm

import run

DATASET: str = "fashion-mnist"  # fashion-mnist, mnist, kmnist, digits, or the path of your own images
DATA_DIR: str = ""  # folder of the dataset's files; "": $FASHION_MNIST_DIR, or data/ beside data.py
IMAGE_SIZE: tuple[int, ...] = (28, 28)  # height and width to which pictures in class folders are scaled
VAL_FRACTION: float = 0.2  # fraction of the training images in the validation split
SPLIT_SEED: int = 0  # seed of the split into training and validation images
TRAIN_SIZE: int = 0  # train on a stratified subset of this many images; 0: on all
TRAIN_ON_VAL: bool = False  # train on the validation images as well, for a last run
LABEL_NOISE: float = 0.0  # fraction of the training labels replaced by another class at random
QUICK: bool = False  # smoke test on a subset: numbers are not representative

LIMITS = {"IMAGE_SIZE": (2, 1024), "VAL_FRACTION": (0.01, 0.9), "SPLIT_SEED": (0, 2**31 - 1)}
LIMITS |= {"TRAIN_SIZE": (0, 10_000_000), "LABEL_NOISE": (0, 1)}

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
NAMED = {"fashion-mnist": CLASSES, "mnist": DIGITS, "kmnist": KUZUSHIJI, "digits": DIGITS}
IDX_FILES = ("train-images?idx3", "train-labels?idx1", "t10k-images?idx3", "t10k-labels?idx1")
MD5 = {  # the first eight digits, as published, of the four IDX_FILES, gzipped and then unpacked
    "fashion-mnist": "8d4fb7e6 25c81989 bef4ecab bb300cfd f4a8712d 9018921c 8181f547 15d48437",
    "mnist": "f68b3c2d d53e105e 9fb629c4 ec29112d 6bbc9ace a25bea73 2646ac64 27ae3e4e",
    "kmnist": "bdb82020 e144d726 5c965bf0 7320c461",
}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}


@dataclass(frozen=True)
class Split:
    X: np.ndarray  # (N, height, width) float32 in [0, 1]; or features (N, F)
    y: np.ndarray  # (N,) int64, 0 to the number of classes - 1
    indices: np.ndarray  # (N,) int64, increasing: position among the training or test images as read


@dataclass(frozen=True)
class Dataset:
    name: str  # "Fashion-MNIST", or what replaces it; in every title, table and metrics file
    classes: tuple
    train: Split
    val: Split
    test: Split
    bright_on_dark: bool = True  # as the images of NAMED are

    def as_shown(self, X):
        """Images X for the figures, which draw 1 black: those of NAMED dark on white, others as they are."""
        return X if self.bright_on_dark else 1 - X

    @property
    def sizes(self):
        """{"train_size": N, "val_size": N, "test_size": N}"""
        return {f"{split}_size": len(getattr(self, split).y) for split in ("train", "val", "test")}

    @property
    def image_shape(self):
        """(height, width)"""
        return self.train.X.shape[1:]

    def fingerprint(self):
        """Hexadecimal digest: equal only for the same images, labels and indices in the same split."""
        splits = (self.train, self.val, self.test)
        return run.digest(*(array for split in splits for array in (split.X, split.y, split.indices)))


def load(s=None, **changes):
    """The Dataset of the settings s, or of the constants above with changes: load(dataset="digits").

    By default 48,000 / 12,000 / 10,000 images; with `quick` 6,000 / 1,500 / 2,000 of them. Raises run.Error.
    """
    s = run.settings(sys.modules[__name__], **changes) if s is None else s
    arrays, classes, name = read_named(s) if s.dataset in NAMED else read_own(s)
    (X, y), (X_test, y_test) = arrays["train"], arrays["test"]
    if "val" in arrays:
        train, val = np.split(np.arange(len(y) + len(arrays["val"][1])), [len(y)])
        X, y = (np.concatenate(pair) for pair in zip(arrays["train"], arrays["val"], strict=True))
    else:
        train, val = content_split(X, y, s.val_fraction, s.split_seed)
    test = np.arange(len(y_test))
    if s.quick:
        name += " (subset)"
        train = train[stratified_split(y[train], min(6_000, len(train)), 0)[1]]
        val = val[stratified_split(y[val], min(1_500, len(val)), 0)[1]]
        test = stratified_split(y_test, min(2_000, len(test)), 0)[1]
    if s.train_size > len(train):
        raise run.Error(f"--train-size {s.train_size:,}: the training split has {len(train):,} images")
    if s.train_size:
        train = train[stratified_split(y[train], s.train_size, s.split_seed)[1]]
    if s.train_on_val:
        train, name = np.sort(np.concatenate([train, val])), f"{name}, validation images in training"
    y_train = with_label_noise(y, s.label_noise, len(classes), s.split_seed)
    splits = []
    for images, labels, indices in ((X, y_train, train), (X, y, val), (X_test, y_test, test)):
        splits.append(Split(to_floats(images[indices]), labels[indices].astype(np.int64), indices))
    return Dataset(name, classes, *splits, bright_on_dark=s.dataset in NAMED)


def to_floats(X):
    """Pixels as float32 in [0, 1]: bytes are divided by 255."""
    return np.divide(X, np.float32(255 if X.dtype == np.uint8 else 1), dtype=np.float32)


# ---- split, standardize, augment


def content_split(X, y, fraction, seed):
    """`stratified_split` of images X (N, ...) and labels y (N,), whatever order they are stored in."""
    order = np.argsort([*map(zlib.crc32, np.ascontiguousarray(X))], kind="stable")
    first, second = stratified_split(y[order], max(1, round(len(y) * fraction)), seed)
    return np.sort(order[first]), np.sort(order[second])


def stratified_split(y, n, seed):
    """Indices (len(y) - n,) and (n,), each increasing: random, with equal class proportions to +-1 image."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # by class, random within each
    second = order[np.arange(n) * len(y) // n]  # equally spaced, so proportional
    return np.setdiff1d(order, second), np.sort(second)


def with_label_noise(y, fraction, num_classes, seed):
    """A copy of the labels y (N,), a random `fraction` replaced by another class."""
    rng = np.random.default_rng((seed, 1))  # not the stream of the split
    rows = rng.permutation(len(y))[: round(len(y) * fraction)]
    y = y.copy()
    y[rows] = (y[rows] + rng.integers(1, num_classes, size=len(rows))) % num_classes
    return y


def mean_std(X):
    """Mean and standard deviation (1 where it would be 0) over all pixels of X, the training images."""
    rows = X.reshape(len(X), -1)
    mean = rows.mean(axis=1).mean(dtype=np.float64)  # float64 for the long sum
    square = np.einsum("nd,nd->n", rows, rows).mean(dtype=np.float64) / rows.shape[1]
    return float(mean), float(np.sqrt(max(square - mean**2, 0.0))) or 1.0


def normalization_stats(X, normalize):
    """(mean, std) of training images X (N, 28, 28), "global" over all pixels, "per_pixel" arrays (28, 28).

    "none" keeps pixels in [0, 1], "symmetric" scales them to [-1, 1]. A pixel with a standard deviation below
    0.01, three gray levels, keeps its scale: otherwise a shifted or mirrored image could be hundreds of
    standard deviations away.
    """
    if normalize == "none":
        return 0.0, 1.0
    if normalize == "symmetric":
        return 0.5, 0.5
    if normalize == "global":
        return mean_std(X)
    mean, std = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 0.01, std, 1.0)


def standardize(X, mean, std):
    """(N, ...) -> (N, features): a new array (X - mean) / std, by numbers or arrays of an image's shape."""
    X = X.reshape(len(X), -1) * np.ravel(1 / np.asarray(std)).astype(np.float32)
    X -= np.ravel(np.asarray(mean) / std).astype(np.float32)
    return X


def augment(X, rng, flip=False, shift=0, erase=0, rotate=0.0, translate=0.0):
    """A randomly changed copy of training images X (N, 28, 28); each image is drawn independently.

    flip: mirror with probability 0.5. shift: by up to this many pixels both ways, filled with 0. erase: with
    probability 0.5, replace a square of this many pixels by noise (random erasing, Zhong et al. 2020).
    rotate: by up to this many degrees both ways, about the center, filled with 0; by nearest pixels, since
    interpolation would blur training images alone. translate: by up to this fraction of the height and of the
    width, both ways, rounded to pixels, filled with 0.
    """
    n, *shape = X.shape
    if flip:
        X = np.where(rng.random(n)[:, None, None] < 0.5, X[:, :, ::-1], X)
    if rotate:
        degrees = rng.uniform(-rotate, rotate, n)
        options = {"reshape": False, "order": 0, "mode": "grid-constant"}
        X = np.stack([ndimage.rotate(x, angle, **options) for x, angle in zip(X, degrees, strict=True)])
    if shift:
        X = moved(X, rng.integers(2 * shift + 1, size=(2, n)), shift)
    if translate:
        limits = translate * np.array(shape)[:, None]  # (2, 1), in pixels
        reach = math.ceil(limits.max())
        X = moved(X, reach + np.rint(rng.uniform(-limits, limits, (2, n))).astype(int), reach)
    if erase:
        height, width = shape
        top, left = rng.integers(height - erase + 1, size=n), rng.integers(width - erase + 1, size=n)
        rows, columns = np.arange(height) - top[:, None], np.arange(width) - left[:, None]  # (N, 28)
        inside = ((rows >= 0) & (rows < erase))[:, :, None] & ((columns >= 0) & (columns < erase))[:, None, :]
        inside &= rng.random(n)[:, None, None] < 0.5
        X = np.where(inside, rng.random(X.shape, dtype=np.float32), X)
    return X


def moved(X, corners, reach):
    """Of each of the images X (N, H, W), padded by `reach` zeros, H x W pixels from its corner (2, N) on."""
    padded = np.pad(X, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, X.shape[1:], axis=(1, 2))
    return windows[np.arange(len(X)), *corners]


def is_augmented(s):
    """Whether the settings s change the training images."""
    return bool(s.flip or s.shift or s.erase or s.rotate or s.translate)


def batches(n, batch_size, rng):
    """Index arrays (batch_size,) that visit range(n) once in random order; the last one may be shorter."""
    return np.split(rng.permutation(n), range(batch_size, n, batch_size))


def check_augmentation(s, images):
    """Raise run.Error for shifts or erased squares as large as the images."""
    if max(s.shift, s.erase) >= min(images.image_shape):
        raise run.Error(f"--shift, --erase: must be smaller than the images ({images.image_shape})")


# ---- the datasets with names


def read_named(s):
    """({"train": (X (N, 28, 28) uint8, y (N,)), "test": ...}, classes, name) of one of NAMED."""
    if s.dataset == "digits":
        return digits(), DIGITS, "digits"
    is_fashion = s.dataset == "fashion-mnist"
    name = "Fashion-MNIST" if is_fashion else s.dataset.upper()
    given = s.data_dir or os.environ.get("FASHION_MNIST_DIR")
    folder = Path(given or run.ROOT / "data").expanduser()
    check_output(s, folder)
    raw = folder / name.replace("-", "") / "raw"  # torchvision's
    files = find_idx(folder) if is_fashion and all(find_idx(folder)) else find_idx(raw)
    if not all(files):
        try:
            download(name.replace("-", ""), folder)
        except run.Error as error:
            if given or not is_fashion:
                raise
            print(f"NOT FASHION-MNIST: {error}; scikit-learn's digits replace it", file=sys.stderr)
            return digits(), DIGITS, "digits, in place of Fashion-MNIST"
        files = find_idx(raw)
    return read_idx(files, MD5[s.dataset].split()), NAMED[s.dataset], name


def check_output(s, folder):
    """Raise run.Error for a run that would write into its own dataset."""
    output_dir = getattr(s, "output_dir", "")
    if output_dir and Path(output_dir).resolve().is_relative_to(folder.resolve()):
        raise run.Error(f"--output-dir {output_dir}: is in the dataset's folder; name another folder")


def download(name, folder):
    """Let torchvision download its dataset `name` into FOLDER/NAME/raw. Raises run.Error."""
    print(f"no {name} in {folder}: downloading it", file=sys.stderr)
    try:
        from torchvision import datasets  # only here, so that NumPy scripts do without torch

        getattr(datasets, name)(folder, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        text = f"no {name} in {folder}, and downloading it failed ({str(error).strip().splitlines()[-1]})"
        raise run.Error(f"{text}; put its four files into {folder / name / 'raw'}") from None


def find_idx(folder):
    """[path of each of IDX_FILES in a folder, or None]: gzipped or unpacked, with "-" or "." before idx."""
    paths = [[*folder.glob(f"{name}-ubyte.gz"), *folder.glob(f"{name}-ubyte"), None] for name in IDX_FILES]
    return [candidates[0] for candidates in paths]


def read_idx(files, md5=()):
    """{"train": (X (N, height, width) uint8, y (N,)), "test": ...} of four IDX files. Raises run.Error."""
    arrays = []
    for i, (path, ndim) in enumerate(zip(files, (3, 1, 3, 1), strict=True)):
        if not path:
            name = IDX_FILES[i].replace("?", "-")
            raise run.Error(f"{max(filter(None, files)).parent}: {name}-ubyte is missing")
        content = path.read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 and digest[:8] not in md5[i::4]:
            text = f"damaged, or of another dataset ({len(content):,} bytes, md5 {digest})"
            raise run.Error(f"{path}: {text}; replace it. Digit MNIST's files have the same names")
        try:
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            if content[:4] != bytes([0, 0, 8, ndim]):  # 8: bytes
                raise ValueError
            shape = np.frombuffer(content, ">u4", ndim, offset=4).tolist()
            arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape))
        except (OSError, EOFError, ValueError, zlib.error):
            raise run.Error(f"{path}: damaged, or not an IDX file of bytes in {ndim} dimensions") from None
    return {"train": arrays[:2], "test": arrays[2:]}


def digits():
    """scikit-learn's handwritten digits, 8 x 8 and 0 to 16, as 28 x 28 bytes, {"train": (X, y), ...}"""
    from sklearn.datasets import load_digits  # heavy

    X, y = load_digits(return_X_y=True)
    X = (X.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    X = np.pad(X.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))  # 8 -> 24 -> 28
    train, test = stratified_split(y, len(y) // 7, 0)
    return {"train": (X[train], y[train]), "test": (X[test], y[test])}


# ---- your own images


def read_own(s):
    """({"train": (X, y), "test": ..., perhaps "val": ...}, classes, name) of the path s.dataset."""
    path = Path(s.dataset).expanduser().resolve()
    readers = {".npz": read_npz, ".csv": read_csv}
    if path.is_dir():
        check_output(s, path)
        files = find_idx(path) if any(find_idx(path)) else find_idx(path / "FashionMNIST/raw")
        arrays = read_idx(files) if any(files) else read_class_folders(path, s.image_size)
    elif path.is_file() and path.suffix.lower() in readers:
        arrays = readers[path.suffix.lower()](path)
    else:
        text = f"expected {', '.join(NAMED)}, a folder, an .npz or a .csv file"
        raise run.Error(f"--dataset {s.dataset}: {text}{run.did_you_mean(s.dataset, NAMED)}")
    arrays, classes = checked(path, arrays)
    if "test" not in arrays:
        X, y = arrays["train"]
        train, test = content_split(X, y, 1 / 7, 0)
        arrays |= {"train": (X[train], y[train]), "test": (X[test], y[test])}
        print(f"{path}: {len(test):,} of its {len(y):,} images, one in seven of each class, are for testing")
    return arrays, classes, path.stem if path.is_file() else path.name


def checked(path, arrays):
    """({split: (X (N, height, width) float32 in [0, 1], y (N,))}, classes) of images and labels as read."""
    names = {str(label) for label in np.ravel(arrays["train"][1])}
    classes = sorted(names, key=lambda name: name.zfill(9) if name.isdecimal() else name)  # 2 before 10
    number, shape, results = {name: i for i, name in enumerate(classes)}, arrays["train"][0].shape[1:], {}
    for split, (X, labels) in arrays.items():
        if X.ndim != 3 or not X.size or X.shape != (*np.shape(labels), *shape):
            text = "expected gray images (N, height, width) of one size, and labels (N,)"
            raise run.Error(f"{path}: {split}: images {X.shape}, labels {np.shape(labels)}; {text}")
        if X.dtype != np.uint8 and not (X.dtype.kind == "f" and X.min() >= -1e-6 and X.max() <= 1 + 1e-6):
            values = f" from {X.min():.8g} to {X.max():.8g}" if X.dtype.kind == "f" else ""
            raise run.Error(f"{path}: {split}: {X.dtype}{values}; expected uint8, or floats from 0 to 1")
        if wrong := {str(label) for label in labels} - (number.keys() - {"", "nan"}):
            raise run.Error(f"{path}: {split}: class {min(wrong)!r} has no training images, or no name")
        results[split] = np.clip(to_floats(X), 0, 1), np.array([number[str(label)] for label in labels])
    counts, least = np.bincount(results["train"][1]), 4 - len(arrays)
    if len(classes) < 2 or counts.min() < least:
        text = f"{len(classes):,} classes; {classes[counts.argmin()]} has {counts.min():,} training images"
        raise run.Error(f"{path}: {text}; expected 2 classes or more, with {least} or more each")
    return results, tuple(name.encode(errors="replace").decode() for name in classes)


def read_npz(path):
    """{"train": (X, labels), ...} of x_train, y_train, x_test, y_test, and perhaps x_val, y_val."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            splits = ["train", "test", "val"] if "x_val" in file or "y_val" in file else ["train", "test"]
            return {split: (file[f"x_{split}"], file[f"y_{split}"]) for split in splits}
    except Exception as error:  # zipfile, zlib and NumPy raise whatever they meet in a damaged file
        text = "damaged, or without plain arrays x_train, y_train, x_test, y_test"
        raise run.Error(f"{path}: {text} ({error})") from None


def read_csv(path):
    """{"train": (X (N, side, side) uint8, labels)} of Kaggle's rows: label, pixel, pixel, ..."""
    labels, rows, side = [], [], 0
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            for label, *pixels in reader:
                if reader.line_num > 1 or label.lower() != "label":
                    labels.append(label.strip())
                    rows.append(bytes(map(int, pixels)))
                    side = math.isqrt(len(pixels))
                    if not label.strip() or not side**2 == len(pixels) == len(rows[0]):
                        raise ValueError
        except (ValueError, csv.Error):
            text = "expected a label, then the pixels of a square image: whole numbers from 0 to 255"
            raise run.Error(f"{path}: line {reader.line_num:,}: {text}") from None
    if not rows or not side:
        raise run.Error(f"{path}: has no rows of a label and pixels, separated by commas")
    return {"train": (np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), side, side), labels)}


def read_class_folders(folder, image_size):
    """{"train": (X (N, height, width) uint8, labels), ...} of class folders, or of train/, test/, val/."""
    if len(image_size) != 2:
        raise run.Error(f"--image-size {' '.join(map(str, image_size))}: expected height and width")
    arrays, skipped = {}, []
    places = {path.name: path for path in visible(folder) if path.is_dir()}
    if {"train", "test"} <= places.keys() <= {"train", "test", "val"}:
        skipped = [path for path in visible(folder) if path.is_file()]
    else:
        places = {"train": folder}
    for split, place in places.items():
        folders = [path for path in visible(place) if path.is_dir()]
        files = [file for path in folders for file in visible(path)]
        pictures = [file for file in files if file.suffix.lower() in PICTURES and file.is_file()]
        wrong = {*folders} - {file.parent for file in pictures} | {file for file in files if file.is_dir()}
        if wrong or not folders:
            text = "expected class folders of pictures, or train/, test/ and perhaps val/ with class folders"
            raise run.Error(f"{min(wrong, default=place)}: {text}")
        skipped += [file for file in visible(place) + files if file not in {*folders, *pictures}]
        bar = tqdm(pictures, f"reading {place}", leave=False, disable=None)
        images = [gray(open_picture(file), *image_size) for file in bar]
        arrays[split] = np.stack(images), [file.parent.name for file in pictures]
    if skipped:
        names = ", ".join(str(path.relative_to(folder)) for path in skipped[:5])
        text = f"skipped {len(skipped):,} files that are no pictures in class folders"
        print(f"{folder}: {text}: {names}{', ...' if len(skipped) > 5 else ''}", file=sys.stderr)
    return arrays


def visible(folder):
    """The paths in `folder` in alphabetical order, without hidden ones and macOS's __MACOSX."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def open_picture(path):
    """A picture file as a PIL image, RGB or RGBA, turned as its EXIF data say. Raises run.Error."""
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError("16-bit or float pixels; convert to 8 bit")
            picture = ImageOps.exif_transpose(picture)
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        raise run.Error(f"{path}: cannot be read as a picture ({error}); convert it to PNG or JPEG") from None


def gray(picture, height, width):
    """A PIL image, RGB or RGBA, as gray levels (height, width) uint8; transparent parts are white."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("L").resize((width, height), Image.Resampling.BILINEAR))


def main(argv=None):
    images = load(run.parse(argv, sys.modules[__name__]))
    mean, std = mean_std(images.train.X)
    print(f"{images.name}: " + ", ".join(f"{name} {size:,}" for name, size in images.sizes.items()))
    print(f"training pixels: mean {mean:.4f}, std {std:.4f}; fingerprint {images.fingerprint()}")
    for label, name in enumerate(images.classes):
        counts = [f"{(split.y == label).sum():8,}" for split in (images.train, images.val, images.test)]
        print(f"{label:<{len(str(len(images.classes) - 1))}} {name:<12}{''.join(counts)}")


if __name__ == "__main__":
    run.cli(main)
