"""The NumPy network: gradients, optimisers and training held against mathematics and against PyTorch."""

import csv
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, command, environment, one_line
from test_optimizers import TWINS, relative

import data
from numpy_nn import monitor
from numpy_nn import layers
import mlp_from_scratch as mlp
from support import runs
from support import settings
from numpy_nn.optimizers import OPTIMIZERS

RNG = np.random.default_rng(7)


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
@pytest.mark.parametrize("make", [lambda: layers.Linear(4, 3), layers.ReLU])
def test_layer_gradients_by_central_differences(make, n):
    layer, x = bound(make()), RNG.standard_normal((n, 4))
    dout = RNG.standard_normal(layer.forward(x, training=True).shape)
    dx = layer.backward(dout)

    def f():
        return float((layer.forward(x) * dout).sum())

    assert relative(dx, central_differences(f, x)) < 1e-6
    for name, value in layer.params.items():
        assert relative(layer.grads[name], central_differences(f, value)) < 1e-6


@pytest.mark.parametrize("make", [lambda: layers.Linear(4, 3), layers.ReLU])
def test_layer_gradients_by_autograd(make):
    layer, x = bound(make()), RNG.standard_normal((6, 4))
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
    tx = torch.tensor(x, requires_grad=True)
    out = tx @ tensors["W"] + tensors["b"] if tensors else torch.relu(tx)
    y = layer.forward(x, training=True)
    assert relative(y, out.detach().numpy()) < 1e-12
    dout = RNG.standard_normal(y.shape)
    out.backward(torch.tensor(dout))
    assert relative(layer.backward(dout), tx.grad.numpy()) < 1e-12
    for name, tensor in tensors.items():
        assert relative(layer.grads[name], tensor.grad.numpy()) < 1e-12


def test_softmax_cross_entropy():
    logits, y = 3 * RNG.standard_normal((7, 5)), RNG.integers(0, 5, 7)
    loss, dlogits = layers.softmax_cross_entropy(logits, y)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative(dlogits, tensor.grad.numpy()) < 1e-12
    assert relative(dlogits, central_differences(lambda: layers.softmax_cross_entropy(logits, y)[0], logits)) < 1e-6


def test_extreme_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = layers.softmax_cross_entropy(logits, np.array([1, 0]))
    assert loss == pytest.approx((2e4 + np.log(3)) / 2)
    assert np.isfinite(dlogits).all()
    assert np.allclose(layers.softmax(logits).sum(axis=1), 1)


@pytest.mark.parametrize("hidden", [(), (6,), (7, 5, 4)])
def test_gradients_of_the_whole_network(hidden):
    model = mlp.MLP((8, *hidden, 3), np.random.default_rng(1), dtype=np.float64)
    model.params += 0.1 * RNG.standard_normal(model.params.shape)  # biases that are not 0
    X, y = RNG.standard_normal((5, 8)), RNG.integers(0, 3, 5)

    def f():
        return layers.softmax_cross_entropy(model.forward(X), y)[0]

    _, dlogits = layers.softmax_cross_entropy(model.forward(X, training=True), y)
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


@pytest.mark.parametrize(("init", "std"), [
    ("he", (2 / 1000) ** 0.5), ("xavier", (2 / 1500) ** 0.5), ("lecun", (1 / 1000) ** 0.5), ("random", 0.05),
])  # fmt: skip
def test_initialisation(init, std):
    model = mlp.MLP((1000, 500), np.random.default_rng(0), init=init, init_scale=0.05)
    assert model.views["0.W"].std() == pytest.approx(std, rel=0.01)
    assert abs(model.views["0.W"].mean()) < 1e-3
    assert not model.views["0.b"].any()


def test_dropout_keeps_the_expected_value_and_does_nothing_in_use():
    layer = layers.Dropout(0.3, np.random.default_rng(0))
    x = np.ones((400, 500), np.float32)
    y = layer.forward(x, training=True)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01)
    assert y.dtype == np.float32
    assert layer.forward(x) is x


