"""mlp_from_scratch.py as a user runs it: its files, several seeds, divergence, Ctrl-C and resuming."""

import csv
import itertools
import subprocess

import numpy as np
import pytest
from conftest import (
    FILES,
    KEYS,
    TTA_KEYS,
    assert_calibrated,
    assert_reported,
    assert_same_weights,
    command,
    environment,
    kill_after,
    one_line,
    read_metrics,
    succeeded,
)

import data
import mlp_from_scratch as mlp
from numpy_nn import layers
from support import files, runs, settings

OWN_FILES = FILES | {"weights.safetensors", "monitor.png", "distributions.png", "first_layer.png", "learning_rate.png"}
DIGITS = ("--dataset", "digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, metrics, printed lines) of a run on the digits."""
    folder = tmp_path_factory.mktemp("mlp")
    flags = (*DIGITS, "--epochs", 20, "--hidden", 64, 16, "--norm", "none", "--output-dir", "run")
    done = subprocess.run(command("mlp_from_scratch", *flags), cwd=folder, env=environment(), capture_output=True, text=True,
                          check=False)  # fmt: skip
    lines = succeeded(done).strip().splitlines()
    return folder / "run", read_metrics(folder / "run"), lines


def test_files_and_metrics(finished):
    folder, metrics, lines = finished
    assert lines[-1] == "run"
    assert {path.name for path in folder.iterdir()} == OWN_FILES
    assert set(metrics) >= KEYS | TTA_KEYS
    assert_calibrated(folder / "weights.safetensors", metrics)
    assert metrics["parameters"] == 784 * 64 + 64 + 64 * 16 + 16 + 16 * 10 + 10
    assert metrics["settings"]["hidden"] == [64, 16]
    for name in ("val_accuracy", "test_accuracy", *TTA_KEYS):
        assert any(f"{metrics[name]:.2%}" in line for line in lines[-6:]), name
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, 21))
    assert float(history[-1]["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=1e-5)
    assert float(history[-1]["train_eval_accuracy"]) > 0.9


def test_the_reported_results_are_those_of_the_saved_weights(finished, digits):
    folder, metrics, _ = finished
    model, metadata = mlp.restore(folder / "weights.safetensors")
    mean, std = metadata["mean"], metadata["std"]
    assert (mean, std) == data.mean_std(digits.train.X)  # of the training split alone
    logits, mirrored = (model.predict_logits(data.standardize(X, mean, std)) for X in (
        digits.test.X, digits.test.X[:, :, ::-1]))  # fmt: skip
    assert metrics["test_loss"] == pytest.approx(layers.softmax_cross_entropy(logits, digits.test.y)[0])
    assert np.mean(logits.argmax(axis=1) == digits.test.y) == metrics["test_accuracy"] > 0.8
    assert np.mean((logits + mirrored).argmax(axis=1) == digits.test.y) == metrics["test_accuracy_flip_tta"]
    saved = np.load(folder / "test_probabilities.npy")
    assert saved == pytest.approx(layers.softmax(logits), abs=1e-3)


def test_probabilities_and_calibration_error(finished, digits):
    assert_reported(finished[0], digits.test.y)


def test_the_same_seed_gives_the_same_bits(finished, run_script, tmp_path):
    folder, metrics, _ = finished
    flags = (*DIGITS, "--epochs", 20, "--hidden", 64, 16, "--norm", "none", "--output-dir", "again", "--tta", "none")
    succeeded(run_script("mlp_from_scratch", *flags))
    assert_same_weights(folder / "weights.safetensors", tmp_path / "again/weights.safetensors")
    again = read_metrics(tmp_path / "again")
    assert again["test_loss"] == metrics["test_loss"]
    assert not TTA_KEYS & set(again)


def test_a_learning_rate_that_diverges(run_script):
    flags = (*DIGITS, "--optimizer", "sgd", "--learning-rate", 999, "--l2", 1)
    assert "--weight-decay 0.1: with --learning-rate" in one_line(run_script("mlp_from_scratch", *flags), 2)
    line = one_line(run_script("mlp_from_scratch", *flags, "--weight-decay", 0), 1)
    assert "loss became" in line  # of training or validation, as the processor rounds
    assert "lower --learning-rate" in line


def test_a_last_step_that_diverges(run_script, tmp_path):
    flags = ("--optimizer", "sgd", "--learning-rate", 999, "--weight-decay", 0, "--batch-size", 100_000, "--epochs", 1,
             "--norm", "none", "--init", "random", "--init-scale", 100, "--hidden", 64, 64, 64, 64)  # fmt: skip
    assert "the validation loss became nan" in one_line(run_script("mlp_from_scratch", *DIGITS, *flags), 1)
    assert not list(tmp_path.glob("runs/*/*/metrics.json"))


def test_several_seeds(run_script, tmp_path):
    flags = (*DIGITS, "--epochs", 2, "--hidden", 8)
    printed = succeeded(run_script("mlp_from_scratch", *flags, "--seed", 3, "--seeds", 3, "--output-dir", "out"))
    assert "3 seeds, mean and standard deviation:" in printed
    folder = tmp_path / "out"
    assert (folder / "curves.png").stat().st_size > 10_000
    metrics, single = read_metrics(folder), [read_metrics(folder / f"seed_{seed}") for seed in (3, 4, 5)]
    values = [run["test_accuracy"] for run in single]
    assert metrics["seeds"] == [3, 4, 5] == [run["settings"]["seed"] for run in single]
    assert metrics["by_seed"]["test_accuracy"] == values
    assert metrics["test_accuracy"] == pytest.approx(np.mean(values))
    assert metrics["test_accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert metrics["by_seed"]["test_ece"] == [run["test_ece"] for run in single]
    succeeded(run_script("mlp_from_scratch", *flags, "--seed", 4, "--output-dir", "alone"))
    alone = read_metrics(tmp_path / "alone")
    assert (alone["test_accuracy"], alone["test_loss"]) == (single[1]["test_accuracy"], single[1]["test_loss"])

    (folder / "metrics.json").unlink()  # as if it had been killed in its second seed, before its third
    (folder / "seed_4/metrics.json").unlink()
    for path in (folder / "seed_5").iterdir():
        path.unlink()
    assert "seed 3, 1 of 3: already finished" in succeeded(run_script("mlp_from_scratch", "--resume", "out"))
    assert read_metrics(folder)["by_seed"]["test_loss"] == metrics["by_seed"]["test_loss"]


def test_killed_and_resumed_it_ends_as_if_never_interrupted(run_script, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # two threads on a busy machine take many times as long
    flags = (*DIGITS, "--epochs", 40, "--batch-size", 32, "--norm", "batch", "--dropout", 0.2, "--ema-decay", 0.9,
             "--schedule", "plateau", "--patience", 35, "--shift", 1, "--normalize", "per_pixel")  # fmt: skip
    succeeded(run_script("mlp_from_scratch", *flags, "--output-dir", "complete"))
    for rows in (0, 1, 8):  # killed three times: before the end of the first epoch, in the second, and later
        arguments = ("--resume", "killed") if rows else (*flags, "--output-dir", "killed")
        awaited = tmp_path / "killed" / ("history.csv" if rows else "settings.json")
        kill_after(command("mlp_from_scratch", *arguments), tmp_path, awaited, rows)
        assert not (tmp_path / "killed/metrics.json").exists()
    succeeded(run_script("mlp_from_scratch", "--resume", "killed"))
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        assert_same_weights(tmp_path / "complete" / name, tmp_path / "killed" / name)
    texts = [(tmp_path / folder / "history.csv").read_text() for folder in ("complete", "killed")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    for row in itertools.chain(*tables):
        del row["seconds"]
    assert tables[0] == tables[1]
    first, second = (read_metrics(tmp_path / folder) for folder in ("complete", "killed"))
    assert first["test_accuracy"] == second["test_accuracy"]


def test_a_finished_run_resumed_reports_the_same(finished, run_script):
    folder, before, _ = finished
    succeeded(run_script("mlp_from_scratch", "--resume", folder))
    after = read_metrics(folder)
    for name in ("test_accuracy", "val_accuracy", "test_loss", "test_ece"):
        assert after[name] == before[name]


def test_what_cannot_be_resumed(run_script, tmp_path):
    assert "not the folder of a run of this script" in one_line(run_script("mlp_from_scratch", "--resume", "nothing"), 2)
    succeeded(run_script("mlp_from_scratch", *DIGITS, "--epochs", 2, "--hidden", 8, "--output-dir", "run"))
    line = one_line(run_script("mlp_from_scratch", "--resume", "run", "--hidden", 9), 2)
    assert "--hidden: the run was started with 8" in line
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    path = tmp_path / "run/checkpoint.safetensors"
    tensors, metadata = files.load_weights(path)
    for change, message in (
        (lambda: path.write_bytes(before[path][:-9]), "damaged"),
        (lambda: path.write_text("x"), "damaged"),
        (path.unlink, "cannot be resumed without it"),
        (lambda: files.save_weights(path, tensors, metadata | {"split": "other"}), "other data"),
        (lambda: files.save_weights(path, tensors, metadata | {"settings": metadata["settings"] | {"activation": "tanh"}}),
         "other settings: activation"),
        (lambda: files.save_weights(path, tensors | {"params": tensors["params"][:-1]}, metadata), "not in this project's"),
    ):
        change()
        assert message in one_line(run_script("mlp_from_scratch", "--resume", "run"), 1)
        assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p != path} == {
            p: content for p, content in before.items() if p != path}  # fmt: skip


def test_the_defaults_reach_89_percent(run_script, real_folder, tmp_path):
    succeeded(run_script("mlp_from_scratch", "--output-dir", "out", real_folder=real_folder))
    metrics = read_metrics(tmp_path / "out")
    assert metrics["test_accuracy"] >= 0.89
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)


def test_the_plain_recipe_replaces_defaults_but_no_flag(run_script, tmp_path):
    flags = (*DIGITS, "--recipe", "plain", "--epochs", 1, "--hidden", 16)
    succeeded(run_script("mlp_from_scratch", *flags, "--norm", "layer", "--output-dir", "run"))
    s = read_metrics(tmp_path / "run")["settings"]
    plain = mlp.RECIPES["plain"] | {"epochs": 1, "norm": "layer"}
    assert {name: s[name] for name in plain} == plain
    resumed = run_script("mlp_from_scratch", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr


def test_without_figures_and_weights_only_the_numbers_are_left(run_script, tmp_path):
    flags = (*DIGITS, "--epochs", 2, "--hidden", 16, "--log-steps")
    succeeded(run_script("mlp_from_scratch", *flags, "--output-dir", "all"))
    succeeded(run_script("mlp_from_scratch", *flags, "--no-figures", "--no-save-weights", "--output-dir", "few"))
    names = {"settings.json", "history.csv", "metrics.json", "steps.csv"}
    assert {path.name for path in (tmp_path / "few").iterdir()} == names
    assert {path.name for path in (tmp_path / "all").iterdir()} == OWN_FILES | {"steps.csv", "loss_by_step.png"}
    few, complete = (read_metrics(tmp_path / name) for name in ("few", "all"))
    assert few["test_accuracy"] == complete["test_accuracy"]


def test_the_losses_of_all_steps(run_script, tmp_path):
    flags = (*DIGITS, "--epochs", 2, "--hidden", 16, "--log-steps", "--output-dir", "run")
    succeeded(run_script("mlp_from_scratch", *flags))
    steps = np.loadtxt(tmp_path / "run/steps.csv", delimiter=",", skiprows=1)
    with (tmp_path / "run/history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert steps[:, 0].tolist() == list(range(1, 21))  # 1,233 images: 10 batches of 128, the last one of 81
    weights = np.array([128] * 9 + [81]) / 1233
    for epoch, row in enumerate(history):
        mean = weights @ steps[10 * epoch : 10 * epoch + 10, 1]
        assert float(row["train_loss"]) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("once", [True, False])
def test_augmentation_is_drawn_once_or_redrawn_for_every_batch(once, digits, monkeypatch, tmp_path):
    drawn = []
    original = data.augment
    monkeypatch.setattr(data, "augment", lambda X, *rest: drawn.append(len(X)) or original(X, *rest))
    s = settings.load(mlp, data, runs, epochs=2, hidden=(8,), flip=True, augment_once=once,
                      output_dir=str(tmp_path / "run"))  # fmt: skip
    mlp.run(s, digits)
    n = len(digits.train.y)
    assert drawn == ([n] if once else [min(128, n - start) for _ in range(2) for start in range(0, n, 128)])
