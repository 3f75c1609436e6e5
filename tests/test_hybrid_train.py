"""hybrid_train.py as a user runs it: its files, its results recomputed, saved backbones and heads, and Ctrl-C."""

import csv
import json
import signal
import subprocess
import sys
import time

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
    command,
    environment,
    heed_ctrl_c,
    one_line,
    read_metrics,
    succeeded,
)

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from support import files, runs, settings
from torch_cnn.features import predict_logits

SMALL = ("--channels", 8, 16, "--pool-after", 1, 2, "--learning-rate", 0.1)
WITHOUT_HEAD = ("--dataset", "digits", "--quick", *SMALL)
TINY = (*WITHOUT_HEAD, "--head-hidden", 32)


def run_in(folder, *flags):
    return succeeded(subprocess.run(command("hybrid_train", *flags), cwd=folder, env=environment(), capture_output=True,
                                    text=True, check=False))  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return data.load("digits", quick=True)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """(folder, printed lines) of a small run with a frozen backbone."""
    folder = tmp_path_factory.mktemp("frozen")
    return folder / "out", run_in(folder, *TINY, "--output-dir", folder / "out").strip().splitlines()


@pytest.fixture(scope="module")
def joint(frozen, tmp_path_factory):
    """(folder, printed lines) of a small joint run that starts from the CNN and the MLP of `frozen`."""
    start, folder = frozen[0], tmp_path_factory.mktemp("joint")
    flags = ("--training", "joint", "--backbone", start / "backbone.safetensors", "--head", start / "head.safetensors",
             "--learning-rate", 0.02, "--joint-learning-rate", 0.0003, "--epochs", 2)  # fmt: skip
    return folder / "out", run_in(folder, *WITHOUT_HEAD, *flags, "--output-dir", folder / "out").strip().splitlines()


