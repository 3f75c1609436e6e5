"""MNIST and KMNIST, as torchvision downloads them: verified, and an error where that is not possible."""

import gzip
import hashlib

import numpy as np
import pytest
from test_dataset_files import idx
from test_own_data import arrays

import data
from support import dataset_files
from support.dataset_files import DataError


def test_md5_sums_are_torchvisions():
    from torchvision import datasets

    for name, sums in dataset_files.MD5.items():
        published = {file.removesuffix(".gz"): md5 for file, md5 in getattr(datasets, name).resources}
        assert dict(zip(dataset_files.FILES, sums, strict=True)) == published


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_mnist_is_downloaded_once_and_verified(monkeypatch, tmp_path, capsys, name):
    X, y = arrays(count=20, classes=10, size=(28, 28))
    y = y.astype(np.uint8)
    content = []
    for array in (X, y, X[:50], y[:50]):
        idx(tmp_path / "x", array)
        content.append(gzip.compress((tmp_path / "x").read_bytes()))

    files = {f"{file}.gz": bytes_ for file, bytes_ in zip(dataset_files.FILES, content, strict=True)}
    monkeypatch.setattr(dataset_files, "fetch_verified", lambda urls, md5: files[urls[0].rsplit("/", 1)[1]])
    monkeypatch.setitem(dataset_files.MD5, name.upper(), tuple(hashlib.md5(bytes_).hexdigest() for bytes_ in content))
    folder = tmp_path / "data"
    images = data.load(name, str(folder))
    assert (images.name, images.sizes) == (name.upper(), {"train_size": 160, "val_size": 40, "test_size": 50})
    assert images.classes == (tuple("0123456789") if name == "mnist" else data.KUZUSHIJI)
    assert np.array_equal(images.test.X, X[:50] / np.float32(255))
    assert capsys.readouterr().err == f"no {name.upper()} in {folder}: downloading it\n"
    assert data.load(name, str(folder)).fingerprint() == images.fingerprint()
    assert capsys.readouterr().err == ""
    path = folder / name.upper() / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=f"{path}: damaged, or not of {name.upper()}: its md5 is .*, expected"):
        data.load(name, str(folder))


def test_mnist_without_a_network_is_one_line(run_script, tmp_path):
    done = run_script("mlp_from_scratch", "--dataset", "mnist")
    assert done.returncode == 1
    assert "no MNIST in data, and it could not be downloaded" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
