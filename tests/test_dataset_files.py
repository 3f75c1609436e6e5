"""The dataset's files: found in every form, downloaded, verified, and every fault named in one line."""

import functools
import gzip
import http.server
import shutil
import struct
import threading

import numpy as np
import pytest
from conftest import one_line
from test_data import splits

import data
from support import dataset_files

HEADER = "label," + ",".join(f"pixel{i}" for i in range(1, 785))
ROW = "3," + ",".join(["7"] * 784)


# ---- every form in which the files may come


def unpacked(real_folder, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in dataset_files.FILES:
        (folder / name).write_bytes(gzip.decompress((real_folder / f"{name}.gz").read_bytes()))


def test_gzipped_in_torchvisions_layout(real, real_folder, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in dataset_files.FILES:
        (raw / f"{name}.gz").symlink_to(real_folder.resolve() / f"{name}.gz")
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


def test_unpacked(real, real_folder, tmp_path):
    unpacked(real_folder, tmp_path)
    assert data.load(data_dir=str(tmp_path)).fingerprint() == real.fingerprint()


def test_kaggles_csv_pair_whose_rows_are_in_another_order(real, real_folder, tmp_path):
    unpacked(real_folder, tmp_path)
    for split, (images, labels, count) in dataset_files.SPLIT_FILES.items():
        order = np.random.default_rng(0).permutation(count)
        X = np.frombuffer((tmp_path / images).read_bytes(), np.uint8, offset=16).reshape(count, 784)[order]
        y = np.frombuffer((tmp_path / labels).read_bytes(), np.uint8, offset=8)[order]
        rows = (",".join(map(str, row)) for row in np.column_stack([y, X]).tolist())
        (tmp_path / dataset_files.CSV_FILES[split]).write_text("\n".join([HEADER, *rows]) + "\n")
        (tmp_path / images).unlink()
        (tmp_path / labels).unlink()
    for ours, theirs in zip(splits(data.load(data_dir=str(tmp_path))), splits(real), strict=True):  # the same split
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
    assert {path.name for path in raw.iterdir()} == {f"{name}.gz" for name in dataset_files.FILES}
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
    with pytest.raises(dataset_files.DataError) as error:
        data.load(data_dir=str(folder), **options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(dataset_files, "download", lambda folder: (_ for _ in ()).throw(dataset_files.Offline("no network")))


def put_real(real_folder, folder, *names):
    for name in names or dataset_files.FILES:
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
    assert dataset_files.HOMEPAGE in refused(tmp_path)


def test_digit_mnist_is_recognized_by_its_md5(real_folder, tmp_path, monkeypatch):
    put_real(real_folder, tmp_path)
    shutil.copy(tmp_path / "train-labels-idx1-ubyte.gz", tmp_path / "train-images-idx3-ubyte.gz")
    monkeypatch.setattr(dataset_files, "DIGIT_MD5", {dataset_files.FILES["train-labels-idx1-ubyte"][0]})
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
    wrong[:16] = dataset_files.DIGIT_LABELS["train"]
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


@pytest.mark.parametrize(("lines", "message"), [
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
def test_csv_faults_name_file_and_line(tmp_path, lines, message):
    for name in dataset_files.CSV_FILES.values():
        (tmp_path / name).write_text("\n".join(lines))
    line = refused(tmp_path)
    assert line.startswith(str(tmp_path / "fashion-mnist_train.csv"))
    assert message in line


def test_without_data_and_network_digits_replace_it_with_a_line_on_stderr(run_script, tmp_path):
    done = run_script("mlp_from_scratch", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[1]
    assert first.startswith("NOT FASHION-MNIST: no Fashion-MNIST in data, and it could not be downloaded")
    assert "--data-dir" in first
    assert "digits, in place of Fashion-MNIST" in done.stdout.splitlines()[-2]
    (metrics,) = (tmp_path / "runs").glob("*/*/metrics.json")
    assert '"dataset": "digits, in place of Fashion-MNIST"' in metrics.read_text()


def test_a_folder_that_is_a_file_and_one_that_is_not_there(no_network, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(dataset_files.DataError, match="is a file; name the folder"):
        data.load(data_dir=str(tmp_path / "file"))
    with pytest.raises(dataset_files.DataError, match="no network"):
        data.load(data_dir=str(tmp_path / "typo"), offline_fallback=False)


def test_a_failed_download_leaves_no_folder(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    with pytest.raises(dataset_files.Offline, match="no address is known"):
        dataset_files.download(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_without_the_fallback_it_is_an_error(run_script):
    done = run_script("mlp_from_scratch", "--no-offline-fallback")
    assert done.returncode == 1
    assert "could not be downloaded" in done.stderr.splitlines()[-1]
