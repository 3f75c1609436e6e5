"""The dataset: found, verified and split once for all; standardized and augmented."""

import functools
import gzip
import http.server
import shutil
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

import data
import mlp_from_scratch as mlp
import run

FILES = [f"{name.replace('?', '-')}-ubyte" for name in data.IDX_FILES]


def splits(images):
    return images.train, images.val, images.test


def contents(*parts):
    """[(content, label)] of the images of several splits, sorted."""
    pairs = [pair for split in parts for pair in zip(split.X, split.y, strict=True)]
    return sorted((image.tobytes(), int(label)) for image, label in pairs)


def write_idx(path, array):
    """Write an array of bytes as an IDX file, gzipped if its name says so."""
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def refused(**changes):
    """The one line with which data.load refuses the settings."""
    with pytest.raises(run.Error) as error:
        data.load(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the split


def test_sizes_and_classes(real):
    assert real.sizes == {"train_size": 48_000, "val_size": 12_000, "test_size": 10_000}
    assert (real.name, real.image_shape, len(real.classes)) == ("Fashion-MNIST", (28, 28), 10)
    for split, count in zip(splits(real), (4_800, 1_200, 1_000), strict=True):
        assert np.bincount(split.y).tolist() == [count] * 10
        assert (split.X.dtype, split.y.dtype, split.X.shape) == (np.float32, np.int64, (10 * count, 28, 28))
        assert (split.X.min(), split.X.max()) == (0, 1)
    assert real.test.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as the dataset's authors show them
    indices = np.concatenate([real.train.indices, real.val.indices])
    assert np.array_equal(np.sort(indices), np.arange(60_000))
    assert data.mean_std(real.train.X) == pytest.approx((0.2860, 0.3530), abs=1e-4)


def test_fingerprints_are_those_of_every_version(real, digits, real_folder):
    """Other fingerprints would mean other splits, and results that do not compare with those committed."""
    quick = data.load(data_dir=str(real_folder), quick=True)
    other = data.load(data_dir=str(real_folder), train_size=5000, label_noise=0.2, split_seed=3)
    assert real.fingerprint() == "a0334c3c31a6ec0864ec7a7be64b703f"
    assert quick.fingerprint() == "1b562baf48d434673ab2a24cbde8a15c"
    assert digits.fingerprint() == "70a7a01a4c6c17a08c3f2faae6548d7e"
    assert other.fingerprint() == "a1a1502ea6df691f16453cc214ed8a53"
    assert quick.sizes == {"train_size": 6_000, "val_size": 1_500, "test_size": 2_000}
    assert quick.name != real.name


@pytest.mark.parametrize("n", [1, 7, 30, 99])
def test_a_split_has_its_share_of_every_class(n):
    y = np.repeat([0, 1, 2], [50, 30, 20])
    first, second = data.stratified_split(y, n, 5)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(100))
    assert len(second) == n
    assert np.abs(np.bincount(y[second], minlength=3) - n * np.array([0.5, 0.3, 0.2])).max() <= 1


def test_settings_of_the_training_split(digits):
    assert (digits.name, digits.image_shape) == ("digits", (28, 28))
    assert digits.sizes == {"train_size": 1_233, "val_size": 308, "test_size": 256}
    assert data.load(dataset="digits", val_fraction=0.1).sizes["val_size"] == 154
    small = data.load(dataset="digits", train_size=300)
    assert np.isin(small.train.indices, digits.train.indices).all()
    assert (len(small.train.y), np.ptp(np.bincount(small.train.y)) <= 3) == (300, True)
    assert "1,233" in refused(dataset="digits", train_size=9_000)
    both = data.load(dataset="digits", train_on_val=True)
    assert contents(both.train) == contents(digits.train, digits.val)
    assert both.name != "digits"
    noisy = data.load(dataset="digits", label_noise=0.3)
    changes = (noisy.train.y - digits.train.y) % 10
    assert np.mean(changes > 0) == pytest.approx(0.3, abs=0.04)
    assert len(np.unique(changes)) == 10  # to every other class
    for other in (small, both, noisy):
        assert contents(other.val, other.test) == contents(digits.val, digits.test)


# ---- standardized, augmented, checked


