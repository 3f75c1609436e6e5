"""Fashion-MNIST, or data of one's own, as verified NumPy arrays: found, checked, and split once for every script.

    python data.py       finds or downloads the dataset, checks it, and prints what it holds
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__)

import hashlib
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support import own_data, pictures
from support.dataset_files import DataError, Incomplete, Offline, find, locate, read, read_torchvision, remedy
from support.files import digest
from support.own_data import NAMED

# ---- settings: edit here, or override on the command line (--data-dir DIR) ----
# -- data
DATASET = "fashion-mnist"  # dataset; digits, of scikit-learn, needs no download. PATH is a folder with a subfolder of
                           # pictures for each class, or with IDX files; or an .npz or CSV file:
                           # {fashion-mnist, mnist, kmnist, digits, PATH}
IMAGE_SIZE: tuple = ()  # scale images to this height and width, in pixels; a single number is for both; empty keeps their
                        # size, except that pictures of several sizes or above 64 become 28 x 28; in [2, 1024]
DATA_DIR = "data"  # folder of the dataset's files, downloaded if missing; default: $FASHION_MNIST_DIR if set
OFFLINE_FALLBACK = True  # if there are no files and no network, use the digits and say so, instead of an error
VAL_FRACTION = 0.2  # fraction of the training images (60,000) in the validation split, in [0.01, 0.9]
SPLIT_SEED = 0  # seed of the split into training and validation images, in [0, 2147483647]
TRAIN_SIZE = 0  # train on a subset of this many images, with equal class proportions; 0 uses all; in [0, 10000000]
TRAIN_ON_VAL = False  # train on the validation images as well, for a last run with settings that are chosen already; what is
                      # measured on them, such as validation accuracy and temperature, says nothing then
LABEL_NOISE = 0.0  # fraction of the training labels that are replaced by another class, drawn at random; in [0, 1)
# ----

DIGITS = tuple("0123456789")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Split:
    X: np.ndarray  # (N, 28, 28), or another height and width, float32 in [0, 1]
    y: np.ndarray  # (N,) int64, 0 to 9, or to another number of classes - 1
    indices: np.ndarray  # (N,) int64, increasing: position of each image in its file, or of its path in alphabetical order


@dataclass(frozen=True)
class Dataset:
    name: str  # "Fashion-MNIST", or what replaces it; shown in every title, table and metrics file
    classes: tuple
    train: Split
    val: Split
    test: Split
    bright_on_dark: bool = True  # whether the images are bright on black, as those of NAMED, and not pictures of any kind

    def as_shown(self, X):
        """Images X for the figures, which draw 1 black: those of NAMED dark on white, pictures as they are."""
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
        """Hexadecimal digest of all images, labels and indices: equal only for the same data in the same split."""
        return digest(*(array for split in (self.train, self.val, self.test) for array in (split.X, split.y, split.indices)))


def known_shape(s):
    """The (height, width) of the images by the settings `s` alone; None for data of one's own, which must be read."""
    given = vars(s)
    return by_two(given.get("image_size", ())) or ((28, 28) if given.get("dataset", DATASET) in NAMED else None)


def by_two(image_size):
    """IMAGE_SIZE as (height, width), or () for none."""
    return tuple(image_size) * 2 if len(image_size) == 1 else tuple(image_size)


# The settings that are arguments of `load`
ARGUMENTS = ("dataset", "data_dir", "offline_fallback", "split_seed", "quick", "val_fraction", "train_size", "train_on_val",
             "label_noise", "image_size")  # fmt: skip


def load_for(s):
    """The Dataset of a script's settings `s`. Raises DataError, or settings.SettingError for settings that do not fit it."""
    from support import settings  # here, so that importing data stays light

    settings.check_train_on_val(s)
    images = load(**{name: getattr(s, name) for name in ARGUMENTS})
    settings.check_augmentation(s, images.image_shape)
    return images


