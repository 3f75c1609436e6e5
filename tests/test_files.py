"""Atomic writes and weights files: complete or not there, and refused with what they are."""

import numpy as np
import pytest

from support import files


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(files.WriteError, match=f"^{path}: cannot be written"), files.atomic_write(path) as temporary:
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


def test_every_flipped_bit_is_noticed(tmp_path):
    path, rng = tmp_path / "w.safetensors", np.random.default_rng(0)
    tensors = {"W": rng.random((40, 30), np.float32), "n": np.array(7)}
    files.save_weights(path, tensors, {"model": "x", "history": [0.5, 0.25]})
    content = path.read_bytes()
    for position in rng.choice(8 * len(content), 300, replace=False):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(files.FileError, match=f"{path}: not a weights file of this project, or damaged") as error:
            files.load_weights(path)
        assert "\n" not in str(error.value)


def test_a_file_of_an_earlier_version_has_no_digest_and_is_loaded(tmp_path):
    from safetensors.numpy import save_file

    save_file({"W": np.ones(3)}, tmp_path / "w", {"metadata": '{"model": "mlp"}'})
    tensors, metadata = files.load_weights(tmp_path / "w", "mlp")
    assert (metadata, tensors["W"].tolist()) == ({"model": "mlp"}, [1, 1, 1])


def test_a_changed_digest_or_text_is_refused(tmp_path):
    from safetensors.numpy import save_file

    for metadata in ({"metadata": "{}", "digest": "0"}, {"metadata": "{}", "digests": ""}, {"digest": ""},
                     {"metadata": "[]1"}, {"metadata": "[" * 100_000}, {"metadata": "5"}):  # fmt: skip
        save_file({"W": np.ones(3)}, tmp_path / "w", metadata)
        with pytest.raises(files.FileError, match="or damaged"):
            files.load_weights(tmp_path / "w")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"0" * 5000])
def test_damaged_json_is_named_in_one_line(content, tmp_path):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(files.FileError, match=r"metrics.json: damaged \(") as error:
        files.read_json(tmp_path / "metrics.json")
    assert "\n" not in str(error.value)


def test_arrays_that_do_not_fit_change_nothing():
    targets = {"a": np.zeros(2), "b": np.zeros(3)}
    for changed in ({"b": np.ones(2)}, {"b": np.ones(3, np.float32)}, {"b": np.ones((3, 1))}):
        with pytest.raises(ValueError, match=r"^b is float.* expected float64 of"):
            files.copy_into(targets, {"a": np.ones(2)} | changed)
    with pytest.raises(KeyError):
        files.copy_into(targets, {"a": np.ones(2)})
    assert not targets["a"].any()
