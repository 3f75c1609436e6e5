"""Damaged and hostile files: each is refused in one line, or made again; none is believed."""

import io
import json
import random
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line, succeeded
from fuzz_readers import fuzz, mlp_trainer, small_images

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
from support import files, runs, settings
from torch_cnn import backbone, features

TINY = {"channels": (2, 3), "pool_after": (1, 2), "batch_size": 8, "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def images():
    return small_images()


# ---- features


@pytest.fixture
def cache(images, tmp_path, monkeypatch):
    """(path of a valid cache, function that loads it and returns what was printed)."""
    model, path = backbone.build(settings.load(cnn, **TINY)), tmp_path / "features.npz"
    expected = features.cached_features(path, model, images)

    def load(capsys):
        capsys.readouterr()
        loaded = features.cached_features(path, model, images)
        assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
        assert path.stat().st_size < 500_000
        return capsys.readouterr().out

    return path, load


def rezipped(path, name, change, method=zipfile.ZIP_STORED):
    """Write the zip file again, its checksums right, with change(content) in place of the content of a member."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w", method) as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(("change", "reason"), [
    (lambda content: npy(np.zeros((24, 9), np.float32)), r"X_train is float32 of shape \(24, 9\), expected float32 of"),
    (lambda content: npy(np.zeros((24, 147))), "X_train is float64"),
    (lambda content: npy(np.zeros((9, 147), np.float32)), r"X_train is float32 of shape \(9, 147\)"),
    (lambda content: content.replace(b"(24, 147)", b"(681574400, 147)"), "its size is not that of its data"),  # 373 GiB
    (lambda content: content.replace(b"<f4", b"|O "), "cannot be read"),
    (lambda content: content[:100], "cannot be read"),
    (lambda content: b"\x93NUMPY\x07" + content[7:], "cannot be read"),
])  # fmt: skip
def test_features_that_are_not_the_models_are_extracted_again(change, reason, cache, capsys, monkeypatch):
    path, load = cache
    rezipped(path, "X_train.npy", change)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("an array was allocated"))
    features.load_cache(path, {}, features.cache_layout(backbone.build(settings.load(cnn, **TINY)), small_images()))
    monkeypatch.undo()
    printed = load(capsys)
    assert "extracting the features again" in printed
    assert re.search(reason, printed)
    assert "features loaded" in load(capsys)


def test_a_compressed_cache_is_extracted_again(cache, capsys):
    path, load = cache
    rezipped(path, "X_val.npy", bytes, zipfile.ZIP_LZMA)
    assert "its size is not that of its data" in load(capsys)
    assert "features loaded" in load(capsys)


def test_changed_bytes_of_a_cache_end_in_the_same_features(cache, capsys):
    path, load = cache
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        changed, start = bytearray(content), rng.choice((rng.randrange(len(content)), -rng.randrange(1, 900)))
        changed[start] = rng.randrange(256)
        path.write_bytes(changed)
        load(capsys)


# ---- weights and checkpoints


@pytest.mark.parametrize("sizes", [[784, 0, 10], [784, 10**15, 10], [784, 5, 11], [784, -5, 10], [784], [], "x", None,
                                   [784, 0.5, 10], [784, 10**400, 10], [0, 5, 10]])  # fmt: skip
def test_layer_sizes_that_are_not_those_of_the_arrays(sizes, tmp_path):
    path = tmp_path / "weights.safetensors"
    mlp.save(path, mlp.MLP((784, 5, 10)), {})
    tensors, metadata = files.load_weights(path)
    files.save_weights(path, tensors, metadata | {"sizes": sizes})
    with pytest.raises(files.FileError, match="not in this project's format") as error:
        mlp.restore(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [
    {"channels": [2, 0]}, {"channels": [2, 10**15]}, {"channels": [10**9, 10**9]}, {"channels": [2, -3]}, {"channels": "23"},
    {"fc": [0]}, {"padding": [10**6]}, {"kernel_sizes": [0]}, {"pool_after": [None]}, {"dropout": 7}, {"norm": None},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["cnn", "hybrid"])
def test_a_network_that_is_not_that_of_the_arrays(kind, changes, images, tmp_path):
    s, path = settings.load(cnn, data, **TINY), tmp_path / "w.safetensors"
    model = backbone.build(s)
    if kind == "hybrid":
        model.classifier = hybrid_train.NumpyHead(mlp.MLP((147, 4, 10)), 0.0, 0.0, 1.0)
    module = backbone if kind == "cnn" else hybrid_train
    module.save(path, model, images, s)
    tensors, metadata = files.load_weights(path)
    files.save_weights(path, tensors, metadata | {"settings": metadata["settings"] | changes})
    before = runs.peak_memory()
    with pytest.raises(files.FileError, match="not in this project's format") as error:
        module.restore(path)
    assert "\n" not in str(error.value)
    assert runs.peak_memory() < before + 100


@pytest.fixture(scope="module")
def checkpoints(images, tmp_path_factory):
    """{"mlp": (make a Trainer, settings, tensors, metadata), "cnn": ...} of checkpoints after the first of two epochs."""
    s = settings.load(mlp, data, runs, hidden=(5,), epochs=2, batch_size=8, patience=5, schedule="plateau")
    cnn_s = settings.load(cnn, data, runs, epochs=2, **TINY)
    made = {}
    for name, options, make in (("mlp", s, lambda s: mlp_trainer(images, s)),
                                ("cnn", cnn_s, lambda s: cnn.make_trainer(images, s))):  # fmt: skip
        trainer, states = make(options), []
        X, X_val = (split.X.reshape((-1, 784) if name == "mlp" else (-1, 1, 28, 28)) for split in (images.train, images.val))
        arrays = X, images.train.y, X_val, images.val.y
        path = tmp_path_factory.mktemp(name) / runs.CHECKPOINT

        def save(trainer=trainer, options=options, states=states, path=path):
            tensors, metadata = trainer.state_dict()
            metadata |= {"model": "checkpoint", "settings": runs.training_settings(vars(options)), "split": "split"}
            files.save_weights(path, tensors, metadata)
            states.append(files.load_weights(path))

        trainer.fit(*(arrays if name == "mlp" else map(torch.from_numpy, arrays)), save_checkpoint=save)
        made[name] = make, options, *states[0]
    return made


def nested(metadata, key, value):
    """A copy of the metadata in which the value at the key, such as "history.epoch", is another."""
    name, _, rest = key.partition(".")
    return metadata | {name: nested(metadata[name], rest, value) if rest else value}


@pytest.mark.parametrize(("network", "key", "values"), [
    ("mlp", "epoch", (-1, 0, 2, 10**30, None, "1", 1.0, [])), ("mlp", "optimizer_t", (-1, 0, 7, 10**30, None, "x", 0.5)),
    ("mlp", "ema_t", (-10, 5, None)), ("mlp", "best_epoch", (2, -3, None)),
    ("mlp", "best_accuracy", (7.0, -1.0, None, "x")), ("mlp", "plateau", ({}, None, [], {"best": "x"})),
    ("mlp", "plateau.best", (None, -1.0, "x")),
    ("mlp", "plateau.patience", (10**30, None)), ("mlp", "rngs.shuffle", (-1, None, {})),
    ("mlp", "rngs.shuffle.state.state", (-1, 2**128, 0.5, None, "1")),
    ("mlp", "rngs.dropout.has_uint32", (None, "x", 10**30)), ("mlp", "rngs.augment.bit_generator", ("MT19937", None)),
    ("mlp", "monitor", ({}, None, [])),
    ("mlp", "monitor.history.dead", ([None], [[None]], [["x"]], [], [[0.5, 0.5]], [[0.5], [0.5]])),
    ("mlp", "monitor.history.epoch", (None, [], ["x"])), ("mlp", "monitor.reported", (None, [1], 5, {})),
    ("mlp", "history.val_loss", ([None], ["x"], [float("nan")], [], [0.5, 0.5], None)),
    ("mlp", "history.epoch", ([0], [2], [1, 2], [1, 2, 3], [], None, [True])), ("mlp", "history", (None, [], {})),
    ("cnn", "steps", (-1, 0, 2, 10**30, None)), ("cnn", "epoch", (0, 2, None)), ("cnn", "world_size", (0, None, "x")),
    ("cnn", "precision", ("float16", "load", None, [])), ("cnn", "history.val_loss", ([None], [], ["x"], [float("inf")])),
    ("cnn", "history.epoch", ([0], [1, 2, 3], None)), ("cnn", "settings", (None, [], 5)),
])  # fmt: skip
def test_a_checkpoint_of_nonsense_is_refused_in_one_line(network, key, values, checkpoints, tmp_path):
    make, s, tensors, metadata = checkpoints[network]
    s = SimpleNamespace(**vars(s) | {"resume": str(tmp_path)})
    for value in values:
        files.save_weights(tmp_path / runs.CHECKPOINT, tensors, nested(metadata, key, value))
        with pytest.raises(files.FileError, match="not in this project's format") as error:
            runs.load_checkpoint(make(s), s, "split")
        assert "\n" not in str(error.value)
    files.save_weights(tmp_path / runs.CHECKPOINT, tensors, metadata)
    runs.load_checkpoint(make(s), s, "split")


@pytest.mark.parametrize(("name", "array"), [
    ("ema_model.n_averaged", np.array(-9)), ("optimizer.0.momentum_buffer", np.zeros(3, np.float32)),
    ("optimizer.0.momentum_buffer", None), ("optimizer.99.x", None),
])  # fmt: skip
def test_a_cnns_checkpoint_with_impossible_arrays(name, array, checkpoints, tmp_path):
    make, s, tensors, metadata = checkpoints["cnn"]
    tensors = {**tensors, name: np.zeros(3, np.float32) if array is None else array}
    if array is None and name in checkpoints["cnn"][2]:
        del tensors[name]
    files.save_weights(tmp_path / runs.CHECKPOINT, tensors, metadata)
    with pytest.raises(files.FileError, match="not in this project's format"):
        runs.load_checkpoint(make(s), SimpleNamespace(**vars(s) | {"resume": str(tmp_path)}), "split")


def test_a_damaged_checkpoint_ends_the_script_with_one_line(run_script, tmp_path):
    flags = ("--dataset", "digits", "--hidden", 4, "--epochs", 1)
    succeeded(run_script("mlp_from_scratch", *flags, "--output-dir", "run"))
    path = tmp_path / "run" / runs.CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    line = one_line(run_script("mlp_from_scratch", "--resume", "run"), 1)
    assert line == (f"mlp_from_scratch.py: run/{runs.CHECKPOINT}: not a weights file of this project, or damaged "
                    "(its content is not what was written: the digest differs)")  # fmt: skip


# ---- several seeds


def test_a_damaged_seed_is_run_again_and_its_file_set_aside(tmp_path, capsys):
    seeds_run = []

    def run(s):
        seeds_run.append(s.seed)
        with runs.Run("test", s) as run:
            return run.finish({"m": (0.7, 0.6)}, dataset="digits", model="m", val_accuracy=0.7, test_accuracy=s.seed / 10)

    s = SimpleNamespace(seed=0, seeds=3, output_dir=str(tmp_path / "out"), resume="", figures=False)
    whole = runs.run_seeds("test", run, s)
    path, s.resume = tmp_path / "out/seed_1/metrics.json", s.output_dir
    good = json.loads(path.read_text())
    for content in ("", "{", "[]", "null", "{}", "\0", json.dumps(good | {"val_accuracy": None}), json.dumps(good)[:-9],
                    json.dumps(good | {"test_accuracy": float("nan")}), json.dumps(good | {"dataset": 5})):  # fmt: skip
        path.write_text(content)
        seeds_run.clear()
        capsys.readouterr()
        again = runs.run_seeds("test", run, s)
        assert seeds_run == [1]
        assert again["by_seed"]["test_accuracy"] == whole["by_seed"]["test_accuracy"]
        assert (path.parent / "metrics.json.damaged").read_text() == content
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{path}: damaged (")
        assert line.endswith(f"it is now {path}.damaged, and the seed is run again")
    seeds_run.clear()
    runs.run_seeds("test", run, s)
    assert seeds_run == []


@pytest.mark.parametrize("content", ["", "epoch", "epoch,train_loss\n1", "train_loss,train_accuracy\n1,x", "\0",
                                     "a,b\n1,2,3", "train_loss,train_accuracy\n1,inf"])  # fmt: skip
def test_a_damaged_history_is_named(content, tmp_path):
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(files.FileError, match=r"history.csv: damaged \("):
        plots.read_history(tmp_path / "history.csv")


# ---- every reader, at random


def test_a_thousand_damaged_files(tmp_path):
    """A short version of python -m tests.fuzz_readers."""
    assert fuzz(1_000, "pytest", tmp_path) == []