def test_batch_norm_runs_beside_torch_in_training_and_in_use():
    model = mlp.MLP((6, 5, 3), np.random.default_rng(0), norm="batch", dtype=np.float64)
    ours, twin = model.layers[1], torch.nn.BatchNorm1d(5, dtype=torch.float64)
    for _ in range(4):
        x = 2 + 3 * RNG.standard_normal((7, 5))
        assert relative(ours.forward(x, training=True), twin(torch.tensor(x)).detach().numpy()) < 1e-12
    twin.eval()
    assert relative(ours.forward(x), twin(torch.tensor(x)).detach().numpy()) < 1e-12
    assert relative(ours.state["var"], twin.running_var.numpy()) < 1e-12


@pytest.mark.parametrize("options", [
    {"norm": "batch"}, {"norm": "layer"}, {"activation": "gelu"}, {"activation": "tanh"}, {"activation": "leaky_relu"},
    {"activation": "sigmoid"}, {"dropout": 0.5, "input_dropout": 0.2, "dropout_rng": np.random.default_rng(0)},
])  # fmt: skip
def test_every_part_stays_in_float32(options):
    model = mlp.MLP((6, 5, 4, 3), np.random.default_rng(0), **options)
    logits = model.forward(RNG.standard_normal((8, 6)).astype(np.float32), training=True)
    for loss, _ in layers.LOSSES.values():
        _, dlogits = loss(logits, np.zeros(8, int), 0.1)
        assert logits.dtype == dlogits.dtype == model.backward(dlogits, input_gradient=True).dtype == np.float32


def test_sigmoid_cross_entropy_beside_torch_and_at_the_extremes():
    logits, y = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 3]]), np.array([1, 1])
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = layers.sigmoid_cross_entropy(logits, y, 0.1)
    tensor = torch.tensor(logits, requires_grad=True)
    targets = torch.nn.functional.one_hot(torch.tensor(y), 3).double() * 0.9 + 0.1 / 3
    expected = torch.nn.functional.binary_cross_entropy_with_logits(tensor, targets, reduction="sum") / 2
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative(dlogits, tensor.grad.numpy()) < 1e-12


def training_of(model, n, **options):
    plain = {"label_smoothing": 0.0, "weight_decay": 0.0, "average": 0.0, "warmup": 0.0}
    return mlp.Trainer(model, mlp.make_rngs(0), settings.load(mlp, **(plain | options)), n)


def test_clipping_and_penalties():
    model = mlp.MLP((6, 5, 3), np.random.default_rng(0), dtype=np.float64)
    model.grads[:] = RNG.standard_normal(len(model.grads))
    before, tensor = model.grads.copy(), torch.tensor(model.grads, requires_grad=True)
    tensor.grad = torch.tensor(before)
    norm = torch.nn.utils.clip_grad_norm_([tensor], 2.0)
    assert model.clip_grad_norm(2.0) == pytest.approx(norm.item())
    assert relative(model.grads, tensor.grad.numpy()) < 1e-6
    assert model.clip_grad_norm(5.0) == pytest.approx(2.0)  # short enough: left as it is
    assert relative(model.grads, tensor.grad.numpy()) < 1e-6
    weights = [model.views["0.W"], model.views["1.W"]]
    penalty = 0.1 * sum(np.abs(W).sum() for W in weights) + 0.05 * sum((W**2).sum() for W in weights)
    assert model.add_penalties(0.1, 0.1) == pytest.approx(penalty)


def test_decoupled_weight_decay_is_adamw_on_the_weights(digits):
    X, y = digits.train.X[:256].reshape(-1, 784), digits.train.y[:256]
    model, twin = (mlp.MLP((784, 8, 10), np.random.default_rng(0)) for _ in range(2))
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in twin.views.items()}
    groups = [{"params": [t for name, t in tensors.items() if "W" in name], "weight_decay": 0.1},
              {"params": [t for name, t in tensors.items() if "b" in name], "weight_decay": 0}]  # fmt: skip
    adamw = torch.optim.AdamW(groups, lr=0.01)
    flags = {"epochs": 3, "batch_size": 64, "schedule": "constant", "learning_rate": 0.01, "weight_decay": 0.1}
    training_of(model, 256, **flags).run(X, y, X, y, lambda row: None)
    rng = mlp.make_rngs(0)["shuffle"]
    for _ in range(3):
        for batch in data.batches(256, 64, rng):
            hidden = torch.relu(torch.tensor(X[batch]) @ tensors["0.W"] + tensors["0.b"])
            loss = torch.nn.functional.cross_entropy(hidden @ tensors["1.W"] + tensors["1.b"], torch.tensor(y[batch]))
            adamw.zero_grad()
            loss.backward()
            adamw.step()
    for name, tensor in tensors.items():
        assert relative(model.views[name], tensor.detach().numpy()) < 1e-4


