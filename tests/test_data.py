"""The dataset: split once, normalized, augmented."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import data
import mlp_from_scratch
from support import dataset_files, settings


def splits(images):
    return images.train, images.val, images.test


# ---- the split


def test_sizes_and_stratification(real):
    assert real.sizes == {"train_size": 48_000, "val_size": 12_000, "test_size": 10_000}
    for split, count in zip(splits(real), (4_800, 1_200, 1_000), strict=True):
        assert np.bincount(split.y).tolist() == [count] * 10
        assert split.X.shape == (10 * count, 28, 28)
        assert split.X.dtype == np.float32
        assert (split.X.min(), split.X.max()) == (0, 1)


def test_training_and_validation_are_the_60000_and_the_test_images_are_all_and_in_order(real):
    assert np.array_equal(np.sort(np.concatenate([real.train.indices, real.val.indices])), np.arange(60_000))
    assert np.array_equal(real.test.indices, np.arange(10_000))
    assert real.test.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as the dataset's authors show them
    assert (np.diff(real.train.indices) > 0).all()


def test_each_image_has_the_label_of_its_index(real, real_folder):
    names = dataset_files.SPLIT_FILES["train"][:2]
    images, labels = (gzip.decompress((real_folder / f"{name}.gz").read_bytes()) for name in names)
    X = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    y = np.frombuffer(labels, np.uint8, offset=8)
    for split in (real.train, real.val):
        assert np.array_equal(split.X, X[split.indices] / np.float32(255))
        assert np.array_equal(split.y, y[split.indices])


def test_the_split_is_the_same_in_every_process_and_another_for_another_seed(digits):
    code = "import data; print(data.load('digits').fingerprint())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digits.fingerprint()
    assert data.load("digits", split_seed=1).fingerprint() != digits.fingerprint()


def test_the_size_of_the_validation_split_is_a_setting(digits):
    other = data.load("digits", val_fraction=0.1)
    total = len(digits.train.y) + len(digits.val.y)
    assert other.sizes == {"train_size": total - 154, "val_size": 154, "test_size": 256}
    assert total == 1_541
    assert np.ptp(np.bincount(other.val.y)) <= 2


def test_the_split_of_this_version_is_the_split_of_every_version():
    _, second = data.stratified_split(np.arange(60_000) % 10, 12_000, 0)
    assert second[:8].tolist() == [0, 10, 37, 43, 49, 55, 58, 62]  # by NumPy 2.4: another split would not compare


@pytest.mark.parametrize("n", [1, 7, 30, 99])
def test_every_class_has_its_share(n):
    y = np.repeat([0, 1, 2], [50, 30, 20])
    first, second = data.stratified_split(y, n, 5)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(100))
    assert len(second) == n
    assert np.abs(np.bincount(y[second], minlength=3) - n * np.array([0.5, 0.3, 0.2])).max() <= 1


def test_statistics_and_batches():
    X = np.random.default_rng(0).random((100, 28, 28), dtype=np.float32)
    assert data.mean_std(X) == pytest.approx((X.mean(dtype=np.float64), X.std(dtype=np.float64)), rel=1e-6)
    batches = data.batches(10, 4, np.random.default_rng(0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))


def test_normalization():
    X = np.random.default_rng(0).random((50, 28, 28), dtype=np.float32)
    X[:, 0, 0] = 0.25  # a pixel that never changes
    assert data.normalization_stats(X, "none") == (0.0, 1.0)
    assert data.normalization_stats(X, "global") == data.mean_std(X)
    mean, std = data.normalization_stats(X, "per_pixel")
    assert mean == pytest.approx(X.mean(axis=0), abs=1e-6)
    assert mean[0, 0] == 0.25
    assert std[0, 0] == 1
    assert std[1:] == pytest.approx(X[:, 1:].std(axis=0), abs=1e-6)


def test_augmentation_draws_every_flip_and_shift_and_nothing_else():
    image = np.random.default_rng(1).random((28, 28), dtype=np.float32) + 0.1
    X = np.repeat(image[None], 600, axis=0)
    padded = np.pad(image, 2)
    corners = [(row, column) for row in range(5) for column in range(5)]
    possible = [both[r : r + 28, c : c + 28] for both in (padded, padded[:, ::-1]) for r, c in corners]
    augmented = data.augment(X, np.random.default_rng(0), flip=True, shift=2)
    matches = np.stack([(augmented == candidate).all(axis=(1, 2)) for candidate in possible], axis=1)
    assert (matches.sum(axis=1) == 1).all()
    assert matches.any(axis=0).all()
    assert (image == X).all()  # what came back is a copy
    assert np.array_equal(data.augment(X, None), X)


def test_random_erasing_fills_one_square_in_half_of_the_images():
    X = np.full((2000, 28, 28), 2, np.float32)
    augmented = data.augment(X, np.random.default_rng(0), erase=5)
    noise = augmented != 2
    sizes = noise.sum(axis=(1, 2))
    assert set(sizes) == {0, 25}
    assert np.mean(sizes == 25) == pytest.approx(0.5, abs=0.05)
    for square in noise[sizes == 25][:50]:
        rows, columns = np.nonzero(square)
        assert (np.ptp(rows), np.ptp(columns)) == (4, 4)
    assert noise.any(axis=0).all()  # everywhere
    assert augmented.dtype == np.float32


def test_quick_is_a_stratified_subset_of_the_same_splits(real, real_folder):
    quick = data.load(data_dir=str(real_folder), quick=True)
    assert quick.sizes == {"train_size": 6_000, "val_size": 1_500, "test_size": 2_000}
    assert "subset" in quick.name
    for small, complete in zip(splits(quick), splits(real), strict=True):
        assert np.isin(small.indices, complete.indices).all()
        assert np.ptp(np.bincount(small.y)) == 0


def test_the_digits_are_said_to_be_digits(digits):
    assert digits.name == "digits"
    assert sum(digits.sizes.values()) == 1_797
    assert digits.classes == tuple("0123456789")
    assert digits.train.X.shape[1:] == (28, 28)
    assert 0.9 < digits.train.X.max() <= 1


def test_a_smaller_training_split_is_a_stratified_subset(digits):
    small = data.load("digits", train_size=300)
    assert len(small.train.y) == 300
    assert np.isin(small.train.indices, digits.train.indices).all()
    assert np.ptp(np.bincount(small.train.y)) <= 3
    for split in ("val", "test"):
        assert np.array_equal(getattr(small, split).X, getattr(digits, split).X)
    with pytest.raises(data.DataError, match=r"--train-size 9,000: the training split has 1,233 images"):
        data.load("digits", train_size=9_000)


def test_label_noise_replaces_training_labels_by_other_classes(digits):
    noisy = data.load("digits", label_noise=0.3)
    assert np.mean(noisy.train.y != digits.train.y) == pytest.approx(0.3, abs=0.04)  # never the same class
    assert (noisy.train.y.min(), noisy.train.y.max()) == (0, 9)
    assert np.array_equal(noisy.train.X, digits.train.X)
    for split in ("val", "test"):
        assert np.array_equal(getattr(noisy, split).y, getattr(digits, split).y)
    wrong = noisy.train.y != digits.train.y
    counts = np.bincount((noisy.train.y - digits.train.y)[wrong] % 10, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 20  # each other class is drawn


def test_equal_pixels_have_a_standard_deviation_to_divide_by():
    assert data.mean_std(np.zeros((9, 5), np.float32)) == (0, 1)
    assert all(data.mean_std(np.full((9, 5), x, np.float32))[1] > 0 for x in np.linspace(0.01, 1, 50))  # not nan


def test_train_on_val_adds_the_validation_images_and_says_so(digits):
    images = data.load("digits", train_on_val=True)
    assert images.name == "digits, validation images in training"
    assert images.train.indices.tolist() == sorted([*digits.train.indices, *digits.val.indices])
    rows = np.isin(images.train.indices, digits.val.indices)
    assert np.array_equal(images.train.X[rows], digits.val.X)
    assert np.array_equal(images.train.y[rows], digits.val.y)
    for split in ("val", "test"):
        assert np.array_equal(getattr(images, split).indices, getattr(digits, split).indices)


@pytest.mark.parametrize(("options", "message"), [
    ({"tta": "shifts"}, "--tta shifts: not with --train-on-val; .* name them: --tta 10_views"),
    ({"schedule": "plateau"}, "--schedule plateau: not with --train-on-val, since validation decides"),
    ({"patience": 5}, "--patience 5: not with --train-on-val; let a run without it choose --epochs"),
])  # fmt: skip
def test_images_that_were_trained_on_choose_nothing(options, message):
    s = settings.load(mlp_from_scratch, data, dataset="digits", train_on_val=True, **options)
    with pytest.raises(settings.SettingError, match=message):
        data.load_for(s)
