"""A run's folder and files, its metrics, test-time augmentation and calibration."""

import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from scipy.special import softmax

import cnn_feature_extraction as cnn
import data
import mlp_from_scratch as mlp
import run

MLP = ["--dataset", "digits", "--hidden", "8", "--no-figures", "--epochs"]
FILES = {"settings.json", "history.csv", "metrics.json"}


def contents(folder):
    """{path: bytes} of all files in a folder, {path: None} of the folders in it."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def settings(**changes):
    return run.settings(run, **changes)


@pytest.mark.parametrize("name", ["photo.png", ".hidden", "class/photo.png", "settings.json"])
def test_a_folder_with_files_is_refused_and_left_as_it_is(name, tmp_path):
    folder = tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"mine")
    before = contents(tmp_path)
    for path in (folder, folder / name):
        with pytest.raises(run.Error, match="mine"):
            mlp.main([*MLP, "1", "--output-dir", str(path)])
    assert contents(tmp_path) == before


def test_a_run_writes_into_its_own_folder_only(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/folder"):
        folder = tmp_path / name
        assert mlp.main([*MLP, "1", "--log-steps", "--output-dir", str(folder)]).folder == folder
        weights = {"checkpoint.safetensors", "weights.safetensors", "test_probabilities.npy"}
        assert names(folder) == FILES | weights | {"steps.csv"}
    assert (
        names(mlp.main([*MLP, "1", "--no-save-weights", "--output-dir", str(tmp_path / "few")]).folder)
        == FILES
    )
    (folder / "notes.txt").write_bytes(b"mine")
    mlp.main(["--resume", str(folder)])
    assert (folder / "notes.txt").read_bytes() == (tmp_path / "mine").read_bytes() == b"mine"
    assert names(tmp_path) == {"mine", "empty", "new", "few"}


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    folders = [run.RunFolder("test", settings()) for _ in range(2)]
    assert len({folder.path for folder in folders}) == 2
    assert {folder.path.parent for folder in folders} == {tmp_path / "runs/test"}
    for folder in folders:
        folder.__exit__(None, None, None)


def test_a_folder_in_use_by_another_process_is_refused_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(mlp, "train", None)
    flags = [*MLP, "10000", "--no-save-weights", "--output-dir", str(tmp_path / "run")]
    command = [sys.executable, str(ROOT / "mlp_from_scratch.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not (tmp_path / "run/history.csv").exists():
            assert process.poll() is None
            time.sleep(0.01)
        before = (tmp_path / "run/settings.json").read_bytes()
        for arguments in (flags, ["--resume", str(tmp_path / "run")]):
            with pytest.raises(run.Error, match="run"):
                mlp.main(arguments)
        assert process.poll() is None
        assert (tmp_path / "run/settings.json").read_bytes() == before
    finally:
        process.kill()
        process.wait()
    s = settings(resume=str(tmp_path / "run"))
    with run.RunFolder("test", s), pytest.raises(run.Error):  # the dead one locks it no more, this one does
        run.RunFolder("test", s)


def test_runs_and_data_are_in_the_repositorys_folder(script, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("mlp_from_scratch", "data", "monitor", "plots", "run"):
        shutil.copy(ROOT / f"{name}.py", folder)
    done = script(str(folder / "mlp_from_scratch.py"), *MLP, 1, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.rglob("metrics.json")
    assert metrics.parents[2] == folder / "runs"
    assert names(tmp_path) == {"repository"}  # the shell's folder

    asked = []
    monkeypatch.setattr(data, "download", lambda name, folder: asked.append(folder) or 1 / 0)
    monkeypatch.setattr(run, "ROOT", folder)
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    with pytest.raises(ZeroDivisionError):
        data.load()
    assert asked == [folder / "data"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path, arrays = tmp_path / "weights", {"W": np.zeros(100_000)}
    run.save_weights(path, {"W": np.ones(3)}, {})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (lambda: run.write(path, "x" * 100_000), lambda: run.save_weights(path, arrays, {})):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as a full disk
        try:
            with pytest.raises(OSError, match="large"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
    run.write(path, "é")
    assert path.read_bytes() == "é".encode()


ARRAYS = {"W": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(7), "h": np.ones(2, np.float16)}


def test_weights_are_read_as_written_and_any_flipped_bit_is_refused(tmp_path):
    path, metadata = tmp_path / "weights.safetensors", {"model": "mlp", "classes": ["é", "衣"], "x": 0.1}
    run.save_weights(path, ARRAYS, metadata)
    arrays, read = run.load_weights(path, "mlp")
    assert read == metadata
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].tolist()) == (array.dtype, array.tolist())
    with pytest.raises(run.Error, match="cnn"):
        run.load_weights(path, "cnn")
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(run.Error, match=r"weights\.safetensors"):
            run.load_weights(path)
    for wrong in (b"", content[:-1], content + b"x", None):
        path.write_bytes(wrong) if wrong is not None else path.unlink()
        with pytest.raises(run.Error):
            run.load_weights(path)


def test_a_checkpoint_that_is_damaged_or_of_other_settings_is_refused(tmp_path):
    path, state = tmp_path / "checkpoint.safetensors", {"history": {"epoch": [1], "seconds": [5.0]}}
    with run.RunFolder("test", settings(output_dir=str(tmp_path))) as folder:
        assert folder.load_checkpoint() is None
        folder.save_checkpoint(ARRAYS, state)
        assert folder.load_checkpoint()[1]["history"] == state["history"]
        folder.s.seed = 1
        with pytest.raises(run.Error, match="settings"):
            folder.load_checkpoint()
        folder.s.seed, folder.s.figures = 0, False  # which no training depends on
        folder.load_checkpoint()
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(run.Error, match="checkpoint"):
            folder.load_checkpoint()


@pytest.mark.parametrize("script", [mlp, cnn])
def test_histories_are_complete_when_the_loss_diverges(script, tmp_path, monkeypatch, capsys):
    original, calls = script.Trainer.train_step, []

    def train_step(*arguments):  # whose loss is infinite in the second step of the third epoch
        calls.append(1)
        loss, correct = original(*arguments)
        return (loss * float("inf") if len(calls) == 12 else loss), correct

    monkeypatch.setattr(script.Trainer, "train_step", train_step)
    network = ["--hidden", "8"] if script is mlp else ["--channels", "2", "--pool-after", "1"]
    network += ["--dataset", "digits", "--train-size", "300", "--batch-size", "64"]
    flags = [*network, "--log-steps", "--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run.cli(lambda: script.main(flags))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "step 12 " in line
    assert run.read_history(tmp_path / "run/history.csv")["epoch"] == [1, 2]
    losses = run.read_history(tmp_path / "run/steps.csv")["train_loss"]
    assert [np.isfinite(loss) for loss in losses[:12]] == [True] * 11 + [False]
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(("encoding", "figures"), [("cp1252", "--no-figures"), ("ascii", "--figures")])
def test_any_text_can_be_printed_in_any_encoding(encoding, figures, script, digits, tmp_path):
    X, y = digits.train.X[:100], np.array(["衣", "靴"])[digits.train.y[:100] % 2]
    np.savez(tmp_path / "服.npz", x_train=X, y_train=y, x_test=X, y_test=y)
    flags = ("--dataset", "服.npz", "--epochs", 1, "--output-dir", "出", figures)
    done = script("mlp_from_scratch.py", *flags, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u670d" in done.stdout
    assert run.read_json(tmp_path / "出/metrics.json")["dataset"] == "服"
    for path in tmp_path.glob("出/*.txt"):
        assert "靴" in path.read_text(encoding="utf-8")


def test_metrics_of_several_seeds_by_hand(tmp_path):
    flags = [*MLP, "2", "--seed", "3", "--seeds", "3", "--output-dir", str(tmp_path / "run")]
    metrics = mlp.main(flags).metrics
    by_seed = [run.read_json(tmp_path / f"run/seed_{seed}/metrics.json") for seed in (3, 4, 5)]
    for name in ("val_accuracy", "test_accuracy", "test_loss", "test_ece", "temperature"):
        a, b, c = (m[name] for m in by_seed)
        mean = (a + b + c) / 3
        std = (((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2) ** 0.5
        assert metrics["by_seed"][name] == [a, b, c]
        assert (metrics[name], metrics[f"{name}_std"]) == pytest.approx((mean, std), rel=1e-12)
        assert std > 0
    assert (metrics["seeds"], metrics["parameters"], metrics["dataset"]) == ([3, 4, 5], 6378, "digits")
    alone = mlp.main([*MLP, "2", "--seed", "4", "--output-dir", str(tmp_path / "alone")]).metrics
    assert alone["test_loss"] == by_seed[1]["test_loss"]


def test_the_metrics_of_a_run_are_those_of_its_weights(digits, tmp_path):
    metrics = mlp.main([*MLP, "8", "--output-dir", str(tmp_path / "run")]).metrics
    model, metadata = mlp.restore(tmp_path / "run/weights.safetensors")
    X, y = digits.test.X, digits.test.y
    logits, mirrored = model.predict_logits(X), model.predict_logits(X[:, :, ::-1])
    probabilities, saved = softmax(logits, axis=1), np.load(tmp_path / "run/test_probabilities.npy")
    assert saved == pytest.approx(probabilities, abs=1e-3)
    assert metrics["test_accuracy"] == np.mean(logits.argmax(axis=1) == y) > 0.5
    assert metrics["test_accuracy_flip_tta"] == np.mean((logits + mirrored).argmax(axis=1) == y)
    loss = -np.mean([np.log(row[label]) for row, label in zip(probabilities, y, strict=True)])
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    val_logits = model.predict_logits(digits.val.X).astype(float)
    assert metrics["val_accuracy"] == np.mean(val_logits.argmax(1) == digits.val.y)
    temperature = run.fit_temperature(val_logits, digits.val.y, run.cross_entropy)
    assert metrics["temperature"] == metadata["temperature"] == pytest.approx(temperature)
    calibrated = softmax(logits.astype(float) / temperature, axis=1)
    assert metrics["test_ece"] == pytest.approx(slow_ece(y, probabilities), rel=1e-5)
    assert metrics["test_ece_calibrated"] == pytest.approx(slow_ece(y, calibrated), rel=1e-5)


RNG = np.random.default_rng(0)
SPLITS = {"val": RNG.random((30, 6, 5)), "test": RNG.random((20, 6, 5))}
WEIGHTS = RNG.standard_normal((30, 3))


def predict(X):
    """Not linear in X, so that the logits of two views are not those of their sum."""
    return np.tanh(X.reshape(len(X), -1) - 0.5) @ WEIGHTS


LOGITS = {split: predict(X) for split, X in SPLITS.items()}


def with_labels(val=(0,) * 30, test=(0,) * 20):
    y = {"val": np.array(val), "test": np.array(test)}
    return SimpleNamespace(**{split: SimpleNamespace(X=X, y=y[split]) for split, X in SPLITS.items()})


def slow_tta(X, shifts):
    """Logits summed over each shift (down, right) and its mirror image, pixel by pixel."""
    total = 0
    for down, right in shifts:
        shifted = np.zeros_like(X)
        for row in range(6):
            for column in range(5):
                if 0 <= row - down < 6 and 0 <= column - right < 5:
                    shifted[:, row, column] = X[:, row - down, column - right]
        total = total + predict(shifted) + predict(shifted[:, :, ::-1])
    return total


SHIFTS = {
    "2_views": [(0, 0)],
    "6_views": [(0, 0), (-1, -1), (1, 1)],
    "10_views": [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)],
    "18_views": [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)],
}


@pytest.mark.parametrize("name", SHIFTS)
def test_views_by_slow_loops_and_validation_chooses_them(name):
    slow = {split: slow_tta(X, SHIFTS[name]) for split, X in SPLITS.items()}
    images = with_labels(slow["val"].argmax(axis=1))  # only these views are always right
    for tta in ["shifts"] + [name] * (name != "2_views"):
        sums, views = run.tta_logits(images, predict, tta, LOGITS)
        assert views == int(name.split("_")[0]) == 2 * len(SHIFTS[name])
        for split in SPLITS:
            assert sums["shift"][split] == pytest.approx(slow[split], abs=1e-9)


def test_flip_and_none_and_equally_good_views():
    sums, views = run.tta_logits(with_labels(), predict, "flip", LOGITS)
    assert (list(sums), views) == (["flip"], None)
    assert sums["flip"]["test"] == pytest.approx(slow_tta(SPLITS["test"], [(0, 0)]))
    assert run.tta_logits(with_labels(), None, "none", LOGITS) == ({}, None)
    unflipped = SimpleNamespace(tta="shifts", flip=False)  # not trained on mirrored images
    assert "test_accuracy_flip_tta" not in run.evaluate(with_labels(), predict, unflipped).metrics
    labels = [RNG.integers(3, size=20) for _ in range(10)]  # the test labels choose nothing
    assert len({run.tta_logits(with_labels(test=y), predict, "shifts", LOGITS)[1] for y in labels}) == 1

    logits = {split: np.tile([1.0, 0, 0], (len(X), 1)) for split, X in SPLITS.items()}
    best = run.tta_logits(with_labels(), lambda X: np.tile([1.0, 0, 0], (len(X), 1)), "shifts", logits)
    assert best[1] == 2  # the fewest of equally good ones


def slow_ece(y, probabilities, bins=15):
    total = 0.0
    for i in range(bins):
        confidence = probabilities.max(axis=1).astype(float)
        rows = [n for n, c in enumerate(confidence) if i / bins < c <= (i + 1) / bins]
        right = [probabilities[n].argmax() == y[n] for n in rows]
        total += abs(sum(right) - sum(confidence[n] for n in rows))
    return total / len(y)


def test_calibration_by_hand():
    p = np.array([0.55, 0.6, 0.8, 0.95, 1.0])
    y = np.array([0, 1, 0, 0, 1])  # right, wrong, right, right, wrong
    edges, counts, mean, share, error = run.calibration(y, np.column_stack([p, 1 - p]), bins=5)
    assert edges == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert counts.tolist() == [0, 0, 2, 1, 2]
    assert mean == pytest.approx([0, 0, 0.575, 0.8, 0.975])
    assert share == pytest.approx([0, 0, 0.5, 1, 0.5])
    assert error == pytest.approx((2 * 0.075 + 0.2 + 2 * 0.475) / 5)


def overconfident(factor, n=2000, seed=0):
    """(logits `factor` times as large as those of which the labels were drawn, labels)."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, 5))
    y = (rng.random((n, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=4)
    return factor * logits, y


@pytest.mark.parametrize("loss", mlp.LOSSES)
@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_the_lowest_loss(loss, factor):
    logits, y = overconfident(factor)
    fitted = run.fit_temperature(logits, y, mlp.LOSSES[loss][0])
    grid = np.geomspace(fitted / 1.01, fitted * 1.01, 41)
    losses = [mlp.LOSSES[loss][0](logits / T, y)[0] for T in grid]
    assert abs(np.argmin(losses) - 20) <= 1
    if loss == "softmax":
        assert fitted == pytest.approx(factor, rel=0.05)
        assert run.calibration(y, softmax(logits / fitted, axis=1))[-1] < 0.03
