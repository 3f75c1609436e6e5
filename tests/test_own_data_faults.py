"""Data that cannot be used: every fault of one's own files in one line, and never the digits in place of what was named."""

import gzip
import io
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from conftest import one_line
from PIL import Image
from test_dataset_files import idx
from test_own_data import NAMES, arrays, keras, put_shapes

import data
import mlp_from_scratch
from benchmarks import timing
from support import dataset_files, settings
from support.dataset_files import DataError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return put_shapes(tmp_path_factory.mktemp("pictures") / "shapes", 4)


def refused(path):
    with pytest.raises(DataError) as error:
        data.load(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_cannot_be_used(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "typo")
    assert "is an empty folder" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "contains no data that can be read; expected class subfolders" in refused(tmp_path)
    assert "is neither an .npz nor a CSV file" in refused(tmp_path / "notes.txt")
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    assert "contains pictures, but not in subfolders" in refused(tmp_path)
    put_shapes(tmp_path / "one", 5, NAMES[:1])
    assert "has 1 class (cross); expected 2 to 1,000" in refused(tmp_path / "one")
    put_shapes(tmp_path / "empty", 5, NAMES[:2])
    (tmp_path / "empty" / "third").mkdir()
    assert f"{tmp_path / 'empty' / 'third'}: contains no picture" in refused(tmp_path / "empty")
    Image.new("L", (40, 32)).save(tmp_path / "empty" / "third" / "a.png")
    assert "class third has 1 different image for training; expected 3 or more" in refused(tmp_path / "empty")
    for number in range(9):  # copies do not count
        shutil.copy(tmp_path / "empty" / "third" / "a.png", tmp_path / "empty" / "third" / f"{number}.png")
    assert "class third has 1 different image " in refused(tmp_path / "empty")


def test_unreadable_pictures_are_named_and_skipped(tmp_path, capsys):
    put_shapes(tmp_path, 10, NAMES[:2])
    whole = (tmp_path / "ring" / "001.png").read_bytes()
    damaged = {"cut.png": whole[:90], "html.jpg": b"<html>", "nothing.gif": b"", "phone.heic": b"ftypheic"}
    for name, content in damaged.items():
        (tmp_path / "ring" / name).write_bytes(content)
    for width in (20_000, 100_000):  # declares 400 million and ten billion pixels
        header = b"IHDR" + struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "ring" / f"bomb_{width}.png").write_bytes(png)
    images = data.load(str(tmp_path))
    assert sum(images.sizes.values()) == 20
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(f"{tmp_path / 'ring' / 'bomb_100000.png'}: skipped, since it cannot be read as a picture")
    assert lines[-1] == "... and 1 more pictures skipped"
    for path in (tmp_path / "ring").glob("0*.png"):
        path.write_bytes(b"x")
    assert "none of the pictures of class ring can be read" in refused(tmp_path)


def test_npz_faults(tmp_path):
    X, y = arrays()
    path = tmp_path / "a.npz"
    for changes, message in (
        ({"y_train": y[:44]}, "45 train images and 44 labels"),
        ({"x_test": X[45:, :9]}, "training images have 12 x 10 pixels and test images 9 x 10"),
        ({"x_train": X[:45].reshape(45, -1)}, "x_train has shape 45 x 120, and 120 pixels are not a square"),
        ({"x_train": X[:45, 0, 0]}, "x_train has shape 45; expected (N, height, width)"),
        ({"x_train": X[:45] * 1.0 - 9}, "the images have values from -9 to"),
        ({"x_train": np.where(X[:45] == 0, np.nan, X[:45])}, "the images have values from nan to nan"),
        ({"x_train": X[:45].astype(str)}, "x_train contains <U3; expected numbers"),
        ({"x_train": X[:45].astype(object)}, "x_train.npy contains pickled objects, which are not loaded"),
        ({"y_train": np.eye(3)[y[:45]]}, "y_train has shape 45 x 3; expected one label for each image"),
        ({"y_train": y[:45] + 0.5}, "y_train contains numbers that are not whole"),
        ({"y_test": y[45:] + 1}, "class 3 has test images, but no training images"),
        ({"y_train": y[:45] * 0, "y_test": y[45:] * 0}, "has 1 class (0)"),
        ({"y_train": None, "x_test": None}, "contains x_train, y_test; expected x_train, y_train"),
        ({"x_train": np.zeros((45, 1, 1), np.uint8), "x_test": np.zeros((15, 1, 1), np.uint8)}, "images have 1 x 1 pixels"),
    ):  # fmt: skip
        assert message in refused(keras(path, **changes)), message
    np.savez(path, X=np.arange(4004, dtype=np.float32).reshape(1001, 2, 2) / 4004, y=np.arange(1001))
    assert "has 1,001 classes; expected 2 to 1,000" in refused(path)


