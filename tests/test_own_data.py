"""Data of one's own: every form is read, split by content, and every fault is named in one line."""

import gzip
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line, read_metrics, succeeded
from PIL import Image
from test_dataset_files import idx

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch
from support import files, own_data, pictures, runs, settings
from torch_cnn import backbone
from torch_cnn.features import predict_logits

NAMES = ("cross", "ring", "square")


def shape(name, rng, size=(40, 32)):
    """A picture (height, width) uint8 of one of NAMES, somewhere on a dark, noisy page."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    dy, dx = (y - rng.integers(height // 3, height - height // 3)), (x - rng.integers(width // 3, width - width // 3))
    distance = np.maximum(abs(dy), abs(dx))
    inside = {"cross": (abs(abs(dy) - abs(dx)) < 3) & (distance < 9), "ring": abs(np.hypot(dy, dx) - 8) < 2,
              "square": abs(distance - 8) < 2}[name]  # fmt: skip
    return np.where(inside, rng.integers(170, 256), rng.integers(0, 60, size)).astype(np.uint8)


def put_shapes(folder, count, names=NAMES, size=(40, 32), seed=0):
    """Write `count` pictures of each class into a subfolder of its name."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(shape(name, rng, size)).save(folder / name / f"{number:03}.png")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    return put_shapes(tmp_path_factory.mktemp("pictures") / "shapes", 200)


def arrays(count=20, classes=3, size=(12, 10)):
    """(X (N, height, width) uint8, y (N,)): random images, no two alike."""
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(count * classes, *size), dtype=np.uint8), np.arange(count * classes) % classes


def parts(images):
    return images.train, images.val, images.test


def contents(images):
    """{content of each image: its class}, over all splits."""
    return {image.tobytes(): images.classes[label] for split in parts(images)
            for image, label in zip(split.X, split.y, strict=True)}  # fmt: skip


# ---- the scripts, as a user runs them


def test_the_mlp_on_a_folder(shapes, run_script, tmp_path):
    out = succeeded(run_script("mlp_from_scratch", "--dataset", shapes, "--epochs", 12, "--output-dir", "out"))
    assert "NumPy MLP 1280-256-128-3" in out
    metrics = read_metrics(tmp_path / "out")
    assert (metrics["dataset"], metrics["train_size"] + metrics["val_size"] + metrics["test_size"]) == ("shapes", 600)
    assert metrics["test_accuracy"] > 0.6
    model, metadata = mlp_from_scratch.restore(tmp_path / "out" / "weights.safetensors")
    assert (metadata["image_shape"], metadata["classes"]) == ([40, 32], list(NAMES))
    test = data.load(str(shapes)).test
    logits = model.predict_logits(data.standardize(test.X, metadata["mean"], metadata["std"]))
    assert (logits.argmax(axis=1) == test.y).mean() == pytest.approx(metrics["test_accuracy"])


