"""Data of one's own: each form is read by strict rules, and every fault is one line."""

import shutil

import numpy as np
import pytest
from PIL import Image
from test_data import FILES, contents, refused, splits, write_idx

import data
import run

NAMES = ("cross", "ring", "square")


def arrays(count=20, classes=3, size=(12, 10)):
    """(X (N, height, width) uint8, y (N,)): random images."""
    X = np.random.default_rng(0).integers(256, size=(count * classes, *size), dtype=np.uint8)
    return X, np.arange(count * classes) % classes


def put_pictures(folder, count=12, names=NAMES, size=(28, 28)):
    """Write `count` random pictures of each class into a class folder; return {relative path: array}."""
    pictures = {}
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        X = np.random.default_rng(label).integers(256, size=(count, *size), dtype=np.uint8)
        for i, image in enumerate(X):
            Image.fromarray(image).save(folder / name / f"{i}.png")
            pictures[f"{name}/{i}.png"] = image
    return pictures


# ---- class folders


def test_class_folders(tmp_path, capsys):
    pictures = put_pictures(tmp_path / "mine")
    images = data.load(dataset=str(tmp_path / "mine"))
    assert (images.name, images.classes, images.image_shape) == ("mine", NAMES, (28, 28))
    assert images.sizes == {"train_size": 25, "val_size": 6, "test_size": 5}
    assert [np.ptp(np.bincount(split.y)) <= 1 for split in splits(images)] == [True] * 3
    labels = [(name.split("/")[0], (X / np.float32(255)).tobytes()) for name, X in pictures.items()]
    assert contents(*splits(images)) == sorted((image, NAMES.index(name)) for name, image in labels)
    assert not images.bright_on_dark
    assert np.array_equal(images.as_shown(images.test.X), 1 - images.test.X)
    assert str(tmp_path / "mine") in capsys.readouterr().out  # that a test split was made


def test_train_test_and_val_folders(tmp_path):
    put_pictures(tmp_path / "train", 8)
    put_pictures(tmp_path / "test", 3, NAMES[:2])
    images = data.load(dataset=str(tmp_path), val_fraction=0.25)
    assert images.sizes == {"train_size": 18, "val_size": 6, "test_size": 6}
    pictures = put_pictures(tmp_path / "val", 2)
    images = data.load(dataset=str(tmp_path))
    assert images.sizes == {"train_size": 24, "val_size": 6, "test_size": 6}
    assert images.val.indices.tolist() == list(range(24, 30))
    assert np.array_equal(images.val.X[0], pictures["cross/0.png"] / np.float32(255))
    assert data.load(dataset=str(tmp_path), train_on_val=True).sizes["train_size"] == 30


def test_what_is_skipped_is_counted_and_named(tmp_path, capsys):
    put_pictures(tmp_path / "train")
    put_pictures(tmp_path / "test")
    for name in (".git", "__MACOSX", "train/.thumbs", "train/ring/__MACOSX"):
        (tmp_path / name).mkdir()
    skipped = ("notes.txt", "train/cross.png", "train/ring/Thumbs.db")
    for name in (*skipped, "train/ring/.DS_Store", ".git/a.png"):
        (tmp_path / name).touch()
    assert data.load(dataset=str(tmp_path)).classes == NAMES
    line = capsys.readouterr().err
    assert all(name in line for name in (" 3 ", *skipped))
    assert not any(name in line for name in (".git", "MACOSX", ".DS_Store"))


@pytest.mark.parametrize("wrong", ["ring/deeper", "empty", "train/extra", "Train/x", "test/x"])
def test_other_folders_are_refused(tmp_path, wrong):
    put_pictures(tmp_path)
    (tmp_path / wrong).mkdir(parents=True)
    assert str(tmp_path / wrong.split("/")[0]) in refused(dataset=str(tmp_path))


def test_nothing_else_is_a_split_or_a_class(tmp_path):
    put_pictures(tmp_path / "a", names=("bus", "train"))
    assert data.load(dataset=str(tmp_path / "a")).classes == ("bus", "train")
    for split in ("train", "test", "validation"):
        put_pictures(tmp_path / "b" / split, 4)
    assert str(tmp_path / "b") in refused(dataset=str(tmp_path / "b"))
    shutil.rmtree(tmp_path / "b" / "validation")
    put_pictures(tmp_path / "b" / "test", 1, ("new",))
    assert "'new'" in refused(dataset=str(tmp_path / "b"))