def load(dataset=None, data_dir=None, offline_fallback=None, split_seed=None, quick=False, val_fraction=None, train_size=0,
         train_on_val=False, label_noise=0.0, image_size=None):  # fmt: skip
    """Fashion-MNIST as a Dataset: 48,000 / 12,000 / 10,000 images for training, validation and test, by default.

    None stands for the constant of that name above, and for $FASHION_MNIST_DIR where it is set. Looks in `data_dir`, then
    downloads. If both fail and `data_dir` is the default and empty, scikit-learn's digits replace it and a line on stderr
    says so, unless `offline_fallback` is False. `quick` keeps a stratified subset: 6,000 / 1,500 / 2,000. `train_size`,
    `train_on_val` and `label_noise` change the training split alone. A `dataset` that is a path: see support/own_data.py.
    Raises DataError.
    """
    dataset = DATASET if dataset is None else dataset
    data_dir = os.environ.get("FASHION_MNIST_DIR") or DATA_DIR if data_dir is None else data_dir
    offline_fallback = OFFLINE_FALLBACK if offline_fallback is None else offline_fallback
    split_seed = SPLIT_SEED if split_seed is None else split_seed
    val_fraction = VAL_FRACTION if val_fraction is None else val_fraction
    image_size = IMAGE_SIZE if image_size is None else image_size
    if len(image_size) > 2:
        raise DataError(f"--image-size {' '.join(map(str, image_size))}: expected height and width, or one number for both")
    size = by_two(image_size)
    folder = Path(os.path.expanduser(os.path.expandvars(data_dir)))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--data-dir {folder}: is a file; name the folder that it is in")
    if dataset in NAMED:
        arrays, classes, name = read_named(dataset, folder, offline_fallback and is_default(data_dir, folder))
        (X, y), (X_test, y_test) = arrays["train"], arrays["test"]
        order = content_order(X)  # Kaggle's rows are shuffled: this makes the split independent of the file format
        num_val = round(len(y) * val_fraction)
        train, val = (np.sort(order[indices]) for indices in stratified_split(y[order], num_val, split_seed))
        if size:
            X, X_test = pictures.resize(X, size), pictures.resize(X_test, size)
            name += f", {size[0]} x {size[1]} pixels"
    else:
        arrays, classes, name = own_data.read(dataset, size)
        (X, y), (X_test, y_test) = arrays["train"], arrays["test"]
        train, val = own_data.content_split(X, y, val_fraction, split_seed)
        own_data.report_copies(name, X[train], X[val], X_test)
    test = np.arange(len(y_test))
    if quick:
        name += " (subset)"
        train = train[stratified_split(y[train], min(6_000, len(train)), 0)[1]]
        val = val[stratified_split(y[val], min(1_500, len(val)), 0)[1]]
        test = stratified_split(y_test, min(2_000, len(test)), 0)[1]
    if train_size > len(train):
        raise DataError(f"--train-size {train_size:,}: the training split has {len(train):,} images")
    if train_size:
        train = train[stratified_split(y[train], train_size, split_seed)[1]]
    if train_on_val:
        train, name = np.sort(np.concatenate([train, val])), f"{name}, validation images in training"
    y_train = with_label_noise(y, label_noise, len(classes), split_seed) if label_noise else y
    splits = make_split(X, y_train, train), make_split(X, y, val), make_split(X_test, y_test, test)
    return Dataset(name, classes, *splits, bright_on_dark=dataset in NAMED)


def read_named(dataset, folder, fallback):
    """(arrays as `read` returns them, classes, name) of one of NAMED, or of the digits in its place. Raises DataError."""
    if dataset == "digits":
        return digits(), DIGITS, "digits"
    if dataset != "fashion-mnist":
        return read_torchvision(folder, dataset.upper()), DIGITS if dataset == "mnist" else KUZUSHIJI, dataset.upper()
    if form := foreign(folder):
        raise DataError(f"--data-dir {folder}: contains {form}, but not Fashion-MNIST; to use them: --dataset {folder}")
    try:
        return read(locate(folder)), CLASSES, "Fashion-MNIST"
    except Offline as reason:
        if not fallback:
            raise DataError(f"{reason}. {remedy(folder)}") from None
        print(f"NOT FASHION-MNIST: {reason}. Using scikit-learn's 8 x 8 digits instead, so that everything runs; "
              f"the numbers say nothing about Fashion-MNIST. {remedy(folder)}.", file=sys.stderr)  # fmt: skip
        return digits(), DIGITS, "digits, in place of Fashion-MNIST"


def foreign(folder):
    """What the folder contains in place of Fashion-MNIST, as `own_data.form` says it; "" for nothing."""
    try:
        return "" if not folder.is_dir() or find(folder) else own_data.form(folder)
    except Incomplete:  # a part of Fashion-MNIST is here
        return ""


def is_default(data_dir, folder):
    """Whether nobody has named this folder, and nothing is in it but what torchvision downloads."""
    unnamed = data_dir in (DATA_DIR, "$FASHION_MNIST_DIR", os.environ.get("FASHION_MNIST_DIR"))
    usual = ("FashionMNIST", "MNIST", "KMNIST")
    return unnamed and not (folder.is_dir() and any(p.name[0] != "." and p.name not in usual for p in folder.iterdir()))


def make_split(X, y, indices):
    return Split(np.divide(X[indices], np.float32(255), dtype=np.float32), y[indices].astype(np.int64), indices)


def content_order(X):
    """Indices (N,) that sort the images by their CRC-32, whatever order they are stored in."""
    return np.argsort([zlib.crc32(image) for image in np.ascontiguousarray(X)], kind="stable")