def test_the_hybrid_on_a_folder(shapes, run_script, tmp_path):
    flags = ("--dataset", shapes, "--channels", 8, 16, "--pool-after", 1, 2, "--precision", "float32")
    out = succeeded(run_script("hybrid_train", *flags, "--epochs", 8, "--output-dir", "out"))
    assert "few training images (411): --batch-size 32 --learning-rate 0.025" in out
    metrics = read_metrics(tmp_path / "out")
    assert (metrics["settings"]["batch_size"], metrics["settings"]["head_batch_size"]) == (32, 32)
    assert metrics["test_accuracy"] > 0.9
    model, metadata = hybrid_train.restore(tmp_path / "out" / "hybrid.safetensors")
    assert (metadata["image_shape"], model.input_shape) == ([40, 32], (1, 40, 32))
    test = data.load(str(shapes)).test
    correct = predict_logits(model, test.X).argmax(axis=1) == test.y
    assert correct.mean() == pytest.approx(metrics["test_accuracy"])
    several = (*flags, "--epochs", 2, "--head-epochs", 1, "--no-figures")
    succeeded(run_script("hybrid_train", *several, "--output-dir", "whole", "--seeds", 2))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part/metrics.json").unlink()
    (tmp_path / "part/seed_1/metrics.json").unlink()  # as if it had been killed after its last epoch
    succeeded(run_script("hybrid_train", "--resume", "part"))
    shutil.rmtree(tmp_path / "part/seed_1")  # or before its first
    succeeded(run_script("hybrid_train", "--resume", "part"))
    for name in ("val_accuracy", "cnn_test_accuracy", "test_accuracy"):
        assert read_metrics(tmp_path / "part")["by_seed"][name] == read_metrics(tmp_path / "whole")["by_seed"][name]
    values = {"channels": (8, 16), "pool_after": (1, 2), "dataset": str(shapes), "output_dir": str(tmp_path / "other")}
    s = settings.load(hybrid_train, cnn, data, runs, **values, backbone=str(tmp_path / "out" / "backbone.safetensors"))
    with pytest.raises(files.FileError, match="of 40 x 32 pixels, and those of shapes have 28 x 28; use --image-size 40 32"):
        hybrid_train.run(SimpleNamespace(**vars(s) | {"image_size": (28, 28)}))
    head = hybrid_train.load_head(tmp_path / "out" / "head.safetensors", data.load_for(s), s)
    assert head.mlp.config["sizes"] == (16 * 10 * 8, 256, 128, 3)
    assert hybrid_train.new_head(data.load_for(s), s).mlp.config["sizes"] == (16 * 10 * 8, 256, 128, 3)


@pytest.mark.parametrize(("script", "flags", "code", "message"), [
    ("mlp_from_scratch", ("--erase", 33), 2, "--erase 33: images of 40 x 32 pixels allow at most 32"),
    ("mlp_from_scratch", ("--shift", 9, "--image-size", 8), 2, "--shift 9: images of 8 x 8 pixels allow at most 7"),
    ("mlp_from_scratch", ("--image-size", 1), 2, "--image-size 1: must be in [2, 1024]"),
    ("mlp_from_scratch", ("--image-size", 9, 9, 9), 1, "--image-size 9 9 9: expected height and width"),
])  # fmt: skip
def test_settings_that_do_not_suit_the_images(shapes, run_script, tmp_path, script, flags, code, message):
    assert message in one_line(run_script(script, "--dataset", shapes, *flags), code).replace("_", "-")
    assert not list(tmp_path.iterdir())


def test_a_stack_too_deep_for_28_pixels_suits_larger_images():
    deep = {"channels": (2,) * 5, "pool_after": (1, 2, 3, 4, 5)}
    with pytest.raises(settings.SettingError, match="0 x 0"):
        cnn.check_settings(settings.load(cnn, data, **deep))
    cnn.check_settings(settings.load(cnn, data, **deep, image_size=(64, 40)))
    s = settings.load(cnn, data, **deep, dataset="./folder")
    cnn.check_settings(s)  # it is not known before the folder is read
    with pytest.raises(settings.SettingError, match="convolution 5 would be 2 x 0"):
        cnn.check_settings(s, (64, 31))