def test_folders_without_classes_or_with_too_few_pictures(tmp_path):
    assert str(tmp_path) in refused(dataset=str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    assert str(tmp_path) in refused(dataset=str(tmp_path))
    put_pictures(tmp_path, 5, NAMES[:1])
    assert NAMES[0] in refused(dataset=str(tmp_path))
    put_pictures(tmp_path, 2, NAMES[1:2])
    assert NAMES[1] in refused(dataset=str(tmp_path))
    assert "9 9 9" in refused(dataset=str(tmp_path), image_size=(9, 9, 9))


def test_pictures_are_turned_scaled_and_gray(tmp_path):
    left = np.zeros((60, 90, 3), np.uint8)
    left[:, :45] = (255, 0, 0)  # red is 76 of 255 in gray
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: what is left comes to the top
    Image.fromarray(left).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(left).quantize(4).save(tmp_path / "palette.gif")
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "clear.png")
    pictures = {path.name: data.open_picture(path) for path in tmp_path.iterdir()}
    modes = {name: (picture.mode, picture.size) for name, picture in pictures.items()}
    assert modes["turned.jpg"] == ("RGB", (60, 90))
    assert modes["clear.png"] == ("RGBA", (9, 9))
    images = {name: data.gray(picture, 20, 30) for name, picture in pictures.items()}
    assert {image.shape for image in images.values()} == {(20, 30)}
    assert set(images["clear.png"].ravel()) == {255}
    assert images["palette.gif"][10, [5, 25]].tolist() == [76, 0]
    assert images["turned.jpg"][[3, 17], 15] == pytest.approx([76, 0], abs=4)


@pytest.mark.parametrize("name", ["16_bit.png", "float.tif", "cut.png"])
def test_deep_and_damaged_pictures_are_refused(tmp_path, name):
    put_pictures(tmp_path)
    path = tmp_path / "ring" / name
    if name == "cut.png":
        path.write_bytes((tmp_path / "ring/1.png").read_bytes()[:90])
    else:
        dtype = np.uint16 if name == "16_bit.png" else np.float32
        Image.fromarray(np.full((9, 9), 100, dtype)).save(path)
    assert str(path) in refused(dataset=str(tmp_path))


# ---- .npz, CSV, IDX


def save_npz(path, **changes):
    X, y = arrays()
    content = {"x_train": X[:45], "y_train": y[:45], "x_test": X[45:], "y_test": y[45:]} | changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return str(path)


def test_npz(tmp_path):
    X, y = arrays()
    images = data.load(dataset=save_npz(tmp_path / "my.npz"))
    assert (images.name, images.classes, images.image_shape) == ("my", ("0", "1", "2"), (12, 10))
    assert images.sizes == {"train_size": 36, "val_size": 9, "test_size": 15}
    for split, first in zip(splits(images), (0, 0, 45), strict=True):
        assert np.array_equal(split.X, X[first:][split.indices] / np.float32(255))
        assert np.array_equal(split.y, y[first:][split.indices])
    changes = {"x_val": X[:9] / 255, "y_val": y[:9]}  # floats beside bytes
    images = data.load(dataset=save_npz(tmp_path / "my.npz", **changes))
    assert images.sizes == {"train_size": 45, "val_size": 9, "test_size": 15}
    assert np.array_equal(images.val.X, images.train.X[:9])


