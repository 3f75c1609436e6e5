"""Data of one's own as arrays: class folders with pictures, IDX files, an .npz file or CSV files; and their split."""

if __name__ == "__main__":
    raise SystemExit("support/own_data.py is a module, not a script: data.py uses it")

import gzip
import hashlib
import math
import os
import re
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from support import pictures
from support.dataset_files import DataError, read_table
from support.pictures import check_total, printable

NAMED = ("fashion-mnist", "mnist", "kmnist", "digits")  # any other dataset is the path of one's own
MIN_CLASSES, MAX_CLASSES, MAX_SIDE = 2, 1000, 1024
TEST_FRACTION = 1 / 7  # of data without test images, as Fashion-MNIST has it
IDX_IMAGES = re.compile(r"(.*)images[.-]idx3-ubyte(\.gz)?$")  # as in train-images-idx3-ubyte.gz
FORMS = "class subfolders with pictures, IDX files, an .npz file or CSV files"


def read(location, size=()):
    """({"train": (X (N, height, width) uint8, y (N,) int64), "test": ...}, classes, name) of the file or folder `location`.

    size: (height, width) to which the images are scaled; () keeps theirs, or decides as `pictures.read`. Data without test
    images are split by `content_split`. Raises DataError.
    """
    path = Path(os.path.expanduser(os.path.expandvars(location)))
    try:
        kind = form(path)
        if not kind:
            raise DataError(f"--dataset {path}: {reason_unusable(path)}; expected {FORMS}")
        splits = READERS[kind](path, size)
    except OSError as error:
        raise DataError(f"--dataset {path}: cannot be read ({error.strerror or error})") from None
    splits, classes = encode(path, splits)
    if size:
        check_total(path, sum(len(y) for _, y in splits.values()), size)
        splits = {split: (pictures.resize(X, size), y) for split, (X, y) in splits.items()}
    check_shapes(path, splits)
    if "test" not in splits:
        X, y = splits["train"]
        check_counts(path, X, y, classes, 3, "one each for training, validation and test")
        train, test = content_split(X, y, TEST_FRACTION)
        print(printable(f"{path}: {len(test):,} of the {len(y):,} images, chosen by their content, are the test split"))
        splits = {"train": (X[train], y[train]), "test": (X[test], y[test])}
    check_counts(path, *splits["train"], classes, 2, "one each for training and validation")
    return splits, classes, printable(path.resolve().name if path.is_dir() else path.stem)


# ---- which form


def form(path):
    """What the file or folder contains: a key of READERS, or "" for none of them."""
    if path.is_file():
        return {".npz": "an .npz file", ".csv": "CSV files"}.get(path.suffix.lower(), "")
    if not path.is_dir():
        return ""
    if any(map(IDX_IMAGES.match, os.listdir(path))):
        return "IDX files"
    if any(any(pictures.pictures_below(place)) for place in pictures.visible(path) if place.is_dir()):
        return "class subfolders with pictures"
    return "CSV files" if any(path.glob("*.csv")) else "an .npz file" if any(path.glob("*.npz")) else ""


def reason_unusable(path):
    if not path.exists():
        return "no such file or folder"
    if path.is_file():
        return "is neither an .npz nor a CSV file"
    if any(map(pictures.is_picture, path.iterdir())):
        return "contains pictures, but not in subfolders, one for each class"
    return "is an empty folder" if not any(path.iterdir()) else "contains no data that can be read"


# ---- the readers: each returns {"train": (X, labels (N,)), "test": ... if there is one}


def read_idx_files(folder, _):
    """The files NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, gzipped or not; test or t10k in a name means test."""
    splits = {}
    for name in sorted(os.listdir(folder)):
        if match := IDX_IMAGES.match(name):
            split = "test" if re.search("test|t10k", match[1], re.IGNORECASE) else "train"
            labels = name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
            path = next((p for p in (folder / labels, folder / f"{labels}.gz") if p.is_file()), None)
            if not path:
                raise DataError(f"{folder / name}: its labels, {labels}, are missing")
            if split in splits and splits[split][0].removesuffix(".gz") != name.removesuffix(".gz"):
                raise DataError(f"{folder}: contains both {splits[split][0]} and {name}; put each dataset into a folder of "
                                "its own")  # fmt: skip
            splits[split] = name, path
    if "train" not in splits:
        raise DataError(f"{folder}: contains test images, but no training images")
    return {split: (read_idx(folder / name, 3), read_idx(path, 1)) for split, (name, path) in splits.items()}


