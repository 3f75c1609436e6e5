"""The main job as a user runs it: its files, its figures recomputed, saved backbones, and Ctrl-C."""

import copy
import csv
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, command, environment, one_line
from test_mlp_from_scratch import FILES, KEYS

import cnn_feature_extraction as cnn
import data
import hybrid_train
from numpy_nn import layers
import mlp_from_scratch as mlp
from support import runs
from support import settings

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
    more = {"backbone.safetensors", "head.safetensors", "hybrid.safetensors", "features.npz", "cnn_history.csv",
            "cnn_curves.png", "cnn_and_hybrid.png", runs.CHECKPOINT}  # fmt: skip
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
    head, metadata = mlp.restore(folder / "head.safetensors")
    weights, _ = files.load_weights(folder / "backbone.safetensors")
    labels = data.load("digits", quick=True).test.y
    with np.load(folder / "features.npz", allow_pickle=False) as file:
        X, y = file["X_test"], file["y_test"]
    assert np.array_equal(y, labels)
    hybrid_logits = head.forward((X - np.float32(metadata["mean"])) / np.float32(metadata["std"]))
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


def test_the_settings_told_are_those_that_the_backbone_was_trained_with(hybrid, run_script, tmp_path):
    folder, _ = hybrid
    flags = ("--dataset", "digits", "--quick", "--backbone", folder / "backbone.safetensors", "--output-dir", "out")
    done = run_script("hybrid_train", *flags, "--head-hidden", 16)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads((path / "settings.json").read_text()) for path in (folder, tmp_path / "out"))
    assert {name for name in first if first[name] != second[name]} == {"backbone", "head_hidden", "output_dir"}
    for flag, value in (("--dropout", 0.2), ("--batch-size", 9)):  # of its shape, of its training
        line = one_line(run_script("hybrid_train", *flags, flag, value), 2)
        assert f" {flag}: " in line
        assert "leave the flag out" in line


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
    tensors, metadata = files.load_weights(good)
    for wrong in ({"model": "cnn"}, metadata | {"settings": metadata["settings"] | {"channels": [8, 17]}}):
        files.save_weights(broken, tensors, wrong)
        assert "not as this project writes it" in one_line(run_script("hybrid_train", *TINY, "--backbone", broken), 1)
    assert not (tmp_path / "runs").exists()


def test_a_backbone_of_digits_is_not_taken_for_fashion(hybrid, run_script, real_folder):
    folder, _ = hybrid
    good = folder / "backbone.safetensors"
    line = one_line(run_script("hybrid_train", "--quick", "--backbone", good, real_folder=real_folder), 1)
    assert "was trained on digits (subset), and cannot tell the classes of Fashion-MNIST (subset)" in line


def test_divergence_names_the_settings_that_help(run_script, tmp_path):
    short = ("--dataset", "digits", "--quick", "--epochs", 1, "--channels", 4, "--pool-after", 1)
    line = one_line(run_script("hybrid_train", *short, "--head-learning-rate", 1e30, "--output-dir", "frozen"), 1)
    assert "the NumPy MLP: the loss became" in line or "the NumPy MLP: the validation loss became" in line
    assert "lower --head-learning-rate" in line
    assert (tmp_path / "frozen/backbone.safetensors").exists()
    joint = ("--training", "joint", "--joint-learning-rate", 1e30, "--output-dir", "joint")
    line = one_line(run_script("hybrid_train", *short, *joint), 1)  # and no warnings from NumPy
    assert "lower --learning-rate or --joint-learning-rate" in line


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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", "cnn_history.csv", runs.CHECKPOINT}
    assert len(history.read_text().splitlines()) > 1


def test_the_quick_tour_on_real_images(run_script, real_folder, tmp_path):
    done = run_script("hybrid_train", "--quick", "--output-dir", "out", real_folder=real_folder)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["dataset"] == "Fashion-MNIST (subset)"
    assert metrics["test_accuracy"] > 0.8
    assert metrics["cnn_test_accuracy"] > 0.8


# ---- CNN and MLP as one network


