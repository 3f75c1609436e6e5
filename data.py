"""Fashion-MNIST as verified NumPy arrays: found, checked, downloaded if need be, and split once for every script.

    python data.py       finds or downloads the dataset, checks it, and prints what it holds
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

# ---- settings: edit here, or override on the command line (--data-dir DIR) ----
DATASET = "fashion-mnist"  # which images; digits are scikit-learn's 1,797, bundled with it: {fashion-mnist, digits}
DATA_DIR = "data"  # where the dataset's files are, or are downloaded to ($FASHION_MNIST_DIR, where set, comes first)
OFFLINE_FALLBACK = True  # with no files and no network, go on with the digits (announced) instead of an error
SPLIT_SEED = 0  # which 12,000 of the 60,000 training images are for validation, in [0, inf)
# ----

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE = (28, 28)
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"

# md5 as published by the dataset's authors (README of HOMEPAGE) for the gzipped file; of the unpacked one, of its content
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 29_515, "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102, "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148, "15d484375f8d13e6eb1aabb0c3f46965"),
}
CSV_FILES = {"train": "fashion-mnist_train.csv", "test": "fashion-mnist_test.csv"}  # as on Kaggle
PARTS = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000)}  # fmt: skip
# What digit MNIST, whose files have the same names, begins with (http://yann.lecun.com/exdb/mnist/), and its gz md5 sums
DIGIT_LABELS = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7],
                "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5]}  # fmt: skip
DIGIT_MD5 = {"f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
             "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"}  # fmt: skip


class DataError(Exception):
    """A dataset that is missing, damaged or not Fashion-MNIST. One line: what is wrong, where, and what to do."""

    exit_code = 1


@dataclass(frozen=True)
class Split:
    X: np.ndarray  # (N, 28, 28) float32 in [0, 1]
    y: np.ndarray  # (N,) int64, 0 to 9
    index: np.ndarray  # (N,) int64, rising: where each image stands in the file that it came from


@dataclass(frozen=True)
class Dataset:
    name: str  # "Fashion-MNIST", or what stands in for it; for every title, table and metrics file
    classes: tuple
    train: Split
    val: Split
    test: Split

    @property
    def sizes(self):
        """{"train_size": N, "val_size": N, "test_size": N}"""
        return {f"{part}_size": len(getattr(self, part).y) for part in ("train", "val", "test")}

    def fingerprint(self):
        """Hexadecimal digest of all images, labels and indices: equal only for the same data in the same split."""
        return digest(*(array for split in (self.train, self.val, self.test) for array in (split.X, split.y, split.index)))


def load(dataset=DATASET, data_dir=DATA_DIR, offline_fallback=OFFLINE_FALLBACK, split_seed=SPLIT_SEED, quick=False):
    """Fashion-MNIST as a Dataset: 48,000 / 12,000 / 10,000 images for training, validation and test.

    Looks in `data_dir`, then downloads. With neither, scikit-learn's digits stand in for it, announced on stderr,
    unless `offline_fallback` is False. `quick` keeps a stratified subset: 6,000 / 1,500 / 2,000. Raises DataError.
    """
    name, classes = "Fashion-MNIST", CLASSES
    folder = Path(os.path.expanduser(os.path.expandvars(data_dir)))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--data-dir {folder}: is a file; name the folder that it is in")
    try:
        parts = digits() if dataset == "digits" else read(locate(folder))
    except Offline as reason:
        if not offline_fallback:
            raise DataError(f"{reason}. {remedy(folder)}") from None
        print(f"NOT FASHION-MNIST: {reason}. Going on with scikit-learn's 8 x 8 digits instead, so that everything "
              f"runs; the figures say nothing about Fashion-MNIST. {remedy(folder)}.", file=sys.stderr)  # fmt: skip
        parts, name = digits(), "digits, standing in for Fashion-MNIST"
    if dataset == "digits":
        name = "digits"
    if name != "Fashion-MNIST":
        classes = tuple("0123456789")
    (X, y), (X_test, y_test) = parts["train"], parts["test"]
    order = by_content(X)  # Kaggle's rows are shuffled: the same images are for validation, in whatever form they come
    train, val = (np.sort(order[part]) for part in stratified_split(y[order], len(y) // 5, split_seed))
    test = np.arange(len(y_test))
    if quick:
        name += " (subset)"
        train = train[stratified_split(y[train], min(6_000, len(train)), 0)[1]]
        val = val[stratified_split(y[val], min(1_500, len(val)), 0)[1]]
        test = stratified_split(y_test, min(2_000, len(test)), 0)[1]
    return Dataset(name, classes, as_split(X, y, train), as_split(X, y, val), as_split(X_test, y_test, test))


def as_split(X, y, index):
    return Split(np.divide(X[index], np.float32(255), dtype=np.float32), y[index].astype(np.int64), index)


def by_content(X):
    """Indices (N,) that put images into an order of their own, whatever the order they come in: that of their CRC-32."""
    return np.argsort([zlib.crc32(image) for image in np.ascontiguousarray(X)], kind="stable")


def stratified_split(y, n, seed):
    """Indices (len(y) - n,) and (n,), each rising: a random split in which every class has its share of both, to +-1."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # by class, random within each
    second = order[np.arange(n) * len(y) // n]  # equally spaced, so proportional
    return np.setdiff1d(order, second), np.sort(second)


def statistics(X):
    """Mean and standard deviation over all pixels of X, as floats. Only ever of the training split."""
    rows = X.reshape(len(X), -1)
    mean = rows.mean(axis=1).mean(dtype=np.float64)  # float64 where many are added up
    square = np.einsum("nd,nd->n", rows, rows).mean(dtype=np.float64) / rows.shape[1]
    return float(mean), float(np.sqrt(square - mean**2))


def normalisation(X, how):
    """(mean, std) to bring X (N, 28, 28) to: "none" 0 and 1, "standard" one of each, "pixel" (28, 28) of each.

    Only ever of the training split. A pixel that hardly varies, by less than 0.01 or three shades of grey, keeps its scale:
    else an image moved or mirrored could be hundreds of deviations away.
    """
    if how == "none":
        return 0.0, 1.0
    if how == "standard":
        return statistics(X)
    mean, std = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 0.01, std, 1.0)


