"""The NumPy network: gradients, optimisers and training held against mathematics and against PyTorch."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line

import data
import mlp_from_scratch as mlp
import runs

RNG = np.random.default_rng(7)


def relative(a, b):
    """Largest difference relative to the largest magnitude."""
    return np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max(), 1e-300)


def central_differences(f, x, h=1e-5):
    """Gradient of the scalar f() with respect to the float64 array x, which f reads."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + h
        above = f()
        x[i] = kept - h
        gradient[i] = (above - f()) / (2 * h)
        x[i] = kept
    return gradient


def bound(layer):
    """A layer with float64 parameters and gradients of its own, outside any MLP."""
    layer.params = {name: RNG.standard_normal(shape) for name, shape in layer.shapes.items()}
    layer.grads = {name: np.full(shape, np.nan) for name, shape in layer.shapes.items()}
    return layer


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("make", [lambda: mlp.Linear(4, 3), mlp.ReLU])
def test_layer_gradients_by_central_differences(make, n):
    layer, x = bound(make()), RNG.standard_normal((n, 4))
    dout = RNG.standard_normal(layer.forward(x).shape)
    dx = layer.backward(dout)

    def f():
        return float((layer.forward(x) * dout).sum())

    assert relative(dx, central_differences(f, x)) < 1e-6
    for name, value in layer.params.items():
        assert relative(layer.grads[name], central_differences(f, value)) < 1e-6


@pytest.mark.parametrize("make", [lambda: mlp.Linear(4, 3), mlp.ReLU])
def test_layer_gradients_by_autograd(make):
    layer, x = bound(make()), RNG.standard_normal((6, 4))
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
    tx = torch.tensor(x, requires_grad=True)
    out = tx @ tensors["W"] + tensors["b"] if tensors else torch.relu(tx)
    y = layer.forward(x)
    assert relative(y, out.detach().numpy()) < 1e-12
    dout = RNG.standard_normal(y.shape)
    out.backward(torch.tensor(dout))
    assert relative(layer.backward(dout), tx.grad.numpy()) < 1e-12
    for name, tensor in tensors.items():
        assert relative(layer.grads[name], tensor.grad.numpy()) < 1e-12


def test_softmax_cross_entropy():
    logits, y = 3 * RNG.standard_normal((7, 5)), RNG.integers(0, 5, 7)
    loss, dlogits = mlp.softmax_cross_entropy(logits, y)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative(dlogits, tensor.grad.numpy()) < 1e-12
    assert relative(dlogits, central_differences(lambda: mlp.softmax_cross_entropy(logits, y)[0], logits)) < 1e-6


def test_extreme_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = mlp.softmax_cross_entropy(logits, np.array([1, 0]))
    assert loss == pytest.approx((2e4 + np.log(3)) / 2)
    assert np.isfinite(dlogits).all()
    assert np.allclose(mlp.softmax(logits).sum(axis=1), 1)


@pytest.mark.parametrize("hidden", [(), (6,), (7, 5, 4)])
def test_gradients_of_the_whole_network(hidden):
    model = mlp.MLP((8, *hidden, 3), np.random.default_rng(1), np.float64)
    model.params += 0.1 * RNG.standard_normal(model.params.shape)  # biases that are not 0
    X, y = RNG.standard_normal((5, 8)), RNG.integers(0, 3, 5)

    def f():
        return mlp.softmax_cross_entropy(model.forward(X), y)[0]

    _, dlogits = mlp.softmax_cross_entropy(model.forward(X), y)
    model.grads[:] = np.nan  # whatever backward does not fill stays visible
    dX = model.backward(dlogits, input_gradient=True)
    assert relative(model.grads, central_differences(f, model.params)) < 1e-6
    assert relative(dX, central_differences(f, X)) < 1e-6
    filled = model.grads.copy()
    f()
    assert model.backward(dlogits) is None  # without the input's gradient, the others are the same
    assert relative(model.grads, filled) < 1e-12