def test_files_and_metrics(frozen):
    folder, lines = frozen
    others = {"backbone.safetensors", "head.safetensors", "hybrid.safetensors", "features.npz", "cnn_history.csv",
              "cnn_curves.png", "cnn_and_hybrid.png"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == FILES | others
    metrics = read_metrics(folder)
    assert set(metrics) >= KEYS | TTA_KEYS | {"cnn_test_accuracy", "cnn_val_accuracy", "device", "precision"}
    assert_calibrated(folder / "hybrid.safetensors", metrics)
    temperatures = [files.load_weights(folder / f"{name}.safetensors")[1]["temperature"] for name in ("head", "backbone")]
    assert temperatures[0] == metrics["temperature"] != temperatures[1]
    assert lines[-1] == str(folder)
    for name in ("test_accuracy", "cnn_test_accuracy", "val_accuracy", "cnn_val_accuracy", *TTA_KEYS):
        assert any(f"{metrics[name]:.2%}" in line for line in lines), name
    for name, key in (("history.csv", "val_accuracy"), ("cnn_history.csv", "cnn_val_accuracy")):
        *_, last = csv.DictReader((folder / name).read_text().splitlines())
        assert float(last["val_accuracy"]) == pytest.approx(metrics[key], abs=1e-5)


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_probabilities_and_calibration_error(kind, images, request):
    assert_reported(request.getfixturevalue(kind)[0], images.test.y)


def test_the_reported_accuracies_are_those_of_the_saved_files(frozen, images):
    folder, _ = frozen
    metrics = read_metrics(folder)
    head, metadata = mlp.restore(folder / "head.safetensors")
    weights, _ = files.load_weights(folder / "backbone.safetensors")
    with np.load(folder / "features.npz", allow_pickle=False) as file:
        X, y = file["X_test"], file["y_test"]
    assert np.array_equal(y, images.test.y)
    logits = head.forward((X - np.float32(metadata["mean"])) / np.float32(metadata["std"]))
    assert np.mean(logits.argmax(axis=1) == y) == metrics["test_accuracy"] > 0.8
    cnn_logits = X @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert np.mean(cnn_logits.argmax(axis=1) == y) == metrics["cnn_test_accuracy"] > 0.8


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_the_whole_hybrid_is_one_file_that_predicts_the_same_elsewhere(kind, images, request):
    folder, _ = request.getfixturevalue(kind)
    path, X = folder / "hybrid.safetensors", torch.from_numpy(images.test.X)[:, None]
    model, metadata = hybrid_train.restore(path)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        logits, mirrored = model(X).numpy(), model(X.flip(3)).numpy()
    metrics, y = read_metrics(folder), images.test.y
    assert np.mean(logits.argmax(axis=1) == y) == pytest.approx(metrics["test_accuracy"], abs=1e-9)
    tta_accuracy = np.mean((logits + mirrored).argmax(axis=1) == y)
    assert tta_accuracy == pytest.approx(metrics["test_accuracy_flip_tta"], abs=1 / len(y))
    assert tuple(metadata["classes"]) == images.classes
    assert metadata["fingerprint"] == images.fingerprint()
    code = (f"import hybrid_train, data, torch; m, _ = hybrid_train.restore({str(path)!r})\n"
            "with torch.no_grad(): l = m(torch.from_numpy(data.load('digits', quick=True).test.X)[:, None]).numpy()\n"
            "print(data.digest(l))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == data.digest(logits)


# ---- given a backbone


def test_a_saved_backbone_gives_the_same_hybrid(frozen, tmp_path):
    folder, _ = frozen
    printed = run_in(tmp_path, *TINY, "--backbone", folder / "backbone.safetensors", "--output-dir", "out")
    assert "features loaded from" in printed
    first, second = read_metrics(folder), read_metrics(tmp_path / "out")
    for name in ("test_accuracy", "test_loss", "test_ece", "cnn_test_accuracy", "val_accuracy", "parameters", "model"):
        assert first[name] == second[name]
    assert not (tmp_path / "out/features.npz").exists()


def test_the_saved_settings_are_those_that_the_backbone_was_trained_with(frozen, run_script, tmp_path):
    folder, _ = frozen
    flags = ("--dataset", "digits", "--quick", "--backbone", folder / "backbone.safetensors", "--output-dir", "out")
    run_in(tmp_path, *flags, "--head-hidden", 16)
    first, second = (json.loads((path / "settings.json").read_text()) for path in (folder, tmp_path / "out"))
    assert {name for name in first if first[name] != second[name]} == {"backbone", "head_hidden", "output_dir"}
    for flag, value in (("--dropout", 0.2), ("--batch-size", 9), ("--epochs", 3), ("--learning-rate", 0.2)):  # 0.2: default
        line = one_line(run_script("hybrid_train", *flags, flag, value), 2)
        assert f" {flag}: " in line
        assert "leave the flag out" in line


@pytest.mark.parametrize(("name", "contains"), [
    ("checkpoint", "a training checkpoint"),
    ("head", "a NumPy MLP (weights.safetensors or head.safetensors)"),
    ("hybrid", "a hybrid (hybrid.safetensors)"),
])  # fmt: skip
def test_another_weights_file_as_the_backbone(name, contains, frozen, run_script, tmp_path):
    """The message names what the file is and which file to give."""
    path = frozen[0] / f"{name}.safetensors"
    line = one_line(run_script("hybrid_train", *TINY, "--backbone", path), 1)
    assert line == f"hybrid_train.py: {path}: contains {contains}, expected a CNN (backbone.safetensors)"
    assert not (tmp_path / "runs").exists()


def test_backbones_that_cannot_be_loaded(frozen, run_script, tmp_path):
    folder, _ = frozen
    assert "no such file" in one_line(run_script("hybrid_train", "--backbone", "nothing.safetensors"), 2)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((folder / "backbone.safetensors").read_bytes()[:5_000])
    assert "damaged" in one_line(run_script("hybrid_train", *TINY, "--backbone", broken), 1)
    good = folder / "backbone.safetensors"
    assert "--split-seed 0" in one_line(run_script("hybrid_train", *TINY, "--backbone", good, "--split-seed", 5), 1)
    assert "own folder" in one_line(run_script("hybrid_train", *TINY, "--backbone", good, "--output-dir", folder), 2)
    tensors, metadata = files.load_weights(good)
    for wrong in ({"model": "cnn"}, metadata | {"settings": metadata["settings"] | {"channels": [8, 17]}}):
        files.save_weights(broken, tensors, wrong)
        done = run_script("hybrid_train", "--dataset", "digits", "--quick", "--backbone", broken)
        assert "not in this project's format" in one_line(done, 1)
    assert not (tmp_path / "runs").exists()


def test_a_backbone_of_the_digits_is_refused_for_fashion_mnist(frozen, run_script, real_folder):
    good = frozen[0] / "backbone.safetensors"
    line = one_line(run_script("hybrid_train", "--quick", "--backbone", good, real_folder=real_folder), 1)
    assert "was trained on digits (subset) and does not know the classes of Fashion-MNIST (subset)" in line


# ---- joint training


def test_fine_tuning_starts_where_frozen_training_ended(frozen, joint):
    before, after = (read_metrics(folder) for folder, _ in (frozen, joint))
    first = next(csv.DictReader((joint[0] / "history.csv").read_text().splitlines()))
    assert float(first["val_accuracy"]) > before["val_accuracy"] - 0.03
    assert after["test_accuracy"] > before["test_accuracy"] - 0.03
    assert after["parameters"] == before["parameters"]
    assert set(after) >= KEYS | TTA_KEYS | {"device", "precision"}
    assert after["settings"]["head_hidden"] == [32]  # from which a resumed run is built
    assert {path.name for path in joint[0].iterdir()} == FILES | {"hybrid.safetensors"}


def test_heads_that_cannot_be_used(frozen, run_script):
    folder, _ = frozen
    head = ("--head", folder / "head.safetensors")
    assert "add --training joint" in one_line(run_script("hybrid_train", *WITHOUT_HEAD, *head), 2)
    assert "add --backbone" in one_line(run_script("hybrid_train", *WITHOUT_HEAD, "--training", "joint", *head), 2)
    head += ("--training", "joint", "--backbone", folder / "backbone.safetensors")
    line = one_line(run_script("hybrid_train", *WITHOUT_HEAD, *head, "--output-dir", folder), 2)
    assert "is the backbone's own folder; name another" in line
    with pytest.raises(files.FileError, match=r"contains a NumPy MLP .*, expected a hybrid \(hybrid.safetensors\)"):
        hybrid_train.restore(folder / "head.safetensors")


@pytest.mark.parametrize(("kind", "said"), [("frozen", "lower --head-learning-rate"),
                                            ("joint", "lower --learning-rate or --joint-learning-rate")])  # fmt: skip
def test_divergence_names_the_settings_that_help(kind, said, tmp_path, monkeypatch):
    """Without warnings from NumPy. No allowed learning rate diverges for sure."""
    s = settings.load(hybrid_train, cnn, data, runs, dataset="digits", quick=True, epochs=1, channels=(4,), pool_after=(1,),
                      training=kind, device="cpu", output_dir=str(tmp_path / "run"))  # fmt: skip
    s.joint_learning_rate, head_s = 1e30, hybrid_train.head_settings(s)
    head_s.learning_rate = 1e30
    monkeypatch.setattr(hybrid_train, "head_settings", lambda s: head_s)
    with pytest.raises(runs.Diverged, match=said) as error:
        hybrid_train.run(s)
    assert str(error.value).startswith("the NumPy MLP: the" if kind == "frozen" else "the loss became")
    assert (tmp_path / "run/backbone.safetensors").exists() == (kind == "frozen")


def test_ctrl_c_is_one_line_and_what_was_saved_stays(tmp_path):
    with (tmp_path / "stderr").open("w+") as stderr:
        arguments = command("hybrid_train", "--dataset", "digits", "--epochs", 10_000, "--output-dir", "out", *SMALL)
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr,
                                   preexec_fn=heed_ctrl_c)  # fmt: skip
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
        assert stderr.read().strip() == "interrupted: what was saved so far is in out"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"settings.json", "cnn_history.csv", "checkpoint.safetensors"}
    assert len(history.read_text().splitlines()) > 1