def test_standardization():
    X = np.random.default_rng(0).random((50, 6, 5), dtype=np.float32)
    X[:, 0, 0] = 0.25  # a pixel that never changes
    assert [data.normalization_stats(X, kind) for kind in ("none", "global")] == [(0, 1), data.mean_std(X)]
    symmetric = data.standardize(X, *data.normalization_stats(X, "symmetric"))
    assert symmetric == pytest.approx(2 * X.reshape(50, 30) - 1, abs=1e-6)
    assert data.mean_std(X) == pytest.approx((X.mean(dtype=np.float64), X.std(dtype=np.float64)), rel=1e-6)
    assert data.mean_std(X * 0) == (0, 1)  # a number to divide by
    mean, std = data.normalization_stats(X, "per_pixel")
    assert mean == pytest.approx(X.mean(axis=0), abs=1e-6)
    assert (mean[0, 0], std[0, 0]) == (0.25, 1)
    assert std[1:] == pytest.approx(X[:, 1:].std(axis=0), abs=1e-6)
    standardized = data.standardize(X, mean, std)
    assert (standardized.shape, standardized.dtype) == ((50, 30), np.float32)
    assert standardized == pytest.approx(((X - mean) / std).reshape(50, 30), abs=1e-5)


class Angle:
    """A generator that draws one angle."""

    def __init__(self, angle):
        self.angle = angle

    def uniform(self, low, high, n):
        assert low <= self.angle <= high
        return np.full(n, float(self.angle))


def test_rotation_and_translation():
    X = np.random.default_rng(1).random((3, 28, 28), dtype=np.float32)
    for angle, turned in ((90, np.rot90(X, axes=(1, 2))), (180, X[:, ::-1, ::-1]), (0, X)):
        assert data.augment(X, Angle(angle), rotate=180) == pytest.approx(turned, abs=1e-5)
    for angle in (-9.1, 3.0, 7.3):
        expected = torchvision.transforms.functional.rotate(torch.from_numpy(X)[:, None], angle)[:, 0]
        assert np.array_equal(data.augment(X, Angle(angle), rotate=180), expected)
    moved = data.augment(np.repeat(X[:1], 4000, axis=0), np.random.default_rng(0), translate=0.1)
    images = {x.tobytes(): 0 for x in moved}
    for x in moved:
        images[x.tobytes()] += 1
    assert len(images) == 49  # by up to 2.8 pixels, rounded: -3 to 3
    share = images[np.pad(X[0], 3)[:28, :28].tobytes()] / 4000  # by 3 both ways
    assert share == pytest.approx((0.3 / 5.6) ** 2, abs=0.003)
    few = data.augment(X, np.random.default_rng(0), rotate=10)
    assert few.dtype == np.float32
    assert 0.02 < np.abs(few - X).mean() < 0.4
    for changes, expected in (({}, False), ({"rotate": 1.0}, True), ({"erase": 4}, True)):
        assert data.is_augmented(mlp.settings(flip=False, **changes)) == expected


def test_augmentation_draws_every_flip_shift_and_square():
    X = np.repeat(np.random.default_rng(1).random((1, 9, 7), dtype=np.float32), 800, axis=0)
    before, image = X.copy(), X[0]
    shifts = [(down, right) for down in range(5) for right in range(5)]
    views = [np.pad(view, 2)[i : i + 9, j : j + 7] for view in (image, image[:, ::-1]) for i, j in shifts]
    augmented = data.augment(X, np.random.default_rng(0), flip=True, shift=2)
    assert {x.tobytes() for x in augmented} == {view.tobytes() for view in views}
    erased = data.augment(X, np.random.default_rng(0), erase=5)
    noise = erased != X
    assert set(noise.sum(axis=(1, 2))) == {0, 25}
    for axis in (1, 2):  # it is a square
        assert set(noise.any(axis=axis).sum(axis=1)) == {0, 5}
    assert noise.any(axis=(1, 2)).mean() == pytest.approx(0.5, abs=0.06)
    assert noise.any(axis=0).all()
    assert len(np.unique(erased[noise])) > 0.99 * noise.sum()  # each pixel is drawn by itself
    assert augmented.dtype == erased.dtype == np.float32
    assert np.array_equal(X, before)


def test_batches_and_too_large_augmentation(digits):
    batches = data.batches(10, 4, np.random.default_rng(0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))
    data.check_augmentation(SimpleNamespace(shift=27, erase=27), digits)
    with pytest.raises(run.Error):
        data.check_augmentation(SimpleNamespace(shift=0, erase=28), digits)