def test_the_average_is_what_is_validated_and_left(digits):
    X, y = digits.train.X[:200].reshape(-1, 784), digits.train.y[:200]
    model = mlp.MLP((784, 8, 10), np.random.default_rng(0), norm="batch")
    training, last = training_of(model, 200, epochs=3, batch_size=50, average=0.9), None
    update, expected = training.average.update, model.params.astype(np.float64)

    def watched():
        nonlocal expected, last
        update()
        kept = min(0.9, (1 + training.average.t) / (10 + training.average.t))
        expected, last = kept * expected + (1 - kept) * model.params, model.params.copy()

    training.average.update = watched
    training.run(X, y, X, y, lambda row: None)
    assert relative(model.params, expected) < 1e-5 < relative(last, expected)
    assert training.history["val_loss"][-1] == layers.softmax_cross_entropy(model.predict_logits(X), y)[0]


def test_early_stopping_leaves_the_best_weights(digits):
    X, X_val = digits.train.X.reshape(-1, 784), digits.val.X.reshape(-1, 784)
    model = mlp.MLP((784, 16, 10), np.random.default_rng(0))
    training = training_of(model, len(X), epochs=200, patience=3, schedule="constant", learning_rate=0.01)
    training.run(X, digits.train.y, X_val, digits.val.y, lambda row: None)
    accuracies = training.history["val_accuracy"]
    assert len(accuracies) == training.best_epoch + 3 < 200
    assert mlp.accuracy(model.predict_logits(X_val), digits.val.y) == max(accuracies) == accuracies[training.best_epoch - 1]


def test_rngs_are_independent(digits):
    orders = []
    for dropout in (0.0, 0.5):
        s = settings.load(mlp, hidden=(4,), dropout=dropout, epochs=1)
        seen = []
        original = data.batches

        def spy(*arguments, original=original, seen=seen):
            seen.extend(original(*arguments))
            return seen

        data.batches = spy
        try:
            X, X_val = digits.train.X.reshape(-1, 784), digits.val.X.reshape(-1, 784)
            mlp.train(X, digits.train.y, X_val, digits.val.y, 10, s, print)
        finally:
            data.batches = original
        orders.append(np.concatenate(seen))
    assert np.array_equal(*orders)


