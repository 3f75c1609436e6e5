"""The dataset: found in every form, split once, and every fault named in one line."""

import functools
import gzip
import http.server
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT, environment, one_line

import data

HEADER = "label," + ",".join(f"pixel{i}" for i in range(1, 785))
ROW = "3," + ",".join(["7"] * 784)


def parts(images):
    return images.train, images.val, images.test


# ---- the split


def test_sizes_and_stratification(real):
    assert real.sizes == {"train_size": 48_000, "val_size": 12_000, "test_size": 10_000}
    for split, count in zip(parts(real), (4_800, 1_200, 1_000), strict=True):
        assert np.bincount(split.y).tolist() == [count] * 10
        assert split.X.shape == (10 * count, 28, 28)
        assert split.X.dtype == np.float32
        assert (split.X.min(), split.X.max()) == (0, 1)


def test_training_and_validation_are_the_60000_and_the_test_images_are_all_and_in_order(real):
    assert np.array_equal(np.sort(np.concatenate([real.train.indices, real.val.index])), np.arange(60_000))
    assert np.array_equal(real.test.index, np.arange(10_000))
    assert real.test.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as the dataset's authors show them
    assert (np.diff(real.train.indices) > 0).all()


def test_each_image_has_the_label_of_its_index(real, real_folder):
    images, labels = (gzip.decompress((real_folder / f"{name}.gz").read_bytes()) for name in data.PARTS["train"][:2])
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


def test_normalisation():
    X = np.random.default_rng(0).random((50, 28, 28), dtype=np.float32)
    X[:, 0, 0] = 0.25  # a pixel that never changes
    assert data.normalization_stats(X, "none") == (0.0, 1.0)
    assert data.normalization_stats(X, "standard") == data.mean_std(X)
    mean, std = data.normalization_stats(X, "pixel")
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
    found = data.augment(X, np.random.default_rng(0), flip=True, shift=2)
    matches = np.stack([(found == candidate).all(axis=(1, 2)) for candidate in possible], axis=1)
    assert (matches.sum(axis=1) == 1).all()
    assert matches.any(axis=0).all()
    assert (image == X).all()  # what came back is a copy
    assert np.array_equal(data.augment(X, None), X)


def test_random_erasing_fills_one_square_in_half_of_the_images():
    X = np.full((2000, 28, 28), 2, np.float32)
    found = data.augment(X, np.random.default_rng(0), erase=5)
    noise = found != 2
    sizes = noise.sum(axis=(1, 2))
    assert set(sizes) == {0, 25}
    assert np.mean(sizes == 25) == pytest.approx(0.5, abs=0.05)
    for one in noise[sizes == 25][:50]:
        rows, columns = np.nonzero(one)
        assert (np.ptp(rows), np.ptp(columns)) == (4, 4)
    assert noise.any(axis=0).all()  # everywhere
    assert found.dtype == np.float32


def test_quick_is_a_stratified_subset_of_the_same_splits(real, real_folder):
    quick = data.load(data_dir=str(real_folder), quick=True)
    assert quick.sizes == {"train_size": 6_000, "val_size": 1_500, "test_size": 2_000}
    assert "subset" in quick.name
    for small, whole in zip(parts(quick), parts(real), strict=True):
        assert np.isin(small.index, whole.index).all()
        assert np.ptp(np.bincount(small.y)) == 0


def test_the_digits_are_said_to_be_digits(digits):
    assert digits.name == "digits"
    assert sum(digits.sizes.values()) == 1_797
    assert digits.classes == tuple("0123456789")
    assert digits.train.X.shape[1:] == (28, 28)
    assert 0.9 < digits.train.X.max() <= 1


# ---- every form in which the files may come