@pytest.mark.parametrize("options", [
    {"activation": "tanh"}, {"activation": "gelu", "norm": "layer"}, {"activation": "sigmoid", "norm": "batch"},
    {"activation": "tanh", "dropout": 0.4},
])  # fmt: skip
def test_the_gradient_that_goes_on_into_pytorch(options):
    rng, masks = np.random.default_rng(0), np.random.default_rng(1)
    network = mlp.MLP((6, 5, 4, 3), rng, dtype=np.float64, dropout_rng=masks, **options)
    network.params += 0.1 * np.random.default_rng(2).standard_normal(network.params.shape)
    features = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    # a network of its own for each call: gradcheck goes back only after many passes, and each draws the same dropout
    assert torch.autograd.gradcheck(lambda x: hybrid_train.NumpyMLPFunction.apply(x, copy.deepcopy(network)), (features,))


def test_a_forgotten_pass_is_not_gone_back():
    network = mlp.MLP((3, 2), np.random.default_rng(0))
    features = torch.ones(4, 3, requires_grad=True)
    first = hybrid_train.NumpyMLPFunction.apply(features, network)
    second = hybrid_train.NumpyMLPFunction.apply(features, network)
    second.sum().backward()
    with pytest.raises(RuntimeError, match="another forward pass"):
        first.sum().backward()


