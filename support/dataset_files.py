"""The dataset's files: found, downloaded if need be, and verified byte by byte."""

if __name__ == "__main__":
    raise SystemExit("support/dataset_files.py is a module, not a script: every script uses it")

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np

from support.download import fetch_verified

IMAGE_SHAPE = (28, 28)
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"

# file: (md5 of the gzipped file, as published in the README of HOMEPAGE; its size in bytes; md5 of the unpacked file)
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 29_515, "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102, "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148, "15d484375f8d13e6eb1aabb0c3f46965"),
}
LARGEST = 500_000_000  # bytes; Kaggle's largest file has 133 MB
CSV_FILES = {"train": "fashion-mnist_train.csv", "test": "fashion-mnist_test.csv"}  # as on Kaggle
SPLIT_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000)}  # fmt: skip
# What digit MNIST, whose files have the same names, begins with (http://yann.lecun.com/exdb/mnist/)
DIGIT_LABELS = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7],
                "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5]}  # fmt: skip
# md5 of the gzipped files of the datasets that torchvision knows by these names, in the order of FILES
MD5 = {"MNIST": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
                 "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
       "KMNIST": ("bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
                  "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134")}  # fmt: skip
DIGIT_MD5 = set(MD5["MNIST"])


class DataError(Exception):
    """A dataset that is missing, damaged or not Fashion-MNIST. One line: what is wrong, where, and what to do."""

    exit_code = 1


class Offline(DataError):
    """No file of the dataset is here and none could be downloaded."""


class Incomplete(DataError):
    """Some of a set of files are here, others are not."""


def remedy(folder):
    return f"Put the four files of {HOMEPAGE} into {folder}, or name their folder with --data-dir or $FASHION_MNIST_DIR"


def locate(folder):
    """What `find` returns, after a download if need be. Raises Offline, or Incomplete, where that fails."""
    incomplete = None
    if file := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise DataError(f"--data-dir {folder}: {file} is a file; name a folder")
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
    """{"train": (images, labels), "test": (images, labels)}, or one CSV file each; None where nothing is there.

    Gzipped or unpacked, in `folder` or in torchvision's layout below it. Raises Incomplete.
    """
    incomplete = None
    for place in (folder, folder / "FashionMNIST" / "raw"):
        names = {name: next((p for p in (place / f"{name}.gz", place / name) if p.is_file()), None) for name in FILES}
        if all(names.values()):
            return {split: (names[images], names[labels]) for split, (images, labels, _) in SPLIT_FILES.items()}
        incomplete = incomplete or (any(names.values()) and (place, [f"{name}.gz" for name in FILES if not names[name]]))
    files = {split: folder / name for split, name in CSV_FILES.items()}
    there = {split: path for split, path in files.items() if path.is_file()}
    if len(there) == len(files):
        return {split: (path,) for split, path in files.items()}
    if there:
        incomplete = incomplete or (folder, [path.name for split, path in files.items() if split not in there])
    if incomplete:
        place, missing = incomplete
        raise Incomplete(f"{place} holds only a part of the dataset: {', '.join(missing)} missing. {remedy(place)}")
    return None


def read(files):
    """{"train": (X (N, 28, 28) uint8, y (N,) uint8), "test": ...} of the paths that `find` returned. Raises DataError."""
    arrays = {}
    for split, (images, labels, count) in SPLIT_FILES.items():
        paths = files[split]
        if len(paths) == 1:
            arrays[split] = read_csv(paths[0], split, count)
        else:
            X = read_idx(paths[0], images, (count, *IMAGE_SHAPE))
            arrays[split] = X, read_idx(paths[1], labels, (count,))
    return arrays


def not_fashion(path, what):
    return DataError(f"{path}: {what}. Move it away and run again to download the right one, or copy it from {HOMEPAGE}")


def check_size(path):
    """Raise DataError for a file that is larger than any of the dataset's, before it is read."""
    if path.stat().st_size > LARGEST:
        raise not_fashion(path, f"{path.stat().st_size:,} bytes, more than any file of Fashion-MNIST")


def read_idx(path, name, shape):
    """One of the four original files as uint8 of `shape`, gzipped or unpacked. Raises DataError."""
    raw = read_bytes(path)
    md5, size, md5_unpacked = FILES[name]
    if path.suffix == ".gz":
        digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if digest in DIGIT_MD5:
            raise not_fashion(path, "a file of digit MNIST, whose files have the same names as Fashion-MNIST's")
        if digest != md5:
            state = "truncated" if len(raw) < size else "damaged, or a foreign file"
            raise not_fashion(path, f"{state}: {len(raw):,} bytes with md5 {digest}, expected {size:,} bytes with md5 {md5}")
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
            split = "train" if "train" in name else "test"
            if array[:16].tolist() == DIGIT_LABELS[split]:
                raise not_fashion(path, "the labels of digit MNIST, whose files have the same names as Fashion-MNIST's")
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5_unpacked:
            raise not_fashion(path, f"not Fashion-MNIST's (is it digit MNIST's?), or damaged: expected md5 {md5_unpacked}")
    return array