def test_a_stack_too_deep_for_a_folders_images_is_refused_before_a_run_begins(shapes, tmp_path):
    values = {"channels": (2,) * 6, "pool_after": (1, 2, 3, 4, 5, 6), "dataset": str(shapes)}
    for modules in ((cnn, data, runs), (hybrid_train, cnn, data, runs)):
        with pytest.raises(settings.SettingError, match="convolution 6 would be 0 x 0"):
            modules[0].run(settings.load(*modules, **values, output_dir=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_weights_from_before_the_shape_was_recorded_mean_28_by_28(digits, tmp_path):
    s = settings.load(cnn, data, runs, channels=(4,), pool_after=(1,))
    backbone.save(tmp_path / "b.safetensors", backbone.build(s), digits, s)
    tensors, metadata = files.load_weights(tmp_path / "b.safetensors")
    assert metadata.pop("image_shape") == [28, 28]
    files.save_weights(tmp_path / "old.safetensors", tensors, metadata)
    model, metadata = backbone.restore(tmp_path / "old.safetensors")
    assert metadata["image_shape"] == [28, 28]
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


# ---- the forms


def test_a_folder_of_pictures(shapes):
    images = data.load(str(shapes))
    assert (images.name, images.classes, images.image_shape) == ("shapes", NAMES, (40, 32))
    assert 80 <= len(images.test.y) <= 90
    assert len(contents(images)) == 600
    for split, share in zip(parts(images), (411, 102, 87), strict=True):
        assert np.bincount(split.y).tolist() == [share // 3] * 3
    path = shapes / "ring" / "007.png"
    assert contents(images)[(np.asarray(Image.open(path)) / np.float32(255)).tobytes()] == "ring"


def test_train_and_test_folders(tmp_path):
    put_shapes(tmp_path / "train", 6, NAMES[:2])
    put_shapes(tmp_path / "Test", 4, NAMES[:2], seed=1)
    (tmp_path / ".hidden").mkdir()
    images = data.load(str(tmp_path))
    assert images.sizes == {"train_size": 10, "val_size": 2, "test_size": 8}


def test_training_and_testing_are_splits_and_what_is_not_used_is_named(tmp_path, capsys):
    for seed, (split, count) in enumerate((("Training", 6), ("testing", 2), ("validation", 2))):
        put_shapes(tmp_path / "data" / split, count, seed=seed)
    put_shapes(tmp_path / "loose", 1)
    next((tmp_path / "loose").rglob("*.png")).rename(tmp_path / "data/testing/0.png")
    images = data.load(str(tmp_path / "data"))
    assert len(images.classes) == 3
    assert images.sizes["test_size"] == 6
    assert images.sizes["train_size"] + images.sizes["val_size"] == 18
    lines = capsys.readouterr().err
    assert f"not used: {tmp_path / 'data/validation'}; validation images are split off the training images" in lines
    assert f"not used: 1 picture in {tmp_path / 'data/testing'} beside its class subfolders" in lines


def test_a_class_may_be_called_train(tmp_path):
    put_shapes(tmp_path, 4, NAMES[:2])
    (tmp_path / "ring").rename(tmp_path / "train")
    assert data.load(str(tmp_path)).classes == ("cross", "train")


def test_pictures_of_several_sizes_modes_and_orientations(tmp_path, capsys):
    left = np.zeros((60, 90, 3), np.uint8)
    left[:, :45] = (255, 0, 0)  # red is 76 of 255 in gray
    pages = {"a.jpg": Image.fromarray(left), "b.webp": Image.fromarray(left[:, ::-1]), "c.bmp": Image.fromarray(left[::2])}
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: what is left comes to the top
    gray_16 = Image.fromarray(np.full((9, 9), 256 * 100, np.uint16))
    clear = Image.new("LA", (9, 9), (0, 0))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number, (file, page) in enumerate(pages.items()):
            page.resize((90 + number, 60 + (name == "first"))).save(tmp_path / name / file, quality=95)
    pages["a.jpg"].save(tmp_path / "first" / "turned.jpg", exif=exif, quality=95)
    gray_16.save(tmp_path / "first" / "gray_16.png")
    clear.save(tmp_path / "second" / "clear.png")
    images = pictures.read(tmp_path, (20, 30))["train"]
    assert images[0].shape == (9, 20, 30)
    by_path = dict(zip(pictures.list_classes(tmp_path), images[0], strict=True))
    by_name = {path.name: image for path, image in by_path.items()}
    assert by_name["a.jpg"][10, 5] == pytest.approx(76, abs=4)
    assert by_name["a.jpg"][10, 25] == pytest.approx(0, abs=4)
    assert by_name["turned.jpg"][3, 15] == pytest.approx(76, abs=4)
    assert by_name["turned.jpg"][17, 15] == pytest.approx(0, abs=4)
    assert set(by_name["gray_16.png"].ravel()) == {100}
    assert set(by_name["clear.png"].ravel()) == {255}
    assert "scaled to 20 x 30 pixels" in capsys.readouterr().out
    assert pictures.read(tmp_path)["train"][0].shape == (9, 28, 28)


def keras(path, **changes):
    X, y = arrays()
    content = {"x_train": X[:45], "y_train": y[:45], "x_test": X[45:], "y_test": y[45:]} | changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return str(path)


def test_npz_as_keras_has_it(tmp_path):
    X, y = arrays()
    images = data.load(keras(tmp_path / "my.npz"))
    assert (images.name, images.classes, images.image_shape) == ("my", ("0", "1", "2"), (12, 10))
    assert np.array_equal(images.test.X, X[45:] / np.float32(255))
    assert np.array_equal(images.test.y, y[45:])
    for split in (images.train, images.val):
        assert np.array_equal(split.X, X[split.indices] / np.float32(255))
        assert np.array_equal(split.y, y[split.indices])


@pytest.mark.parametrize("change", [
    lambda X, y: (X / 255, y), lambda X, y: (X.astype(np.float32), y.astype(float)), lambda X, y: (X[..., None], y[:, None]),
    lambda X, y: (np.repeat(X[..., None], 3, axis=3), y), lambda X, y: (np.repeat(X[:, None], 3, axis=1), y),
    lambda X, y: (np.asfortranarray(X), np.array(["0", "1", "2"])[y]), lambda X, y: (X, np.array([b"0", b"1", b"2"])[y]),
])  # fmt: skip
def test_npz_in_other_types_and_shapes_is_the_same_data(tmp_path, change):
    X, y = arrays()
    np.savez_compressed(tmp_path / "plain.npz", X=X, y=y)
    images, labels = change(X, y)
    np.savez(tmp_path / "other.npz", X=images, y=labels)
    first, second = (data.load(str(tmp_path / f"{name}.npz")) for name in ("plain", "other"))
    assert first.fingerprint() == second.fingerprint()
    assert first.classes == second.classes


def csv_rows(X, y):
    return [",".join(map(str, row)) for row in np.column_stack([y, X.reshape(len(X), -1)]).tolist()]


def test_csv_with_and_without_a_header(tmp_path):
    X, y = arrays(size=(5, 5))
    rows = "\n".join(csv_rows(X, y))
    (tmp_path / "bare.csv").write_text(rows)
    (tmp_path / "named.csv").write_text("label," + ",".join(f"pixel{i}" for i in range(25)) + "\n" + rows)
    np.savez(tmp_path / "array.npz", X=X, y=y)
    prints = {data.load(str(tmp_path / name)).fingerprint() for name in ("bare.csv", "named.csv", "array.npz")}
    assert len(prints) == 1
    header = "label," + ",".join(f"{i}x{j}" for i in (1, 2) for j in range(1, 14))
    rows = [("#cat" if i % 2 else '"dog"') + f",{i}" * 26 for i in range(20)]
    (tmp_path / "wide.csv").write_text("\n".join([header, *rows]))
    wide = data.load(str(tmp_path / "wide.csv"))
    assert (wide.image_shape, wide.classes) == ((2, 13), ("#cat", "dog"))


def test_a_folder_of_csv_files(tmp_path, capsys):
    X, y = arrays(size=(4, 4))
    header = "label," + ",".join(f"pixel{i}" for i in range(16))
    rows = csv_rows(X, y)
    (tmp_path / "my_train.csv").write_text("\n".join([header, *rows[:40]]))
    (tmp_path / "my_test.csv").write_text("\n".join([header, *rows[40:]]))
    assert data.load(str(tmp_path)).sizes == {"train_size": 31, "val_size": 9, "test_size": 20}
    unlabeled = [row.split(",", 1)[1] for row in (header, *rows[40:])]
    (tmp_path / "my_test.csv").write_text("\n".join(unlabeled))
    images = data.load(str(tmp_path))
    assert "my_test.csv: is not used, since its first column is not label" in capsys.readouterr().err
    assert sum(images.sizes.values()) == 40


@pytest.mark.parametrize("names", [("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
                                   ("emnist-letters-train-images-idx3-ubyte.gz", "emnist-letters-test-images-idx3-ubyte.gz"),
                                   ("train-images.idx3-ubyte", None)])  # fmt: skip
def test_idx_files(tmp_path, names):
    X, y = arrays()
    y = y.astype(np.uint8) + 1  # EMNIST's letters begin with 1
    for name, rows in zip(names, (slice(0, 45), slice(45, 60)), strict=True):
        for array, file in ((X[rows], name), (y[rows], name and name.replace("images", "labels").replace("idx3", "idx1"))):
            if file:
                idx(tmp_path / file, array)
                if file.endswith(".gz"):
                    (tmp_path / file).write_bytes(gzip.compress((tmp_path / file).read_bytes()))
    images = data.load(str(tmp_path))
    assert (images.classes, images.image_shape) == (("1", "2", "3"), (12, 10))
    assert sum(images.sizes.values()) == (60 if names[1] else 45)
    if names[1]:
        assert np.array_equal(images.test.X, X[45:] / np.float32(255))


def test_any_dataset_is_scaled_to_an_image_size(digits, tmp_path):
    small = data.load("digits", image_size=(14, 10))
    assert (small.image_shape, small.name) == ((14, 10), "digits, 14 x 10 pixels")
    assert np.array_equal(small.train.indices, digits.train.indices)
    assert small.train.X.mean() == pytest.approx(digits.train.X.mean(), abs=0.01)
    assert data.load(keras(tmp_path / "my.npz"), image_size=(8,)).image_shape == (8, 8)


def test_classes_are_in_natural_order(tmp_path):
    X, y = arrays(classes=12)
    np.savez(tmp_path / "a.npz", X=X, y=y)
    assert data.load(str(tmp_path / "a.npz")).classes == tuple(map(str, range(12)))
    names = np.array([f"page {i}" for i in range(12)])
    np.savez(tmp_path / "b.npz", X=X, y=names[y])
    assert data.load(str(tmp_path / "b.npz")).classes == tuple(names)


# ---- the split by content


def test_a_new_picture_moves_at_most_one_other_of_its_class():
    X, y = arrays(count=50)
    extra = np.random.default_rng(1).integers(256, size=(1, 12, 10), dtype=np.uint8)
    for fraction, seed in ((1 / 7, ""), (0.2, 3)):
        _, before = own_data.content_split(X, y, fraction, seed)
        _, after = own_data.content_split(np.concatenate([extra, X]), np.r_[1, y], fraction, seed)
        changed = set(before) ^ (set(after - 1) - {-1})
        assert len(changed) <= 1
        assert all(y[i] == 1 for i in changed)
        assert np.array_equal(np.bincount(y[before]), [round(50 * fraction)] * 3)
    assert set(own_data.content_split(X, y, 0.2, 0)[1]) != set(own_data.content_split(X, y, 0.2, 1)[1])


def test_the_split_does_not_depend_on_names_or_order(tmp_path):
    X, y = arrays()
    order = np.random.default_rng(2).permutation(len(y))
    np.savez(tmp_path / "a.npz", X=X, y=y)
    np.savez(tmp_path / "b.npz", X=X[order], y=y[order])
    first, second = (data.load(str(tmp_path / name)) for name in ("a.npz", "b.npz"))
    for split, other in zip(parts(first), parts(second), strict=True):
        assert sorted(image.tobytes() for image in split.X) == sorted(image.tobytes() for image in other.X)


def test_copies_of_a_picture_stay_in_one_split(tmp_path, capsys):
    X, y = arrays()
    np.savez(tmp_path / "twice.npz", X=np.concatenate([X, X]), y=np.r_[y, y])
    images = data.load(str(tmp_path / "twice.npz"))
    assert sum(images.sizes.values()) == 120
    sets = [{image.tobytes() for image in split.X} for split in parts(images)]
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]
    assert capsys.readouterr().err == ""


def test_copies_among_given_test_images_are_counted(tmp_path, capsys):
    X, y = arrays()
    keras(tmp_path / "leak.npz", x_test=np.concatenate([X[40:], X[:4]]), y_test=np.r_[y[40:], y[:4]])
    data.load(str(tmp_path / "leak.npz"))
    assert "leak: 9 of the 24 test images are copies of training or validation images" in capsys.readouterr().err