def test_twenty_joint_steps_beside_a_twin_all_in_torch():
    """The same weights, batches and dropout masks, in float64: convolution, NumPy MLP with dropout, SGD and Adam."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 16, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (20, 16), generator=generator)
    network = mlp.MLP((48, 12, 10, 4), np.random.default_rng(0), dropout=0.3, dropout_rng=np.random.default_rng(1),
                      dtype=np.float64)  # fmt: skip
    head = hybrid_train.NumpyHead(network, 0.01, mean=0.3, std=0.7)

    def convolution():
        torch.manual_seed(5)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
                                   torch.nn.Flatten()).double()  # fmt: skip

    ours, twin = convolution(), convolution()
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in network.views.items()}
    optimizers = [torch.optim.SGD(part.parameters(), 0.1, 0.9, nesterov=True) for part in (ours, twin)]
    adam = torch.optim.Adam(tensors.values(), 0.01)
    for x, y in zip(images, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(head(ours(x)), y, label_smoothing=0.1)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        head.step()
        masks = [torch.tensor(layer.mask) for layer in network.layers if isinstance(layer, layers.Dropout)]
        hidden = (twin(x) - 0.3) / 0.7
        for number, mask in enumerate(masks):
            hidden = torch.relu(hidden @ tensors[f"{number}.W"] + tensors[f"{number}.b"]) * mask
        logits = hidden @ tensors["2.W"] + tensors["2.b"]
        expected = torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
        for optimizer in (optimizers[1], adam):
            optimizer.zero_grad()
        expected.backward()
        for optimizer in (optimizers[1], adam):
            optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for one, two in zip(ours.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)
    for name, view in network.views.items():
        assert np.allclose(view, tensors[name].detach().numpy(), rtol=1e-9, atol=1e-12)
    assert np.array_equal(head.params, network.params)


def test_joint_training_taken_up_ends_the_same(digits, tmp_path):
    s = settings.load(cnn, channels=(3, 4), pool_after=(1, 2), batch_size=100, epochs=3)
    X, y, X_val, y_val = (torch.from_numpy(a[:300]) for of in (digits.train, digits.val) for a in (of.X[:, None], of.y))

    def fresh():
        model = cnn.build(s, generator=torch.Generator().manual_seed(0))
        model.classifier = hybrid_train.NumpyHead(mlp.MLP((196, 12, 10), np.random.default_rng(0)), 0.01)
        return cnn.Trainer(model, s, head=model.classifier)

    def keep():
        files.save_weights(tmp_path / f"{len(whole.history['epoch'])}.safetensors", whole.arrays(), whole.about())

    whole = fresh()
    whole.run(X, y, X_val, y_val, lambda row: None, keep)
    for epoch in (1, 2):
        again = fresh()
        again.take_up(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        again.run(X, y, X_val, y_val, lambda row: None)
        assert again.history["train_loss"] == whole.history["train_loss"]
        for (name, one), two in zip(whole.averaged.state_dict().items(), again.averaged.state_dict().values(), strict=True):
            assert torch.equal(one, two), (epoch, name)
        for name, array in whole.arrays().items():
            assert np.array_equal(array, again.arrays()[name]), name


def test_the_average_of_a_head_is_another_network():
    head = hybrid_train.NumpyHead(mlp.MLP((3, 4, 2), np.random.default_rng(0)), 0.1)
    averaged = copy.deepcopy(head).eval()
    averaged.params.zero_()
    x = torch.ones(5, 3)
    before = head.eval()(x).clone()
    assert not averaged(x).any()
    assert torch.equal(head(x), before)


@pytest.fixture(scope="module")
def joint(hybrid, tmp_path_factory):
    """The folder of a small joint run that goes on from the CNN and the MLP of `hybrid`."""
    frozen, _ = hybrid
    folder = tmp_path_factory.mktemp("joint")
    flags = ("--training", "joint", "--backbone", frozen / "backbone.safetensors", "--head", frozen / "head.safetensors")
    more = ("--learning-rate", 0.02, "--joint-learning-rate", 0.0003, "--epochs", 2, "--output-dir", folder / "out")
    done = subprocess.run(command("hybrid_train", *TINY, *flags, *more), cwd=folder, env=environment(), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "out"


def test_fine_tuning_begins_where_the_frozen_training_ended(hybrid, joint):
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (hybrid[0], joint))
    first = next(csv.DictReader((joint / "history.csv").read_text().splitlines()))
    assert float(first["val_accuracy"]) > before["val_accuracy"] - 0.03
    assert after["test_accuracy"] > before["test_accuracy"] - 0.03
    assert after["parameters"] == before["parameters"]
    files = FILES - {"weights.safetensors"} | {"hybrid.safetensors", runs.CHECKPOINT}
    assert {path.name for path in joint.iterdir()} == files


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_the_whole_hybrid_is_one_file_that_predicts_the_same_elsewhere(kind, hybrid, joint):
    folder = hybrid[0] if kind == "frozen" else joint
    images = data.load("digits", quick=True)
    X = torch.from_numpy(images.test.X)[:, None]
    model, metadata = hybrid_train.restore(folder / "hybrid.safetensors")
    with torch.no_grad():
        logits = model(X).numpy()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert np.mean(logits.argmax(axis=1) == images.test.y) == pytest.approx(metrics["test_accuracy"], abs=1e-9)
    assert tuple(metadata["classes"]) == images.classes
    assert metadata["fingerprint"] == images.fingerprint()
    code = (f"import hybrid_train, data, torch; m, _ = hybrid_train.restore({str(folder / 'hybrid.safetensors')!r})\n"
            "with torch.no_grad(): l = m(torch.from_numpy(data.load('digits', quick=True).test.X)[:, None]).numpy()\n"
            "print(data.digest(l))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == data.digest(logits)


def test_heads_that_cannot_be_taken(hybrid, run_script, tmp_path):
    folder, _ = hybrid
    head = ("--head", folder / "head.safetensors")
    assert "add --training joint" in one_line(run_script("hybrid_train", *TINY, *head), 2)
    assert "add --backbone" in one_line(run_script("hybrid_train", *TINY, "--training", "joint", *head), 2)
    head += ("--training", "joint", "--backbone", folder / "backbone.safetensors")
    line = one_line(run_script("hybrid_train", *TINY, *head, "--split-seed", 5), 1)
    assert "was trained with --split-seed 0: with 5, images that it has learnt from" in line
    line = one_line(run_script("hybrid_train", *TINY, *head, "--output-dir", folder), 2)
    assert "is the backbone's own folder; name another" in line
    images, s = data.load("digits", quick=True), settings.load(hybrid_train, cnn, data, runs, head=str(head[1]))
    s.channels, s.pool_after = (8, 9), (1, 2)
    with pytest.raises(files.RunError, match="is a head for 784 features and 10 classes"):
        hybrid_train.build_head(images, s)
    s.channels = (8, 16)
    assert hybrid_train.build_head(images, s).network.config["sizes"] == (784, 32, 10)
    assert s.head_hidden == (32,)  # for settings.json, by which a resumed run is built
    with pytest.raises(files.RunError, match="not the hybrid"):
        hybrid_train.restore(folder / "head.safetensors")