def read_idx(path, ndim):
    """An IDX file of unsigned bytes, gzipped or not, as an array (N, height, width) or (N,)."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
                raise DataError(f"{path}: not an IDX file of unsigned bytes with {ndim} dimensions")
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
            check_total(path, shape[0], shape[1:] if ndim == 3 else (1, 1))
            count = int(np.prod(shape))
            values = np.frombuffer(file.read(count + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise DataError(f"{path}: damaged ({error})") from None
    if len(values) != count:
        raise DataError(f"{path}: contains {'more' if len(values) > count else 'less'} than the {count:,} values that its "
                        "header declares")  # fmt: skip
    return values.reshape(shape)


def read_npz(path, _):
    """An .npz file with x_train, y_train, x_test, y_test, as Keras has it, or X, y. Pickled objects are refused."""
    if path.is_dir():
        path, *others = sorted(path.glob("*.npz"))
        if others:
            raise DataError(f"{path.parent}: contains {1 + len(others)} .npz files; name one of them")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()}
            names = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
            if not {"x_train", "y_train"} <= members.keys():
                names = {"train": ("x", "y")}
            splits = {split: pair for split, pair in names.items() if set(pair) <= members.keys()}
            if not splits:
                raise DataError(f"{path}: contains {', '.join(members) or 'nothing'}; expected x_train, y_train, x_test and "
                                "y_test, or X and y")  # fmt: skip
            arrays = {split: tuple(read_member(archive, members[name]) for name in pair) for split, pair in splits.items()}
    except (DataError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise whatever they meet in a damaged file
        raise DataError(f"{path}: not an .npz file, or damaged ({error})") from None
    images = {split: gray_images(path, splits[split][0], X) for split, (X, _) in arrays.items()}
    images = gray_levels(path, images)
    return {split: (images[split], label_array(path, splits[split][1], y)) for split, (_, y) in arrays.items()}


def read_member(archive, info):
    """One array of an .npz file. Its declared size is compared with the file's before memory is used."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise ValueError(f"{info.filename} has version {version} of the .npy format")
        shape, in_columns, dtype = HEADER_READERS[version](file)
        if dtype.kind not in "biufUS":
            content = "pickled objects" if dtype.kind == "O" else dtype
            raise DataError(f"{archive.filename}: {info.filename} contains {content}, which are not loaded; save plain "
                            "numbers or strings")  # fmt: skip
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - file.tell() or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} declares shape {shape} of {dtype}, but contains {info.file_size:,} bytes")
        if math.prod(shape) > pictures.MAX_PIXELS:
            raise ValueError(f"{info.filename} declares {math.prod(shape):,} numbers, which are too many for the memory")
        array = np.frombuffer(file.read(), dtype)
    return array.reshape(shape, order="F" if in_columns else "C")


HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def gray_images(path, name, X):
    """X as (N, height, width): color converted, flat images made square. Raises DataError for other shapes."""
    shape = " x ".join(map(str, X.shape))
    if X.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} contains {X.dtype}; expected numbers")
    if X.ndim == 2:
        side = math.isqrt(X.shape[1])
        if side**2 != X.shape[1]:
            raise DataError(f"{path}: {name} has shape {shape}, and {X.shape[1]:,} pixels are not a square; save images "
                            "with shape (N, height, width)")  # fmt: skip
        return X.reshape(-1, side, side)
    if X.ndim == 4 and X.shape[3] not in (1, 3, 4) and X.shape[1] in (1, 3):  # channels first, as PyTorch has them
        X = np.moveaxis(X, 1, 3)
    if X.ndim == 4 and X.shape[3] in (1, 3, 4):
        return X[..., 0] if X.shape[3] == 1 else X[..., :3].astype(np.float32) @ LUMA
    if X.ndim != 3:
        raise DataError(f"{path}: {name} has shape {shape}; expected (N, height, width), also with 1, 3 or 4 colors")
    return X


LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue (ITU-R 601), as Pillow converts them