def test_training_stays_in_float32(digits):
    X, y = digits.train.X[:100].reshape(100, -1), digits.train.y[:100]
    model = mlp.MLP((784, 8, 10), np.random.default_rng(0), norm="batch")
    training = training_of(model, 100, epochs=1, l1=1e-4, l2=1e-4, weight_decay=0.1, max_grad_norm=0.1, average=0.9)
    training.run(X, y, X, y, lambda row: None)
    arrays = [*training.arrays().values(), *(dW for _, dW in model.weights), *model.layers[0].workspaces.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_ten_training_steps_beside_a_torch_twin(name, digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    model = mlp.MLP((784, 256, 128, 10), np.random.default_rng(3))
    twin = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(),
                               torch.nn.Linear(128, 10))  # fmt: skip
    with torch.no_grad():
        for number in range(3):
            twin[2 * number].weight.copy_(torch.tensor(model.views[f"{number}.W"].T))
            twin[2 * number].bias.copy_(torch.tensor(model.views[f"{number}.b"]))
    optimizer, torch_optimizer = OPTIMIZERS[name](model.params, model.grads), TWINS[name](twin.parameters())
    torch_optimizer.param_groups[0]["lr"] = 0.001
    losses = []
    for batch in data.batches(len(y), 64, np.random.default_rng(4))[:10]:
        loss, dlogits = layers.softmax_cross_entropy(model.forward(X[batch], training=True), y[batch])
        model.backward(dlogits)
        optimizer.step(0.001)
        torch_loss = torch.nn.functional.cross_entropy(twin(torch.tensor(X[batch])), torch.tensor(y[batch]))
        torch_optimizer.zero_grad()
        torch_loss.backward()
        torch_optimizer.step()
        assert loss == pytest.approx(torch_loss.item(), rel=1e-5)
        losses.append(loss)
    assert losses[-1] < losses[0]


def test_standardised():
    X = RNG.random((5, 4, 4), dtype=np.float32)
    assert relative(mlp.standardize(X, 0.5, 0.25), (X.reshape(5, 16) - 0.5) / 0.25) < 1e-6


def test_saved_and_restored_predictions_are_identical(tmp_path):
    model = mlp.MLP((784, 32, 10), np.random.default_rng(0), norm="batch", activation="tanh", input_dropout=0.1,
                    dropout_rng=np.random.default_rng(0))  # fmt: skip
    model.forward(RNG.random((50, 784), dtype=np.float32), training=True)  # running means and variances of its own
    mlp.save(tmp_path / "w.safetensors", model, {"mean": 0.5})
    again, metadata = mlp.restore(tmp_path / "w.safetensors")
    X = RNG.random((9, 784), dtype=np.float32)
    assert np.array_equal(model.predict_logits(X), again.predict_logits(X))
    assert metadata["mean"] == 0.5
    files.save_weights(tmp_path / "other.safetensors", {"W": np.ones(1)}, {"model": "cnn"})
    with pytest.raises(files.RunError, match="not the NumPy MLP"):
        mlp.restore(tmp_path / "other.safetensors")
    tensors, metadata = files.load_weights(tmp_path / "w.safetensors")
    files.save_weights(tmp_path / "w.safetensors", dict.fromkeys(tensors, np.ones(1, np.float32)), metadata)
    with pytest.raises(files.RunError, match="has the shape"):
        mlp.restore(tmp_path / "w.safetensors")


def test_logits_in_pieces_are_the_logits():
    model = mlp.MLP((20, 8, 10), np.random.default_rng(0), dtype=np.float64)
    X = RNG.random((33, 20))
    assert np.allclose(model.predict_logits(X, batch_size=7), model.forward(X), rtol=1e-12)


def test_importing_it_imports_no_torch():
    code = "import sys, mlp_from_scratch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- the script, as a user runs it

FILES = {"settings.json", "history.csv", "metrics.json", "weights.safetensors", "curves.png", "confusion_matrix.png",
         "classification_report.png", "classification_report.txt", "samples.png", "mistakes.png",
         "reliability.png"}  # fmt: skip
FILES_OF_MLP = FILES | {"checkpoint.safetensors", "monitor.png", "distributions.png", "first_layer.png", "learning_rate.png"}
KEYS = {"dataset", "model", "train_size", "val_size", "test_size", "val_accuracy", "test_accuracy", "test_loss",
        "parameters", "seconds", "settings", "versions", "machine"}  # fmt: skip


def test_the_script(run_script, tmp_path):
    for name in ("one", "two"):
        flags = ("--epochs", 20, "--hidden", 64, 16, "--norm", "none", "--output-dir", name)
        done = run_script("mlp_from_scratch", "--dataset", "digits", *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip().splitlines()[-1] == name
    folder = tmp_path / "one"
    assert {path.name for path in folder.iterdir()} == FILES_OF_MLP
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert metrics["parameters"] == 784 * 64 + 64 + 64 * 16 + 16 + 16 * 10 + 10
    assert metrics["settings"]["hidden"] == [64, 16]
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, 21))
    assert float(history[-1]["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=1e-5)

    digits = data.load("digits")  # the saved weights give the accuracy that was reported
    model, metadata = mlp.restore(folder / "weights.safetensors")
    assert (metadata["mean"], metadata["std"]) == data.mean_std(digits.train.X)  # of the training split alone
    logits = model.predict_logits(mlp.standardize(digits.test.X, metadata["mean"], metadata["std"]))
    assert metrics["test_loss"] == pytest.approx(layers.softmax_cross_entropy(logits, digits.test.y)[0])
    assert np.mean(logits.argmax(axis=1) == digits.test.y) == metrics["test_accuracy"] > 0.8
    other, _ = mlp.restore(tmp_path / "two/weights.safetensors")
    assert np.array_equal(model.params, other.params)  # same seed, same bits


def test_a_learning_rate_that_diverges(run_script, tmp_path):
    flags = ("--dataset", "digits", "--optimizer", "sgd", "--learning-rate", 1e6)
    assert "--weight-decay 0.1: with --learning-rate" in one_line(run_script("mlp_from_scratch", *flags), 2)
    line = one_line(run_script("mlp_from_scratch", *flags, "--weight-decay", 0), 1)
    assert "loss became" in line  # of training or validation, as the processor rounds
    assert "lower --learning-rate" in line


def test_a_last_step_that_diverges(run_script, tmp_path):
    flags = ("--optimizer", "sgd", "--learning-rate", 1e30, "--weight-decay", 0, "--batch-size", 100_000, "--epochs", 1)
    assert "the validation loss became nan" in one_line(run_script("mlp_from_scratch", "--dataset", "digits", *flags), 1)
    assert not list(tmp_path.glob("runs/*/*/metrics.json"))


def test_several_seeds(run_script, tmp_path):
    flags = ("--dataset", "digits", "--epochs", 2, "--hidden", 8)
    done = run_script("mlp_from_scratch", *flags, "--seed", 3, "--seeds", 3, "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 seeds, mean and standard deviation:" in done.stdout
    folder = tmp_path / "out"
    metrics = json.loads((folder / "metrics.json").read_text())
    single = [json.loads((folder / f"seed_{seed}" / "metrics.json").read_text()) for seed in (3, 4, 5)]
    values = [one["test_accuracy"] for one in single]
    assert metrics["seeds"] == [3, 4, 5] == [one["settings"]["seed"] for one in single]
    assert metrics["by_seed"]["test_accuracy"] == values
    assert metrics["test_accuracy"] == pytest.approx(np.mean(values))
    assert metrics["test_accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert run_script("mlp_from_scratch", *flags, "--seed", 4, "--output-dir", "alone").returncode == 0
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert (alone["test_accuracy"], alone["test_loss"]) == (single[1]["test_accuracy"], single[1]["test_loss"])

    (folder / "metrics.json").unlink()  # as if it had been killed in its second seed, and before its third
    (folder / "seed_4/metrics.json").unlink()
    for path in (folder / "seed_5").iterdir():
        path.unlink()
    done = run_script("mlp_from_scratch", "--resume", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed 3, 1 of 3: done before" in done.stdout
    again = json.loads((folder / "metrics.json").read_text())
    assert again["by_seed"]["test_loss"] == metrics["by_seed"]["test_loss"]


def test_each_epoch_visits_every_image_once_in_another_order(digits):
    seen = []

    class Spy(mlp.MLP):
        def forward(self, x, training=False):
            if training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x, training)

    X, y = np.zeros((50, 4), np.float32), np.zeros(50, int)
    X[:, 0] = np.arange(50)
    training_of(Spy((4, 3), np.random.default_rng(0)), 50, epochs=2, batch_size=16).run(X, y, X, y, lambda row: None)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:] != sorted(seen[50:])


RESUMED = ("--dataset", "digits", "--epochs", 60, "--batch-size", 16, "--norm", "batch", "--dropout", 0.2, "--ema-decay", 0.9,
           "--schedule", "plateau", "--patience", 50, "--shift", 1, "--input", "pixel")  # fmt: skip


def test_killed_and_resumed_it_ends_as_if_never_stopped(run_script, tmp_path):
    whole = run_script("mlp_from_scratch", *RESUMED, "--output-dir", "whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    for rows in (0, 1, 12):  # killed three times: before the first epoch was over, in the second, and later
        resume = ("--resume", "killed") if rows else (*RESUMED, "--output-dir", "killed")
        process = subprocess.Popen(command("mlp_from_scratch", *resume), cwd=tmp_path, env=environment(),
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        history = tmp_path / "killed/history.csv"
        awaited = history if rows else tmp_path / "killed/settings.json"
        while process.poll() is None and not (awaited.exists() and len(awaited.read_text().splitlines()) > rows):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        assert not (tmp_path / "killed/metrics.json").exists()
    resumed = run_script("mlp_from_scratch", "--resume", "killed")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        one, two = (files.load_weights(tmp_path / folder / name)[0] for folder in ("whole", "killed"))
        assert one.keys() == two.keys()
        for key in one:
            assert np.array_equal(one[key], two[key]), key
    texts = [(tmp_path / folder / "history.csv").read_text() for folder in ("whole", "killed")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    for row in itertools.chain(*tables):
        del row["seconds"]
    assert tables[0] == tables[1]
    one, two = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("whole", "killed"))
    assert one["test_accuracy"] == two["test_accuracy"]


@pytest.mark.parametrize("options", [
    {"schedule": "linear", "warmup": 0.3, "input_dropout": 0.2, "dropout": 0.1, "average": 0.9, "norm": "batch"},
    {"optimizer": "nesterov", "schedule": "step", "learning_rate": 0.02, "norm": "layer", "max_grad_norm": 0.5},
    {"optimizer": "rmsprop", "schedule": "plateau", "patience": 2, "l1": 1e-5, "l2": 1e-4, "loss": "sigmoid"},
    {"optimizer": "momentum", "schedule": "exponential", "learning_rate": 0.02, "patience": 4, "average": 0.99},
    {"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1, "activation": "tanh", "hidden": ()},
])  # fmt: skip
def test_taken_up_after_any_epoch_it_ends_the_same(options, digits, tmp_path):
    X_val = digits.val.X.reshape(-1, 784)
    s = settings.load(mlp, **({"hidden": (16, 8), "epochs": 5, "batch_size": 50} | options))

    def fresh():
        training = mlp.Trainer(*mlp.build(784, 10, s), s, len(digits.train.X))
        training.monitor = monitor.TrainingMonitor(training.model, X_val[:100], s)
        return training

    def go_on(training, keep=lambda: None):
        def augmented(x):
            return data.augment(x, training.rng["augment"], flip=True, shift=1, erase=3).reshape(len(x), -1)

        training.run(digits.train.X, digits.train.y, X_val, digits.val.y, lambda row: None, keep, augmented)
        training.history.pop("seconds")

    whole = fresh()
    go_on(whole, lambda: files.save_weights(tmp_path / f"{whole.epoch}.safetensors", whole.arrays(), whole.about()))
    for epoch in range(1, whole.epoch + 1):  # after the last one, too: the run that was stopped while it drew its figures
        again = fresh()
        again.take_up(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        go_on(again)
        assert np.array_equal(again.model.params, whole.model.params), epoch
        assert np.array_equal(again.model.buffers, whole.model.buffers)
        assert again.history == whole.history
        assert again.monitor.history == whole.monitor.history


def test_a_finished_run_is_finished_again(run_script, tmp_path):
    flags = ("--dataset", "digits", "--quick", "--hidden", 8, "--output-dir", "run")
    assert run_script("mlp_from_scratch", *flags).returncode == 0
    before = json.loads((tmp_path / "run/metrics.json").read_text())
    assert run_script("mlp_from_scratch", "--resume", "run").returncode == 0
    after = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [after[key] for key in ("test_accuracy", "val_accuracy", "test_loss")] == [
        before[key] for key in ("test_accuracy", "val_accuracy", "test_loss")]  # fmt: skip


def test_what_cannot_be_resumed(run_script, tmp_path):
    assert "no run of this script" in one_line(run_script("mlp_from_scratch", "--resume", "nothing"), 2)
    done = run_script("mlp_from_scratch", "--dataset", "digits", "--epochs", 2, "--hidden", 8, "--output-dir", "run")
    assert done.returncode == 0
    line = one_line(run_script("mlp_from_scratch", "--resume", "run", "--hidden", 9), 2)
    assert "--hidden: the run was started with 8" in line
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    path = tmp_path / "run/checkpoint.safetensors"
    tensors, metadata = files.load_weights(path)
    for change, said in (
        (lambda: path.write_bytes(before[path][:-9]), "damaged"),
        (lambda: path.write_text("x"), "damaged"),
        (path.unlink, "cannot be taken up without it"),
        (lambda: files.save_weights(path, tensors, metadata | {"split": "other"}), "other data"),
        (lambda: files.save_weights(path, tensors, metadata | {"settings": metadata["settings"] | {"activation": "tanh"}}),
         "other settings: activation"),
        (lambda: files.save_weights(path, tensors | {"params": tensors["params"][:-1]}, metadata), "not as this project"),
    ):
        change()
        assert said in one_line(run_script("mlp_from_scratch", "--resume", "run"), 1)
        assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p != path} == {
            p: content for p, content in before.items() if p != path}  # fmt: skip


def test_the_defaults_reach_89_per_cent(run_script, real_folder, tmp_path):
    done = run_script("mlp_from_scratch", "--output-dir", "out", real_folder=real_folder)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["test_accuracy"] >= 0.89
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)