def member(shape, content, version=1):
    """The bytes of a .npy file whose header declares `shape` of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def test_damaged_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    whole = io.BytesIO()
    X, y = arrays()
    np.savez_compressed(whole, X=X, y=y)
    whole = whole.getvalue()
    for content in (b"", b"\x80\x04pickle", whole[:-50], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        path.write_bytes(content)
        assert "not an .npz file, or damaged" in refused(path)
    for declared in ((2**33, 28, 28), (60, 12, 11), (-60, 12, 10), (60, -12, -10)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("X.npy", member(declared, X.tobytes()))
            archive.writestr("y.npy", member((60,), bytes(60)))
        assert "declares shape" in refused(path)


def test_csv_faults_name_file_and_line(tmp_path):
    path, row = tmp_path / "a.csv", ",".join(["3"] * 17)
    header = "label," + ",".join(f"p{i}" for i in range(16))
    for lines, message in (
        ((), "0 pixels in each row are not a square"), ((header,), "0 train images"),
        ((header.replace("label", "p"), row), "line 1: the first column is 'p'; expected label"),
        ((header, row, row.replace(",3", ",x", 1)), "line 3, column p0: 'x' is not a whole number"),
        ((header, row, row + ",3"), "line 3: 18 columns, expected 17"),
        ((row, row + ",3"), "line 2: 18 columns, expected 17"),
        ((header, row, row[:-1] + "256"), "line 3, column p15: '256' is not a gray level"),
        ((row, row[:-1] + "nan"), "line 2, column 17: 'nan' is not a gray level"),
        ((header + ",p16", row + ",3"), "17 pixels in each row are not a square image"),
        ((header, row, row), "has 1 class (3)"),
    ):  # fmt: skip
        path.write_text("\n".join(lines))
        assert message in refused(path), message
        assert str(path) in refused(path)
    for name in ("b.csv", "c.csv"):
        (tmp_path / name).write_text(row)
    assert "contains 3 CSV files; name one" in refused(tmp_path)


def test_idx_faults(tmp_path):
    X, y = arrays()
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    idx(images, X)
    assert "its labels, train-labels-idx1-ubyte, are missing" in refused(tmp_path)
    idx(labels, y.astype(np.uint8)[:-1])
    assert "60 train images and 59 labels" in refused(tmp_path)
    idx(labels, y.astype(np.uint8))
    for content, message in (
        (images.read_bytes()[:-1], "contains less than the 7,200 values"),
        (images.read_bytes() + b"x", "contains more than the 7,200 values"),
        (labels.read_bytes(), "not an IDX file of unsigned bytes with 3 dimensions"), (b"", "not an IDX file"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**20, 2**20) + bytes(9), "too many for the memory"),
    ):  # fmt: skip
        images.write_bytes(content)
        assert message in refused(tmp_path), message
    images.unlink()
    (tmp_path / f"{images.name}.gz").write_bytes(gzip.compress(X.tobytes())[:-9])
    assert "not an IDX file" in refused(tmp_path)
    idx(tmp_path / "other-train-images-idx3-ubyte", X)
    idx(tmp_path / "other-train-labels-idx1-ubyte", y.astype(np.uint8))
    assert "contains both" in refused(tmp_path) or "not an IDX file" in refused(tmp_path)


def test_an_unknown_name_is_a_wrong_setting_and_a_path_an_unusable_file(run_script, tmp_path):
    line = one_line(run_script("mlp_from_scratch", "--dataset", "fashion"), 2)
    assert "--dataset fashion: choose from fashion-mnist, mnist, kmnist, digits, PATH (did you mean fashion-mnist?)" in line
    line = one_line(run_script("mlp_from_scratch", "--dataset", "./fashion"), 1)
    assert "--dataset fashion: no such file or folder; expected class subfolders" in line
    assert not list(tmp_path.iterdir())


def test_the_benchmark_refuses_images_that_its_networks_do_not_fit(tmp_path):
    s = settings.load(mlp_from_scratch, data, dataset=keras(tmp_path / "my.npz"))
    with pytest.raises(settings.SettingError, match="3 classes of 12 x 10 pixels; the networks of the benchmark are for 10"):
        timing.load_images(s)


# ---- never the digits in place of what was named


@pytest.fixture
def no_network(monkeypatch):
    def fails(folder, dataset="FashionMNIST"):
        raise dataset_files.Offline(f"no {dataset} in {folder}, and it could not be downloaded (no network)")

    monkeypatch.setattr(dataset_files, "download", fails)


def test_a_named_folder_without_the_dataset_is_an_error(no_network, shapes, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"no network.*Put the four files"):
            data.load(data_dir=str(folder))
    with pytest.raises(DataError, match="contains class subfolders with pictures, but not Fashion-MNIST"):
        data.load(data_dir=str(shapes))


def test_pictures_as_the_data_dir_of_a_script(shapes, run_script, tmp_path):
    line = one_line(run_script("mlp_from_scratch", "--data-dir", shapes), 1)
    assert line.endswith(f"contains class subfolders with pictures, but not Fashion-MNIST; to use them: --dataset {shapes}")
    assert not list(tmp_path.iterdir())


def test_the_digits_replace_only_an_empty_default_folder(no_network, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    (tmp_path / "data" / "MNIST").mkdir(parents=True)
    (tmp_path / "data" / ".gitkeep").touch()
    assert data.load().name == "digits, in place of Fashion-MNIST"
    assert "NOT FASHION-MNIST" in capsys.readouterr().err
    (tmp_path / "data" / "notes.txt").touch()
    with pytest.raises(DataError, match="could not be downloaded"):
        data.load()
    with pytest.raises(DataError, match="no MNIST in data"):
        data.load("mnist")