def test_the_smoke_test_on_real_images(run_script, real_folder, tmp_path):
    printed = succeeded(run_script("hybrid_train", "--quick", "--output-dir", "out", real_folder=real_folder))
    assert "the numbers are not representative" in printed
    metrics = read_metrics(tmp_path / "out")
    assert metrics["dataset"] == "Fashion-MNIST (subset)"
    assert metrics["test_accuracy"] > 0.8
    assert metrics["cnn_test_accuracy"] > 0.8


def test_an_earlier_layer_gives_the_features(frozen, run_script, tmp_path, images):
    flags = ("--feature-layer", 1, "--head-epochs", 1, "--backbone", frozen[0] / "backbone.safetensors", "--no-figures")
    done = run_script("hybrid_train", *TINY, *flags, "--output-dir", "run")
    metrics = read_metrics(tmp_path / "run")
    assert metrics["cnn_test_accuracy"] == read_metrics(frozen[0])["cnn_test_accuracy"], done.stderr
    assert metrics["model"] == "CNN 8-16 + NumPy MLP 1568-32-10"  # 8 x 14 x 14 features
    model, _ = hybrid_train.restore(tmp_path / "run/hybrid.safetensors")
    accuracy = np.mean(predict_logits(model, images.test.X).argmax(axis=1) == images.test.y)
    assert accuracy == metrics["test_accuracy"]
    assert one_line(run_script("hybrid_train", *TINY, "--feature-layer", 3), 2).endswith("the CNN has 2 convolutions")
    joint = run_script("hybrid_train", *TINY, "--feature-layer", 1, "--training", "joint")
    assert one_line(joint, 2).endswith("--feature-layer: only with --training frozen; it would have no effect, leave it out")