# ---- the files, in every form


def test_unpacked_with_dots_in_their_names(real, real_folder, tmp_path):
    for name in FILES:
        content = gzip.decompress((real_folder / f"{name}.gz").read_bytes())
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(content)
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


@pytest.fixture
def mirror(real_folder, monkeypatch):
    """torchvision's mirror, moved to a server on this machine."""
    from torchvision.datasets import FashionMNIST

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(real_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield
        server.shutdown()


def test_download_completes_what_is_there(real, mirror, real_folder, tmp_path, capsys):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    shutil.copyfile(real_folder / f"{FILES[3]}.gz", raw / f"{FILES[3]}.gz")
    (raw / f"{FILES[2]}.gz").write_bytes(b"of an interrupted download")
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()
    assert {f"{name}.gz" for name in FILES} <= {path.name for path in raw.iterdir()}
    capsys.readouterr()
    data.load(data_dir=str(tmp_path))
    assert capsys.readouterr() == ("", "")


def test_without_a_network_digits_replace_only_what_nobody_named(monkeypatch, tmp_path, capsys):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port refuses every connection
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    images = data.load()
    assert (images.name, images.test.y.shape) == ("digits, in place of Fashion-MNIST", (256,))
    assert str(tmp_path / "data") in capsys.readouterr().err
    assert str(tmp_path / "named") in refused(data_dir=str(tmp_path / "named"))
    assert str(tmp_path / "data" / "KMNIST" / "raw") in refused(dataset="kmnist")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in refused()


def test_damaged_truncated_and_foreign_files(real_folder, tmp_path):
    for name in FILES:
        shutil.copyfile(real_folder / f"{name}.gz", tmp_path / f"{name}.gz")
    path = tmp_path / f"{FILES[0]}.gz"
    whole = path.read_bytes()
    for content in (whole[:1_000_000], whole[:-1] + b"x", b"", gzip.compress(b"x" * 10_000)):
        path.write_bytes(content)
        assert str(path) in refused(data_dir=str(tmp_path))
        assert path.read_bytes() == content
    path.unlink()
    write_idx(tmp_path / FILES[0], np.zeros((60_000, 28, 28), np.uint8))  # of the right form, as digit MNIST
    assert FILES[0] in refused(data_dir=str(tmp_path))


def test_no_dataset_is_taken_for_another(real_folder, monkeypatch):
    """Each md5 is torchvision's, and those of digit MNIST are not those of Fashion-MNIST."""
    from torchvision import datasets

    sums = {name: md5.split() for name, md5 in data.MD5.items()}
    for name, published in zip(sums, (datasets.FashionMNIST, datasets.MNIST, datasets.KMNIST), strict=True):
        gzipped = {file: md5[:8] for file, md5 in published.resources}
        assert [gzipped[f"{file}.gz"] for file in FILES] == sums[name][:4]
    assert len({md5 for group in sums.values() for md5 in group}) == 20
    monkeypatch.setitem(data.MD5, "fashion-mnist", data.MD5["mnist"])
    assert FILES[0] in refused(data_dir=str(real_folder))


def test_mnist_of_torchvision(monkeypatch, tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    X = np.random.default_rng(0).integers(256, size=(100, 28, 28), dtype=np.uint8)
    y = np.arange(100, dtype=np.uint8) % 10
    for name, array in zip(FILES, (X, y, X[:50], y[:50]), strict=True):
        write_idx(tmp_path / "MNIST" / "raw" / f"{name}.gz", array)
    assert FILES[0] in refused(dataset="mnist", data_dir=str(tmp_path))
    monkeypatch.setitem(data.MD5, "mnist", "")
    images = data.load(dataset="mnist", data_dir=str(tmp_path))
    assert (images.name, images.sizes) == ("MNIST", {"train_size": 80, "val_size": 20, "test_size": 50})
    assert np.array_equal(images.test.X, X[:50] / np.float32(255))


def test_the_script(digits, tmp_path, capsys):
    data.main(["--dataset", "digits"])
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[2].split()) == (12, ["0", "0", "121", "31", "26"])
    assert digits.fingerprint() in lines[1]
    code = "import sys, data; data.load(dataset='digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=run.ROOT).returncode == 0
    command = [sys.executable, run.ROOT / "data.py", "--dataset", "fashion"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stdout, len(process.stderr.splitlines())) == (2, "", 1)
