"""cnn_feature_extraction.py as a user runs it: its files, several seeds, two processes, divergence and resuming."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    FILES,
    KEYS,
    ROOT,
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

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from support import files, runs, settings
from torch_cnn import backbone
from torch_cnn.features import classifier_logits

FIGURES = {"filters.png", "feature_maps.png", "features.png", "saliency.png", "confusable.png"}
TINY = ("--dataset", "digits", "--channels", 4, 6, "--pool-after", 1, 2, "--precision", "float32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, metrics, printed lines) of a quick run."""
    folder = tmp_path_factory.mktemp("cnn")
    flags = ("--dataset", "digits", "--quick", "--channels", 8, 16, 16, "--pool-after", 1, 2, "--norm", "none",
             "--learning-rate", 0.05, "--output-dir", "out")  # fmt: skip
    done = subprocess.run(command("cnn_feature_extraction", *flags), cwd=folder, env=environment(), capture_output=True,
                          text=True, check=False)  # fmt: skip
    lines = succeeded(done).strip().splitlines()
    return folder / "out", read_metrics(folder / "out"), lines


def test_files_and_metrics(finished):
    folder, metrics, lines = finished
    assert lines[-1] == "out"
    assert {path.name for path in folder.iterdir()} == FILES | {"backbone.safetensors", "features.npz"} | FIGURES
    assert set(metrics) >= KEYS | TTA_KEYS | {"device", "precision"}
    assert_calibrated(folder / "backbone.safetensors", metrics)
    assert metrics["dataset"] == "digits (subset)"
    assert metrics["features"] == 16 * 7 * 7
    assert metrics["test_accuracy"] > 0.5
    assert metrics["precision"] in ("float32", "bfloat16")
    for name in ("val_accuracy", "test_accuracy", *TTA_KEYS):
        assert any(f"{metrics[name]:.2%}" in line for line in lines), name
    *_, last = csv.DictReader((folder / "history.csv").read_text().splitlines())
    assert float(last["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=0.01)


def test_the_reported_results_are_those_of_the_saved_backbone(finished):
    folder, metrics, _ = finished
    model, _ = backbone.restore(folder / "backbone.safetensors")
    with np.load(folder / "features.npz", allow_pickle=False) as file:
        X, y = file["X_test"], file["y_test"]
        assert file["X_train"].shape == (metrics["train_size"], 16 * 7 * 7)
    test = data.load("digits", quick=True).test
    assert np.array_equal(y, test.y)
    with torch.no_grad():  # as its user calls it
        logits = model(torch.from_numpy(test.X)[:, None])
    assert torch.allclose(logits, classifier_logits(model, X), atol=1e-4)
    assert np.mean(logits.argmax(1).numpy() == y) == pytest.approx(metrics["test_accuracy"], abs=1 / len(y))


def test_probabilities_and_calibration_error(finished):
    assert_reported(finished[0], data.load("digits", quick=True).test.y)


WITHOUT_FIGURES = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import cnn_feature_extraction as cnn
from support import runs
cnn.cnn_figures = lambda *ignored: {{}}
runs.cli(cnn.main)
"""  # the script without the figures of the CNN, which take most of the time


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "without_figures.py"
    path.write_text(WITHOUT_FIGURES)
    return path


def run(*arguments):
    folder = next(path.parent for path in map(Path, arguments) if path.name == "without_figures.py")
    done = subprocess.run(list(map(str, arguments)), cwd=folder, env=environment(), capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def history_without_seconds(folder):
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_two_processes_take_the_steps_of_one(script, tmp_path):
    """Over gloo on this machine: the same batches, in halves, give the same weights; and only the first process writes."""
    flags = (*TINY, "--epochs", 2, "--batch-size", 50, "--norm", "none", "--no-flip", "--shift", 0, "--learning-rate", 0.02)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    for name, start in (("single", (sys.executable,)), ("double", torchrun)):
        printed = run(*start, script, *flags, "--output-dir", name)
        assert printed.count("figures, weights and metrics.json are in") == 1
    single, double = (files.load_weights(tmp_path / name / "backbone.safetensors")[0] for name in ("single", "double"))
    for name, value in single.items():
        assert np.allclose(value, double[name], rtol=1e-3, atol=1e-5), name
    for first, second in zip(*(history_without_seconds(tmp_path / name) for name in ("single", "double")), strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss"):
            assert float(first[column]) == pytest.approx(float(second[column]), rel=1e-3)


def test_killed_and_resumed_it_ends_as_if_never_interrupted(script, tmp_path):
    start, killed = (sys.executable, script), tmp_path / "killed"
    flags = (*TINY, "--epochs", 8, "--batch-size", 32, "--dropout", 0.1, "--learning-rate", 0.05)
    run(*start, *flags, "--output-dir", "complete")
    for rows in (0, 3):  # killed twice: before the end of the first epoch, and later
        arguments = ("--resume", "killed") if rows else (*flags, "--output-dir", "killed")
        awaited = killed / ("history.csv" if rows else "settings.json")
        kill_after(list(map(str, (*start, *arguments))), tmp_path, awaited, rows)
        assert not (killed / "metrics.json").exists()
    assert "resuming killed after epoch" in run(*start, "--resume", "killed")
    for name in ("backbone.safetensors", "checkpoint.safetensors"):
        assert_same_weights(tmp_path / "complete" / name, killed / name)
    assert history_without_seconds(tmp_path / "complete") == history_without_seconds(killed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(run_script):
    assert "--device cuda" in one_line(run_script("cnn_feature_extraction", "--device", "cuda"), 2)


def test_an_impossible_stack_ends_the_script_before_the_data(run_script, tmp_path):
    assert "0 x 0" in one_line(run_script("cnn_feature_extraction", "--pool-after", 1, 2, 3, 4, 5), 2)
    assert not list(tmp_path.iterdir())


# ---- within this process, without the figures, which take most of the time


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(cnn, "cnn_figures", lambda *ignored: {})


def tiny(folder, **options):
    return settings.load(cnn, data, runs, dataset="digits", channels=(4,), pool_after=(1,), device="cpu",
                         precision="float32", output_dir=str(folder), **options)  # fmt: skip


def test_a_checkpoint_of_another_network_is_refused_and_nothing_changes(tmp_path, no_figures):
    s = tiny(tmp_path / "run", epochs=1, batch_size=200)
    cnn.run(s)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    path = tmp_path / "run/checkpoint.safetensors"
    tensors, metadata = files.load_weights(path)
    for change, message in (
        (lambda: path.write_bytes(before[path][:-9]), "damaged"),
        (path.unlink, "cannot be resumed without it"),
        (lambda: files.save_weights(path, tensors, metadata | {"split": "other"}), "other data"),
        (lambda: files.save_weights(path, tensors, metadata | {"settings": metadata["settings"] | {"activation": "tanh"}}),
         "other settings: activation"),
        (lambda: files.save_weights(path, tensors | {"model.classifier.bias": np.zeros(9)}, metadata), "not in this"),
    ):
        change()
        with pytest.raises(files.FileError, match=message):
            cnn.run(SimpleNamespace(**vars(s) | {"resume": str(tmp_path / "run")}))
        assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p != path} == {
            p: content for p, content in before.items() if p != path}  # fmt: skip


def test_divergence_stops_with_its_cause_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    lr_at = cnn.lr_at
    monkeypatch.setattr(cnn, "lr_at", lambda progress, *options, **named: 1e9 if progress > 0.5
                        else lr_at(progress, *options, **named))  # fmt: skip
    with pytest.raises(runs.Diverged, match=r"in epoch 3, at learning rate 1e\+09: lower --learning-rate; the last"):
        cnn.run(tiny(tmp_path / "run", epochs=4, norm="none", learning_rate=0.01))
    _, metadata = files.load_weights(tmp_path / "run/checkpoint.safetensors")
    assert metadata["epoch"] == 2
    assert not (tmp_path / "run/metrics.json").exists()


def test_several_seeds(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    cnn.main([*map(str, TINY), "--epochs", "1", "--seed", "2", "--seeds", "2", "--output-dir", "out"])
    metrics = read_metrics(tmp_path / "out")
    single = [read_metrics(tmp_path / f"out/seed_{seed}") for seed in (2, 3)]
    for name in ("test_loss", "test_ece", "val_accuracy_flip_tta"):
        assert metrics["by_seed"][name] == [run[name] for run in single]
    assert single[0]["test_loss"] != single[1]["test_loss"]


def test_several_seeds_move_nothing_before_the_settings_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text("{}")
    for script, flags in ((cnn, "--pool-after 1 2 3 4 5"), (hybrid_train, "--backbone x"), (mlp, "--batch-size 1")):
        with pytest.raises(settings.SettingError):
            script.main([*flags.split(), "--seeds", "2", "--output-dir", "out"])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out/settings.json").read_text() == "{}"