def test_layers_are_views_of_one_vector():
    model = mlp.MLP((784, 256, 128, 10), np.random.default_rng(0))
    assert len(model.params) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert all(np.shares_memory(view, model.params) for view in model.views.values())
    model.params[:] = 0
    assert not model.forward(np.ones((2, 784), np.float32)).any()
    assert model.forward(np.ones((2, 784), np.float32)).dtype == np.float32


def test_he_initialisation():
    W = mlp.MLP((1000, 500), np.random.default_rng(0)).views["0.W"]
    assert W.std() == pytest.approx(np.sqrt(2 / 1000), rel=0.01)
    assert abs(W.mean()) < 1e-3


PAIRS = {
    "sgd": (lambda p, g: mlp.SGD(p, g), lambda p: torch.optim.SGD(p, lr=0.01)),
    "momentum": (lambda p, g: mlp.SGD(p, g, 0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "adam": (mlp.Adam, lambda p: torch.optim.Adam(p, lr=0.01)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_fifty_optimiser_steps_beside_torch(name, dtype, tolerance):
    ours, theirs = PAIRS[name]
    params, grads = RNG.standard_normal(40).astype(dtype), np.empty(40, dtype)
    tensor = torch.tensor(params, requires_grad=True)
    optimizer, twin = ours(params, grads), theirs([tensor])
    for step in range(50):
        grads[:] = RNG.standard_normal(40)
        tensor.grad = torch.tensor(grads)
        rate = 0.01 * (1 + step % 3)
        twin.param_groups[0]["lr"] = rate
        optimizer.step(rate)
        twin.step()
        assert relative(params, tensor.detach().numpy()) < tolerance
    assert params.dtype == dtype


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_ten_training_steps_beside_a_torch_twin(name, digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    model = mlp.MLP((784, 256, 128, 10), np.random.default_rng(3))
    twin = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(),
                               torch.nn.Linear(128, 10))  # fmt: skip
    with torch.no_grad():
        for number in (0, 2, 4):
            twin[number].weight.copy_(torch.tensor(model.views[f"{number}.W"].T))
            twin[number].bias.copy_(torch.tensor(model.views[f"{number}.b"]))
    ours, theirs = PAIRS[name]
    optimizer, torch_optimizer = ours(model.params, model.grads), theirs(twin.parameters())
    torch_optimizer.param_groups[0]["lr"] = 0.001
    losses = []
    for batch in data.batches(len(y), 64, np.random.default_rng(4))[:10]:
        loss, dlogits = mlp.softmax_cross_entropy(model.forward(X[batch], training=True), y[batch])
        model.backward(dlogits)
        optimizer.step(0.001)
        torch_loss = torch.nn.functional.cross_entropy(twin(torch.tensor(X[batch])), torch.tensor(y[batch]))
        torch_optimizer.zero_grad()
        torch_loss.backward()
        torch_optimizer.step()
        assert loss == pytest.approx(torch_loss.item(), rel=1e-5)
        losses.append(loss)
    assert losses[-1] < losses[0]


def test_learning_rates():
    assert mlp.learning_rates("constant", 0.1, 4).tolist() == [0.1] * 4
    cosine = mlp.learning_rates("cosine", 0.1, 100)
    assert cosine[0] == 0.1
    assert cosine[50] == pytest.approx(0.05)
    assert (np.diff(cosine) < 0).all()
    assert 0 < cosine[-1] < 1e-4


def test_standardised():
    X = RNG.random((5, 4, 4), dtype=np.float32)
    assert relative(mlp.standardised(X, 0.5, 0.25), (X.reshape(5, 16) - 0.5) / 0.25) < 1e-6


def test_saved_and_restored_predictions_are_identical(tmp_path):
    model = mlp.MLP((784, 32, 10), np.random.default_rng(0))
    mlp.save(tmp_path / "w.safetensors", model, {"mean": 0.5})
    again, about = mlp.restore(tmp_path / "w.safetensors")
    X = RNG.random((9, 784), dtype=np.float32)
    assert np.array_equal(model.logits(X), again.logits(X))
    assert about["mean"] == 0.5
    runs.save_weights(tmp_path / "other.safetensors", {}, {"model": "cnn"})
    with pytest.raises(runs.RunError, match="not the NumPy MLP"):
        mlp.restore(tmp_path / "other.safetensors")


def test_logits_in_pieces_are_the_logits():
    model = mlp.MLP((20, 8, 10), np.random.default_rng(0), np.float64)
    X = RNG.random((33, 20))
    assert np.allclose(model.logits(X, batch_size=7), model.forward(X), rtol=1e-12)


def test_importing_it_imports_no_torch():
    code = "import sys, mlp_from_scratch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- the script, as a user runs it

FILES = {"settings.json", "history.csv", "metrics.json", "weights.safetensors", "curves.png", "confusion_matrix.png",
         "classification_report.png", "classification_report.txt", "samples.png"}  # fmt: skip
KEYS = {"dataset", "model", "train_size", "val_size", "test_size", "val_accuracy", "test_accuracy", "test_loss",
        "parameters", "seconds", "settings", "versions", "machine"}  # fmt: skip


def test_the_script(run_script, tmp_path):
    for name in ("one", "two"):
        flags = ("--epochs", 20, "--hidden", 64, 16, "--output-dir", name)
        done = run_script("mlp_from_scratch", "--dataset", "digits", *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip().splitlines()[-1] == name
    folder = tmp_path / "one"
    assert {path.name for path in folder.iterdir()} == FILES
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert metrics["parameters"] == 784 * 64 + 64 + 64 * 16 + 16 + 16 * 10 + 10
    assert metrics["settings"]["hidden"] == [64, 16]
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, 21))
    assert float(history[-1]["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=1e-5)

    digits = data.load("digits")  # the saved weights give the accuracy that was reported
    model, about = mlp.restore(folder / "weights.safetensors")
    assert (about["mean"], about["std"]) == data.statistics(digits.train.X)  # of the training split alone
    logits = model.logits(mlp.standardised(digits.test.X, about["mean"], about["std"]))
    assert metrics["test_loss"] == pytest.approx(mlp.softmax_cross_entropy(logits, digits.test.y)[0])
    assert np.mean(logits.argmax(axis=1) == digits.test.y) == metrics["test_accuracy"] > 0.8
    other, _ = mlp.restore(tmp_path / "two/weights.safetensors")
    assert np.array_equal(model.params, other.params)  # same seed, same bits


def test_a_learning_rate_that_diverges(run_script, tmp_path):
    line = one_line(run_script("mlp_from_scratch", "--dataset", "digits", "--optimizer", "sgd", "--learning-rate", 1e6), 1)
    assert "the loss became" in line
    assert "lower it" in line


def test_a_last_step_that_diverges(run_script, tmp_path):
    flags = ("--optimizer", "sgd", "--learning-rate", 1e30, "--batch-size", 100_000, "--epochs", 1)
    assert "the validation loss became nan" in one_line(run_script("mlp_from_scratch", "--dataset", "digits", *flags), 1)
    assert not list(tmp_path.glob("runs/*/*/metrics.json"))


def test_each_epoch_visits_every_image_once_in_another_order(digits):
    seen = []

    class Spy(mlp.MLP):
        def forward(self, x, training=False):
            if training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x, training)

    X, y = np.zeros((50, 4), np.float32), np.zeros(50, int)
    X[:, 0] = np.arange(50)
    model = Spy((4, 3), np.random.default_rng(0))
    mlp.fit(model, mlp.SGD(model.params, model.grads), X, y, X, y, epochs=2, batch_size=16, rates=[1e-3] * 8,
            rng=np.random.default_rng(0), log=lambda row: None)  # fmt: skip
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:] != sorted(seen[50:])


def test_defaults_reach_89_per_cent_in_under_a_minute_or_so(run_script, real_folder, tmp_path):
    start = time.time()
    done = run_script("mlp_from_scratch", "--output-dir", "out", real_folder=real_folder)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["test_accuracy"] >= 0.89
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)
    assert metrics["seconds"] <= time.time() - start  # speed itself is no test's business: machines are shared
