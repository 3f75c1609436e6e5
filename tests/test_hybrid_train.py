"""The main job as a user runs it: its files, its figures recomputed, saved backbones, and Ctrl-C."""

import csv
import json
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import command, environment, one_line
from test_mlp_from_scratch import FILES, KEYS

import data
import mlp_from_scratch as mlp
import runs

SMALL = ("--channels", 8, 16, "--pool-after", 1, 2, "--learning-rate", 0.1, "--head-hidden", 32)
TINY = ("--dataset", "digits", "--quick", *SMALL)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """(folder, stdout) of one small run."""
    folder = tmp_path_factory.mktemp("hybrid")
    done = subprocess.run(command("hybrid_train", *TINY, "--output-dir", folder / "out"), cwd=folder, env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "out", done.stdout


def test_files_and_figures(hybrid):
    folder, printed = hybrid
    more = {"backbone.safetensors", "head.safetensors", "features.npz", "cnn_history.csv", "cnn_curves.png",
            "cnn_and_hybrid.png"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == FILES - {"weights.safetensors"} | more
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= KEYS | {"cnn_test_accuracy", "cnn_val_accuracy"}
    assert printed.strip().splitlines()[-1] == str(folder)
    for name in ("test_accuracy", "cnn_test_accuracy", "val_accuracy", "cnn_val_accuracy"):
        assert f"{metrics[name]:.2%}" in printed
    for name, column in (("history.csv", "val_accuracy"), ("cnn_history.csv", "cnn_val_accuracy")):
        *_, last = csv.DictReader((folder / name).read_text().splitlines())
        assert float(last["val_accuracy"]) == pytest.approx(metrics[column], abs=1e-5)


def test_the_reported_accuracies_are_those_of_the_saved_files(hybrid):
    folder, _ = hybrid
    metrics = json.loads((folder / "metrics.json").read_text())
    head, about = mlp.restore(folder / "head.safetensors")
    weights, _ = runs.load_weights(folder / "backbone.safetensors")
    labels = data.load("digits", quick=True).test.y
    with np.load(folder / "features.npz", allow_pickle=False) as file:
        X, y = file["X_test"], file["y_test"]
    assert np.array_equal(y, labels)
    hybrid_logits = head.forward((X - np.float32(about["mean"])) / np.float32(about["std"]))
    assert np.mean(hybrid_logits.argmax(axis=1) == y) == metrics["test_accuracy"] > 0.8
    cnn_logits = X @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert np.mean(cnn_logits.argmax(axis=1) == y) == metrics["cnn_test_accuracy"] > 0.8


def test_a_saved_backbone_gives_the_same_hybrid(hybrid, run_script, tmp_path):
    folder, _ = hybrid
    done = run_script("hybrid_train", *TINY, "--backbone", folder / "backbone.safetensors", "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "features are taken from" in done.stdout
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (folder, tmp_path / "out"))
    for name in ("test_accuracy", "cnn_test_accuracy", "val_accuracy", "parameters", "model"):
        assert first[name] == second[name]
    assert not (tmp_path / "out/features.npz").exists()


def test_backbones_that_cannot_be_taken(hybrid, run_script, tmp_path):
    folder, _ = hybrid
    assert "no such file" in one_line(run_script("hybrid_train", "--backbone", "nothing.safetensors"), 2)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((folder / "backbone.safetensors").read_bytes()[:5_000])
    assert "damaged" in one_line(run_script("hybrid_train", *TINY, "--backbone", broken), 1)
    line = one_line(run_script("hybrid_train", *TINY, "--backbone", folder / "head.safetensors"), 1)
    assert "holds a mlp, not the CNN" in line
    good = folder / "backbone.safetensors"
    assert "--split-seed 0" in one_line(run_script("hybrid_train", *TINY, "--backbone", good, "--split-seed", 5), 1)
    assert "own folder" in one_line(run_script("hybrid_train", *TINY, "--backbone", good, "--output-dir", folder), 2)
    tensors, about = runs.load_weights(good)
    for wrong in ({"model": "cnn"}, about | {"channels": [8, 17]}):
        runs.save_weights(broken, tensors, wrong)
        assert "not as this project writes it" in one_line(run_script("hybrid_train", *TINY, "--backbone", broken), 1)
    assert not (tmp_path / "runs").exists()


def test_a_backbone_of_digits_is_not_taken_for_fashion(hybrid, run_script, real_folder):
    folder, _ = hybrid
    good = folder / "backbone.safetensors"
    line = one_line(run_script("hybrid_train", "--quick", "--backbone", good, real_folder=real_folder), 1)
    assert "was trained on digits (subset), and cannot tell the classes of Fashion-MNIST (subset)" in line


def test_ctrl_c_is_one_line_and_keeps_what_was_written(tmp_path):
    with (tmp_path / "stderr").open("w+") as stderr:
        arguments = command("hybrid_train", "--dataset", "digits", "--epochs", 10_000, "--output-dir", "out", *SMALL)
        heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored  # noqa: E731
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr,
                                   preexec_fn=heard)  # fmt: skip
        history = tmp_path / "out/cnn_history.csv"
        deadline = time.time() + 120
        try:
            while not history.exists() and time.time() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
        stderr.seek(0)
        assert stderr.read().strip() == "interrupted: what was written so far is in out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", "cnn_history.csv"}
    assert len(history.read_text().splitlines()) > 1


def test_the_quick_tour_on_real_images(run_script, real_folder, tmp_path):
    done = run_script("hybrid_train", "--quick", "--output-dir", "out", real_folder=real_folder)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["dataset"] == "Fashion-MNIST (subset)"
    assert metrics["test_accuracy"] > 0.8
    assert metrics["cnn_test_accuracy"] > 0.8