def augment(X, rng, flip=False, shift=0, erase=0):
    """Images X (N, 28, 28), each changed as it is drawn on its own; X stays as it is. Never of validation or test images.

    Half of them mirrored; moved by up to `shift` pixels each way, background (0) coming in; and in half of them a square of
    erase x erase pixels of noise (random erasing, Zhong et al. 2020, with one size).
    """
    n, height, width = X.shape
    if flip:
        X = np.where(rng.random(n)[:, None, None] < 0.5, X[:, :, ::-1], X)
    if shift:
        padded = np.pad(X, ((0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # (N, places, places, ...)
        down, right = rng.integers(2 * shift + 1, size=(2, n))
        X = windows[np.arange(n), down, right]
    if erase:
        top, left = rng.integers(height - erase + 1, size=n), rng.integers(width - erase + 1, size=n)
        rows, columns = np.arange(height) - top[:, None], np.arange(width) - left[:, None]  # (N, 28): from the square's edge
        inside = ((rows >= 0) & (rows < erase))[:, :, None] & ((columns >= 0) & (columns < erase))[:, None, :]
        inside &= rng.random(n)[:, None, None] < 0.5
        X = np.where(inside, rng.random(X.shape, dtype=np.float32), X)
    return X


def batches(n, batch_size, rng):
    """Index arrays (batch_size,) that visit range(n) once in random order; the last may be shorter."""
    order = rng.permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


def digest(*arrays):
    """Hexadecimal BLAKE2b of the arrays' shapes, types and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape} {array.dtype}".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


# ---- finding, checking and downloading the files


class Offline(DataError):
    """No file of the dataset is here and none could be downloaded."""


def remedy(folder):
    return f"Put the four files of {HOMEPAGE} into {folder}, or name their folder with --data-dir"


class Incomplete(DataError):
    """Some of a set of files are here, others are not."""


def locate(folder):
    """What `find` returns, after a download if need be. Raises Offline, or Incomplete, where that fails."""
    incomplete = None
    try:
        if files := find(folder):
            return files
        print(f"no Fashion-MNIST in {folder}: downloading it (30 MB)", file=sys.stderr)
    except Incomplete as error:
        incomplete = error
        print(f"only a part of Fashion-MNIST in {folder}: downloading the rest", file=sys.stderr)
    try:
        download(folder)
    except Offline as error:
        raise Incomplete(f"{incomplete} ({error})") if incomplete else error from None
    return find(folder)


def find(folder):
    """{"train": (images, labels), "test": (images, labels)}, or one CSV for each part; None where nothing is there.

    Gzipped or unpacked, in `folder` or in torchvision's layout below it. Raises Incomplete.
    """
    some = None
    for place in (folder, folder / "FashionMNIST" / "raw"):
        names = {name: next((p for p in (place / f"{name}.gz", place / name) if p.is_file()), None) for name in FILES}
        if all(names.values()):
            return {part: (names[images], names[labels]) for part, (images, labels, _) in PARTS.items()}
        some = some or (any(names.values()) and (place, [f"{name}.gz" for name in FILES if not names[name]]))
    files = {part: folder / name for part, name in CSV_FILES.items()}
    there = {part: path for part, path in files.items() if path.is_file()}
    if len(there) == len(files):
        return {part: (path,) for part, path in files.items()}
    if there:
        some = some or (folder, [path.name for part, path in files.items() if part not in there])
    if some:
        raise Incomplete(f"{some[0]} holds only a part of the dataset: {', '.join(some[1])} missing. {remedy(some[0])}")
    return None


def read(files):
    """{"train": (X (N, 28, 28) uint8, y (N,) uint8), "test": ...} of the paths that `find` returned. Raises DataError."""
    parts = {}
    for part, (images, labels, count) in PARTS.items():
        paths = files[part]
        if len(paths) == 1:
            parts[part] = read_csv(paths[0], part, count)
        else:
            X = read_idx(paths[0], images, (count, *IMAGE))
            parts[part] = X, read_idx(paths[1], labels, (count,))
    return parts


def not_fashion(path, what):
    return DataError(f"{path}: {what}. Move it away and run again to download the right one, or copy it from {HOMEPAGE}")


def read_idx(path, name, shape):
    """One of the four original files as uint8 of `shape`, gzipped or unpacked. Raises DataError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    md5, size, md5_unpacked = FILES[name]
    if path.suffix == ".gz":
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if found in DIGIT_MD5:
            raise not_fashion(path, "a file of digit MNIST, whose files have the same names as Fashion-MNIST's")
        if found != md5:
            state = "truncated" if len(raw) < size else "damaged, or a foreign file"
            raise not_fashion(path, f"{state}: {len(raw):,} bytes with md5 {found}, expected {size:,} bytes with md5 {md5}")
        raw = zlib.decompress(raw, wbits=31)  # 31: the gzip container
    header = 4 + 4 * len(shape)
    magic = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)  # IDX: 8 is uint8
    if raw[:header] != magic:
        begin = f"it begins with {raw[:header].hex(' ')}, expected {magic.hex(' ')}"
        raise not_fashion(path, f"not an IDX file of shape {shape}: {begin}")
    if len(raw) != header + int(np.prod(shape)):
        raise not_fashion(path, f"truncated or too long: {len(raw):,} bytes, expected {header + int(np.prod(shape)):,}")
    array = np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
    if path.suffix != ".gz":
        if len(shape) == 1:
            check_labels(array, path, "row", 1)
            part = "train" if "train" in name else "test"
            if array[:16].tolist() == DIGIT_LABELS[part]:
                raise not_fashion(path, "the labels of digit MNIST, whose files have the same names as Fashion-MNIST's")
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5_unpacked:
            raise not_fashion(path, f"not Fashion-MNIST's (is it digit MNIST's?), or damaged: expected md5 {md5_unpacked}")
    return array


def check_labels(y, path, unit, first):
    wrong = np.flatnonzero(y > 9)
    if len(wrong):
        raise DataError(f"{path}: {unit} {wrong[0] + first}: label {y[wrong[0]]}, expected 0 to 9")


def read_csv(path, part, count):
    """Kaggle's form: a header `label,pixel1,...,pixel784`, then a row for each image. Raises DataError."""
    columns = ["label", *(f"pixel{i}" for i in range(1, 785))]
    with open(path, encoding="utf-8", errors="replace") as file:
        header = [name.strip() for name in file.readline().split(",")]
        if header != columns:
            missing = [name for name in columns if name not in header]
            digits = " (digit MNIST's CSV files have such a header)" if {"1x1", "pixel0"} & set(header) else ""
            what = f"column {missing[0]} is missing" if missing else "the columns are not label,pixel1,...,pixel784 in order"
            raise DataError(f"{path}: line 1: {what}{digits}")
        try:
            with warnings.catch_warnings(action="ignore"):  # of a file with no rows, which the count below reports
                table = np.loadtxt(file, dtype=np.float32, delimiter=",", ndmin=2)
        except ValueError as error:  # NumPy's texts: "could not convert string 'x' to float32 at row 4, column 3" and ...
            if match := re.search(r"string (.*) to float32 at row (\d+), column (\d+)", str(error)):
                value, row, column = match[1], int(match[2]), int(match[3])
                what = f"line {row + 2}, column {columns[column - 1]}: {value} is not a whole number from 0 to 255"
            elif match := re.search(r"changed from (\d+) to (\d+) at row (\d+)", str(error)):  # this one counts from 1
                what = f"line {int(match[3]) + 1}: {match[2]} columns, expected 785"
            else:
                what = str(error)
            raise DataError(f"{path}: {what}") from None
    if len(table) and table.shape[1] != len(columns):
        raise DataError(f"{path}: line 2: {table.shape[1]} columns, expected 785")
    wrong = np.argwhere(~((table >= 0) & (table <= 255) & (table == np.floor(table))))  # NaN, too
    if len(wrong):
        row, column = wrong[0]
        value = f"'{table[row, column]:g}' is not a whole number from 0 to 255"
        raise DataError(f"{path}: line {row + 2}, column {columns[column]}: {value}")
    table = table.astype(np.uint8)
    y, X = table[:, 0], table[:, 1:]
    check_labels(y, path, "line", 2)
    if len(table) != count:
        raise not_fashion(path, f"{len(table):,} rows below the header, expected {count:,}: not the whole file")
    if (np.bincount(y, minlength=10) != count // 10).any():
        raise not_fashion(path, f"not {count // 10:,} images of each class, as Fashion-MNIST has; is it digit MNIST?")
    return X.reshape(-1, *IMAGE), y


def download(folder):
    """Fetch the four files into torchvision's layout below `folder`. Raises Offline."""
    new = not folder.exists()
    timeout = socket.getdefaulttimeout()
    try:
        from torchvision.datasets import FashionMNIST  # the only use of torchvision, and through it of torch

        socket.setdefaulttimeout(20)  # seconds; without it, a network that swallows packets would hang for minutes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as part:
            FashionMNIST(part, download=True)  # checks the md5 sums; interrupted, it leaves nothing behind
            raw = folder / "FashionMNIST" / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            for name in FILES:  # what is there already stays, right or wrong: reading it will tell
                if not (raw / f"{name}.gz").exists():
                    os.replace(Path(part, "FashionMNIST", "raw", f"{name}.gz"), raw / f"{name}.gz")
    except (OSError, RuntimeError, ImportError, HTTPException) as error:
        if new:
            with contextlib.suppress(OSError):  # it may not be there, or another process may be using it
                folder.rmdir()
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise Offline(f"no Fashion-MNIST in {folder}, and it could not be downloaded ({reason})") from None
    finally:
        socket.setdefaulttimeout(timeout)


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
    import settings  # here and not above: this module is at the bottom, and only its own command line needs it

    data = load(**vars(settings.parse(sys.modules[__name__], argv=argv)))
    mean, std = statistics(data.train.X)
    print(f"{data.name}: " + ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in data.sizes.items()))
    print(f"training pixels: mean {mean:.4f}, standard deviation {std:.4f}; fingerprint {data.fingerprint()}")
    for label, name in enumerate(data.classes):
        counts = "".join(f"{(split.y == label).sum():8,}" for split in (data.train, data.val, data.test))
        print(f"{label} {name:<12}{counts}")


if __name__ == "__main__":
    import runs

    runs.command(main)