def gray_levels(path, images):
    """The images {split: (N, height, width)}, all in [0, 1] or all in [0, 255], as uint8. Raises DataError."""
    filled = [X for X in images.values() if X.size]
    low, high = (float(function([function(X) for X in filled] or [0])) for function in (np.min, np.max))
    if not (low >= 0 and high <= 255):  # NaN, too
        raise DataError(f"{path}: the images have values from {low:g} to {high:g}; expected 0 to 255, or 0 to 1")
    factor = np.float32(255 if high <= 1 else 1)
    return {split: X if X.dtype == np.uint8 and factor == 1 else np.rint(X * factor).astype(np.uint8)
            for split, X in images.items()}  # fmt: skip


def label_array(path, name, y):
    """Labels (N,) of whole numbers or strings. Raises DataError."""
    if y.ndim == 2 and y.shape[1] == 1:  # as Keras has those of CIFAR-10
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"{path}: {name} has shape {' x '.join(map(str, y.shape))}; expected one label for each image")
    if y.dtype.kind == "f":
        if not (np.isfinite(y) & (y == np.floor(y))).all():
            raise DataError(f"{path}: {name} contains numbers that are not whole; expected a class for each image")
        y = y.astype(np.int64)
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def read_csv_files(path, _):
    """A CSV file in Kaggle's form, or of a folder with several those with train and test in their names."""
    paths = [path] if path.is_file() else sorted(path.glob("*.csv"))
    named = {split: [p for p in paths if split in p.stem.lower()] for split in ("train", "test")}
    if len(paths) == 1:
        named = {"train": paths, "test": []}
    if (len(named["train"]), len(named["test"])) not in ((1, 0), (1, 1)):
        raise DataError(f"{path}: contains {len(paths)} CSV files; name one, or call two ...train.csv and ...test.csv")
    tables = {split: read_csv(p, optional=split == "test") for split, (p,) in ((s, ps) for s, ps in named.items() if ps)}
    tables = {split: table for split, table in tables.items() if table}
    images = gray_levels(path, {split: X for split, (X, _) in tables.items()})
    return {split: (images[split], labels) for split, (_, labels) in tables.items()}


def read_csv(path, optional=False):
    """(X (N, height, width) float32, labels (N,)) of rows label,pixel,pixel..., with or without a header.

    With `optional`, None and a line on stderr for a file without labels, as the test files of Kaggle's competitions are.
    """
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        columns = [name.strip().strip('"') for name in file.readline(MAX_LINE).split(",")]
        header = len(columns) > 1 and not re.fullmatch(r"[\d.]+", columns[1])
        if header and columns[0].lower() not in ("label", "class", "target", "y"):
            if optional:
                print(f"{path}: is not used, since its first column is not label", file=sys.stderr)
                return None
            raise DataError(f"{path}: line 1: the first column is {columns[0][:40]!r}; expected label, then the pixels")
        file.seek(0)
        if header:
            file.readline()
        labels = {}
        table = read_table(path, file, columns if header else [f"{i}" for i in range(1, len(columns) + 1)], int(header),
                           converters={0: lambda text: labels.setdefault(text.strip(), len(labels))}, comments=None,
                           quotechar='"')  # fmt: skip
    pixels = len(columns) - 1
    named = re.fullmatch(r"(\d+)x(\d+)", columns[-1])  # the last pixel of 1x1, 1x2, ..., 28x28
    shape = tuple(map(int, named.groups())) if named else (math.isqrt(pixels),) * 2
    if math.prod(shape) != pixels or not pixels:
        raise DataError(f"{path}: {pixels:,} pixels in each row are not a square image; call the columns 1x1, 1x2, ... to "
                        "HEIGHTxWIDTH")  # fmt: skip
    wrong = np.argwhere(~((table[:, 1:] >= 0) & (table[:, 1:] <= 255)))  # NaN, too
    if len(wrong):
        row, column = wrong[0]
        value = f"'{table[row, column + 1]:g}' is not a gray level from 0 to 255"
        raise DataError(f"{path}: line {row + 1 + header}, column {columns[column + 1] if header else column + 2}: {value}")
    names = np.array([name.removesuffix(".0") for name in labels])
    return table[:, 1:].reshape(-1, *shape), names[table[:, 0].astype(int)]


READERS = {"IDX files": read_idx_files, "class subfolders with pictures": pictures.read, "an .npz file": read_npz,
           "CSV files": read_csv_files}  # fmt: skip