def unpacked(real_folder, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in data.FILES:
        (folder / name).write_bytes(gzip.decompress((real_folder / f"{name}.gz").read_bytes()))


def test_gzipped_in_torchvisions_layout(real, real_folder, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.FILES:
        (raw / f"{name}.gz").symlink_to(real_folder.resolve() / f"{name}.gz")
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


def test_unpacked(real, real_folder, tmp_path):
    unpacked(real_folder, tmp_path)
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


def test_kaggles_csv_pair_whose_rows_are_in_another_order(real, real_folder, tmp_path):
    unpacked(real_folder, tmp_path)
    for part, (images, labels, count) in data.PARTS.items():
        order = np.random.default_rng(0).permutation(count)
        X = np.frombuffer((tmp_path / images).read_bytes(), np.uint8, offset=16).reshape(count, 784)[order]
        y = np.frombuffer((tmp_path / labels).read_bytes(), np.uint8, offset=8)[order]
        rows = (",".join(map(str, row)) for row in np.column_stack([y, X]).tolist())
        (tmp_path / data.CSV_FILES[part]).write_text("\n".join([HEADER, *rows]) + "\n")
        (tmp_path / images).unlink()
        (tmp_path / labels).unlink()
    for ours, theirs in zip(parts(data.load(data_dir=str(tmp_path))), parts(real), strict=True):  # the same split
        a, b = (sorted(zip(map(bytes, split.X), split.y, strict=True)) for split in (ours, theirs))
        assert a == b


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(real_folder, monkeypatch):
    """torchvision's mirror, moved to a server on this machine; its requests are listed."""
    from torchvision.datasets import FashionMNIST

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(real_folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(real, mirror, tmp_path, capsys):
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()
    raw = tmp_path / "FashionMNIST" / "raw"
    assert {path.name for path in raw.iterdir()} == {f"{name}.gz" for name in data.FILES}
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]
    assert "downloading" in capsys.readouterr().err
    data.load(data_dir=str(tmp_path))
    assert not capsys.readouterr().err


def test_an_incomplete_set_is_completed(real, mirror, real_folder, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    shutil.copy(real_folder / "t10k-labels-idx1-ubyte.gz", raw)
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


# ---- faults


def refused(folder, **options):
    """The one line with which `folder` is refused."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(data.DataError) as error:
        data.load(data_dir=str(folder), **options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(data, "download", lambda folder: (_ for _ in ()).throw(data.Offline("no network")))


def put_real(real_folder, folder, *names):
    for name in names or data.FILES:
        shutil.copy(real_folder / f"{name}.gz", folder)


def test_a_truncated_file(run_script, real_folder, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    put_real(real_folder, folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1_000_000])
    line = one_line(run_script("mlp_from_scratch", "--data-dir", folder), 1)
    assert f"{path}: truncated: 1,000,000 bytes" in line
    assert "expected 26,421,880 bytes with md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d" in line
    assert path.stat().st_size == 1_000_000
    assert not (tmp_path / "runs").exists()


def test_a_foreign_file(real_folder, tmp_path):
    put_real(real_folder, tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"x" * 10_000) + bytes(10_000))
    assert "foreign file" in refused(tmp_path)
    assert data.HOMEPAGE in refused(tmp_path)


def test_digit_mnist_is_recognised_by_its_md5(real_folder, tmp_path, monkeypatch):
    put_real(real_folder, tmp_path)
    shutil.copy(tmp_path / "train-labels-idx1-ubyte.gz", tmp_path / "train-images-idx3-ubyte.gz")
    monkeypatch.setattr(data, "DIGIT_MD5", {data.FILES["train-labels-idx1-ubyte"][0]})
    assert "digit MNIST" in refused(tmp_path)


def idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_unpacked_faults(real_folder, tmp_path):
    unpacked(real_folder, tmp_path)
    labels, images = tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte"
    right = np.frombuffer(labels.read_bytes(), np.uint8, offset=8)

    wrong = right.copy()
    wrong[41] = 11
    idx(labels, wrong)
    assert "row 42: label 11, expected 0 to 9" in refused(tmp_path)

    wrong = right.copy()
    wrong[:16] = data.DIGIT_LABELS["train"]
    idx(labels, wrong)
    assert "digit MNIST" in refused(tmp_path)

    wrong = right.copy()
    wrong[50_000] = 0 if wrong[50_000] else 1
    idx(labels, wrong)
    assert "expected md5" in refused(tmp_path)

    labels.write_bytes(labels.read_bytes()[:-1])
    assert "60,007 bytes, expected 60,008" in refused(tmp_path)

    idx(images, np.zeros((60_000, 27, 27), np.uint8))
    assert "not an IDX file of shape (60000, 28, 28)" in refused(tmp_path)


def test_an_incomplete_set_without_a_network(no_network, tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"x")
    line = refused(tmp_path)
    assert "train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz missing" in line


def changed(column, value):
    cells = ROW.split(",")
    cells[column] = value
    return ",".join(cells)


@pytest.mark.parametrize(("lines", "said"), [
    ([HEADER.replace(",pixel17,", ","), ROW], "line 1: column pixel17 is missing"),
    ([HEADER.replace("pixel1,", "1x1,"), ROW], "digit MNIST"),
    ([HEADER + ",more", ROW], "line 1: the columns are not"),
    ([HEADER, ROW, changed(5, "x")], "line 3, column pixel5: 'x' is not a whole number from 0 to 255"),
    ([HEADER, ROW, ROW, changed(0, "")], "line 4, column label: '' is not a whole number"),
    ([HEADER, changed(784, "nan")], "line 2, column pixel784: 'nan' is not a whole number"),
    ([HEADER, changed(1, "256")], "line 2, column pixel1: '256' is not"),
    ([HEADER, ROW, changed(0, "10")], "line 3: label 10, expected 0 to 9"),
    ([HEADER, ROW, ROW.rsplit(",", 1)[0]], "line 3: 784 columns, expected 785"),
    ([HEADER, ROW + ",0"], "line 2: 786 columns, expected 785"),
    ([HEADER, ROW, ROW], "2 rows below the header, expected 60,000"),
    ([HEADER], "0 rows below the header"),
    ([], "column label is missing"),
])  # fmt: skip
def test_csv_faults_name_file_and_line(tmp_path, lines, said):
    for name in data.CSV_FILES.values():
        (tmp_path / name).write_text("\n".join(lines))
    line = refused(tmp_path)
    assert line.startswith(str(tmp_path / "fashion-mnist_train.csv"))
    assert said in line


def test_without_data_and_network_digits_stand_in_loudly(run_script, tmp_path):
    done = run_script("mlp_from_scratch", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[1]
    assert first.startswith("NOT FASHION-MNIST: no Fashion-MNIST in data, and it could not be downloaded")
    assert "--data-dir" in first
    assert "digits, standing in for Fashion-MNIST" in done.stdout.splitlines()[-2]
    (metrics,) = (tmp_path / "runs").glob("*/*/metrics.json")
    assert '"dataset": "digits, standing in for Fashion-MNIST"' in metrics.read_text()


def test_a_folder_that_is_a_file_and_one_that_is_not_there(no_network, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(data.DataError, match="is a file; name the folder"):
        data.load(data_dir=str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="no network"):
        data.load(data_dir=str(tmp_path / "typo"), offline_fallback=False)


def test_a_failed_download_leaves_no_folder(tmp_path, monkeypatch):
    import torchvision

    def fails(*_, **__):
        raise RuntimeError("no mirror")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fails)
    with pytest.raises(data.Offline, match="no mirror"):
        data.download(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_without_the_fallback_it_is_an_error(run_script):
    done = run_script("mlp_from_scratch", "--no-offline-fallback")
    assert done.returncode == 1
    assert "could not be downloaded" in done.stderr.splitlines()[-1]


def test_importing_any_module_writes_and_prints_nothing(tmp_path):
    for path in sorted(ROOT.glob("*.py")):
        done = subprocess.run([sys.executable, "-B", "-c", f"import {path.stem}"], cwd=tmp_path, check=True,
                              env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
        assert (done.stdout, done.stderr) == ("", ""), path
    assert not list(tmp_path.iterdir())