def stratified_split(y, n, seed):
    """Indices (len(y) - n,) and (n,), each increasing: a random split with equal class proportions, to +-1 image."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # by class, random within each
    second = order[np.arange(n) * len(y) // n]  # equally spaced, so proportional
    return np.setdiff1d(order, second), np.sort(second)


def with_label_noise(y, fraction, num_classes, seed):
    """A copy of the labels y (N,), of which a random `fraction` is replaced by another class, each equally likely."""
    rng = np.random.default_rng((seed, 1))  # not the stream of the split
    rows = rng.permutation(len(y))[: round(len(y) * fraction)]
    y = y.copy()
    y[rows] = (y[rows] + rng.integers(1, num_classes, size=len(rows))) % num_classes
    return y


def mean_std(X):
    """Mean and standard deviation over all pixels of X, as floats. Use the training split only.

    The latter is 1 where it would be 0, as for the features of a CNN whose last ReLUs are all 0.
    """
    rows = X.reshape(len(X), -1)
    mean = rows.mean(axis=1).mean(dtype=np.float64)  # float64 for the long sum
    square = np.einsum("nd,nd->n", rows, rows).mean(dtype=np.float64) / rows.shape[1]
    return float(mean), float(np.sqrt(max(square - mean**2, 0.0))) or 1.0


def normalization_stats(X, normalize):
    """(mean, std) for X (N, 28, 28): "none" 0 and 1, "global" over all pixels, "per_pixel" arrays (28, 28).

    Use the training split only. A pixel with a standard deviation below 0.01, three gray levels, keeps its scale:
    otherwise a shifted or mirrored image could be hundreds of standard deviations away.
    """
    if normalize == "none":
        return 0.0, 1.0
    if normalize == "global":
        return mean_std(X)
    mean, std = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 0.01, std, 1.0)


def standardize(X, mean, std):
    """(N, ...) -> (N, features): a new array (X - mean) / std. mean, std: numbers, or arrays of an image's shape."""
    X = X.reshape(len(X), -1) * np.ravel(1 / np.asarray(std)).astype(np.float32)
    X -= np.ravel(np.asarray(mean) / std).astype(np.float32)
    return X


def check_data(X, y, num_classes):
    """Raise ValueError where X (N, ...) and y (N,) do not fit each other or the classes, or X contains NaN or infinity."""
    if len(X) != len(y) or not len(X):
        raise ValueError(f"X has {len(X):,} rows and y has {len(y):,}: expected the same number, at least one")
    if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"y must be one-dimensional and contain whole numbers from 0 to {num_classes - 1}")
    if not np.isfinite([X.min(), X.max()]).all():
        rows = np.flatnonzero(~np.isfinite(X.reshape(len(X), -1)).all(axis=1))
        raise ValueError(f"X contains NaN or infinity in {len(rows):,} of {len(X):,} rows; the first is row {rows[0]}")


def augment(X, rng, flip=False, shift=0, erase=0):
    """A randomly changed copy of training images X (N, 28, 28); each image is drawn independently.

    flip: mirror with probability 0.5. shift: by up to this many pixels in both directions, filled with 0. erase: with
    probability 0.5, replace a square of this many pixels by noise (random erasing, Zhong et al. 2020, with one size).
    """
    n, height, width = X.shape
    if flip:
        X = np.where(rng.random(n)[:, None, None] < 0.5, X[:, :, ::-1], X)
    if shift:
        padded = np.pad(X, ((0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
        down, right = rng.integers(2 * shift + 1, size=(2, n))
        X = windows[np.arange(n), down, right]
    if erase:
        top, left = rng.integers(height - erase + 1, size=n), rng.integers(width - erase + 1, size=n)
        rows, columns = np.arange(height) - top[:, None], np.arange(width) - left[:, None]  # (N, 28)
        inside = ((rows >= 0) & (rows < erase))[:, :, None] & ((columns >= 0) & (columns < erase))[:, None, :]
        inside &= rng.random(n)[:, None, None] < 0.5
        X = np.where(inside, rng.random(X.shape, dtype=np.float32), X)
    return X


def batches(n, batch_size, rng):
    """Index arrays (batch_size,) that visit range(n) once in random order; the last one may be shorter."""
    order = rng.permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


def digest_text(text):
    """Hexadecimal BLAKE2b of a string."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digits():
    """scikit-learn's handwritten digits (UCI, 8 x 8, 0 to 16) enlarged to 28 x 28, in the form that `read` returns."""
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.pad(images.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))  # 8 -> 24 -> 28
    y = y.astype(np.uint8)
    train, test = stratified_split(y, len(y) // 7, 0)
    return {"train": (images[train], y[train]), "test": (images[test], y[test])}


def main(argv=None):
    from support import settings  # here, so that importing data stays light

    images = load(**vars(settings.parse(sys.modules[__name__], argv=argv)))
    mean, std = mean_std(images.train.X)
    print(f"{images.name}: " + ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in images.sizes.items()))
    print(f"training pixels: mean {mean:.4f}, standard deviation {std:.4f}; fingerprint {images.fingerprint()}")
    for label, name in enumerate(images.classes):
        counts = "".join(f"{(split.y == label).sum():8,}" for split in (images.train, images.val, images.test))
        print(f"{label:<{len(str(len(images.classes) - 1))}} {name:<12}{counts}")


if __name__ == "__main__":
    entry.cli(main)