MAX_LINE = 2**24  # characters of a CSV file's first line


# ---- labels, checks and the split


def encode(path, splits):
    """(the splits with labels as whole numbers from 0, class names) in natural order: 2 comes before 10."""
    for split, (X, labels) in splits.items():
        if len(X) != len(labels) or not len(X):
            raise DataError(f"{path}: {len(X):,} {split} images and {len(labels):,} labels; expected a label for each image")
    values = sorted(set(splits["train"][1].tolist()), key=lambda value: (natural(str(value)), str(value)))
    number = {value: i for i, value in enumerate(values)}
    classes = tuple(printable(str(value)) for value in values)
    if unknown := {label for _, labels in splits.values() for label in set(labels.tolist())} - number.keys():
        raise DataError(f"{path}: class {printable(str(min(unknown, key=str)))} has test images, but no training images")
    if not MIN_CLASSES <= len(classes) <= MAX_CLASSES:
        only = f" ({classes[0]})" if len(classes) == 1 else ""
        raise DataError(f"{path}: has {len(classes):,} class{'es' * (len(classes) > 1)}{only}; expected {MIN_CLASSES} to "
                        f"{MAX_CLASSES:,}")  # fmt: skip
    encoded = {split: np.array([number[label] for label in labels.tolist()]) for split, (_, labels) in splits.items()}
    return {split: (X, encoded[split]) for split, (X, _) in splits.items()}, classes


def natural(name):
    """A sort key by which numbers in names count as numbers."""
    return [int(text) if i % 2 else text.lower() for i, text in enumerate(re.split(r"(\d+)", name))]


def check_shapes(path, splits):
    """Raise DataError for images of different or impossible sizes."""
    shapes = {X.shape[1:] for X, _ in splits.values()}
    if len(shapes) > 1:
        raise DataError(f"{path}: training images have {by(splits['train'][0])} pixels and test images "
                        f"{by(splits['test'][0])}; --image-size scales both to one")  # fmt: skip
    if not all(2 <= side <= MAX_SIDE for side in shapes.pop()):
        raise DataError(f"{path}: images have {by(splits['train'][0])} pixels; expected 2 to {MAX_SIDE:,} each way; "
                        "--image-size scales them")  # fmt: skip


def by(X):
    return " x ".join(map(str, X.shape[1:]))


def check_counts(path, X, y, classes, least, purpose):
    """Raise DataError for a class with fewer than `least` different images."""
    keys = content_keys(X)
    for label, name in enumerate(classes):
        count = len(np.unique(keys[y == label]))
        if count < least:
            raise DataError(f"{path}: class {name} has {count} different image{'s' * (count > 1)} for training; expected "
                            f"{least} or more, {purpose}")  # fmt: skip


def content_keys(X, seed=""):
    """A hash (N,) uint64 of each image of X (N, height, width) uint8; another seed gives others."""
    key = str(seed).encode()[:64]
    hashes = (hashlib.blake2b(image, digest_size=8, key=key).digest() for image in np.ascontiguousarray(X))
    return np.frombuffer(b"".join(hashes), np.uint64)


def content_split(X, y, fraction, seed=""):
    """Indices of X (N, height, width), y (N,), each increasing: a split in which `fraction` of each class comes second.

    The second part has the images with the smallest hashes, so that a new image moves at most one other of its class, and
    that copies of an image stay together. Both parts have at least one image of each class with two different ones.
    """
    keys, second = content_keys(X, seed), np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        different = np.unique(keys[rows])  # in increasing order
        count = min(max(1, round(len(different) * fraction)), len(different) - 1)
        second[rows] = np.isin(keys[rows], different[:count])
    return np.flatnonzero(~second), np.flatnonzero(second)


def report_copies(name, train, val, test):
    """Say on stderr how many of the validation and test images (N, ...) are exact copies of others."""
    keys = [content_keys(X) for X in (train, val, test)]
    for split, number in (("validation", 1), ("test", 2)):
        count = np.isin(keys[number], np.concatenate(keys[:number])).sum()
        if count:
            earlier = "training images" if split == "validation" else "training or validation images"
            print(f"{name}: {count:,} of the {len(keys[number]):,} {split} images are copies of {earlier}, so that the "
                  f"{split} accuracy is too high", file=sys.stderr)  # fmt: skip
