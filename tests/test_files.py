"""Atomic writes and weights files: complete or not there, and refused with what they are."""

import numpy as np
import pytest

from support import files


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), files.atomic_write(path) as temporary:
        temporary.write_text("ne")
        tmp_path.read_text()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_text_is_the_same_on_every_system(tmp_path):
    files.write_text(tmp_path / "text", "a ±\nb\n")
    assert (tmp_path / "text").read_bytes() == "a ±\nb\n".encode()


def test_weights_are_loaded_as_they_were_saved(tmp_path):
    tensors = {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([7])}
    files.save_weights(tmp_path / "w.safetensors", tensors, {"model": "x", "sizes": [1, 2]})
    loaded, metadata = files.load_weights(tmp_path / "w.safetensors")
    assert metadata == {"model": "x", "sizes": [1, 2]}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert np.array_equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


def test_missing_damaged_and_foreign_weights_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    with pytest.raises(files.FileError, match=f"{path}: no such file"):
        files.load_weights(path)
    files.save_weights(path, {"W": np.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(files.FileError, match="damaged"):
        files.load_weights(path)
    path.write_text("hello")
    with pytest.raises(files.FileError, match="damaged"):
        files.load_weights(path)
    save_file({"W": np.ones(3)}, path)  # of another project
    with pytest.raises(files.FileError, match="not a weights file of this project"):
        files.load_weights(path)


@pytest.mark.parametrize("kind", files.KINDS)
def test_weights_of_another_kind_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "w.safetensors"
    files.save_weights(path, {"W": np.ones(1)}, {"model": kind})
    assert files.load_weights(path, kind)[1] == {"model": kind}
    for expected in files.KINDS.keys() - {kind}:
        with pytest.raises(files.FileError) as error:
            files.load_weights(path, expected)
        assert str(error.value) == f"{path}: contains {files.KINDS[kind]}, expected {files.KINDS[expected]}"
    for metadata in ({}, {"model": None}, {"model": "tree"}):
        files.save_weights(path, {"W": np.ones(1)}, metadata)
        with pytest.raises(files.FileError, match="contains another model, expected"):
            files.load_weights(path, kind)


@pytest.mark.parametrize("mistake", [KeyError("W"), ValueError("shape\nof W"), RuntimeError("size"), TypeError("x")])
def test_a_file_that_lacks_something_is_one_line(mistake, tmp_path):
    with pytest.raises(files.FileError, match="not in this project's format") as error, files.checked_format(tmp_path / "w"):
        raise mistake
    assert "\n" not in str(error.value)


def test_a_files_error_is_not_wrapped(tmp_path):
    with pytest.raises(files.FileError, match=r"^of a training on other data$"), files.checked_format(tmp_path):
        raise files.FileError("of a training on other data")