def test_floats_are_in_0_to_1_in_each_split_by_itself(tmp_path):
    X = arrays()[0] / np.float32(255)
    near = {"x_train": X[:45] * (1 + 9e-7), "x_test": X[45:] - 9e-7}
    images = data.load(dataset=save_npz(tmp_path / "a.npz", **near))
    assert (images.test.X.min(), max(images.train.X.max(), images.val.X.max())) == (0, 1)
    for name, wrong in (("train", X[:45] * 1.01), ("test", X[45:] - 0.01), ("test", X[45:] * 255)):
        line = refused(dataset=save_npz(tmp_path / "a.npz", **{f"x_{name}": wrong}))
        assert all(text in line for text in (name, f"{wrong.min():.8g}", f"{wrong.max():.8g}"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_npz_faults(tmp_path, split):
    path, rows = tmp_path / "a.npz", slice(0, 45) if split == "train" else slice(45, 60)
    X, y = (array[rows] for array in arrays())
    faults = [{"x": wrong} for wrong in (X * np.nan, X.astype(int), X.astype(str), X.astype(object))]
    faults += [{"x": wrong} for wrong in (X[..., None], X[1:], X[:, 0], X[:0], X[:, 1:], None)]
    texts, floats = np.array(["0", "1", ""]), np.array([0, 1, np.nan])
    faults += [{"y": wrong} for wrong in (y[1:], np.eye(3)[y], y + 1, texts[y], floats[y], None)]
    for fault in faults:
        changes = {f"{name}_{split}": wrong for name, wrong in fault.items()}
        assert str(path) in refused(dataset=save_npz(path, **changes)), fault
    for changes in ({"x_val": X}, {"y_train": np.zeros(45, int), "x_test": None}):
        assert str(path) in refused(dataset=save_npz(path, **changes))
    save_npz(path)
    whole = path.read_bytes()
    for content in (b"", b"\x80\x04pickle", whole[:-50], whole[:300] + b"xx" + whole[302:]):
        path.write_bytes(content)
        assert str(path) in refused(dataset=str(path))


def test_csv_with_and_without_a_header(tmp_path):
    X, y = arrays(size=(5, 5))
    rows = [",".join(map(str, row)) for row in np.column_stack([y + 9, X.reshape(60, -1)]).tolist()]
    header = "label," + ",".join(f"pixel{i}" for i in range(1, 26))
    (tmp_path / "bare.csv").write_text("\n".join(rows))
    (tmp_path / "named.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([header, *rows, ""]).encode())
    bare, named = (data.load(dataset=str(tmp_path / f"{name}.csv")) for name in ("bare", "named"))
    assert bare.fingerprint() == named.fingerprint()
    assert (bare.classes, bare.image_shape) == (("9", "10", "11"), (5, 5))
    expected = [((image / np.float32(255)).tobytes(), label) for image, label in zip(X, y, strict=True)]
    assert contents(*splits(bare)) == sorted(expected)


def test_csv_faults_name_the_line(tmp_path):
    path, rows = tmp_path / "a.csv", ["label,p1,p2,p3,p4", "a,1,2,3,4", "b,1,2,3,4"]
    faults = ["name,p1,p2,p3,p4", "a,1,2,3", "a,1,2,3,4,5", ",1,2,3,4", "", "a,1,,3,4", "a,1,2,3,\xff"]
    faults += [f"a,1,2,3,{value}" for value in ("nan", "256", "-1", "0.5", "1e0")]
    for number, wrong in enumerate(faults, 1):
        lines = [*rows, *rows[1:] * 9][: number - 1] + [wrong, *rows[1:]]
        path.write_bytes("\n".join(lines).encode("latin-1"))
        assert f"{path}: line {number}:" in refused(dataset=str(path))
    for content in ("", "label,1,2", "a,1,2\nb,1,2", "a\nb"):
        path.write_text(content)
        assert str(path) in refused(dataset=str(path))


def test_idx_files(tmp_path):
    X, y = arrays()
    y = y.astype(np.uint8) + 1  # EMNIST's letters begin with 1
    for name, array in zip(FILES, (X[:45], y[:45], X[45:], y[45:]), strict=True):
        write_idx(tmp_path / f"{name}.gz", array)
    images = data.load(dataset=str(tmp_path))
    assert (images.classes, images.image_shape) == (("1", "2", "3"), (12, 10))
    assert np.array_equal(images.test.X, X[45:] / np.float32(255))
    for content in (X[:44], X.astype(">i4"), y):
        write_idx(tmp_path / f"{FILES[0]}.gz", content)
        assert str(tmp_path) in refused(dataset=str(tmp_path))
    (tmp_path / f"{FILES[0]}.gz").unlink()
    assert str(tmp_path) in refused(dataset=str(tmp_path))


def test_paths_of_the_dataset_and_of_a_run(tmp_path):
    (tmp_path / "a.txt").touch()
    for name in ("typo", "a.txt", "typo.npz"):
        assert str(tmp_path / name) in refused(dataset=str(tmp_path / name))
    put_pictures(tmp_path / "mine")
    s = run.settings(data, run, dataset=str(tmp_path / "mine"), output_dir=str(tmp_path / "mine" / "new"))
    with pytest.raises(run.Error):
        data.load(s)
    s.output_dir = str(tmp_path / "mine2")
    assert data.load(s).name == "mine"