def check_labels(y, path, unit, first):
    wrong = np.flatnonzero(y > 9)
    if len(wrong):
        raise DataError(f"{path}: {unit} {wrong[0] + first}: label {y[wrong[0]]}, expected 0 to 9")


def read_csv(path, split, count):
    """Kaggle's form: a header `label,pixel1,...,pixel784`, then a row for each image. Raises DataError."""
    columns = ["label", *(f"pixel{i}" for i in range(1, 785))]
    check_size(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        header = [name.strip() for name in file.readline(100_000).split(",")]
        if header != columns:
            missing = [name for name in columns if name not in header]
            digits = " (digit MNIST's CSV files have such a header)" if {"1x1", "pixel0"} & set(header) else ""
            what = f"column {missing[0]} is missing" if missing else "the columns are not label,pixel1,...,pixel784 in order"
            raise DataError(f"{path}: line 1: {what}{digits}")
        table = read_table(path, file, columns, 1)
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
    return X.reshape(-1, *IMAGE_SHAPE), y


def read_table(path, file, columns, first, **options):
    """The numbers in the rows of an open CSV file as (N, len(columns)) float32. Raises DataError.

    first: number of lines before these rows; options: for np.loadtxt.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file with no rows, which the caller reports
            table = np.loadtxt(file, dtype=np.float32, delimiter=",", ndmin=2, **options)
    except ValueError as error:  # NumPy's texts: "could not convert string 'x' to float32 at row 4, column 3" and ...
        if match := re.search(r"string (.*) to float32 at row (\d+), column (\d+)", str(error)):
            value, row, column = match[1], int(match[2]), int(match[3])
            name = columns[column - 1] if column <= len(columns) else column
            what = f"line {row + 1 + first}, column {name}: {value} is not a whole number from 0 to 255"
        elif match := re.search(r"changed from (\d+) to (\d+) at row (\d+)", str(error)):  # this one counts from 1
            what = f"line {int(match[3]) + first}: {match[2]} columns, expected {len(columns)}"
        else:
            what = str(error)
        raise DataError(f"{path}: {what}") from None
    if len(table) and table.shape[1] != len(columns):
        raise DataError(f"{path}: line {1 + first}: {table.shape[1]} columns, expected {len(columns)}")
    return table


def read_torchvision(folder, name):
    """MNIST or KMNIST as `read` returns Fashion-MNIST, from torchvision's layout below `folder`; downloaded if missing.

    Raises DataError.
    """
    paths = [folder / name / "raw" / f"{file}.gz" for file in FILES]
    if not all(path.is_file() for path in paths):
        print(f"no {name} in {folder}: downloading it", file=sys.stderr)
        try:
            download(folder, name)
        except Offline as error:
            files = ", ".join(path.name for path in paths)
            raise DataError(f"{error}. Put its files ({files}) into {paths[0].parent}") from None
    raw = []
    for path, md5 in zip(paths, MD5[name], strict=True):
        raw.append(read_bytes(path))
        digest = hashlib.md5(raw[-1], usedforsecurity=False).hexdigest()
        if digest != md5:
            raise DataError(f"{path}: damaged, or not of {name}: its md5 is {digest}, expected {md5}. Move it away and run "
                            "again to download it")  # fmt: skip
    raw = [zlib.decompress(content, wbits=31) for content in raw]
    images, labels = ([np.frombuffer(content, np.uint8, offset=4 + 4 * ndim) for content in raw[first::2]]
                      for first, ndim in ((0, 3), (1, 1)))  # fmt: skip
    pairs = zip(images, labels, strict=True)
    return {split: (X.reshape(-1, *IMAGE_SHAPE), y) for split, (X, y) in zip(("train", "test"), pairs, strict=True)}


def read_bytes(path):
    """The content of a file. Raises DataError."""
    check_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def download(folder, dataset="FashionMNIST"):
    """Fetch the four files of torchvision's `dataset` into its layout below `folder`. Raises Offline."""
    new = not folder.exists()
    try:
        from torchvision import datasets  # the only use of torchvision, and through it of torch

        published = getattr(datasets, dataset)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError("the folder cannot be written to")
        contents = {name: fetch_verified([mirror + name for mirror in published.mirrors], md5)
                    for name, md5 in published.resources}  # fmt: skip
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:  # all four files, or none
            for name, content in contents.items():
                Path(temporary, name).write_bytes(content)
            raw = folder / dataset / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            for name in contents:  # what is there already stays, right or wrong: reading it will tell
                if not (raw / name).exists():
                    os.replace(Path(temporary, name), raw / name)
    except (OSError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        called = dataset.replace("FashionMNIST", "Fashion-MNIST")
        raise Offline(f"no {called} in {folder}, and it could not be downloaded ({reason})") from None
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty, or not there
                folder.rmdir()
